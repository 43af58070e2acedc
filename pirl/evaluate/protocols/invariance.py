"""How near the embedding of an image is to that of its transform (figure 4 of the paper), beside that of others."""

import io

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.errors import ConfigError
from pirl.evaluate.measurement import Measurement, Outcome, bootstrap
from pirl.evaluate.pairs import PairEmbedder, Pairs, by_heads, by_parts, by_trunk, network_of, views_of
from pirl.evaluate.subject import Subject
from pirl.sections import Count, Section
from pirl.wording import counted

PICTURE = "invariance.png"
KINDS = ("own", "other")
"""Transforms whose distance is measured: of the image itself, and of the next image."""
BINS = 80
"""Of the histogram, between 0 and 2, which is as far as unit rows can be apart."""
STATISTICS = ("mean", "median", "10 %", "90 %")


class Invariance(Section):
    """Distances of f(image) and g(transform), needs no labels; of res5 of both where there are no heads."""

    images: Count = 1000
    """Test images, the first ones; images of the training where there is no test split."""
    transforms: Count = 2
    """Fresh ones of each image."""


def refuse(settings: Invariance, train: Dataset, test: Dataset | None) -> None:
    """Raises ConfigError where there is no other image to compare with."""
    data = test or train
    if min(settings.images, data.rows) < 2:
        raise ConfigError(
            f"invariance compares images: use --invariance.images 2 or more, of {counted(data.rows, 'image')} of "
            f"{data.uri}"
        )


def measure(subject: Subject, settings: Invariance) -> Outcome:
    """Distances of own and other transforms, of the network and of a random one."""
    config = subject.config or Config()
    task = subject.config.pretext.name if subject.config and config.has_pretext else None
    data = subject.test or subject.train
    pairs = Pairs(
        data, views_of(config, subject.image_size, pretext=bool(task)), subject.device, subject.seed, subject.skip
    )
    found = []
    for trained in subject.trunks:
        rows = pairs.rows(settings.images, settings.transforms, embedder_of(subject, trained=trained))
        found.append(distances(rows[:, ~rows[0, :, 0].isnan()]).cpu())
    values, heads = torch.stack(found).numpy(), has_heads(subject)  # (trunks, kinds, T, M)
    mean = ", the mean over its parts" if task and config.second_view.parts > 1 else ""
    return Outcome(
        [each for at, kind in enumerate(KINDS) for each in statistics(kind, values[:, at], subject.seed)],
        {
            "split": "test" if subject.test else "train",
            "images": values.shape[-1],
            "transforms": settings.transforms,
            "transform": task or "random crop, flip and colour",
            "embeddings": "f(image) and g(transform)" if heads else f"res5 of both{mean}, as there is no head g",
            "histogram": histogram(values[0]),
        },
        {PICTURE: picture(values, "f(image) and g(transform)" if heads else "res5")},
    )


def embedder_of(subject: Subject, *, trained: bool) -> PairEmbedder:
    """f and g; res5 of both where there are none, as of a covariant network, which has seen transforms, or a file."""
    if has_heads(subject):
        return by_heads(network_of(subject, trained=trained), g=True)
    trunk = subject.trunk if trained else subject.untrained
    assert trunk is not None
    config = subject.config
    return by_parts(trunk, config.second_view.parts) if config and config.has_pretext else by_trunk(trunk)


def has_heads(subject: Subject) -> bool:
    """Whether there are f and g: in checkpoints of PIRL, but not of NPID."""
    return subject.checkpoint is not None and subject.config is not None and subject.config.has_pretext


def distances(rows: Tensor) -> Tensor:
    """(2, T, M): of each unit row of rows (1 + T, M, D) to those of its transforms, and of the next image's ones."""
    images, transforms = rows[:1], rows[1:]
    return torch.stack([(images - others).norm(dim=2) for others in (transforms, transforms.roll(-1, 1))])


def statistics(kind: str, values: NDArray[np.float64], seed: int) -> list[Measurement]:
    """Numbers of distances (trunks, T, M); resamples are of images, with all transforms of each."""
    rows = [[float(each.mean()), *(float(value) for value in np.quantile(each, [0.5, 0.1, 0.9]))] for each in values]
    spread = bootstrap(lambda drawn: float(values[0][:, drawn].mean()), values.shape[-1], seed)
    return [
        Measurement(
            f"distance of {kind} transform, {name}",
            rows[0][at],
            rows[1][at] if len(rows) > 1 else None,
            spread if name == "mean" else None,
            unit="",
        )
        for at, name in enumerate(STATISTICS)
    ]


def histogram(values: NDArray[np.float64]) -> dict[str, list[int]]:
    """How many of the distances (kinds, T, M) lie in each of `BINS` equal parts of 0 to 2, by kind."""
    counts = [np.histogram(each.clip(0, 2), BINS, (0.0, 2.0))[0].tolist() for each in values]
    return dict(zip(KINDS, counts, strict=True))


def picture(values: NDArray[np.float64], what: str) -> bytes:
    """A histogram as PNG of distances (trunks, kinds, T, M)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * len(values), 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, title, kinds in zip(
        np.atleast_1d(figure.subplots(1, len(values), sharey=True)), ("trained", "random"), values, strict=False
    ):
        for kind, each in zip(("of the image", "of another image"), kinds, strict=True):
            axes.hist(each.ravel(), bins=np.linspace(0, 2, BINS + 1), alpha=0.6, density=True, label=kind)
        axes.set(title=title, xlabel=f"distance of {what}")
        axes.legend(title="transform")
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()
