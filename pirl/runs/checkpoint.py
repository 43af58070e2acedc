"""Save and load everything that changes during a run, whatever the number of workers was.

Nothing random is saved because no draw has a state: orders, views, negatives and first rows are functions of
(seed, epoch, id) or (seed, step), so the step is the state of them all.
"""

import io
import pickle
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

import torch
import torch.distributed as td
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystem, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, WriteItem
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.checkpoint.state_dict_loader import load as dcp_load
from torch.distributed.checkpoint.state_dict_saver import save as dcp_save
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from pirl.config import Config
from pirl.dist import all_gather_dicts, rank, world_size
from pirl.errors import ConfigError
from pirl.methods.choice import Network
from pirl.methods.memory import MemoryBank
from pirl.methods.models import export_state_dict
from pirl.runs.checkpoint_folder import VERSION, read_state
from pirl.runs.run_files import CheckpointFile
from pirl.storage.folder import Folder
from pirl.storage.sealed import sealed, until_whole

LONGEST_PAUSE_S = 1.0
"""Between two reads of a span that came damaged."""


@dataclass(frozen=True)
class TrainingState:
    """Everything that training changes.

    Attributes:
        bank: With this rank's rows; None for methods without one.
        log_z: Of `npid`, NaN until it is estimated; saved with the bank.
    """

    network: Network
    optimizer: Optimizer
    bank: MemoryBank | None
    log_z: Tensor

    @property
    def rows(self) -> int | None:
        """Of the bank on all ranks; None without one."""
        return self.bank.rows if self.bank else None


