"""Images in tar files: in class folders, or as WebDataset writes them (key.jpg beside key.cls or key.json).

A member of a tar file that is not compressed is a span of it, so the headers are read once and each image then
by itself.
"""

import json
import posixpath
import tarfile
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from typing import IO, Any, NamedTuple

from pirl.errors import ConfigError
from pirl.prepare.scratch import Progress, Scratch
from pirl.prepare.sources.archive_source import WITHIN, Index, open_archives, resolve_links
from pirl.prepare.sources.not_read import (
    HEAD_BYTES,
    PACKED,
    NotRead,
    how_to_unpack,
    is_image,
    is_junk,
    suffix_by_head,
    suffix_of,
    tidy,
)
from pirl.prepare.sources.source import Columns, Found, SourceKind, Splits

MULTI_VOLUME = b"M"
NO_FILES = (b"V", b"D")
"""Members that GNU tar adds: the label of a volume, and what was in a folder."""


MOST_SPARSE_BYTES = 2**30
"""Of a member with holes, which is read whole: no image is as large, and a few bytes may stand for any number."""


def _open(found: Found, columns: Columns, scratch: Scratch, progress: Progress) -> Splits:
    def index(path: str, file: IO[bytes]) -> Index:
        return _Reader(columns.label, scratch, found.not_read).index(path, file)

    return open_archives(found, index, scratch, progress)


def _check(path: str, file: IO[bytes], _: Columns) -> None:
    """Refuses what is no tar file without compression."""
    with _broken_is_refused(path, file), closing(_members(path, file)) as members:
        next(members, None)


TAR = SourceKind(
    name="tar file",
    suffixes=(".tar",),
    help="with such folders, or a tar for each class, or WebDataset's key.jpg and key.cls or .json",
    open=_open,
    check=_check,
)


class _Image(NamedTuple):
    """Where an image lies: in the tar file, or in the scratch file."""

    offset: int
    size: int
    in_scratch: bool = False


class _Reader:
    """Reads the headers of a tar file and of the tar files in it, whose members are spans of the whole too.

    Of several members with one name the last is meant, as for all that unpack tar files.
    """

    def __init__(self, label_field: str | None, scratch: Scratch, not_read: NotRead) -> None:
        self.label_field, self.scratch, self.not_read = label_field, scratch, not_read
        self.images: dict[str, _Image] = {}
        self.links: dict[str, str] = {}
        self.labels: dict[str, str | None] = {}
        """What each .cls and .json file says."""

    def index(self, path: str, file: IO[bytes]) -> Index:
        """The images in a file, from its place on."""
        self._read(path, file, 0, "")
        for name, target in resolve_links(self.links, {**self.labels, **self.images}, self.not_read).items():
            if isinstance(target, _Image):
                self.images[name] = target
            else:
                self.labels[name] = target
        labels: dict[str, str] = {}
        for name, label in self.labels.items():
            # Where there are both, .cls holds the class.
            if label is None:
                self.not_read.add(suffix_of(name), name, may_be_images=False)
            elif name.lower().endswith(".cls") or _key(name) not in labels:
                labels[_key(name)] = label
        spans = [(image.offset, image.size) for image in self.images.values()]
        unpacked = [image.in_scratch for image in self.images.values()]
        return Index(list(self.images), spans, [labels.get(_key(name)) for name in self.images], unpacked)

    def _read(self, path: str, file: IO[bytes], base: int, folder: str) -> None:
        """Adds the images of a tar file that begins at byte `base`; `folder` stands before their names."""
        with _broken_is_refused(path, file):
            for member, tar in _members(path, file):
                name = folder + tidy(member.name)
                if is_junk(name):
                    self.not_read.is_read(name)
                elif member.islnk() or member.issym():
                    self._add_link(member, name, folder)
                elif not member.isreg():
                    self._leave(member, name)
                elif name.lower().endswith(".tar") and not member.issparse():
                    with _opened(tar, member) as inner:
                        within = name[: -len(".tar")] + WITHIN
                        self._read(f"{path}: {name}", inner, base + member.offset_data, within)
                else:
                    self._add_file(member, tar, name, base)

    def _add_file(self, member: tarfile.TarInfo, tar: tarfile.TarFile, name: str, base: int) -> None:
        def content(size: int = -1) -> bytes:
            with _opened(tar, member) as file:
                return file.read(size)

        suffix = name[name.rfind(".") :].lower()
        if suffix in (".cls", ".json"):
            self.labels[name] = _label(content(), suffix, self.label_field)
            return
        if not self.not_read.is_read(name, lambda: content(HEAD_BYTES)):
            return
        if name in self.images:
            self.not_read.add("earlier files of the same name", name, may_be_images=False)
            del self.images[name]
        if not member.issparse():
            self.images[name] = _Image(base + member.offset_data, member.size)
        elif member.size > MOST_SPARSE_BYTES:
            self.not_read.add("sparse files of more than 1 GB", name)
        else:  # its bytes are not one span
            self.scratch.make_room(member.size, name)
            self.images[name] = _Image(self.scratch.append(content()), member.size, in_scratch=True)

    def _add_link(self, member: tarfile.TarInfo, name: str, folder: str) -> None:
        if member.issym():
            target = posixpath.join(posixpath.dirname(tidy(member.name)), member.linkname)
            self.links[name] = folder + posixpath.normpath(target)
            return
        # It leads to what has that name by now.
        target = folder + tidy(member.linkname)
        if target in self.images:
            self.images.pop(name, None)
            self.images[name] = self.images[target]
        else:
            self.links[name] = target

    def _leave(self, member: tarfile.TarInfo, name: str) -> None:
        """Counts what is neither a file nor a link nor a folder."""
        if member.type == MULTI_VOLUME:
            self.not_read.add("files that begin in another volume", name)
        elif member.ischr() or member.isblk() or member.isfifo():
            self.not_read.add("pipes, sockets and devices", name, may_be_images=is_image(name))
        elif member.type not in NO_FILES:
            self.not_read.add("members of an unknown type", name)


