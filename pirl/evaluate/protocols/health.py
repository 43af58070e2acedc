"""Whether embeddings spread out or have collapsed: rank, variance, uniformity and alignment; needs no labels."""

from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.errors import ConfigError
from pirl.evaluate.measurement import Measurement, Outcome
from pirl.evaluate.pairs import Pairs, by_heads, by_trunk, network_of, views_of
from pirl.evaluate.subject import Subject
from pirl.methods.health import LONGEST_MEAN, Spread, spread_of, spread_of_bank
from pirl.methods.memory import MemoryBank
from pirl.runs.checkpoint import load_bank
from pirl.runs.checkpoint_folder import data_of, read_state
from pirl.sections import Count, Section

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


class Health(Section):
    """Effective rank, uniformity, alignment of res5, f and memory bank, and whether they collapsed; needs no labels."""

    images: Count = 1000
    """Images of the training, the first ones, whose views are compared for alignment, and embedded by f."""


def refuse(settings: Health, train: Dataset, test: Dataset | None) -> None:
    """Raises ConfigError where there is nothing to compare."""
    if min(settings.images, train.rows) < 2:
        raise ConfigError(f"health compares images: use --health.images 2 or more, of the {train.rows} of {train.uri}")


def measure(subject: Subject, settings: Health) -> Outcome:
    """Of res5 of the images that fit; of f and of the bank where there is a checkpoint."""
    config = subject.config or Config()
    views = views_of(config, subject.image_size, pretext=False)
    pairs = Pairs(subject.train, views, subject.device, subject.seed, subject.skip)
    parts: dict[str, list[Spread]] = {"res5": []}
    alignments: dict[str, list[float]] = {"res5": []}
    if subject.checkpoint:
        parts["f"], alignments["f"] = [], []
    rows = torch.empty(0)
    for trained in subject.trunks:
        trunk = subject.trunk if trained else subject.untrained
        assert trunk is not None
        parts["res5"].append(spread_of(_finite(subject.features("train", trained=trained).taps["res5"])))
        alignments["res5"].append(alignment(_whole(pairs.rows(settings.images, 1, by_trunk(trunk)))))
        if subject.checkpoint:
            embedded = pairs.rows(settings.images, 1, by_heads(network_of(subject, trained=trained), g=False))
            rows = embedded if trained else rows
            parts["f"].append(spread_of(_whole(embedded)[0]))
            alignments["f"].append(alignment(_whole(embedded)))
    if subject.checkpoint:
        bank = bank_of(subject)
        parts["bank"] = [spread_of_bank(bank)]
        if data_of(subject.checkpoint) == subject.train.fingerprint:
            ids = torch.arange(rows.shape[1])
            alignments["bank"] = [alignment(_whole(torch.stack([bank.lookup(ids).to(rows), rows[1]])))]
    verdict = verdict_on(parts)
    subject.say(f"{verdict['verdict']}: {verdict['reason']}")
    return Outcome(
        [each for what, spreads in parts.items() for each in measurements(what, spreads, alignments.get(what))],
        {**verdict, **{what: asdict(spreads[0]) for what, spreads in parts.items()}},
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


def verdict_on(parts: dict[str, list[Spread]]) -> dict[str, Any]:
    """`verdict` and `reason`, by f where it is there, else by res5."""
    what = "f" if "f" in parts else "res5"
    length, most = parts[what][0].mean_norm, LONGEST_MEAN
    collapsed = length > most
    return {
        "verdict": "collapsed" if collapsed else "healthy",
        "reason": f"the mean of the unit rows of {what} is {length:.3f} long, {'above' if collapsed else 'not above'} "
        f"{most}",
        "threshold": most,
    }


def measurements(what: str, spreads: list[Spread], aligned: list[float] | None) -> list[Measurement]:
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


def _finite(features: Tensor) -> Tensor:
    if not bool(torch.isfinite(features).all()):
        raise ConfigError("the network makes features that are no numbers: its weights are damaged")
    return features
