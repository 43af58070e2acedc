"""What a trunk has learned: kNN and linear probes of its features on labelled data."""

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


def evaluate(
    trunk: Trunk, random_trunk: Trunk, train: Dataset, test: Dataset, config: Config, device: torch.device
) -> dict[str, Any]:
    """Measures a trained trunk and one with random weights by the same protocol; called by every rank.

    kNN is on res5, its mean over space; the linear probes are on every tap as `features.extract` pools them.

    Args:
        trunk: The trained trunk, on `device`; its mode is left as it was.
        random_trunk: The same architecture with fresh weights, on `device`.
        train: Labelled images that vote and fit.
        test: Labelled images that are counted.
        config: Gives `data.image_size` and `evaluation`.
        device: Where to compute.

    Returns:
        What `result.json` holds, the same on every rank:
        `{"train_images", "test_images", "knn": {"accuracy", "k", "temperature"}, "linear": {tap: accuracy},
        "random": {"knn", "linear"}}`; accuracies are shares of 1.
    """
    measured = [_measure(each, train, test, config, device, TAPS) for each in (trunk, random_trunk)]
    return {**measured[0], "random": {name: measured[1][name] for name in ("knn", "linear")}}


def evaluate_res5(
    trunk: Trunk, train: Dataset, test: Dataset, config: Config, device: torch.device
) -> dict[str, float]:
    """The two numbers of `evaluate` that tell how far training is; called by every rank.

    Returns:
        `{"linear_res5", "knn"}`, shares of 1, by `evaluate`'s protocol and equal to its numbers.
    """
    measured = _measure(trunk, train, test, config, device, ("res5",))
    return {"linear_res5": measured["linear"]["res5"], "knn": measured["knn"]["accuracy"]}


def table(report: dict[str, Any]) -> str:
    """The table that a run ends with: accuracies in percent, differences in points."""
    voting, random = report["knn"], report["random"]
    lines = [
        f"accuracy in %, fitted to {report['train_images']:,} images, of {report['test_images']:,} held out",
        f"{'':<22}{'random':>9}{'trained':>9}{'change':>9}",
    ]
    pairs = [(f"{tap} linear", random["linear"][tap], report["linear"][tap]) for tap in TAPS]
    nearest = f"res5 kNN, k {voting['k']}, τ {voting['temperature']:g}"
    pairs.append((nearest, random["knn"]["accuracy"], voting["accuracy"]))
    for name, before, after in pairs:
        lines.append(f"{name:<22}{100 * before:>9.1f}{100 * after:>9.1f}{100 * (after - before):>+9.1f}")
    return "\n".join(lines)


def _measure(
    trunk: Trunk, train: Dataset, test: Dataset, config: Config, device: torch.device, probed: tuple[str, ...]
) -> dict[str, Any]:
    size, voting = config.data.image_size, config.evaluation
    skip = config.data.on_error == "skip"
    known, asked = (_labelled(extract(trunk, each, size, device, MAX_IMAGES, skip=skip)) for each in (train, test))
    # The probes are dealt over the ranks, each of which has all features.
    shares = torch.zeros(len(probed) + 1, dtype=torch.float64, device=device)
    for probe in range(dist.rank(), len(shares), dist.world_size()):
        tap = probed[probe] if probe < len(probed) else "res5"
        rows = known.taps[tap], known.labels, asked.taps[tap], asked.labels
        if probe < len(probed):
            shares[probe] = linear.accuracy(*rows)
        else:
            shares[probe] = knn.accuracy(*rows, voting.knn_k, voting.knn_temperature)
    *by_tap, votes = dist.all_reduce_sum(shares).tolist()
    return {
        "train_images": len(known.labels),
        "test_images": len(asked.labels),
        "knn": {"accuracy": votes, "k": voting.knn_k, "temperature": voting.knn_temperature},
        "linear": dict(zip(probed, by_tap, strict=True)),
    }


def _labelled(features: Features) -> Features:
    """The rows that have a label."""
    with_label = features.labels >= 0
    taps = {name: rows[with_label] for name, rows in features.taps.items()}
    return Features(taps, features.labels[with_label])
