"""Images in zip files, in class folders.

A member that is stored is a span of the file, as in a tar file. One that is compressed cannot be read where it is
without what comes before it, so it goes to the scratch file once it was unpacked.
"""

import posixpath
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import IO

from pirl.errors import ConfigError
from pirl.prepare.labels import IMAGE_SUFFIXES
from pirl.prepare.scratch import Progress, Scratch
from pirl.prepare.sources.archive_source import Index, open_archives
from pirl.prepare.sources.source import Columns, Found, SourceKind, Splits

HEADER = struct.Struct("<4s22xHH")
"""Before each member: a mark, and the lengths of the name and of what else stands between it and the content."""
MARK = b"PK\x03\x04"


def _open(found: Found, _: Columns, scratch: Scratch, progress: Progress) -> Splits:
    return open_archives(found.files, partial(_index, scratch, progress), scratch, progress)


def _check(path: str, file: IO[bytes], _: Columns) -> None:
    with _opened(path, file) as archive:
        _images(path, archive)


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


def _images(path: str, archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """The images by their names; of several with one name the last, as for all that unpack zip files."""
    images = {}
    for info in archive.infolist():
        name = posixpath.normpath("/" + info.filename.replace("\\", "/")).lstrip("/")
        # What macOS adds for each file has its suffix too.
        is_hidden = any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
        if info.is_dir() or is_hidden or not name.lower().endswith(IMAGE_SUFFIXES):
            continue
        way = "with a password" if info.flag_bits & 1 else f"by method {info.compress_type}"
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise ConfigError(f"{path}: {name} is packed {way}, which is not read: unpack it and name the folder")
        images[name] = info
    return images


def _index(scratch: Scratch, progress: Progress, path: str, file: IO[bytes]) -> Index:
    spans: list[tuple[int, int]] = []
    with _opened(path, file) as archive:
        images = _images(path, archive)
        is_packed = {name: info.compress_type != zipfile.ZIP_STORED for name, info in images.items()}
        scratch.make_room(sum(info.file_size for name, info in images.items() if is_packed[name]), path)
        for name, info in images.items():
            file.seek(info.header_offset)
            mark, *lengths = HEADER.unpack(file.read(HEADER.size).ljust(HEADER.size))
            start, size = info.header_offset + HEADER.size + sum(lengths), info.compress_size
            if mark != MARK or start + size > archive.start_dir:
                raise ConfigError(f"{path} is damaged at byte {info.header_offset:,}: copy it again")
            if is_packed[name]:
                try:
                    data = archive.read(info)
                except (zipfile.BadZipFile, zlib.error, EOFError):
                    data = b""  # damaged: the check of the images says so and counts it
                start, size = scratch.append(data), len(data)
            spans.append((start, size))
            progress(f"reading {path}", len(spans), len(images), "images")
    return Index(list(images), spans, unpacked=list(is_packed.values()))
