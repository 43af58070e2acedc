"""What a trunk has learned: its features on labelled data, measured by the protocols of one table."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pirl import dist
from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.evaluate.features import Features, extract
from pirl.evaluate.protocols import knn, linear
from pirl.methods.models import TAPS, Trunk

MAX_IMAGES = 100_000
"""Images of each split that are used at most: their features are held by every worker."""


@dataclass(frozen=True)
class Protocol:
    """How features are judged.

    Attributes:
        accuracy: From the training rows (N, D) and classes (N,), and those of the test split, to a share of 1.
        taps: The layers it is done for, as `features.extract` pools them. Each is a piece of work for one rank.
        title: What its lines in the table are called, behind the tap; may name its settings.
        settings: More arguments of `accuracy`, and the fields of `config.evaluation` that give them.
    """

    accuracy: Callable[..., float]
    taps: tuple[str, ...]
    title: str
    settings: Mapping[str, str] = field(default_factory=dict)


PROTOCOLS = {
    "linear": Protocol(linear.accuracy, TAPS, "linear"),
    "knn": Protocol(
        knn.accuracy, ("res5",), "kNN, k {k}, τ {temperature:g}", {"k": "knn_k", "temperature": "knn_temperature"}
    ),
}
"""By their names in `result.json`. To add one, write its function into a file of `protocols/`, and give it a line."""

Tell = Callable[[str], None]
"""Takes what goes on, for who watches."""

Probe = tuple[str, str]
"""The name of a protocol, and a tap."""


def evaluate(
    trunk: Trunk,
    random_trunk: Trunk,
    train: Dataset,
    test: Dataset,
    config: Config,
    device: torch.device,
    tell: Tell = lambda text: None,
) -> dict[str, Any]:
    """Measures a trained trunk and one with random weights by all protocols; called by every rank.

    Both trunks are on `device`, and their modes are left as they were. The images of `train` vote and fit, those of
    `test` are counted. `tell` takes what goes on.

    Returns:
        What `result.json` holds, the same on every rank: `{"train_images", "test_images", name of a protocol: its
        settings, and {tap: accuracy} or, where it has one tap alone, {"accuracy"}, "random": the same of the other
        trunk}`; accuracies are shares of 1.
    """
    probes = [(name, tap) for name, protocol in PROTOCOLS.items() for tap in protocol.taps]
    about = train, test, config, device, probes
    images, trained = _measure(trunk, *about, tell)
    _, random = _measure(random_trunk, *about, lambda text: tell(f"{text}, random weights"))
    return {**images, **_report(trained, config), "random": _report(random, config)}


def evaluate_res5(
    trunk: Trunk,
    train: Dataset,
    test: Dataset,
    config: Config,
    device: torch.device,
    tell: Tell = lambda text: None,
) -> dict[str, float]:
    """The numbers of `evaluate` that tell how far training is; called by every rank.

    Returns:
        `{"linear_res5", "knn"}`, shares of 1, equal to the numbers of `evaluate`.
    """
    _, shares = _measure(trunk, train, test, config, device, [("linear", "res5"), ("knn", "res5")], tell)
    return {"linear_res5": shares["linear", "res5"], "knn": shares["knn", "res5"]}


def table(report: dict[str, Any]) -> str:
    """The table that a run ends with: accuracies in percent, differences in points."""
    lines = [
        f"accuracy in %, fitted to {report['train_images']:,} images, of {report['test_images']:,} held out",
        f"{'':<22}{'random':>9}{'trained':>9}{'change':>9}",
    ]
    for name, protocol in PROTOCOLS.items():
        if name not in report:  # of a run that was measured before there was this protocol
            continue
        for tap in protocol.taps:
            key = tap if len(protocol.taps) > 1 else "accuracy"
            before, after = 100 * report["random"][name][key], 100 * report[name][key]
            title = f"{tap} {protocol.title.format(**report[name])}"
            lines.append(f"{title:<22}{before:>9.1f}{after:>9.1f}{after - before:>+9.1f}")
    return "\n".join(lines)


def _measure(
    trunk: Trunk,
    train: Dataset,
    test: Dataset,
    config: Config,
    device: torch.device,
    probes: Sequence[Probe],
    tell: Tell,
) -> tuple[dict[str, int], dict[Probe, float]]:
    """How many images of each split had a label, and the accuracies."""
    size, skip = config.data.image_size, config.data.on_error == "skip"
    known, asked = (
        _labelled(extract(trunk, each, size, device, MAX_IMAGES, skip=skip, tell=tell)) for each in (train, test)
    )
    # The probes are dealt over the ranks, each of which has all features.
    shares = torch.zeros(len(probes), dtype=torch.float64, device=device)
    for number in range(dist.rank(), len(probes), dist.world_size()):
        name, tap = probes[number]
        tell(f"evaluating: {name} of {tap}, {number + 1} of {len(probes)}")
        rows = known.taps[tap], known.labels, asked.taps[tap], asked.labels
        shares[number] = PROTOCOLS[name].accuracy(*rows, **_settings(name, config))
    images = {"train_images": len(known.labels), "test_images": len(asked.labels)}
    return images, dict(zip(probes, dist.all_reduce_sum(shares).tolist(), strict=True))


def _report(shares: Mapping[Probe, float], config: Config) -> dict[str, Any]:
    """What `evaluate` returns of one trunk."""
    report: dict[str, Any] = {name: _settings(name, config) for name, _ in shares}
    for (name, tap), share in shares.items():
        report[name][tap if len(PROTOCOLS[name].taps) > 1 else "accuracy"] = share
    return report


def _settings(name: str, config: Config) -> dict[str, Any]:
    return {word: getattr(config.evaluation, setting) for word, setting in PROTOCOLS[name].settings.items()}


def _labelled(features: Features) -> Features:
    """The rows that have a label."""
    with_label = features.labels >= 0
    taps = {name: rows[with_label] for name, rows in features.taps.items()}
    return Features(taps, features.labels[with_label])
