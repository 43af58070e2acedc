"""The annotation of an image of PASCAL VOC: the objects in it, and the boxes around them."""

import xml.etree.ElementTree as ET
from dataclasses import dataclass

import numpy as np

from pirl.errors import ConfigError
from pirl.storage.folder import Folder

MAIN = "ImageSets/Main"
"""The splits of a year."""
SIDES = ("xmin", "ymin", "xmax", "ymax")
"""Of a box in an annotation."""

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class VocObject:
    """An object in an image.

    Attributes:
        name: Its class.
        box: Left, top, right, bottom in pixels, from the outer corner of the first pixel.
        difficult: Whether it counts neither for nor against.
    """

    name: str
    box: Box
    difficult: bool


def objects_in(image: tuple[Folder, str]) -> list[VocObject]:
    """What the annotation of an image holds; raises ConfigError, with the name of the file, where it is broken."""
    year, name = image
    file = f"{year}/{xml_of(name)}"
    try:
        root = ET.fromstring(year.read_bytes(xml_of(name)))
    except FileNotFoundError:
        raise ConfigError(f"{file} is missing, and {MAIN} names its image") from None
    except ET.ParseError as error:
        raise ConfigError(f"{file} is not XML: {error}") from None
    if root.tag != "annotation":
        raise ConfigError(f"{file} has a <{root.tag}>, and no <annotation>")
    found = []
    for number, element in enumerate(root.findall("object"), 1):
        title = (element.findtext("name") or "").strip()
        try:
            left, top, right, bottom = (float(element.findtext(f"bndbox/{side}") or "") for side in SIDES)
        except ValueError:
            raise ConfigError(f"{file}: object {number} has no bndbox with the numbers {', '.join(SIDES)}") from None
        # Pixels are counted from 1, and the last one is a part of the box.
        box = (left - 1, top - 1, right, bottom)
        if not title or not np.isfinite(box).all() or box[0] >= box[2] or box[1] >= box[3]:
            raise ConfigError(f"{file}: object {number} has no name, or its box is empty: {title!r} {box}")
        if (word := (element.findtext("difficult") or "0").strip()) not in ("0", "1"):
            raise ConfigError(f"{file}: object {number} is {word!r} difficult, and not 0 or 1")
        _check_inside(f"{file}: object {number}", root, box)
        found.append(VocObject(title, box, word == "1"))
    return found


def _check_inside(what: str, root: ET.Element, box: Box) -> None:
    """Raises ConfigError for a box of which more lies beside the image than in it: one of the two sizes is wrong.

    A part may lie beside it: annotations are off by some pixels now and then.
    """
    try:
        width, height = (float(root.findtext(f"size/{side}") or "nan") for side in ("width", "height"))
    except ValueError:
        return
    left, top, right, bottom = box
    inside = max(0, min(right, width) - max(left, 0)) * max(0, min(bottom, height) - max(top, 0))
    if inside < (right - left) * (bottom - top) / 2:
        raise ConfigError(f"{what} lies beside the image: its box is {box}, and the image {width:g} x {height:g}")


def xml_of(id: str) -> str:
    """The file in the folder of a year."""
    return f"Annotations/{id}.xml"
