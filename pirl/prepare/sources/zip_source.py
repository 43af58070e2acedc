"""Images in zip files, in class folders.

A member that is stored is a span of the file, as in a tar file. One that is compressed cannot be read where it is
without what comes before it, so it goes to the scratch file once it was unpacked.
"""

import posixpath
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO

from pirl.errors import ConfigError
from pirl.prepare.scratch import Progress, Scratch
from pirl.prepare.sources.archive_source import Index, open_archives, resolve_links
from pirl.prepare.sources.not_read import HEAD_BYTES, NotRead, is_junk, tidy
from pirl.prepare.sources.source import Columns, Found, SourceKind, Splits

HEADER = struct.Struct("<4s22xHH")
"""Before each member: a mark, and the lengths of the name and of what else stands between it and the content."""
MARK = b"PK\x03\x04"
LONGEST_PATH = 4096
"""Bytes of the path to which a link leads."""


def _open(found: Found, _: Columns, scratch: Scratch, progress: Progress) -> Splits:
    return open_archives(found, partial(_index, scratch, progress, found.not_read), scratch, progress)


def _check(path: str, file: IO[bytes], _: Columns) -> None:
    with _opened(path, file) as archive:
        _images(path, archive, NotRead())


ZIP = SourceKind(name="zip file", suffixes=(".zip",), help="with such folders in it", open=_open, check=_check)


@contextmanager
def _opened(path: str, file: IO[bytes]) -> Iterator[zipfile.ZipFile]:
    """Reads the directory of a zip file, which stands at its end."""
    start = file.tell()
    try:
        archive = zipfile.ZipFile(file)
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise ConfigError(f"{path} cannot be read as a zip file ({error}): if it is one, copy it again") from None
    with archive:
        # In the scratch file, what is found is that of the file before this one where this one is cut off.
        if not all(start <= info.header_offset < archive.start_dir for info in archive.infolist()):
            raise ConfigError(f"{path} is cut off or damaged: copy it again")
        yield archive


def _images(path: str, archive: zipfile.ZipFile, not_read: NotRead) -> dict[str, zipfile.ZipInfo]:
    """The images by their names; of several with one name the last, as for all that unpack zip files."""
    images: dict[str, zipfile.ZipInfo] = {}
    links: dict[str, str] = {}
    for info in archive.infolist():
        name = tidy(info.filename.replace("\\", "/"))
        if info.is_dir():
            continue
        if is_junk(name):
            not_read.is_read(name)
            continue
        can_read = not info.flag_bits & 1 and info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
        if can_read and stat.S_ISLNK(info.external_attr >> 16):
            target = _content(archive, info, LONGEST_PATH).decode(errors="replace")
            links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
            continue
        if not not_read.is_read(name, partial(_content, archive, info, HEAD_BYTES) if can_read else bytes):
            continue
        if not can_read:
            way = "with a password" if info.flag_bits & 1 else f"by method {info.compress_type}"
            raise ConfigError(f"{path}: {name} is packed {way}, which is not read: unpack it and name the folder")
        if name in images:
            not_read.add("earlier files of the same name", name, may_be_images=False)
        images[name] = info
    return images | resolve_links(links, images, not_read)


def _content(archive: zipfile.ZipFile, info: zipfile.ZipInfo, size: int = -1) -> bytes:
    """What a member holds, or its beginning; nothing if it is damaged."""
    try:
        with archive.open(info) as file:
            return file.read(size)
    except (zipfile.BadZipFile, zlib.error, EOFError):
        return b""


def _index(scratch: Scratch, progress: Progress, not_read: NotRead, path: str, file: IO[bytes]) -> Index:
    spans: list[tuple[int, int]] = []
    with _opened(path, file) as archive:
        images = _images(path, archive, not_read)
        is_packed = {name: info.compress_type != zipfile.ZIP_STORED for name, info in images.items()}
        scratch.make_room(sum(info.file_size for name, info in images.items() if is_packed[name]), path)
        for name, info in images.items():
            file.seek(info.header_offset)
            mark, *lengths = HEADER.unpack(file.read(HEADER.size).ljust(HEADER.size))
            start, size = info.header_offset + HEADER.size + sum(lengths), info.compress_size
            if mark != MARK or start + size > archive.start_dir:
                raise ConfigError(f"{path} is damaged at byte {info.header_offset:,}: copy it again")
            if is_packed[name]:
                data = _content(archive, info)  # where it is damaged, the check of the images says so and counts it
                start, size = scratch.append(data), len(data)
            spans.append((start, size))
            progress(f"reading {path}", len(spans), len(images), "images")
    return Index(list(images), spans, unpacked=list(is_packed.values()))
