"""Writes PASCAL VOC folders as the archives lay them out: bright squares and bars on dark grounds."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("bar", "square")

XML = """<annotation>
	<folder>{year}</folder>
	<filename>{id}.jpg</filename>
	<source><database>The VOC Database</database></source>
	<size><width>{width}</width><height>{height}</height><depth>3</depth></size>
	<segmented>0</segmented>
{objects}</annotation>
"""

OBJECT = """	<object>
		<name>{name}</name>
		<pose>Unspecified</pose>
		<truncated>0</truncated>
		<difficult>{difficult}</difficult>
		<bndbox><xmin>{xmin}</xmin><ymin>{ymin}</ymin><xmax>{xmax}</xmax><ymax>{ymax}</ymax></bndbox>
		<part><name>corner</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
	</object>
"""

Drawn = tuple[str, tuple[int, int, int, int], int]


def write_year(folder: Path, splits: dict[str, int], seed: int = 0, *, class_files: bool = True) -> None:
    """Writes a year with so many images in each split; trainval is train and val where there are those."""
    random = np.random.default_rng(seed)
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True)
    main = folder / "ImageSets/Main"
    shown: dict[str, dict[str, list[Drawn]]] = {}
    number = 0
    for split, images in splits.items():
        shown[split] = {}
        for _ in range(images):
            number += 1
            shown[split][f"{number:06d}"] = _image(folder, f"{number:06d}", random)
    if "val" in shown:
        shown["trainval"] = {**shown["train"], **shown["val"]}
    for split, of_images in shown.items():
        (main / f"{split}.txt").write_text("".join(f"{id}\n" for id in of_images))
        for name in CLASSES if class_files else ():
            lines = (f"{id} {_sign(drawn, name):2d}\n" for id, drawn in of_images.items())
            (main / f"{name}_{split}.txt").write_text("".join(lines))


def _sign(drawn: list[Drawn], name: str) -> int:
    difficult = [each[2] for each in drawn if each[0] == name]
    return -1 if not difficult else 0 if all(difficult) else 1


def _image(folder: Path, id: str, random: np.random.Generator) -> list[Drawn]:
    height, width = 64, 80
    pixels = random.integers(0, 40, (height, width, 3)).astype(np.uint8)
    drawn: list[Drawn] = []
    for half in (0, 40):  # an object in each half, or none
        name = str(random.choice([*CLASSES, ""]))
        if not name:
            continue
        w, h = (28, 28) if name == "square" else (20, 44)
        left, top = half + int(random.integers(0, 40 - w)), int(random.integers(0, height - h))
        pixels[top : top + h, left : left + w] = (250, 240, 60) if name == "square" else (60, 240, 250)
        drawn.append((name, (left, top, left + w, top + h), int(random.random() < 0.1)))
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=95)
    (folder / f"JPEGImages/{id}.jpg").write_bytes(file.getvalue())
    objects = "".join(
        OBJECT.format(name=name, difficult=difficult, xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)
        for name, (x0, y0, x1, y1), difficult in drawn
    )
    text = XML.format(year=folder.name, id=id, width=width, height=height, objects=objects)
    (folder / f"Annotations/{id}.xml").write_text(text)
    return drawn
