"""The kinds of sources, and which of them a person named."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from pirl.errors import ConfigError
from pirl.prepare.labels import first_and_more
from pirl.prepare.scratch import Progress, Scratch
from pirl.prepare.sources.folder_source import FOLDER
from pirl.prepare.sources.layout import Chosen, choose_splits, split_in, split_of
from pirl.prepare.sources.listing import files_in, heads, size_or_problem
from pirl.prepare.sources.not_read import (
    ARCHIVES,
    IMAGES,
    PACKED,
    NotRead,
    how_to_unpack,
    is_junk,
    needs_a_look,
    suffix_by_head,
    suffix_of,
    tidy,
)
from pirl.prepare.sources.parquet_source import PARQUET
from pirl.prepare.sources.source import Columns, Found, Source, SourceKind, Splits, with_unlabelled
from pirl.prepare.sources.tar_source import TAR
from pirl.prepare.sources.zip_source import ZIP
from pirl.storage.folder import Folder

KINDS = (PARQUET, TAR, FOLDER, ZIP)
"""Of a folder with files of several kinds, those of the first of these are read: a new kind comes last."""
FILE_KINDS = tuple(kind for kind in KINDS if kind is not FOLDER)
ALSO = "also"
WORDS = re.compile(r"[-_. ]")
"""What stands between the words of a name."""
WHAT_A_SOURCE_IS = (
    f"SOURCE is a {FOLDER.name}, best with one folder for each class in it, "
    f"{', '.join(f'{kind.name}s' for kind in FILE_KINDS)}, or digits"
)


def find_source(
    uri: str,
    columns: Columns,
    scratch: Scratch,
    progress: Progress,
    also: Sequence[str] = (),
    not_read: NotRead | None = None,
) -> Splits:
    """Opens what a person named, and the held-out split in it if there is one.

    That is a folder of images or of files of another kind, such a file, or a pattern (`*`, `?`, `[ab]`) for them. A
    split is a folder, or files whose names begin so: train, and test or val. Beside a test split, files of other names
    are for training where none is called train. Images that cannot be read one by one where they are go to `scratch`.

    Args:
        also: Folders, or names that files begin with, whose images are for training without a label.
        not_read: Where what is there and not read is counted.

    Raises:
        ConfigError: There is nothing, or nothing that is understood.
    """
    kind, found = _find(uri, NotRead() if not_read is None else not_read)
    if kind is FOLDER:  # whose splits are folders of images
        _count_beside(found)
        return kind.open(replace(found, also=also), columns, scratch, progress)

    def opened(names: list[str], inner: Sequence[str] = ()) -> Splits:
        return kind.open(replace(found, names=names, also=inner), columns, scratch, progress)

    def only(names: list[str]) -> Source:
        source, inside = opened(names)
        if inside is not None:
            found.not_read.add("images of test splits in files of one split", inside.name(0), len(inside.labels))
        return source

    splits = _by_split(found, also)
    added = splits.pop(ALSO, [])
    inner = [word for word in also if not any(word in _called(name, found) for name in added)]
    if inner and kind is PARQUET:
        raise ConfigError(f"--also {inner[0]}: no file is called so; there is {first_and_more(found.names)}")
    has_others = None in splits and not {"test", "val"} & splits.keys()
    chosen = choose_splits(set(splits), has_others, has_more=bool(added))
    if chosen is None:
        chosen, splits = Chosen(None, []), {None: sorted(name for names in splits.values() for name in names)}
    train, test = opened(splits[chosen.train], inner) if splits.get(chosen.train) else (None, None)
    source = with_unlabelled(train, only(added) if added else None)
    held_out = None
    if chosen.held_out:
        if test is not None:
            found.not_read.add("images of test splits in files of one split", test.name(0), len(test.labels))
        held_out, test = _open_held_out(chosen.held_out, lambda split: only(splits[split]), source)
        found.not_read.held_out = first_and_more(splits[held_out])
    for split, names in splits.items():
        for name in names if split not in (chosen.train, held_out) else []:
            found.not_read.add(f"{suffix_of(name)} {f'of {split}' if split else 'beside the splits'}", name)
    _count_beside(found)
    return source, test


def check_source(uri: str, columns: Columns) -> None:
    """Refuses what `find_source` would, as far as the names of the files and the beginning of one show it."""
    kind, found = _find(uri, NotRead())
    if kind.check:
        with Folder(found.files[0]).reading() as file:
            kind.check(found.files[0], file, columns)


def _find(uri: str, not_read: NotRead) -> tuple[SourceKind, Found]:
    """The files of a source, all of one kind; what else there is goes into `not_read`."""
    place, folder = Folder(uri), None
    sizes: dict[str, int] = {}
    if place.is_folder():
        folder, sizes = place, files_in(place, not_read)
        by_kind = _by_kind(folder, sizes, not_read)
    elif place.exists():
        by_kind = {_kind_of_file(place): [uri]}
    elif any(mark in uri for mark in "*?["):
        if not (matches := place.matches()):
            raise ConfigError(f"{uri}: there is no such file. {WHAT_A_SOURCE_IS}")
        by_kind = _by_kind(None, _sizes_of(matches, not_read), not_read)
        by_kind.pop(FOLDER, None)
    else:
        raise ConfigError(f"{uri} does not exist{_of_its_bucket(place)}: {WHAT_A_SOURCE_IS}")
    chosen = next((kind for kind in KINDS if kind in by_kind), None)
    if chosen is not None:
        beside = [name for kind, names in by_kind.items() if kind is not chosen for name in names]
        return chosen, Found(folder, by_kind[chosen], sizes, not_read=not_read, beside=beside)
    for suffix in PACKED:
        if suffix.startswith(".t") and (left := not_read.left.get(suffix)):
            raise ConfigError(_is_compressed(str(folder / left.first) if folder else left.first, suffix))
    others = " or ".join(suffix for kind in FILE_KINDS for suffix in kind.suffixes)
    raise ConfigError(
        f"{uri} holds no images that are read ({' '.join(FOLDER.suffixes)}) and no {others} files"
        f"{not_read.hint()}. {WHAT_A_SOURCE_IS}"
    )


def _count_beside(found: Found) -> None:
    """Counts the files of other kinds, but for images that Parquet files name."""
    for name in found.beside:
        if str(found.folder / name if found.folder else name) not in found.used:
            found.not_read.add(suffix_of(name) or "images without a suffix", name)


def _of_its_bucket(place: Folder) -> str:
    """Says so where not even the bucket is there: what lists it does not tell."""
    try:
        if place.path is None:
            place.read_bytes(offset=0, length=1)
    except FileNotFoundError as error:
        if "bucket" in f"{error.strerror}":
            return f", {error.strerror}"
    return ""


def _by_kind(folder: Folder | None, sizes: dict[str, int], not_read: NotRead) -> dict[SourceKind, list[str]]:
    """Files by the kind of source that they are or are in; those of no kind are counted.

    A file whose suffix says nothing is looked into, in an object store too: that is a request for each of them.
    """
    called = {name: tidy(name) if folder else name.rpartition("/")[2] for name in sizes}
    unknown = [name for name, size in sizes.items() if size and needs_a_look(called[name])]
    looked = heads([str(folder / name) if folder else name for name in unknown])
    known = dict.fromkeys(sizes, b"") | dict(zip(unknown, looked, strict=True))
    by_kind: dict[SourceKind, list[str]] = {}
    for name in sizes:
        kind = next((kind for kind in FILE_KINDS if called[name].lower().endswith(kind.suffixes)), None)
        if kind is None and not_read.is_read(called[name], partial(known.__getitem__, name)):
            kind = FOLDER
        if kind is not None:
            by_kind.setdefault(kind, []).append(name)
    return by_kind


def _sizes_of(uris: list[str], not_read: NotRead) -> dict[str, int]:
    """The files of some URLs that can be read."""
    sizes = {}
    for uri in uris:
        path = Folder(uri).path
        size = 1 if path is None else "folders" if path.is_dir() else size_or_problem(str(path))
        if isinstance(size, str):
            not_read.add(size, uri)
        elif not is_junk(uri.rpartition("/")[2]):
            sizes[uri] = size
    return sizes


def _kind_of_file(place: Folder) -> SourceKind:
    """The kind of a file that a person named, by its suffix or, where that tells nothing, by its beginning."""
    if place.path is not None and isinstance(problem := size_or_problem(str(place.path)), str):
        raise ConfigError(f"{place} cannot be read: it is one of {problem}")
    suffix = suffix_of(place.name)
    if needs_a_look(place.name):
        suffix = suffix_by_head(heads([str(place)])[0]) or ""
    if suffix in PACKED:
        raise ConfigError(_is_compressed(str(place), suffix))
    if kind := next((kind for kind in FILE_KINDS if suffix in kind.suffixes), None):
        return kind
    if suffix in (".image", *IMAGES):
        raise ConfigError(f"{place} is a single image: {WHAT_A_SOURCE_IS}")
    what = "an archive that is not read: unpack it, and name the folder" if suffix in ARCHIVES else "not read"
    raise ConfigError(f"{place} is {what}. {WHAT_A_SOURCE_IS}")


def _is_compressed(path: str, suffix: str) -> str:
    return f"{path} is compressed, so images in it cannot be read one by one. {how_to_unpack(path, suffix)}"


def _parts(name: str, found: Found) -> list[str]:
    """The folders that a file lies in below the source, and its name without the suffix."""
    *folders, file = name.split("/")
    return [*(folders if found.folder else []), file.rpartition(".")[0]]


def _called(name: str, found: Found) -> set[str]:
    """What a person may call a file: its folders and its name, and the first word of each."""
    return {word for part in _parts(name, found) for word in (part, WORDS.split(part)[0])}


def _by_split(found: Found, also: Sequence[str]) -> dict[str | None, list[str]]:
    """The files of each split; `ALSO` are those that a person named so, None those that are called like no split."""

    def first_word(part: str) -> str | None:
        part = part.removeprefix("split=")
        return split_of(part) or split_of(WORDS.split(part)[0])

    added = [name for name in found.names if _called(name, found) & set(also)]
    rest = [name for name in found.names if name not in set(added)]
    for role in (first_word, split_in):  # as in `ILSVRC2012_img_train.tar`, if all are called so
        roles = [next((split for part in _parts(name, found) if (split := role(part))), None) for name in rest]
        if None not in roles:
            break
    else:
        roles = [next((split for part in _parts(name, found) if (split := first_word(part))), None) for name in rest]
    splits: dict[str | None, list[str]] = {ALSO: added} if added else {}
    for name, split in zip(rest, roles, strict=True):
        splits.setdefault(split, []).append(name)
    return splits


def _open_held_out(splits: Sequence[str], opened: Callable[[str], Source], train: Source) -> tuple[str, Source]:
    """The first split with labels; the first one if none has any, or the images for training have none."""
    first = opened(splits[0])
    if first.classes is None and train.classes is not None:
        for split in splits[1:]:
            if (other := opened(split)).classes is not None:
                return split, other
    return splits[0], first
