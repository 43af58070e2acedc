"""Checkpoints as folders: what each says of itself, which are whole, which are sent and removed."""

import json
import sys
from pathlib import Path
from typing import Any, cast

from pirl.runs.run_files import CHECKPOINT, CheckpointFile, checkpoint_name
from pirl.storage.folder import Folder
from pirl.storage.sealed import is_whole, until_whole

VERSION = 3


def read_state(checkpoint: Folder) -> dict[str, Any]:
    """What `sealed` wrote; also that of another version, which may have no seal.

    Raises:
        ValueError: It is damaged.
        FileNotFoundError: There is none.
        StorageError: It cannot be read.
    """
    text, whole = until_whole((checkpoint / CheckpointFile.STATE).read_bytes, is_whole)
    known = json.loads(text)
    if not whole and (not isinstance(known, dict) or known.get("version", VERSION) == VERSION):
        raise ValueError(
            f"{checkpoint / CheckpointFile.STATE} is damaged: remove {checkpoint} to go on from the one before it"
        )
    return cast(dict[str, Any], known)


def upload(checkpoint: Path, folder: Folder) -> None:
    """Copies what one rank wrote of a checkpoint into the run folder."""
    for file in sorted(checkpoint.iterdir(), key=lambda file: (file.name == CheckpointFile.STATE, file.name)):
        (folder / checkpoint.name).copy_in(file)


def newest_checkpoint(folder: Folder) -> Folder | None:
    """The last complete checkpoint of a run folder."""
    found = _checkpoints(folder)
    newest = next((name for name in reversed(found) if is_complete(folder / name, found[name])), None)
    return folder / newest if newest else None


def prune_checkpoints(folder: Folder, keep: int) -> None:
    """Removes all checkpoints but the newest `keep` complete ones."""
    found = _checkpoints(folder)
    complete = [name for name in found if is_complete(folder / name, found[name])]
    for name in found:
        newer = name > max(complete, default="")
        # What a run would go on from is looked at again: one listing may be wrong or old.
        if name not in complete[-keep:] and not (newer and is_complete(folder / name)):
            remove_checkpoint(folder / name)


def remove_incomplete(folder: Folder) -> None:
    """Removes the checkpoints whose upload was cut off: files of another attempt could make them look complete."""
    prune_checkpoints(folder, keep=sys.maxsize)


def remove_checkpoint(checkpoint: Folder) -> None:
    """Removes a checkpoint, which from the first moment on is none."""
    checkpoint.clear(first=CheckpointFile.STATE)


def is_complete(checkpoint: Folder, sizes: dict[str, int] | None = None) -> bool:
    """Whether all files of all ranks are there in full: an upload may have been cut off. Lists them without `sizes`."""
    sizes = checkpoint.sizes() if sizes is None else sizes
    if CheckpointFile.STATE not in sizes:
        return False
    try:
        state = read_state(checkpoint)
        is_its_own = checkpoint.name == checkpoint_name(state["step"])
        return is_its_own and all(sizes.get(name) == size for name, size in state["bytes"].items())
    except (ValueError, KeyError, TypeError, AttributeError, FileNotFoundError):  # whatever it holds, or held
        return False


def steps_done(checkpoint: Folder | None) -> int:
    """Steps of training in a checkpoint; 0 without one."""
    return int(read_state(checkpoint)["step"]) if checkpoint else 0


def data_of(checkpoint: Folder) -> int:
    """The fingerprint of the data set that a checkpoint belongs to."""
    return int(read_state(checkpoint)["data"])


def _checkpoints(folder: Folder) -> dict[str, dict[str, int]]:
    """Bytes of each file of each checkpoint, complete or not, by their names; the newest comes last."""
    found: dict[str, dict[str, int]] = {}
    for path, size in folder.sizes().items():
        name, _, file = path.partition("/")
        if file and CHECKPOINT.fullmatch(name):
            found.setdefault(name, {})[file] = size
    return dict(sorted(found.items()))
