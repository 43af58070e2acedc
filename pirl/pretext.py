"""The pretext tasks: one table, which the config's names, the views, head g and the check of the smallest map read.

A task makes a sample's second view of a square crop of its image: V parts, nine patches or one image, in the order in
which a head sees them, and says what it did as a number, the target of a covariant method. To add one, write a function
that draws its parts, and give it a line in `PRETEXTS`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from pirl.permutations import Permutations

Pixels = npt.NDArray[np.void]
"""(h, w) elements of 3 bytes, which numpy mirrors, turns and cuts at once; see `loading.crops.to_pixels`."""


@dataclass(frozen=True)
class PretextTask:
    """How the second view of a sample is made. Sides are in pixels and follow S, that of the image view.

    Attributes:
        parts: V, how many pictures it has.
        crop: Side of the crop that it is made of, from S.
        part: Side of a part, from S.
        draw: From a crop's pixels (crop, crop), S, the probability of a mirrored part, the set of permutations or
            None for all, and a source of random numbers to the pixels (V, part, part) and the target. A function with
            a name: it is sent to loader processes.
        turns: In how many ways it turns the crop.
        shuffles: Whether it puts patches into another order.
    """

    parts: int
    crop: Callable[[int], int]
    part: Callable[[int], int]
    draw: Callable[[Pixels, int, float, Permutations | None, np.random.Generator], tuple[Pixels, int]]
    turns: int = 1
    shuffles: bool = False

    def targets(self, permutations: int) -> int:
        """How many targets there are, with a set of so many permutations."""
        return self.turns * (permutations if self.shuffles else 1)


Drawn = tuple[Pixels, int]


def rotation(
    crop: Pixels, image_size: int, flip: float, permutations: Permutations | None, rng: np.random.Generator
) -> Drawn:
    """The crop turned by a multiple of 90 degrees (appendix A.2), which is the target, perhaps mirrored.

    A mirrored crop that is turned back is a turned crop that is mirrored: what was mirrored has the target of how it
    looks, or nobody could tell 90 from 270 degrees.
    """
    turn = int(rng.integers(4))
    turned = np.rot90(crop, turn)
    return (turned[None, :, ::-1], -turn % 4) if rng.random() < flip else (turned[None], turn)


def jigsaw(
    crop: Pixels, image_size: int, flip: float, permutations: Permutations | None, rng: np.random.Generator
) -> Drawn:
    """Nine patches in shuffled order (section 3.2), each perhaps mirrored; the target is the row of their order."""
    side = patch_side(image_size)
    patches = np.empty((9, side, side), crop.dtype)
    order, number = draw_order(permutations, rng)
    for place, (top, left, flipped) in enumerate(draw_jigsaw(order, cell_side(image_size), side, flip, rng)):
        patch = crop[top : top + side, left : left + side]
        patches[place] = patch[:, ::-1] if flipped else patch
    return patches, number


def rotated_jigsaw(
    crop: Pixels, image_size: int, flip: float, permutations: Permutations | None, rng: np.random.Generator
) -> Drawn:
    """The crop turned, then cut into a jigsaw (appendix A.2); a target for each turn of each order."""
    turn = int(rng.integers(4))
    patches, number = jigsaw(np.rot90(crop, turn), image_size, flip, permutations, rng)
    return patches, 4 * number + turn


def no_view(
    crop: Pixels, image_size: int, flip: float, permutations: Permutations | None, rng: np.random.Generator
) -> Drawn:
    """No part at all: NPID."""
    return crop[None, :0], 0


def same_side(image_size: int) -> int:
    """That of the image view."""
    return image_size


def cell_side(image_size: int) -> int:
    """Of a cell of the jigsaw: 85 at 224."""
    return round(85 * image_size / 224)


def patch_side(image_size: int) -> int:
    """Of a patch, which is cut anywhere in its cell: 64 at 224."""
    return round(64 * image_size / 224)


def jigsaw_side(image_size: int) -> int:
    """Of the crop that is cut into 3x3 cells: 255 at 224."""
    return 3 * cell_side(image_size)


def draw_order(permutations: Permutations | None, rng: np.random.Generator) -> tuple[list[int], int]:
    """Draws an order of the nine patches and its row in the set; any of the 9!, with row 0, without one."""
    if permutations is None:
        return rng.permutation(9).tolist(), 0
    number = int(rng.integers(len(permutations)))
    return permutations[number].tolist(), number


def draw_jigsaw(
    order: list[int], cell: int, patch: int, flip: float, rng: np.random.Generator
) -> list[tuple[int, int, bool]]:
    """Draws the nine patches in this order: (top, left, flipped).

    Each of the 3x3 cells gives one patch at a place of its own within the cell, so that neighbours leave a
    random gap and edges that continue do not give the order away.
    """
    offsets = rng.integers(cell - patch + 1, size=(9, 2)).tolist()
    flips = (rng.random(9) < flip).tolist()
    return [
        (k // 3 * cell + y, k % 3 * cell + x, flipped) for k, (y, x), flipped in zip(order, offsets, flips, strict=True)
    ]


PRETEXTS = {
    "jigsaw": PretextTask(9, jigsaw_side, patch_side, jigsaw, shuffles=True),
    "rotation": PretextTask(1, same_side, same_side, rotation, turns=4),
    "both": PretextTask(9, jigsaw_side, patch_side, rotated_jigsaw, turns=4, shuffles=True),
    "none": PretextTask(0, same_side, same_side, no_view),
}
"""By the value of `pretext.name`."""

if TYPE_CHECKING:
    PretextName = str
else:
    PretextName = Literal[tuple(PRETEXTS)]
