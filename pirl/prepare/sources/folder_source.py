"""Images in class folders."""

import zlib
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pirl.data.dataset import Ints
from pirl.prepare.labels import number_names
from pirl.prepare.scratch import Progress, Scratch, Span
from pirl.prepare.sources.layout import Part, find_layout, first_folders
from pirl.prepare.sources.not_read import IMAGES, tidy
from pirl.prepare.sources.source import Columns, Found, Source, SourceKind, Splits, with_unlabelled
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
    names = pa.array(found.names, pa.large_string())
    sizes = np.array([found.sizes[name] for name in found.names])
    # A store may have keys like `photos//1.png`: they are read by these, and understood as everybody writes them.
    paths = pa.array([tidy(name) for name in found.names], pa.large_string())

    def source(part: Part) -> FolderSource:
        index_crc = zlib.crc32("\n".join(part.paths.to_pylist()).encode() + sizes[part.rows].tobytes())
        labelled = number_names(first_folders(part.paths))
        return FolderSource(str(found.folder), *labelled, index_crc, names.take(pa.array(part.rows)))

    layout = find_layout(paths, None, found.also, found.not_read)
    train = with_unlabelled(source(layout.train), layout.also and source(layout.also))
    return train, layout.test and source(layout.test)


FOLDER = SourceKind(
    name="folder of images",
    suffixes=IMAGES,
    help="best with one folder for each class; train/ and test/ or val/ may lie above those",
    open=_open,
)