def save(folder: Path, config: Config, state: TrainingState, step: int, data: int) -> None:
    """Writes a checkpoint; a collective.

    Each rank writes its own rows of the bank and a share of the rest. The ranks may name one shared folder, or
    a folder each, whose files together are the checkpoint.

    Args:
        folder: Made if missing.
        config: Goes along as `config.json`.
        state: What to save; the trunk is also exported to `trunk.safetensors`, named as torchvision names it.
        step: Steps done.
        data: Fingerprint of the data set, whose images the rows of the bank and the steps belong to.

    Raises:
        RuntimeError: It cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with _plainly():
        dcp_save(_tensors(state), checkpoint_id=folder, planner=Planner(), no_dist=not td.is_initialized())
    own = {file.name: file.stat().st_size for file in folder.glob(f"__{rank()}_*.distcp")}
    sizes = all_gather_dicts(own)
    if rank() == 0:
        save_file(export_state_dict(state.network.trunk), folder / CheckpointFile.TRUNK)
        (folder / CheckpointFile.CONFIG).write_text(config.model_dump_json(indent=2))
        for name in (CheckpointFile.METADATA, CheckpointFile.TRUNK, CheckpointFile.CONFIG):
            sizes[name] = (folder / name).stat().st_size
        known: dict[str, Any] = {"version": VERSION, "method": config.method.name, "step": step}
        known |= {"rows": state.rows, "data": data, "bytes": sizes}
        known |= {"draw": state.bank.draw} if state.bank else {}
        known["metadata_crc32"] = zlib.crc32((folder / CheckpointFile.METADATA).read_bytes())
        (folder / CheckpointFile.STATE).write_bytes(sealed(known))


def load(folder: Folder, state: TrainingState) -> int:
    """Fills `state` in place from `folder`; a collective.

    The number of workers may differ from the one that saved. Each reads the parts of the bank, as they were
    written, that its own rows lie in.

    Returns:
        Steps done.

    Raises:
        ValueError: The checkpoint is of another version, of a data set of another size, or of a method with a bank
            where there is none, or without.
        RuntimeError: It cannot be read, or is damaged.
        OSError: The same, where that is known before its tensors are read.
    """
    known = _state_of(folder)
    if known["rows"] != state.rows:
        its, ours = (f"a bank of {rows} rows" if rows else "no bank" for rows in (known["rows"], state.rows))
        raise ValueError(f"{folder} is of method {known.get('method', 'pirl')} and has {its}; this run has {ours}")
    if state.bank:
        state.bank.draw = known.get("draw", 1)
    # The checkpoint brings the optimiser's settings along; those of this run's config may be others.
    names = ("momentum", "weight_decay", "fused", "foreach")  # the last two are those of the device
    settings = [{name: group[name] for name in names} for group in state.optimizer.param_groups]
    tensors = _tensors(state)
    with _plainly():
        dcp_load(tensors, storage_reader=_Reader(folder), no_dist=not td.is_initialized())
    set_state_dict(
        state.network, state.optimizer, model_state_dict=tensors["network"], optim_state_dict=tensors["optimizer"]
    )
    for group, own in zip(state.optimizer.param_groups, settings, strict=True):
        group.update(own)
    return int(known["step"])


def load_network(folder: Folder, network: Network) -> None:
    """Fills trunk and heads in place; each rank reads them for itself. Raises as `load` does."""
    _state_of(folder)
    tensors = {"network": network.state_dict()}  # the network's own tensors, which are read into
    with _plainly():
        dcp_load(tensors, storage_reader=_Reader(folder), no_dist=True)


def load_classifier(folder: Folder) -> tuple[Tensor, Tensor]:
    """The last layer of a network that says a class, weight (N, C) and bias (N,). Raises as `load` does."""
    _state_of(folder)
    reader = _Reader(folder)
    known: Any = reader.read_metadata().state_dict_metadata
    names = ("classify.weight", "classify.bias")
    network = {name: torch.empty(known[f"network.{name}"].size) for name in names}
    with _plainly():
        dcp_load({"network": network}, storage_reader=reader, no_dist=True)
    return network["classify.weight"], network["classify.bias"]


def load_bank(folder: Folder, bank: MemoryBank) -> None:
    """Fills the rows of a bank in place; a collective. Raises as `load` does."""
    _state_of(folder)
    with _plainly():
        dcp_load({"bank": bank.sharded()}, storage_reader=_Reader(folder), no_dist=not td.is_initialized())


def _state_of(folder: Folder) -> dict[str, Any]:
    """What a checkpoint says of itself; raises ConfigError where it is of another version."""
    known = read_state(folder)
    if known["version"] != VERSION:
        raise ConfigError(f"{folder} is a checkpoint of version {known['version']}; this is version {VERSION}")
    return known


class Planner(DefaultSavePlanner):
    """Each rank plans to write its rows of the bank and its share of the rest, and nothing else.

    By itself each plans to write all of the network, and the first takes out again what is planned twice: with 256
    ranks 29 MB to send and eight seconds of its processor, for each checkpoint.
    """

    def create_local_plan(self) -> SavePlan:
        """Its items are a function of the sizes of all, so that no rank has to ask."""
        plan = super().create_local_plan()
        shared = [item for item in plan.items if not isinstance(self.state_dict[item.index.fqn], DTensor)]
        ranks = dict(
            zip([item.index for item in shared], dealt(list(map(_bytes_of, shared)), world_size()), strict=True)
        )
        mine = [item for item in plan.items if ranks.get(item.index, rank()) == rank()]
        names = plan.planner_data if rank() == 0 else {}  # the same on all
        self.plan = replace(plan, items=mine, planner_data=names)
        return self.plan


def dealt(sizes: Sequence[int], ranks: int) -> list[int]:
    """The rank of each of some things: the one that has the least so far."""
    loads = [(0, rank) for rank in range(ranks)]
    found = []
    for size in sizes:
        load, rank = heappop(loads)
        found.append(rank)
        heappush(loads, (load + size, rank))
    return found


def _bytes_of(item: WriteItem) -> int:
    size = item.tensor_storage_size()
    return 1 if size is None else size


class _Reader(FileSystemReader):
    """Reads each tensor of a checkpoint with one request, from wherever it is, and checks it."""

    def __init__(self, folder: Folder) -> None:
        super().__init__(folder.uri)
        self.folder = folder
        self.fs = _Nothing()

    def read_metadata(self, *_: Any, **__: Any) -> Metadata:
        checksum = read_state(self.folder)["metadata_crc32"]
        data = self._read(CheckpointFile.METADATA, 0, None, lambda data: zlib.crc32(data) == checksum)
        metadata: Metadata = pickle.loads(data)
        return metadata

    def _slice_file(self, _: object, info: Any) -> io.BytesIO:
        return io.BytesIO(self._read(info.relative_path, info.offset, info.length, _is_whole_zip))

    def _read(self, name: str, offset: int, length: int | None, is_whole: Callable[[bytes], bool]) -> bytes:
        read = partial(self.folder.read_bytes, name, offset, length)
        data, whole = until_whole(read, is_whole, LONGEST_PAUSE_S)
        if whole:
            return data
        raise OSError(f"{self.folder / name} is damaged: remove {self.folder} to go on from the checkpoint before it")


class _Nothing(FileSystem):
    """Opens no files: the reader asks for spans."""

    def create_stream(self, path: Any, mode: str) -> Any:
        return nullcontext()


def _is_whole_zip(data: bytes) -> bool:
    """Whether a tensor is as torch wrote it, with a checksum, which torch does not look at when it loads."""
    try:
        return zipfile.ZipFile(io.BytesIO(data)).testzip() is None
    except Exception:  # one bit makes it another kind of file, and a reader raise anything
        return False


@contextmanager
def _plainly() -> Iterator[None]:
    """Silences the warning that there is no process group, which one process does not need; and makes
    torch's failure, which is no Exception, one.
    """
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            yield
    except CheckpointException as error:
        first = next(iter(error.failures.values()))[0]
        if not isinstance(first, Exception):
            raise first from None  # Ctrl-C
        raise RuntimeError(f"checkpoint: {first}") from first


def _tensors(state: TrainingState) -> dict[str, Any]:
    """The state as tensors that torch.distributed.checkpoint reads in place."""
    with torch.no_grad():
        network, optimizer = get_state_dict(state.network, state.optimizer)
    of_bank = {"bank": state.bank.sharded(), "log_z": state.log_z} if state.bank else {}
    return {"network": network, "optimizer": optimizer, **of_bank}
