"""Images in class folders."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pirl.data.dataset import Ints
from pirl.errors import ConfigError
from pirl.prepare.labels import IMAGE_SUFFIXES, below, first_and_more, first_folders, number_names, split_folders
from pirl.prepare.scratch import Progress, Scratch, Span
from pirl.prepare.sources.source import Columns, Found, Source, SourceKind, Splits
from pirl.storage.folder import Folder


@dataclass(frozen=True, eq=False)
class FolderSource(Source):
    """Images in a folder: the first folder on the way to an image is its class, and one in the folder itself has none.

    Attributes:
        names: Path of each image, relative to it; a column of strings.
        sizes: int64, bytes of each image.
    """

    names: pa.Array
    sizes: Ints

    def name(self, row: int) -> str:
        """Its URL."""
        return str(Folder(self.uri) / self.names[row].as_py())

    def spans(self, rows: Ints) -> list[Span]:
        """Whole files."""
        return [Span(self.name(row)) for row in rows.tolist()]

    def index_bytes(self) -> bytes:
        """Names and sizes."""
        return "\n".join(self.names.to_pylist()).encode() + self.sizes.tobytes()


def _check(found: Found, _: Columns) -> None:
    if gone := [file for file, name in zip(found.files, found.names, strict=True) if found.sizes[name] < 0]:
        raise ConfigError(f"{first_and_more(gone)}: a link to nothing")


def _open(found: Found, columns: Columns, _scratch: Scratch, _progress: Progress) -> Splits:
    _check(found, columns)
    paths = pa.array(found.names, pa.large_string())
    sizes = np.array([found.sizes[name] for name in found.names])

    def part(split: str | None) -> FolderSource:
        rows, names = below(paths, split) if split else (np.arange(len(paths)), paths)
        uri = str(found.folder / split if found.folder and split else found.folder)
        return FolderSource(uri, *number_names(first_folders(names)), names, sizes[rows])

    train, test = split_folders(paths)
    return part(train), part(test) if test else None


FOLDER = SourceKind(
    name="folder of images",
    suffixes=IMAGE_SUFFIXES,
    help="best with one folder for each class; train/ and test/ or val/ may lie above those",
    open=_open,
    check=_check,
)
