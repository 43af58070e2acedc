"""Times the two views of a sample on one core, against the same views made wholly by torchvision.

    python tests/benchmarks/views.py --images images.tar
    python tests/benchmarks/views.py --image-size 32

The CPU side of a sample is decoding and geometry; colour follows for a whole batch on the device, and is
timed here on the same core. torchvision's side does everything image by image, as its reference scripts do.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import argparse
import io
import itertools
import tarfile
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
import torchvision.transforms.v2 as tv
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from pirl.color import color_and_normalize
from pirl.config import Augment
from pirl.transforms import Views, decode, sample_rng

PRETEXTS = ("jigsaw", "rotation", "both", "none")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="tar of photographs; default: cut from scikit-learn's two")
    parser.add_argument("--image-size", type=int, default=224, help="S; 100 px and less: images are S px too")
    parser.add_argument("--pretext", choices=PRETEXTS, default="jigsaw")
    parser.add_argument("--count", type=int, default=200, help="how many images")
    parser.add_argument("--batch", type=int, default=32, help="images in a batch of the colour step")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each line")
    args = parser.parse_args()
    torch.set_num_threads(1)
    augment, size = Augment(), args.image_size

    images = list(itertools.islice(from_tar(args.images) if args.images else from_sklearn(), args.count))
    if size <= 100:
        images = [shrunk(data, size) for data in images]
    kilobytes = sum(map(len, images)) / len(images) / 1000
    print(f"{len(images)} images of {kilobytes:.1f} kB, {args.pretext} at {size} px, one core")

    views = Views(size, augment, args.pretext, 0.6)
    reference = TorchvisionViews(size, augment, args.pretext, 0.6)
    ids = itertools.count()
    decoding = seconds_per_image(decode, images, args.seconds)
    ours = seconds_per_image(lambda data: views(decode(data), sample_rng(0, 0, next(ids))), images, args.seconds)
    theirs = seconds_per_image(lambda data: reference(decode(data)), images, args.seconds)
    color = color_seconds(views, images, args.batch, args.seconds)

    line("decode", decoding)
    line("decode and geometry", ours, f"decode is {decoding / ours:.0%}")
    line("wholly torchvision", theirs, f"decode is {decoding / theirs:.0%}")
    line("colour, batched, on this core", color)
    print(f"{theirs / ours:.1f} times torchvision; with colour on the same core {theirs / (ours + color):.1f}")


def line(name: str, seconds: float, note: str = "") -> None:
    print(f"{name:30} {1 / seconds:9,.0f} samples/s {seconds * 1e6:9,.0f} µs   {note}")


def from_tar(path: Path) -> Iterator[bytes]:
    with tarfile.open(path) as tar:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield file.read()


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


def seconds_per_image(make: Callable[[bytes], object], images: list[bytes], seconds: float) -> float:
    """Processor seconds of a call, over whole passes through the images; other work does not count."""
    for data in images[:20]:
        make(data)
    passes, began = 0, time.process_time()
    while time.process_time() < began + seconds:
        for data in images:
            make(data)
        passes += 1
    return (time.process_time() - began) / (passes * len(images))


def color_seconds(views: Views, images: list[bytes], batch: int, seconds: float) -> float:
    """Seconds that colour and normalisation take for one sample of a batch."""
    samples = [views(decode(images[k % len(images)]), sample_rng(0, 0, k)) for k in range(batch)]
    inputs = [stacked([s.image[None] for s in samples], [s.image_color[None] for s in samples])]
    if views.patches:
        inputs.append(stacked([s.pretext for s in samples], [s.pretext_color for s in samples]))

    def step(_: bytes) -> None:
        for pixels, params in inputs:
            color_and_normalize(pixels, params)

    return seconds_per_image(step, [b""] * 5, seconds) / batch


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
        self.pretext, self.cell = pretext, round(85 * size / 224)
        self.image = tv.Compose([tv.RandomResizedCrop(size, (a.crop_min, 1)), *colour])
        side = size if pretext == "rotation" else 3 * self.cell
        self.crop = tv.RandomResizedCrop(side, (crop_min, 1))
        self.turn = tv.RandomChoice([tv.RandomRotation((d, d)) for d in (0, 90, 180, 270)])
        self.whole = tv.Compose(colour)
        self.patch = tv.Compose([tv.RandomCrop(round(64 * size / 224)), *colour])

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
