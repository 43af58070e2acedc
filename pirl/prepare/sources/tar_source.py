"""Images in tar files: in class folders, or as WebDataset writes them (key.jpg beside key.cls or key.json).

A member of a tar file that is not compressed is a span of it, so the headers are read once and each image then
by itself.
"""

import json
import posixpath
import tarfile
from collections.abc import Generator
from contextlib import closing
from functools import partial
from typing import IO, Any

from pirl.errors import ConfigError
from pirl.prepare.labels import IMAGE_SUFFIXES
from pirl.prepare.scratch import Progress, Scratch
from pirl.prepare.sources.archive_source import Index, open_archives
from pirl.prepare.sources.source import Columns, Found, SourceKind, Splits


def _open(found: Found, columns: Columns, scratch: Scratch, progress: Progress) -> Splits:
    return open_archives(found.files, partial(_index, columns.label), scratch, progress)


def _check(path: str, file: IO[bytes], _: Columns) -> None:
    """Refuses what is no tar file without compression."""
    with closing(_members(path, file)) as members:
        next(members, None)


TAR = SourceKind(
    name="tar file",
    suffixes=(".tar",),
    help="with such folders in it, or pairs as of WebDataset (key.jpg with key.cls or key.json)",
    open=_open,
    check=_check,
    compressed=(".tar.gz", ".tgz"),
)


def _index(label_field: str | None, path: str, file: IO[bytes]) -> Index:
    names: list[str] = []
    spans: list[tuple[int, int]] = []
    links: dict[int, str] = {}
    labels: dict[str, str] = {}
    for member, tar in _members(path, file):
        name = member.name.removeprefix("./")
        suffix = name[name.rfind(".") :].lower()
        if suffix in IMAGE_SUFFIXES:
            if not member.isreg():
                folder = posixpath.dirname(name) if member.issym() else ""
                links[len(names)] = posixpath.normpath(posixpath.join(folder, member.linkname))
            names.append(name)
            spans.append((member.offset_data, member.size))
        elif suffix in (".cls", ".json") and member.isreg():
            data = tar.extractfile(member)
            label = _label(data.read(), suffix, label_field) if data else None
            # Where there are both, .cls holds the class.
            if label is not None and (suffix == ".cls" or _key(name) not in labels):
                labels[_key(name)] = label
    if links:  # places in the index, and where they lead: they get the spans of their images, or an empty one
        known = {name: span for at, (name, span) in enumerate(zip(names, spans, strict=True)) if at not in links}
        for at, target in links.items():
            known[names[at]] = spans[at] = known.get(target, (0, 0))
    return Index(names, spans, [labels.get(_key(name)) for name in names])


def _members(path: str, file: IO[bytes]) -> Generator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The files and links in a tar file, with the tar file itself."""
    try:
        with closing(tarfile.open(fileobj=file, mode="r:")) as tar:
            while member := tar.next():
                tar.members.clear()  # type: ignore[attr-defined]  # it keeps all that it has seen
                if member.isreg() or member.islnk() or member.issym():
                    yield member, tar
            end = tar.offset
    except (tarfile.TarError, EOFError) as error:
        raise ConfigError(
            f"{path} cannot be read as a tar file ({error}). If it is compressed, type: gunzip {path}"
        ) from None
    file.seek(end)
    # tarfile takes a damaged header, and the end of a file that was cut off, for the end of the archive.
    if file.read(tarfile.BLOCKSIZE) != tarfile.NUL * tarfile.BLOCKSIZE:
        raise ConfigError(f"{path} is cut off or damaged at byte {end:,}: copy it again")
    while data := file.read(2**20):
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
