"""Labels as targets, of which a share may be made wrong on purpose."""

from dataclasses import dataclass

import numpy as np

_KEY = 0x6C61626C
"""Keeps this use of the seed apart from the others."""


@dataclass(frozen=True)
class Labels:
    """What the network is to say of an image: its label, or, for a share of the images, another one.

    Which and what is a function of (seed, id): the same in each epoch and on any number of workers.

    Args:
        classes: How many there are.
        noise: The share of the images that get another label than theirs, any of the others equally often.
    """

    classes: int
    noise: float
    seed: int

    def __call__(self, id: int, label: int) -> int:
        """The target of an image with this id and label, which is -1 where it has none."""
        if label < 0 or self.noise == 0:
            return label
        source = np.random.Philox(
            key=np.array([self.seed, _KEY], np.uint64), counter=np.array([0, id, 0, 0], np.uint64)
        )
        chance, other = source.random_raw(2).tolist()
        if chance >= self.noise * 2**64:
            return label
        return int((label + 1 + other % (self.classes - 1)) % self.classes)
