"""The folder that a data set is written to: free, ours to replace, or one to go on with."""

import json
import re
from typing import Any

from pirl.data.writer import MANIFEST
from pirl.errors import ConfigError
from pirl.storage.folder import Folder

UNFINISHED = "unfinished.json"
"""Holds the request for as long as the data set is not complete."""
OUR_FILES = re.compile(r"unfinished\.json|(test/)?(manifest\.json|shard-\d{5,}\.parquet)(\.\d+\.tmp)?")


def check_apart(destination: str, source: str) -> None:
    """Refuses to write into a source, or over one."""
    if Folder(destination).overlaps(Folder(source)):
        raise ConfigError(f"DESTINATION {destination} and SOURCE {source} overlap: name a folder apart from it")


def check_destination(folder: Folder, request: dict[str, Any], overwrite: bool) -> None:
    """Refuses a destination with other files or another data set in it: raises ConfigError, which says what to type.

    The request, which decides the data set, is a part of what `start` is given.
    """
    if not folder.exists():
        return
    if not folder.is_folder():
        raise ConfigError(f"DESTINATION {folder} is a file: name a new folder")
    files = sorted(folder.sizes())
    if foreign := [name for name in files if not OUR_FILES.fullmatch(name)]:
        raise ConfigError(f"DESTINATION {folder} holds other files ({foreign[0]}): name a new or empty folder")
    if not files or overwrite:
        return
    begun = _begun(folder, files)
    if begun is None:
        raise ConfigError(
            f"DESTINATION {folder} exists: choose another, or add --overwrite to replace the data set in it"
        )
    for word in {**request, **begun}:
        value = request.get(word)
        if begun.get(word) != value and (word in request or word != "content"):
            raise ConfigError(
                f"DESTINATION {folder} holds the beginning of another data set ({word} {begun.get(word)}, now {value}):"
                " type what was typed then to go on with it, or add --overwrite to begin anew"
            )


def start(folder: Folder, request: dict[str, Any], overwrite: bool) -> None:
    """Makes the folder ready: as it is, if the same request has begun in it, and else empty.

    Raises as `check_destination`, and OSError where it cannot be written.
    """
    files = sorted(folder.sizes())
    if _begun(folder, files) == request:
        folder.remove(*(name for name in files if name.endswith(".tmp")))
        return
    # What decides it may have changed since: the files of the source.
    check_destination(folder, request, overwrite)
    if files:
        clear(folder)
    try:
        folder.write(UNFINISHED, json.dumps(request) + "\n")
    except OSError as error:
        raise OSError(f"DESTINATION {folder} cannot be written: {error}") from None


def finish(folder: Folder) -> None:
    """Says that the data set is complete: its manifests are written."""
    folder.remove(UNFINISHED)


def clear(folder: Folder) -> None:
    """Removes a data set: manifests first, so that a part of it never looks complete, then what would go on with it."""
    rank = {MANIFEST: 0, UNFINISHED: 1}
    folder.remove(*sorted(folder.sizes(), key=lambda name: (rank.get(name.rpartition("/")[2], 2), name)))


def _begun(folder: Folder, files: list[str]) -> dict[str, Any] | None:
    """The request that has begun in a folder and not ended."""
    if UNFINISHED not in files or MANIFEST in files:
        return None
    try:
        request = json.loads(folder.read(UNFINISHED))
    except ValueError:
        return None
    return request if isinstance(request, dict) else None
