"""The pretext tasks: one table, which the config, the views and head g read."""

import numpy as np


def draw_jigsaw(cell: int, patch: int, flip: float, rng: np.random.Generator) -> list[tuple[int, int, bool]]:
    """Draws the nine patches in their shuffled order, any of the 9! each time: (top, left, flipped).

    Each of the 3x3 cells gives one patch at a place of its own within the cell, so that neighbours leave a
    random gap and edges that continue do not give the order away.
    """
    order = rng.permutation(9).tolist()
    offsets = rng.integers(cell - patch + 1, size=(9, 2)).tolist()
    flips = (rng.random(9) < flip).tolist()
    return [
        (k // 3 * cell + y, k % 3 * cell + x, flipped) for k, (y, x), flipped in zip(order, offsets, flips, strict=True)
    ]
