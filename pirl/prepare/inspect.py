"""Says what a data set holds, and shows some of its images.

The manifest says most of it. Colours and the contact sheet come from the first row groups, which are as good as
any: the data set was shuffled when it was written.
"""

import io
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from pirl.data.dataset import Dataset, open_dataset
from pirl.data.writer import MANIFEST
from pirl.errors import ConfigError
from pirl.prepare.sources import not_read
from pirl.storage.checks import check_can_write
from pirl.storage.folder import Folder

SAMPLE = 2000
"""Images that are decoded."""
COLUMNS, ROWS, SIDE, CAPTION = 8, 6, 144, 18
"""Of the contact sheet: images, and pixels of an image and of the line below it."""
LISTED = 20
"""Classes and images that are named one by one."""


def describe(uri: str) -> list[str]:
    """What the manifest of a data set says, in lines for people; raises ConfigError where there is none."""
    dataset = open_dataset(uri)
    manifest = json.loads(dataset.folder.read(MANIFEST))
    classes = f" of {len(dataset.labels)} classes" if dataset.labels else ", no labels"
    size = f"{dataset.spans[:, 1].sum() / 1e6:,.1f} MB in {len(dataset.shards)} files"
    lines = [f"{uri}: {dataset.rows:,} images{classes}, {size}", *_classes(dataset, manifest)]
    if manifest.get("width"):
        lines.append("  width {:,} to {:,} pixels, height {:,} to {:,}".format(*manifest["width"], *manifest["height"]))
    for note, count in sorted(manifest.get("encoded", {}).items(), key=lambda item: -item[1]):
        lines.append(f"  encoded anew: {count:,} images ({note})")
    left_out = manifest.get("left_out", {"count": 0})
    if left_out["count"]:
        lines.append(f"  left out: {left_out['count']:,} images that cannot be used")
        lines += [f"    {line}" for line in left_out["first"][:LISTED]]
    if manifest.get("held_out"):
        lines.append(f"  held out: {manifest['held_out']}")
    return [*lines, *(f"  {line}" for line in not_read.lines(manifest.get("not_read", [])))]


def check_sheet(path: str) -> None:
    """Refuses a path to which the drawing cannot be saved; raises ConfigError."""
    folder = Path(path).parent
    if Path(path).is_dir() or not folder.is_dir():
        raise ConfigError(f"--sheet {path}: name a new file, in a folder that exists")
    check_can_write("--sheet", Folder(str(folder)))


def look(uri: str) -> tuple[list[str], Image.Image]:
    """Decodes some images of a data set: what they are like, in lines for people, and a contact sheet."""
    dataset = open_dataset(uri)
    sheet = Image.new("RGB", (COLUMNS * SIDE, ROWS * (SIDE + CAPTION)), "white")
    colors, sizes = np.zeros((3, 256)), []
    for at, (image, label) in enumerate(islice(_images(dataset), SAMPLE)):
        sizes.append(image.size)
        colors += np.array(image.histogram()).reshape(3, 256) / (image.width * image.height)
        if at < COLUMNS * ROWS:
            _put(sheet, at, image, dataset.labels[label] if dataset.labels and label >= 0 else "")
    values = np.arange(256) / 255
    mean = colors @ values / len(sizes)
    std = np.sqrt(colors @ values**2 / len(sizes) - mean**2)
    width, height = np.median(sizes, axis=0)
    return [
        f"  of {len(sizes):,} images: median {width:,.0f} x {height:,.0f} pixels, red green blue from 0 to 1:",
        f"    mean {' '.join(f'{value:.3f}' for value in mean)}, std {' '.join(f'{value:.3f}' for value in std)}",
    ], sheet


def _classes(dataset: Dataset, manifest: dict[str, Any]) -> list[str]:
    """The sizes of the classes: of all if they are few, else of the smallest and the largest."""
    rows = manifest.get("class_rows")
    if not dataset.labels or not rows:
        return []
    pairs = sorted(zip(rows, dataset.labels, strict=True), key=lambda pair: pair[0])
    named = [f"{name} {count:,}" for count, name in pairs]
    if len(named) > LISTED:
        named = [*named[: LISTED // 2], "...", *named[-LISTED // 2 :]]
    without = dataset.rows - sum(rows)
    return [f"  images of each class: {', '.join(named)}", *([f"  without a class: {without:,}"] if without else [])]


def _images(dataset: Dataset) -> Iterator[tuple[Image.Image, int]]:
    for number in range(len(dataset.spans)):
        group = dataset.read_group(number)
        for at, data in enumerate(group.images):
            with Image.open(io.BytesIO(data)) as image:
                yield image.convert("RGB"), -1 if group.labels is None else int(group.labels[at])


def _put(sheet: Image.Image, at: int, image: Image.Image, caption: str) -> None:
    """Draws an image at its place on the sheet, and its class below it."""
    x, y = at % COLUMNS * SIDE, at // COLUMNS * (SIDE + CAPTION)
    small = ImageOps.contain(image, (SIDE - 4, SIDE - 4))
    sheet.paste(small, (x + (SIDE - small.width) // 2, y + (SIDE - small.height) // 2))
    ImageDraw.Draw(sheet).text((x + 4, y + SIDE), caption[:22], "black", ImageFont.load_default(12))
