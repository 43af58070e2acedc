"""What is asked of torchrun's processes before a run starts, as clusters/preflight.py asks a cluster's nodes."""

import uuid
from collections.abc import Callable

from pirl.config import ConfigError
from pirl.dist import all_gather_dicts, rank, world_size
from pirl.folder import Folder
from pirl.runs import check_shared


def check_ranks(storage: Folder) -> None:
    """Refuses a storage that some rank cannot write, or that is not the same folder for all; a collective.

    Leaves nothing there but the folder.

    Raises:
        ConfigError: On every rank; names the first that cannot, and why.
    """
    own = f".probe-{uuid.uuid4().hex}"
    first = all_gather_dicts({"name": own} if rank() == 0 else {})["name"]
    problems: list[str] = []
    steps = (lambda: storage.write(own, ""), lambda: check_shared(storage, first), lambda: storage.remove(own))
    for step in steps:  # none is left out, so that all ranks come to the same end
        problems += all_gather_dicts(_problem(step, storage)).values()
    if problems:
        raise ConfigError(problems[0])


def _problem(step: Callable[[], None], storage: Folder) -> dict[str, str]:
    """What went wrong on this rank, by its name."""
    name = f"rank {rank()}: " if world_size() > 1 else ""
    try:
        step()
    except ConfigError as error:
        return {name: f"{name}{error}"}
    except OSError as error:
        return {name: f"{name}--storage {storage} cannot be written: {error}"}
    return {}
