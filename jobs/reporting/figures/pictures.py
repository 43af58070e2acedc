"""Pictures of a page: the views that training saw of some images, and what evaluation drew."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from PIL import Image

from jobs.reporting.findings import details_of
from jobs.reporting.record import RunRecord
from pirl.config import Config
from pirl.errors import ConfigError, CorruptImage

if TYPE_CHECKING:  # torch takes longer to import than all else of a page
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

SAMPLES = 4
"""Images whose views are shown."""
SHARP = 96
"""Pixels of a side up to which a picture is kept as it is, and enlarged without smoothing."""
MOST = 224
GAP = 0.06
"""Between patches, as a share of their side."""


@dataclass(frozen=True)
class Picture:
    """A picture in the page.

    Attributes:
        address: Its bytes as an address (`data:image/webp;base64,…`).
        alt: What it shows, in words.
        sharp: Whether its pixels are few and are to be seen.
        image: The same, to be written elsewhere.
    """

    address: str
    alt: str
    width: int
    height: int
    sharp: bool
    image: Image.Image


@dataclass(frozen=True)
class Sheet:
    """Pictures in rows under headings, with how to read them; or `missing`, why there are none and what to type."""

    key: str
    title: str
    caption: str = ""
    headings: Sequence[str] = ()
    rows: Sequence[Sequence[Picture]] = ()
    missing: str = ""


_VIEWS: WeakKeyDictionary[RunRecord, tuple[Config, Sheet]] = WeakKeyDictionary()


def views_sheet(run: RunRecord) -> Sheet:
    """The views that training saw of some images in its first epoch, colour and order of patches as they were."""
    title = "What training saw"
    config, known = _VIEWS.get(run, (None, None))
    if known and config == run.config:  # a page that is refreshed: the views stay the same
        return known
    if run.config is None:
        return Sheet("views", title, missing="The settings of this run are not understood, so its views are not made.")
    try:
        headings, rows = _views_of(run, run.config)
    except (ConfigError, CorruptImage, OSError, ValueError) as error:
        return Sheet("views", title, missing=f"The views cannot be made anew: {error}")
    if run.config.method.name == "covariant":
        what = "The network is shown the second picture alone, and says what was done to it"
    elif run.config.has_pretext:
        what = "The network is to see that both views are of one image"
    else:
        what = "The network is to tell each image from all others" if run.config.has_bank else "It is to say the label"
    sheet = Sheet("views", title, f"As they were in the first epoch. {what}.", headings, rows)
    _VIEWS[run] = run.config, sheet
    return sheet


def neighbours_sheet(run: RunRecord, command: str) -> Sheet:
    """Test images with their nearest neighbours among the training images, as evaluation drew them."""
    title = "Nearest neighbours"
    caption = "Left: images of the test split; then those of the training nearest to each (cosine of res5)."
    if details_of(run, "retrieval"):
        caption += " Green frames: the same class; red: another one."
    return _drawn(run, "neighbours", title, caption, "retrieval", command)


def invariance_sheet(run: RunRecord, command: str) -> Sheet:
    """The histogram of distances as evaluation drew it, where its report has no numbers of it."""
    caption = "Distances of images to their own transforms and to those of others (the paper's Figure 4)."
    return _drawn(run, "invariance", "Invariance", caption, "invariance", command)


def as_png(sheet: Sheet) -> bytes:
    """All pictures of a sheet in one."""
    side = max(max(picture.image.size) for row in sheet.rows for picture in row)
    columns = max(len(row) for row in sheet.rows)
    if len(sheet.rows) == columns == 1:
        whole = sheet.rows[0][0].image
    else:
        whole = Image.new("RGB", (columns * (side + 8) - 8, len(sheet.rows) * (side + 8) - 8), "white")
        for top, row in enumerate(sheet.rows):
            for left, picture in enumerate(row):
                whole.paste(picture.image, (left * (side + 8), top * (side + 8)), picture.image)
    with io.BytesIO() as file:
        whole.save(file, "PNG")
        return file.getvalue()


def _drawn(run: RunRecord, key: str, title: str, caption: str, protocol: str, command: str) -> Sheet:
    name = f"evaluation/{protocol}.png"
    if name not in run.files:
        return Sheet(key, title, missing=f"Not measured yet: {command}")
    try:
        with Image.open(io.BytesIO(run.folder.read_bytes(name))) as image:
            return Sheet(key, title, caption, (), [[picture_of(image.convert("RGBA"), title)]])
    except OSError as error:  # PIL's of a damaged image is one
        return Sheet(key, title, missing=f"{name} cannot be shown: {error}")


def picture_of(image: Image.Image, alt: str) -> Picture:
    """A picture that lies in the page itself."""
    sharp = max(image.size) <= SHARP
    with io.BytesIO() as file:
        image.save(file, "WEBP", lossless=sharp, quality=80 if not sharp else 100, method=4)
        address = f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}"
    return Picture(address, alt, *image.size, sharp, image)


def _views_of(run: RunRecord, config: Config) -> tuple[list[str], list[list[Picture]]]:
    import numpy as np

    from pirl.data.dataset import open_data
    from pirl.loading.decode import decoded
    from pirl.loading.views import sample_rng
    from pirl.runs.stored_permutations import read_permutations
    from pirl.train import views_of

    data = config.data.model_copy(update={"cache_gb": 0.0})  # nothing is written
    dataset = open_data(data)
    views = views_of(config, read_permutations(run.folder, config))
    ids = np.linspace(0, dataset.rows - 1, min(SAMPLES, dataset.rows)).round().astype(np.int64)
    rows = []
    for id, number, row in zip(ids.tolist(), *dataset.groups_of(ids), strict=True):
        image = decoded(dataset, dataset.load_group(number), id, row)
        sample = views(image, sample_rng(config.seed, 0, id))
        shown = [picture_of(_small(Image.fromarray(image.permute(1, 2, 0).numpy())), f"image {id}")]
        if sample.image is not None and sample.image_color is not None:
            shown.append(picture_of(_board(_colored(sample.image[None], sample.image_color[None])), f"a view of {id}"))
        if sample.pretext is not None and sample.pretext_color is not None:
            parts = _board(_colored(sample.pretext, sample.pretext_color))
            shown.append(picture_of(parts, f"the pretext view of {id}"))
        rows.append(shown)
    second = {1: "turned", 9: "nine patches, shuffled"}.get(config.second_view.parts, "")
    second = "turned, then nine patches" if config.pretext.name == "both" and second else second
    headings = ["an image", *(["one view"] if config.has_image_view else []), *([second] if second else [])]
    return headings, rows


def _colored(views: "Tensor", colors: "Tensor") -> "NDArray[np.uint8]":
    """uint8 (M, h, w, 3) of views (M, 3, h, w), with the colours that the network sees."""
    from pirl.loading.color import MEAN, STD, color_and_normalize

    shares = (color_and_normalize(views, colors) * STD + MEAN).clamp(0, 1)
    pixels: NDArray[np.uint8] = (255 * shares).round().byte().permute(0, 2, 3, 1).numpy()
    return pixels


def _board(parts: "NDArray[np.uint8]") -> Image.Image:
    """One picture, or nine in three rows with gaps between them."""
    if len(parts) == 1:
        return _small(Image.fromarray(parts[0]))
    side = parts.shape[1]
    step = side + max(1, round(GAP * side))
    board = Image.new("RGBA", (3 * step - (step - side),) * 2, (0, 0, 0, 0))
    for number, part in enumerate(parts):
        board.paste(Image.fromarray(part), (number % 3 * step, number // 3 * step))
    return _small(board)


def _small(image: Image.Image) -> Image.Image:
    image = image.convert("RGBA")
    image.thumbnail((MOST, MOST))
    return image
