"""Images beside fresh transforms of them, embedded: what invariance and alignment are measured on.

Shapes: M images, T transforms of each, D values of an embedding.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.errors import ConfigError, CorruptImage
from pirl.evaluate.measurement import dealt
from pirl.evaluate.subject import Subject
from pirl.loading.color import color_and_normalize, normalize
from pirl.loading.crops import plain_view
from pirl.loading.decode import decoded
from pirl.loading.views import Sample, Views, sample_rng
from pirl.methods.models import Trunk, statistics_kept
from pirl.methods.pirl import PIRL
from pirl.pretext import PRETEXTS
from pirl.runs.checkpoint import load_network
from pirl.runs.stored_permutations import made_permutations
from pirl.sections import ROW_DIM

BATCH = 64
"""Images that are embedded together, at the most; 576 patches of a jigsaw."""

FRESH = 2**31
"""An epoch that no training comes to: its views, and those of the epochs after it, are new to the network."""

ToRows = Callable[[Tensor], Tensor]
"""Normalised pixels of B images, (B, 3, S, S) or (B·V, 3, h, w), to their unit rows (B, D)."""


@dataclass(frozen=True)
class PairEmbedder:
    """What makes rows of images and of their transforms; `dim` is D."""

    image: ToRows
    transform: ToRows
    dim: int


@dataclass(frozen=True)
class Pairs:
    """How images and their transforms are made.

    Attributes:
        views: Make the transforms: the pretext view where its task has parts, else the image view.
        seed: Of the transforms.
        skip: Whether an image that cannot be used is left out.
    """

    dataset: Dataset
    views: Views
    device: torch.device
    seed: int
    skip: bool = False

    def rows(self, images: int, transforms: int, embedder: PairEmbedder) -> Tensor:
        """Unit rows (1 + T, M, D), float64: of the first images, then of each transform of theirs; a collective.

        Each image is embedded in the same batch, so they do not depend on the number of ranks. Rows are NaN for an
        image that is left out.

        Raises:
            CorruptImage: An image cannot be used, and `skip` is off.
            ConfigError: The network makes values that are no numbers, or there are too few images.
        """
        batches = self.batches(images)
        longest = max(map(len, batches))

        def piece(ids: range) -> Tensor:
            return F.pad(self.batch_rows(ids, transforms, embedder), (0, 0, 0, longest - len(ids))).flatten()

        length = (1 + transforms) * longest * embedder.dim
        found = dealt([partial(piece, ids) for ids in batches], length, self.device)
        shaped = found.reshape(len(batches), 1 + transforms, longest, embedder.dim)
        return torch.cat([each[:, : len(ids)] for ids, each in zip(batches, shaped, strict=True)], 1)

    def batches(self, images: int) -> list[range]:
        """The ids of the first images in batches of about the same size."""
        ids = range(min(images, self.dataset.rows))
        count = -(-len(ids) // BATCH)
        return [ids[len(ids) * at // count : len(ids) * (at + 1) // count] for at in range(count)]

    @torch.no_grad()
    def batch_rows(self, ids: range, transforms: int, embedder: PairEmbedder) -> Tensor:
        """Those of `rows`, of one batch."""
        found = self._images(ids)
        usable = {id: image for id, image in zip(ids, found, strict=True) if image is not None}
        if len(usable) < 2:
            raise ConfigError(f"{self.dataset.uri}: fewer than two of the images {ids[0]} to {ids[-1]} can be used")
        plain = torch.stack([plain_view(image, self.views.image_size) for image in usable.values()])
        rows = [embedder.image(normalize(plain.to(self.device)))]
        for number in range(transforms):
            samples = [self.views(image, sample_rng(self.seed, FRESH + number, id)) for id, image in usable.items()]
            rows.append(embedder.transform(self._transforms(samples)))
        if not bool(torch.isfinite(torch.stack(rows)).all()):
            raise ConfigError("the network makes values that are no numbers: its weights are damaged")
        whole = rows[0].new_full((1 + transforms, len(found), embedder.dim), torch.nan)
        whole[:, torch.tensor([image is not None for image in found], device=self.device)] = torch.stack(rows)
        return whole

    def _transforms(self, samples: list[Sample]) -> Tensor:
        views, colors = zip(*map(transform_of, samples), strict=True)
        return color_and_normalize(torch.cat(views).to(self.device), torch.cat(colors))

    def _images(self, ids: range) -> list[Tensor | None]:
        """Decoded; None for those that cannot be used."""
        numbers, rows = self.dataset.groups_of(np.array(ids))
        groups = {number: self.dataset.load_group(number) for number in sorted(set(numbers))}
        images: list[Tensor | None] = []
        for id, number, row in zip(ids, numbers, rows, strict=True):
            try:
                images.append(decoded(self.dataset, groups[number], id, row))
            except CorruptImage:
                if not self.skip:
                    raise
                images.append(None)
        return images


def transform_of(sample: Sample) -> tuple[Tensor, Tensor]:
    """Parts and colours of the pretext view, or of the image view where there is none."""
    if sample.pretext is not None and sample.pretext_color is not None:
        return sample.pretext, sample.pretext_color
    assert sample.image is not None
    assert sample.image_color is not None
    return sample.image[None], sample.image_color[None]


def views_of(config: Config, image_size: int, *, pretext: bool) -> Views:
    """Those of a run at another size, with its pretext task or with the image view alone."""
    task = config.second_view if pretext else PRETEXTS["none"]
    permutations = made_permutations(config) if pretext else None
    return Views(image_size, config.augment, task, config.pretext.crop_min, permutations)


def by_heads(network: PIRL, *, g: bool) -> PairEmbedder:
    """f of the image, and g or f of its transform; batch norms use the statistics of the batch, as they do in training.

    Their running statistics are those of whole images, and patches have others.
    """

    def rows(pixels: Tensor, head: nn.Module) -> Tensor:
        network.train()
        with statistics_kept(network.trunk):
            return F.normalize(head(network.trunk(pixels)), dim=1)

    second = network.g if g else network.f
    assert second is not None
    return PairEmbedder(partial(rows, head=network.f), partial(rows, head=second), ROW_DIM)


def by_trunk(trunk: Trunk) -> PairEmbedder:
    """res5 of both, as it is used: batch norms use their running statistics."""

    def rows(pixels: Tensor) -> Tensor:
        trunk.eval()
        return F.normalize(trunk(pixels), dim=1)

    return PairEmbedder(rows, rows, trunk.out_channels)


def by_parts(trunk: Trunk, parts: int) -> PairEmbedder:
    """res5 of an image, and the mean of res5 over the parts of its transform; batch norms as in `by_heads`."""

    def rows(pixels: Tensor, of: int) -> Tensor:
        trunk.train()
        with statistics_kept(trunk):
            return F.normalize(trunk(pixels).unflatten(0, (-1, of)).mean(1), dim=1)

    return PairEmbedder(partial(rows, of=1), partial(rows, of=parts), trunk.out_channels)


def network_of(subject: Subject, *, trained: bool) -> PIRL:
    """The network of a checkpoint with its heads, or one with the random weights that its run would begin with."""
    assert subject.config is not None
    assert subject.checkpoint is not None
    torch.manual_seed(subject.config.seed)
    network = PIRL(subject.config)
    if trained:
        load_network(subject.checkpoint, network)
    return network.to(subject.device)
