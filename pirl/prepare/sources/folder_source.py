"""Images in class folders."""

import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pirl.data.dataset import Ints
from pirl.prepare.labels import IMAGE_SUFFIXES, below, first_folders, number_names, split_folders
from pirl.prepare.scratch import Progress, Scratch, Span
from pirl.prepare.sources.source import Columns, Found, Source, SourceKind, Splits
from pirl.storage.folder import Folder


@dataclass(frozen=True, eq=False)
class FolderSource(Source):
    """Images in a folder: the first folder on the way to an image is its class, and one in the folder itself has none.

    Attributes:
        names: Path of each image, relative to it; a column of strings.
    """

    names: pa.Array

    def name(self, row: int) -> str:
        """Its URL."""
        return str(Folder(self.uri) / self.names[row].as_py())

    def spans(self, rows: Ints) -> list[Span]:
        """Whole files."""
        return [Span(self.name(row)) for row in rows.tolist()]


def _open(found: Found, _columns: Columns, _scratch: Scratch, _progress: Progress) -> Splits:
    paths = pa.array(found.names, pa.large_string())
    sizes = np.array([found.sizes[name] for name in found.names])

    def part(split: str | None) -> FolderSource:
        rows, names = below(paths, split)
        uri = str(found.folder / split if found.folder and split else found.folder)
        index_crc = zlib.crc32("\n".join(names.to_pylist()).encode() + sizes[rows].tobytes())
        return FolderSource(uri, *number_names(first_folders(names)), index_crc, names)

    train, test = split_folders(paths)
    return part(train), part(test) if test else None


FOLDER = SourceKind(
    name="folder of images",
    suffixes=IMAGE_SUFFIXES,
    help="best with one folder for each class; train/ and test/ or val/ may lie above those",
    open=_open,
)
