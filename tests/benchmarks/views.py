"""Times the two views of a sample on one core, against the same views made wholly by torchvision.

    python tests/benchmarks/views.py --images images.tar
    python tests/benchmarks/views.py --images images.tar --resize 256
    python tests/benchmarks/views.py --image-size 32

The CPU side of a sample is decoding and geometry; colour follows for a whole batch on the device, which is this
core unless `--device cuda` names another. torchvision's side does everything image by image, as its reference
scripts do, from the same images; with `--resize`, which makes them smaller as jobs/prepare.py does, also from those
that they were made of. All are timed in turn, pass after pass through the images; the figures are medians.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import io
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torchvision.transforms.v2 as tv
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from pirl.loading.color import color_and_normalize
from pirl.loading.crops import random_resized_crop
from pirl.loading.decode import decode
from pirl.loading.views import Views, sample_rng
from pirl.prepare.images import check_image
from pirl.pretext import PRETEXTS, cell_side, patch_side
from pirl.sections import Augment
from tests.benchmarks.photographs import from_tar

CROP_MIN = 0.6
"""Of the pretext view."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="tar of photographs; default: cut from scikit-learn's two")
    parser.add_argument("--image-size", type=int, default=224, help="S; 100 px and less: images are S px too")
    parser.add_argument("--resize", type=int, metavar="N", help="first make the short side of larger images N pixels")
    parser.add_argument("--pretext", choices=PRETEXTS, default="jigsaw")
    parser.add_argument("--count", type=int, default=200, help="how many images")
    parser.add_argument("--batch", type=int, default=32, help="images in a batch of the colour step")
    parser.add_argument("--device", default="cpu", help="of the colour step")
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    augment, size = Augment(), args.image_size

    images = list(itertools.islice(from_tar(args.images) if args.images else from_sklearn(), args.count))
    if size <= 100:
        images = [shrunk(data, size) for data in images]
    originals = images
    if args.resize:
        images = [check_image(data, args.resize).image for data in images]
    kilobytes = sum(map(len, images)) / len(images) / 1000
    print(f"{len(images)} images of {kilobytes:.1f} KB, {args.pretext} at {size} px, one core\n")

    views = Views(size, augment, PRETEXTS[args.pretext], CROP_MIN)
    reference = TorchvisionViews(size, augment, args.pretext, CROP_MIN)
    ids = itertools.count()
    side = size if args.pretext == "rotation" else 3 * cell_side(size)

    def crops(data: bytes) -> None:
        image, rng = decode(data), sample_rng(0, 0, next(ids))
        random_resized_crop(image, size, augment.crop_min, rng)
        if views.task.parts:
            random_resized_crop(image, side, CROP_MIN, rng)

    color = ColorStep(views, images, args.batch, args.device)
    steps: dict[str, Step] = {
        "decode": Step(decode, images),
        "crops": Step(crops, images),
        "ours": Step(lambda data: views(decode(data), sample_rng(0, 0, next(ids))), images),
        "torchvision": Step(lambda data: reference(decode(data)), images),
        "colour": Step(color, [b""] * 5),
    }
    if args.resize:
        steps["of originals"] = Step(lambda data: reference(decode(data)), originals)
    costs_s = median_costs_s(steps, args.rounds)
    costs_s["colour"] /= args.batch
    report(costs_s, args.device)


def report(costs_s: dict[str, float], device: str) -> None:
    ours, theirs, color = costs_s["ours"], costs_s["torchvision"], costs_s["colour"]
    parts = {
        "decode": costs_s["decode"],
        "both crops": costs_s["crops"] - costs_s["decode"],
        "the rest: cut, turn, mirror, draw": ours - costs_s["crops"],
    }
    print("| | samples/s | µs | share |\n| --- | ---: | ---: | ---: |")
    for name, cost_s in parts.items():
        print(f"| {name} | | {cost_s * 1e6:,.0f} | {cost_s / ours:.0%} |")
    print(f"| decode and geometry | {1 / ours:,.0f} | {ours * 1e6:,.0f} | |")
    print(f"| colour, batched, on {device} | {1 / color:,.0f} | {color * 1e6:,.0f} | |")
    print(f"| wholly torchvision | {1 / theirs:,.0f} | {theirs * 1e6:,.0f} | |")
    print(f"\n{theirs / ours:.1f} times torchvision", end="")
    if "of originals" in costs_s:
        print(f", {costs_s['of originals'] / ours:.1f} times torchvision from the images before --resize", end="")
    print(f"; with colour on the same core {theirs / (ours + color):.1f}" if device == "cpu" else "")


