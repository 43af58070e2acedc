"""The built-in data set: scikit-learn's 1,797 handwritten digits, as 32x32 gray PNG images."""

import io
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from pirl.data.writer import MANIFEST, VERSION, ShardWriter
from pirl.errors import ConfigError
from pirl.storage.folder import Folder

SIDE = 32
TEST_SHARE = 0.2


def ensure_digits() -> str:
    """Returns the folder of the data set, and builds it the first time, in the user's cache folder.

    Several processes may do this at once: each builds a folder of its own, and the first to finish gives it
    the name.

    Raises:
        ConfigError: The cache folder cannot be written.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pirl"
    folder = cache / f"digits-v{VERSION}"
    if (folder / MANIFEST).exists():
        return str(folder)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        building = tempfile.mkdtemp(prefix=f"{folder.name}-", dir=cache)
    except OSError as error:
        raise ConfigError(
            f"the digits cannot be built in {cache}: {error.strerror}. Name a folder that you can write: "
            "export XDG_CACHE_HOME=FOLDER"
        ) from None
    try:
        write_digits(building)
        os.rename(building, folder)
    except OSError:
        if not (folder / MANIFEST).exists():
            raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return str(folder)


def write_digits(place: str, seed: int = 0) -> tuple[int, int]:
    """Writes the digits to a folder, shuffled, with a fifth of them held out in `test/`.

    Returns:
        How many images are for training and how many for testing.
    """
    # Imported here because it takes a second, and every process that opens a data set imports this file.
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    images = [_png(image) for image in pixels.reshape(-1, 8, 8)]
    order = np.random.default_rng(seed).permutation(len(images))
    held_out = round(TEST_SHARE * len(images))
    # The test split first: the manifest of the training split completes the whole.
    whole = Folder(place)
    for folder, rows in ((whole / "test", order[:held_out]), (whole, order[held_out:])):
        classes = [str(digit) for digit in range(10)]
        with ShardWriter(folder, classes=classes, seed=seed, source="sklearn.datasets.load_digits") as writer:
            for row in rows:
                writer.add(images[row], int(labels[row]))
    return len(images) - held_out, held_out


def _png(image: np.ndarray) -> bytes:
    """Encodes one digit: float (8, 8) from 0 to 16, enlarged to SIDE x SIDE."""
    small = Image.fromarray((image * 255 / 16).round().astype(np.uint8))
    file = io.BytesIO()
    small.resize((SIDE, SIDE), Image.Resampling.BICUBIC).save(file, "PNG")
    return file.getvalue()