@contextmanager
def _opened(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Iterator[IO[bytes]]:
    file = tar.extractfile(member)
    assert file is not None, member  # it is for files only
    with file:
        yield file


@contextmanager
def _broken_is_refused(path: str, file: IO[bytes]) -> Iterator[None]:
    """For what tarfile raises of a file, which begins at its place now, that is damaged or something else."""
    start = file.tell()
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        file.seek(start)
        suffix = suffix_by_head(file.read(HEAD_BYTES)) or ""
        how = how_to_unpack(path, suffix) if suffix in PACKED else "If it is one, copy it again"
        raise ConfigError(f"{path} cannot be read as a tar file ({error}). {how}") from None


def _members(path: str, file: IO[bytes]) -> Generator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """All in a tar file but its folders, with the tar file itself."""
    start, whole = file.tell(), file.seek(0, 2)  # the scratch file may grow meanwhile
    file.seek(start)
    with closing(tarfile.open(fileobj=file, mode="r:")) as tar:
        while member := tar.next():
            tar.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has seen
            if not member.isdir():
                yield member, tar
        end = tar.offset
    file.seek(end)
    # tarfile takes a damaged header, and the end of a file that was cut off, for the end of the archive.
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise ConfigError(f"{path} is cut off or damaged at byte {end:,}: copy it again")
    while data := file.read(min(2**20, whole - file.tell())):
        if data.strip(tarfile.NUL):
            raise ConfigError(
                f"{path} goes on behind its end at byte {end:,}, as tar files do that were put together with cat: "
                f"unpack it with tar -xif {path} and name the folder"
            )


def _key(name: str) -> str:
    folder, slash, file = name.rpartition("/")
    return folder + slash + file.partition(".")[0]


def _label(data: bytes, suffix: str, label_field: str | None) -> str | None:
    """The class that a .cls or .json file names; None if it names none."""
    if suffix == ".cls":
        return data.decode(errors="replace").strip() or None
    try:
        about: Any = json.loads(data)
    except ValueError:
        return None
    value = about.get(label_field or "label") if isinstance(about, dict) else None
    return str(value) if isinstance(value, (str, int)) else None
