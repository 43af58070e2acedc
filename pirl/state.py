"""What a checkpoint says of itself: how far it is and which files it has, sealed with a checksum.

It comes last and goes first, so a checkpoint without it is none.
"""

import json
from typing import Any, cast

from pirl.folder import Folder
from pirl.retry import pause
from pirl.shard_writer import is_whole

STATE = "state.json"
VERSION = 3

READS = 10
"""It is read again in case it was damaged on its way."""
LONGEST_PAUSE_S = 0.2


def read_state(checkpoint: Folder) -> dict[str, Any]:
    """What `shard_writer.sealed` wrote; also that of another version, which may have no seal.

    Raises:
        ValueError: It is damaged.
        FileNotFoundError: There is none.
        StorageError: It cannot be read.
    """
    for failures in range(READS):
        if failures:
            pause(failures, LONGEST_PAUSE_S)
        text = checkpoint.read_bytes(STATE)
        if is_whole(text):
            return cast(dict[str, Any], json.loads(text))
    known = json.loads(text)
    if not isinstance(known, dict) or known.get("version", VERSION) == VERSION:
        raise ValueError(f"{checkpoint / STATE} is damaged: remove {checkpoint} to go on from the one before it")
    return known