def from_sklearn() -> Iterator[bytes]:
    """Crops of 375 x 500, the most common size in ImageNet, from two photographs of 427 x 640."""
    rng = np.random.default_rng(0)
    for pixels in itertools.cycle(load_sample_images().images):
        top, left = rng.integers(427 - 375), rng.integers(640 - 500)
        yield jpeg(Image.fromarray(pixels[top : top + 375, left : left + 500]))


def shrunk(data: bytes, size: int) -> bytes:
    return jpeg(Image.open(io.BytesIO(data)).convert("RGB").resize((size, size)))


def jpeg(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    return file.getvalue()


@dataclass
class Step:
    """Something to time: a function and what it is called with, one after another."""

    make: Callable[[bytes], object]
    inputs: list[bytes]


def median_costs_s(steps: dict[str, Step], rounds: int) -> dict[str, float]:
    """Processor seconds of a call of each step; other work does not count. The first round warms up."""
    found: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(1 + rounds):
        for name, step in steps.items():
            began = time.process_time()
            for data in step.inputs:
                step.make(data)
            found[name].append((time.process_time() - began) / len(step.inputs))
    return {name: statistics.median(costs_s[1:]) for name, costs_s in found.items()}


class ColorStep:
    """Colour and normalisation of one batch; waits for the device, and that counts as processor time."""

    def __init__(self, views: Views, images: list[bytes], batch: int, device: str) -> None:
        samples = [views(decode(images[k % len(images)]), sample_rng(0, 0, k)) for k in range(batch)]
        inputs = [stacked([s.image[None] for s in samples], [s.image_color[None] for s in samples])]
        if views.task.parts:
            inputs.append(stacked([s.pretext for s in samples], [s.pretext_color for s in samples]))
        self.inputs = [(pixels.to(device), params) for pixels, params in inputs]

    def __call__(self, _: bytes) -> None:
        for pixels, params in self.inputs:
            color_and_normalize(pixels, params)
        if pixels.is_cuda:
            torch.cuda.synchronize()


def stacked(pixels: list[Tensor], params: list[Tensor]) -> tuple[Tensor, Tensor]:
    return torch.cat(pixels), torch.cat(params)


class TorchvisionViews:
    """Both views with torchvision's transforms alone."""

    def __init__(self, size: int, augment: Augment, pretext: str, crop_min: float) -> None:
        a = augment
        colour = [
            tv.ColorJitter(a.brightness, a.contrast, a.saturation, a.hue),
            tv.RandomGrayscale(a.gray),
            tv.RandomHorizontalFlip(a.flip),
            tv.ToDtype(torch.float32, scale=True),
            tv.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
        ]
        self.pretext, self.cell = pretext, cell_side(size)
        self.image = tv.Compose([tv.RandomResizedCrop(size, (a.crop_min, 1)), *colour])
        side = size if pretext == "rotation" else 3 * self.cell
        self.crop = tv.RandomResizedCrop(side, (crop_min, 1))
        self.turn = tv.RandomChoice([tv.RandomRotation((d, d)) for d in (0, 90, 180, 270)])
        self.whole = tv.Compose(colour)
        self.patch = tv.Compose([tv.RandomCrop(patch_side(size)), *colour])

    def __call__(self, image: Tensor) -> tuple[Tensor, Tensor | None]:
        view = self.image(image)
        if self.pretext == "none":
            return view, None
        whole = self.crop(image)
        if self.pretext != "jigsaw":
            whole = self.turn(whole)
        if self.pretext == "rotation":
            return view, self.whole(whole)[None]
        cells = [cell for row in whole.split(self.cell, 1) for cell in row.split(self.cell, 2)]
        return view, torch.stack([self.patch(cells[k]) for k in torch.randperm(9).tolist()])


if __name__ == "__main__":
    main()
