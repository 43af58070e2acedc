"""The folder that a data set is written to: free, ours to replace, or one to go on with."""

import json
import re
from typing import Any

from pirl.data.writer import MANIFEST
from pirl.errors import ConfigError
from pirl.storage import files as storage
from pirl.storage.folder import Folder

UNFINISHED = "unfinished.json"
"""Holds the request for as long as the data set is not complete."""
OUR_FILES = re.compile(r"unfinished\.json|(test/)?(manifest\.json|shard-\d{5,}\.parquet)(\.\d+\.tmp)?")


def check_apart(destination: str, source: str) -> None:
    """Refuses to write into a source, or over one."""
    if Folder(destination).overlaps(Folder(source)):
        raise ConfigError(f"DESTINATION {destination} and SOURCE {source} overlap: name a folder apart from it")


def check_destination(uri: str, request: dict[str, Any], overwrite: bool) -> None:
    """Refuses a destination that is in use.

    Args:
        uri: The folder.
        request: What decides the data set; a part of what `start` is given.
        overwrite: Whether a data set that is there is to be replaced.

    Raises:
        ConfigError: There are other files, or another data set; says what to type.
    """
    if not storage.exists(uri):
        return
    if not storage.is_folder(uri):
        raise ConfigError(f"DESTINATION {uri} is a file: name a new folder")
    files = storage.files_below(uri)
    foreign = [name for name in files if not OUR_FILES.fullmatch(name)]
    if foreign:
        raise ConfigError(f"DESTINATION {uri} holds other files ({foreign[0]}): name a new or empty folder")
    if not files or overwrite:
        return
    begun = _begun(uri, files)
    if begun is None:
        raise ConfigError(f"DESTINATION {uri} exists: choose another, or add --overwrite to replace the data set in it")
    for word, value in request.items():
        if begun.get(word) != value:
            raise ConfigError(
                f"DESTINATION {uri} holds the beginning of another data set ({word} {begun.get(word)}, now {value}): "
                "type what was typed then to go on with it, or add --overwrite to begin anew"
            )


def start(uri: str, request: dict[str, Any], overwrite: bool) -> None:
    """Makes the folder ready: as it is, if the same request has begun in it, and else empty.

    Raises:
        ConfigError: Another request has begun in it.
        OSError: It cannot be written.
    """
    files = storage.files_below(uri) if storage.exists(uri) else []
    if _begun(uri, files) == request:
        for name in files:
            if name.endswith(".tmp"):
                storage.remove(storage.join(uri, name))
        return
    # What decides it may have changed since: the files of the source.
    check_destination(uri, request, overwrite)
    if files:
        clear(uri)
    try:
        storage.write_text(storage.join(uri, UNFINISHED), json.dumps(request) + "\n")
    except OSError as error:
        raise OSError(f"DESTINATION {uri} cannot be written: {error}") from None


def finish(uri: str) -> None:
    """Says that the data set is complete: its manifests are written."""
    storage.remove(storage.join(uri, UNFINISHED))


def clear(uri: str) -> None:
    """Removes a data set: manifests first, so that a part of it never looks complete, then what would go on with it."""
    rank = {MANIFEST: 0, UNFINISHED: 1}
    for name in sorted(storage.files_below(uri), key=lambda name: (rank.get(name.rpartition("/")[2], 2), name)):
        storage.remove(storage.join(uri, name))


def _begun(uri: str, files: list[str]) -> dict[str, Any] | None:
    """The request that has begun in a folder and not ended."""
    if UNFINISHED not in files or MANIFEST in files:
        return None
    try:
        request = json.loads(storage.read_all(storage.join(uri, UNFINISHED)))
    except ValueError:
        return None
    return request if isinstance(request, dict) else None
