"""Tensors with what they are: `NAME.safetensors`, and `NAME.json`, which comes last and has their checksum."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from pirl.errors import ConfigError
from pirl.storage.folder import Folder
from pirl.storage.sealed import is_whole, sealed, until_whole


def write_described(folder: Folder, name: str, data: bytes, about: Mapping[str, Any]) -> None:
    """Writes both files; what was half written before is replaced."""
    folder.write(f"{name}.safetensors", data)
    folder.write(f"{name}.json", sealed({**about, "sha256": hashlib.sha256(data).hexdigest()}))


def description(folder: Folder, name: str) -> dict[str, Any] | None:
    """What the JSON says; None where there is none. Raises ConfigError where it is damaged."""
    file = folder / f"{name}.json"
    try:
        text, whole = until_whole(file.read_bytes, is_whole)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not whole:
        raise ConfigError(f"{file} is damaged: remove {folder}, and have python jobs/clusterfit.py make it anew")
    found: dict[str, Any] = json.loads(text)
    return found


def described(folder: Folder, name: str, sha256: str) -> bytes:
    """The tensors; raises ConfigError where they are not those with this checksum."""
    file = folder / f"{name}.safetensors"
    try:
        data, whole = until_whole(file.read_bytes, lambda data: hashlib.sha256(data).hexdigest() == sha256)
    except FileNotFoundError:
        whole = False
    if not whole:
        raise ConfigError(
            f"{file} is not the file that was written: remove {folder}, and have python jobs/clusterfit.py make it anew"
        )
    return data
