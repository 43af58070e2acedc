"""Images in class folders."""

from dataclasses import dataclass

import pyarrow as pa

from pirl.prepare.labels import Ints, below, first_folders, number_names, split_folders
from pirl.prepare.scratch import Span
from pirl.storage import files as storage


@dataclass(frozen=True, eq=False)
class FolderSource:
    """Images in a folder: the first folder on the way to an image is its class.

    Attributes:
        uri: The folder.
        names: Path of each image, relative to it; a column of strings.
        sizes: int64, bytes of each image.
        classes: Names of the class folders, or None if all images lie in the folder itself.
        labels: int64, each image's class, -1 for an image that lies in the folder itself.
    """

    uri: str
    names: pa.Array
    sizes: Ints
    classes: list[str] | None
    labels: Ints

    def name(self, row: int) -> str:
        """What a person calls a row."""
        return storage.join(self.uri, self.names[row].as_py())

    def spans(self, rows: Ints) -> list[Span]:
        """Where the images of these rows lie."""
        return [Span(self.name(row)) for row in rows.tolist()]


def folder_source(uri: str, names: pa.Array, sizes: Ints) -> tuple[FolderSource, FolderSource | None]:
    """The images of a folder, and those of the held-out split in it."""
    train, test = split_folders(names)
    return _folder(uri, names, sizes, train), _folder(uri, names, sizes, test) if test else None


def _folder(uri: str, names: pa.Array, sizes: Ints, split: str | None) -> FolderSource:
    if split is not None:
        uri, (rows, names) = storage.join(uri, split), below(names, split)
        sizes = sizes[rows]
    return FolderSource(uri, names, sizes, *number_names(first_folders(names)))
