"""Draw README's picture: a photograph, the two views that training makes of it, and what runs reached with few labels.

    python jobs/evaluate.py runs/digits --protocol few --few.per-class 1 3 10 30 100      for each of some seeds
    python tests/benchmarks/readme_picture.py runs/digits/evaluation/few.json ... --out docs/two-views.png

The photograph is scikit-learn's flower.jpg, by vultilion, CC BY 2.0; the views are those of the recipe `photos`.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import matplotlib
import numpy as np
import torch
from matplotlib import pyplot as plt
from numpy.typing import NDArray
from sklearn.datasets import load_sample_image

from pirl.loading.color import MEAN, STD, color_and_normalize
from pirl.loading.views import Views, sample_rng
from pirl.recipes import photos


def views_of(photograph: NDArray[np.uint8], seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The image view (S, S, 3) and the patches (9, h, w, 3) in their shuffled order, from 0 to 1."""
    config = photos()
    task, augment = config.second_view, config.augment
    image = torch.from_numpy(photograph.copy()).permute(2, 0, 1)
    sample = Views(224, augment, task, config.pretext.crop_min)(image, sample_rng(seed, 0, 0))
    assert sample.pretext is not None
    assert sample.pretext_color is not None
    both = (
        color_and_normalize(sample.image[None], sample.image_color[None]),
        color_and_normalize(sample.pretext, sample.pretext_color),
    )
    shown = [(views * STD + MEAN).clamp(0, 1).permute(0, 2, 3, 1).numpy() for views in both]
    return shown[0][0], shown[1]


def main() -> None:
    """Draws it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, help="few.json of several seeds")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=3)
    given = parser.parse_args()
    photograph = load_sample_image("flower.jpg")
    view, patches = views_of(photograph, given.seed)

    matplotlib.use("Agg")
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.1), width_ratios=[1.45, 1, 1, 1.6], layout="constrained")
    for axis, title in zip(axes, ("an image", "one view", "the other: 9 patches, shuffled"), strict=False):
        axis.set_title(title, fontsize=10)
        axis.set_axis_off()
    axes[0].imshow(photograph)
    axes[1].imshow(view)
    side, gap = patches.shape[1], 4
    board = np.ones((3 * side + 2 * gap, 3 * side + 2 * gap, 3), np.float32)
    for number, patch in enumerate(patches):
        top, left = (side + gap) * (number // 3), (side + gap) * (number % 3)
        board[top : top + side, left : left + side] = patch
    axes[2].imshow(board)

    found = [json.loads(path.read_text())["measurements"] for path in given.reports]
    labels = [int(each["name"].split()[1]) for each in found[0]]
    for name, title, color in (("random", "random weights", "0.6"), ("value", "trained without labels", "C0")):
        shares = 100 * np.array([[each[name] for each in run] for run in found])
        axes[3].errorbar(labels, shares.mean(0), shares.std(0, ddof=1), marker="o", color=color, label=title, capsize=2)
    axes[3].set_xscale("log")
    axes[3].set_xticks(labels, [str(n) for n in labels])
    axes[3].minorticks_off()
    axes[3].set_xlabel("labelled digits of each class", fontsize=9)
    axes[3].set_title("accuracy in % on digits, 3 seeds", fontsize=10)
    axes[3].grid(alpha=0.3)
    axes[3].legend(fontsize=8, loc="lower right")
    figure.savefig(given.out, dpi=100)


if __name__ == "__main__":
    main()
