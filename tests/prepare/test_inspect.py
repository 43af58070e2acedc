import io
import json

import numpy as np
import pytest
from PIL import Image

from pirl.data.writer import ShardWriter
from pirl.errors import ConfigError
from pirl.prepare.inspect import COLUMNS, SIDE, describe, look
from pirl.storage.folder import Folder
from pirl.storage.sealed import sealed

COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (51, 51, 51)]


@pytest.fixture
def uri(tmp_path):
    """80 images of one colour each, 40 x 20 and 40 x 30 pixels."""
    folder = str(tmp_path / "set")
    with ShardWriter(Folder(folder), classes=["ant", "bee"], seed=0, source="here") as writer:
        for row in range(80):
            file = io.BytesIO()
            Image.new("RGB", (40, 30 if row % 2 else 20), COLORS[row % 4]).save(file, "PNG")
            writer.add(file.getvalue(), row % 2 if row < 70 else None)
        writer.record = {
            "width": [40, 40],
            "height": [20, 30],
            "encoded": {"JPEG CMYK": 2, "PNG P": 3},
            "left_out": {"count": 30, "first": [f"{row}.png: not an image" for row in range(30)]},
        }
    return folder


def test_the_manifest_says_what_there_is(uri):
    lines = describe(uri)
    assert lines[0].startswith(f"{uri}: 80 images of 2 classes, 0.0 MB in 1 files")
    text = "\n".join(lines)
    assert "images of each class: ant 35, bee 35" in text
    assert "without a class: 10" in text
    assert "width 40 to 40 pixels, height 20 to 30" in text
    assert text.index("encoded anew: 3 images (PNG P)") < text.index("encoded anew: 2 images (JPEG CMYK)")
    assert "left out: 30 images" in text
    assert "19.png: not an image" in text
    assert "20.png" not in text


def test_of_many_classes_the_smallest_and_the_largest_are_named(tmp_path):
    names = [f"class{number}" for number in range(50)]
    with ShardWriter(Folder(str(tmp_path)), classes=names, seed=0, source="here") as writer:
        for label in range(50):
            for _ in range(label):
                writer.add(b"x", label)
    text = "\n".join(describe(str(tmp_path)))
    assert "class0 0, class1 1, " in text
    assert "class9 9, ..., class40 40" in text
    assert "class25" not in text


def test_colours_and_sizes_of_the_images(uri):
    lines, _ = look(uri)
    assert "80 images: median 40 x 25 pixels" in lines[0]
    # Of red, green, blue and a gray of 51/255 = 0.2: mean (1 + 0.2) / 4, mean square (1 + 0.04) / 4.
    std = (1.04 / 4 - 0.3**2) ** 0.5
    assert lines[1].strip() == f"mean 0.300 0.300 0.300, std {std:.3f} {std:.3f} {std:.3f}"


def test_the_contact_sheet_shows_the_images_and_their_classes(uri):
    _, sheet = look(uri)
    pixels = np.asarray(sheet)
    for at in (0, 1, 2, COLUMNS, COLUMNS + 3):
        x, y = at % COLUMNS * SIDE + SIDE // 2, at // COLUMNS * (sheet.height // 6) + SIDE // 2
        assert tuple(pixels[y, x]) == COLORS[at % 4]
    captions = pixels[SIDE : sheet.height // 6]
    assert captions.min() < 100


def test_a_manifest_that_says_less_is_read_too(tmp_path):
    with ShardWriter(Folder(str(tmp_path)), classes=["a"], seed=0, source="here") as writer:
        writer.add(b"x", 0)
    path = tmp_path / "manifest.json"
    manifest = json.loads(path.read_text())
    del manifest["class_rows"], manifest["crc32"]
    path.write_bytes(sealed(manifest))
    assert describe(str(tmp_path)) == [f"{tmp_path}: 1 images of 1 classes, 0.0 MB in 1 files"]


def test_no_data_set_is_refused(tmp_path):
    for ask in (describe, look):
        with pytest.raises(ConfigError, match="is not a data set"):
            ask(str(tmp_path))
