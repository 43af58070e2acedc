"""Whether embeddings spread out or have collapsed: rank, variance, uniformity and alignment; needs no labels."""

from collections import defaultdict
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.errors import ConfigError
from pirl.evaluate.features import rows_of
from pirl.evaluate.measurement import Measurement, Outcome
from pirl.evaluate.pairs import Pairs, by_heads, by_trunk, network_of, views_of
from pirl.evaluate.subject import Subject
from pirl.methods.memory import MemoryBank
from pirl.methods.spread import FEWEST_ROWS, LOWEST_RANK, Spread, has_collapsed, spread_of, spread_of_bank
from pirl.runs.checkpoint import load_bank
from pirl.runs.checkpoint_folder import data_of, read_state
from pirl.sections import Count, Section
from pirl.wording import counted

SHOWN = {
    "effective_rank": "effective rank",
    "first": "variance of the first direction",
    "first_10": "variance of the first 10",
    "mean_norm": "length of the mean",
    "std": "std",
    "norm": "norm",
    "uniformity": "uniformity",
}
"""What of a `Spread` is measured, and how it is called."""

SHARES = ("first", "first_10")
"""Which of these are in %."""

MOST_IN_FIRST = 0.9
"""Share of the variance that the first direction of res5 has where it has not collapsed.

Seen on the digits: 0.14 to 0.32 of networks that learn, 0.27 with random weights, and 0.99 after learning rates of 1
and 10, which collapse. The length of the mean does not tell, since features after a ReLU have a mean: 0.985 with random
weights, 0.88 collapsed. Nor does effective rank by itself: 3.5 and 5.4 collapsed, and it cannot be more than the 8
channels of the narrowest network.
"""


class Health(Section):
    """Effective rank, uniformity, alignment of res5, f and memory bank, and whether they collapsed; needs no labels."""

    images: Count = 1000
    """Images of the training, the first ones, whose views are compared for alignment, and embedded by f."""


def refuse(settings: Health, train: Dataset, test: Dataset | None) -> None:
    """Raises ConfigError where there is nothing to compare."""
    if min(settings.images, train.rows) < 2:
        images = counted(train.rows, "image")
        raise ConfigError(f"health compares images: use --health.images 2 or more, of {images} of {train.uri}")


def measure(subject: Subject, settings: Health) -> Outcome:
    """Of res5 of the images that fit; of f and of the bank where there is a checkpoint."""
    config = subject.config or Config()
    views = views_of(config, subject.image_size, pretext=False)
    pairs = Pairs(subject.train, views, subject.device, subject.seed, subject.skip)
    spreads: dict[str, list[Spread]] = defaultdict(list)
    alignments: dict[str, list[float]] = defaultdict(list)
    embedded = 0
    for trained in subject.trunks:
        trunk = subject.trunk if trained else subject.untrained
        assert trunk is not None
        spreads["res5"].append(spread_of(subject.features("train", trained=trained).taps["res5"]))
        alignments["res5"].append(alignment(_whole(pairs.rows(settings.images, 1, by_trunk(trunk)))))
        if not subject.checkpoint:
            continue
        rows = pairs.rows(settings.images, 1, by_heads(network_of(subject, trained=trained), g=False))
        spreads["f"].append(spread_of(_whole(rows)[0]))
        alignments["f"].append(alignment(_whole(rows)))
        if trained:
            embedded, bank = _whole(rows).shape[1], bank_of(subject)
            spreads["bank"].append(spread_of_bank(bank))
            if data_of(subject.checkpoint) == subject.train.fingerprint:  # else its rows are of other images
                kept = bank.lookup(torch.arange(rows.shape[1])).to(rows)
                alignments["bank"].append(alignment(_whole(torch.stack([kept, rows[1]]))))
    verdict = verdict_on(spreads, embedded, rows_of(subject.train, subject.limit))
    subject.say(f"{verdict['verdict']}: {verdict['reason']}")
    order = sorted(spreads, key=["res5", "f", "bank"].index)
    return Outcome(
        [each for what in order for each in measurements(what, spreads[what], alignments[what])],
        {**verdict, **{what: asdict(spreads[what][0]) for what in order}},
    )


def alignment(rows: Tensor) -> float:
    """Mean of |x - y|² over pairs of unit rows (2, M, D) of two views of the same images (Wang & Isola, 2005.10242)."""
    return float((rows[0] - rows[1]).square().sum(1).mean())


def bank_of(subject: Subject) -> MemoryBank:
    """The bank of a checkpoint, shared by the ranks; a collective."""
    assert subject.config is not None
    assert subject.checkpoint is not None
    rows = int(read_state(subject.checkpoint)["rows"])
    bank = MemoryBank(rows, seed=subject.config.seed, keep=subject.config.memory.keep, device=subject.device)
    load_bank(subject.checkpoint, bank)
    return bank


def verdict_on(spreads: dict[str, list[Spread]], embedded: int, images: int) -> dict[str, Any]:
    """`verdict`, its `reason` and `threshold`: by f of so many images where they are enough, else by res5 of all."""
    if "f" in spreads and embedded >= FEWEST_ROWS:
        spread, threshold = spreads["f"][0], LOWEST_RANK
        collapsed = has_collapsed(spread, embedded)
        reason = f"f has an effective rank of {spread.effective_rank:.1f}, collapsed ones less than {threshold:g}"
    elif images < FEWEST_ROWS:  # which one direction may explain, whatever the network
        return {"verdict": "unknown", "reason": f"it takes {FEWEST_ROWS} images to tell", "threshold": FEWEST_ROWS}
    else:
        first, threshold = spreads["res5"][0].first, MOST_IN_FIRST
        collapsed = first > threshold
        reason = f"one direction of res5 has {first:.0%} of the variance, of collapsed ones more than {threshold:.0%}"
    return {"verdict": "collapsed" if collapsed else "healthy", "reason": reason, "threshold": threshold}


def measurements(what: str, spreads: list[Spread], aligned: list[float]) -> list[Measurement]:
    """Of the network, with those of a random one beside it where there are two."""
    values = [(name, [getattr(each, field) for each in spreads], field in SHARES) for field, name in SHOWN.items()]
    values += [("alignment", aligned, False)] if aligned else []
    return [
        Measurement(f"{what}, {name}", each[0], each[1] if len(each) > 1 else None, unit="%" if share else "")
        for name, each, share in values
    ]


def _whole(rows: Tensor) -> Tensor:
    """Rows (…, M, D) without images that were left out."""
    return rows[:, ~rows.isnan().any(2).any(0)]
