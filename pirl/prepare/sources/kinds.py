"""The kinds of sources, and which of them a person named."""

import sys
from dataclasses import replace

from pirl.errors import ConfigError
from pirl.prepare.labels import TEST_NAMES, first_and_more, split_words
from pirl.prepare.scratch import Progress, Scratch
from pirl.prepare.sources.folder_source import FOLDER
from pirl.prepare.sources.parquet_source import PARQUET
from pirl.prepare.sources.source import Columns, Found, SourceKind, Splits
from pirl.prepare.sources.tar_source import TAR
from pirl.prepare.sources.zip_source import ZIP
from pirl.storage.folder import Folder

KINDS = (PARQUET, TAR, FOLDER, ZIP)
"""Of a folder with files of several kinds, those of the first of these are read: a new kind comes last."""
FILE_KINDS = tuple(kind for kind in KINDS if kind is not FOLDER)
WHAT_A_SOURCE_IS = (
    f"SOURCE is a {FOLDER.name}, best with one folder for each class in it, "
    f"{', '.join(f'{kind.name}s' for kind in FILE_KINDS)}, or digits"
)


def find_source(uri: str, columns: Columns, scratch: Scratch, progress: Progress) -> Splits:
    """Opens what a person named, and the held-out split in it if there is one.

    That is a folder of images or of files of another kind, such a file, or a pattern (`*`, `?`, `[ab]`) for them. A
    split is a folder, or files whose names begin so: train, and test or val. Beside a test split, files of other names
    are for training where none is called train. Images that cannot be read one by one where they are go to `scratch`.

    Raises:
        ConfigError: There is nothing, or nothing that is understood.
    """
    kind, found = _find(uri)
    others = tuple(suffix for kind in KINDS for suffix in kind.suffixes)
    if left := sorted(name for name in found.sizes.keys() - set(found.names) if name.lower().endswith(others)):
        print(f"{uri}: {first_and_more(left)} not read, beside {first_and_more(found.names)}", file=sys.stderr)
    if kind is FOLDER:  # whose splits are folders of images
        return kind.open(found, columns, scratch, progress)
    train, test = _by_split(found)
    source, inside = kind.open(train, columns, scratch, progress)
    return source, kind.open(test, columns, scratch, progress)[0] if test else inside


def check_source(uri: str, columns: Columns) -> None:
    """Refuses what `find_source` would, as far as the names of the files and the beginning of one show it."""
    kind, found = _find(uri)
    if kind.check:
        with Folder(found.files[0]).reading() as file:
            kind.check(found.files[0], file, columns)


def _find(uri: str) -> tuple[SourceKind, Found]:
    """The files of a source, all of one kind."""
    place, folder = Folder(uri), None
    sizes: dict[str, int] = {}
    if place.is_folder():
        folder, sizes = place, place.sizes(follow_links=True)
        names = sorted(sizes)
    elif place.exists():
        names = [uri]
    elif any(mark in uri for mark in "*?["):
        names = place.matches()
    else:
        raise ConfigError(f"{uri} does not exist: {WHAT_A_SOURCE_IS}")
    for kind in KINDS if folder else FILE_KINDS:
        if of_kind := [name for name in names if name.lower().endswith(kind.suffixes)]:
            if kind is FOLDER and (gone := [str(place / name) for name in of_kind if sizes[name] < 0]):
                raise ConfigError(f"{first_and_more(gone)}: a link to nothing")
            return kind, Found(folder, of_kind, sizes)
    if compressed := [name for kind in KINDS for name in names if name.endswith(kind.compressed)]:
        raise ConfigError(f"{compressed[0]} is compressed, so images in it cannot be read one by one: gunzip it first")
    others = " or ".join(suffix for kind in FILE_KINDS for suffix in kind.suffixes)
    raise ConfigError(f"{uri} holds no images ({' '.join(FOLDER.suffixes)}) and no {others} files: {WHAT_A_SOURCE_IS}")


def _by_split(found: Found) -> tuple[Found, Found | None]:
    """The files of the training and of the held-out split."""

    def word(name: str) -> str:
        *folders, file = name.split("/")
        parts = [*(folders if found.folder else []), file.rpartition(".")[0]]
        words = [part.removeprefix("split=").split("-")[0].split("_")[0] for part in parts]
        return next((word for word in words if word in ("train", *TEST_NAMES)), "")

    train, test = split_words({word(name) for name in found.names})
    chosen = [[name for name in found.names if split is None or word(name) == split] for split in (train, test)]
    return replace(found, names=chosen[0]), replace(found, names=chosen[1]) if test else None
