"""Features that stay on the disk of a node, so that the next protocol, or the next command, need not make them."""

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from pirl import dist
from pirl.data.dataset import Dataset
from pirl.evaluate.countdown import Countdown
from pirl.evaluate.features import Features, extract_rounds, rows_of, widths
from pirl.methods.models import Trunk
from pirl.storage.sealed import is_whole, sealed

DONE = "features.json"
"""Says that the arrays beside it are whole; it comes last."""

OURS = re.compile(r"[0-9a-f]{32}(\.(?P<host>.+)\.(?P<process>\d+)\.tmp)?")
"""Folders of features, and those that a process makes: what else lies beside them is never removed."""

POOLING = 1
"""Counts how models.pool has changed: what was kept by another one is made again."""


@dataclass(frozen=True)
class FeatureStore:
    """Features in files that are mapped into memory, in a folder of this node that its processes share.

    A folder for each (weights, data, view): an array for each tap, and the labels. ResNet-50 has 4 · (2,048 + 4 ·
    2,048) bytes an image, so 1.28 million images take 52 GB of disk, and what a protocol looks at of memory.

    Attributes:
        folder: Made where it is missing.
        limit_bytes: What is older goes, least recently used first, until what stays is smaller.
    """

    folder: Path
    limit_bytes: float = 20e9

    def features(
        self,
        trunk: Trunk,
        dataset: Dataset,
        image_size: int,
        device: torch.device,
        limit: int | None = None,
        *,
        skip: bool = False,
        say: Callable[[str], None] = lambda line: None,
    ) -> Features:
        """As `features.extract`, from the disk where they are there; on the CPU. A collective."""
        sizes = widths(trunk, image_size, device)
        rows = rows_of(dataset, limit)
        folder = self.folder / _key(trunk, dataset, image_size, rows, skip)
        # All ranks, or none: to make features is a collective.
        there = dist.all_gather_dicts({str(dist.rank()): _is_done(folder)})
        if not all(there.values()):
            hosts = dist.all_gather_dicts({str(dist.rank()): socket.gethostname()})
            writes = list(hosts.values()).index(socket.gethostname()) == dist.rank()
            made = folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")
            if writes:
                self._make_room()
                made.mkdir(parents=True, mode=0o700)
            arrays = {name: _array(made, name, (rows, width)) for name, width in sizes.items()} if writes else {}
            labels = _array(made, "labels", (rows,), np.int64) if writes else None
            progress, start = Countdown(say, f"features of {dataset.uri}", rows), 0
            for part in extract_rounds(trunk, dataset, image_size, device, limit, skip=skip):
                here = slice(start, start + len(part.labels))
                for name, array in arrays.items():
                    array[here] = part.taps[name].cpu().numpy()
                if labels is not None:
                    labels[here] = part.labels.cpu().numpy()
                start = here.stop
                progress.add(len(part.labels))
            if writes:
                for array in (*arrays.values(), *([] if labels is None else [labels])):
                    array.flush()
                (made / DONE).write_bytes(sealed({"rows": rows, "data": dataset.uri, "side": image_size}))
                _put(made, folder)
            dist.barrier()
        os.utime(folder)
        taps = {name: _opened(folder, name, (rows, width)) for name, width in sizes.items()}
        return Features(taps, _opened(folder, "labels", (rows,), np.int64))

    def _make_room(self) -> None:
        """Removes what was not used for longest, and what a process of this node left that is gone."""
        found = [(folder, match) for folder in self.folder.glob("*/") if (match := OURS.fullmatch(folder.name))]
        whole = []
        for folder, match in found:
            with suppress(FileNotFoundError):  # another process removes it too
                if match["process"] is None:
                    whole.append((folder.stat().st_mtime, sum(f.stat().st_size for f in folder.iterdir()), folder))
                elif match["host"] == socket.gethostname() and not _runs(int(match["process"])):
                    shutil.rmtree(folder, ignore_errors=True)
        total = 0
        for _, size, folder in sorted(whole, reverse=True):
            total += size
            if total > self.limit_bytes:
                shutil.rmtree(folder, ignore_errors=True)


def checksum(trunk: Trunk) -> str:
    """Of the weights, in hexadecimal digits: as sha256 of the names and the bytes of all tensors."""
    found = hashlib.sha256()
    for name, value in sorted(trunk.state_dict().items()):
        if not name.endswith("num_batches_tracked"):  # which changes nothing
            found.update(name.encode())
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _key(trunk: Trunk, dataset: Dataset, image_size: int, rows: int, skip: bool) -> str:
    about = [checksum(trunk), dataset.fingerprint, image_size, rows, skip, POOLING]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]


def _put(made: Path, folder: Path) -> None:
    """Gives features that are whole their name; others of the same name stay where they are whole too."""
    if not _is_done(folder):
        shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # another process was first
            made.rename(folder)
    shutil.rmtree(made, ignore_errors=True)


def _runs(process: int) -> bool:
    """Whether there is such a process on this node."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


def _is_done(folder: Path) -> bool:
    try:
        return is_whole((folder / DONE).read_bytes())
    except OSError:
        return False


def _array(folder: Path, name: str, shape: tuple[int, ...], dtype: type = np.float32) -> np.memmap:
    return np.memmap(folder / name, dtype, "w+", shape=shape)


def _opened(folder: Path, name: str, shape: tuple[int, ...], dtype: type = np.float32) -> torch.Tensor:
    # "c": a tensor may be written to; nothing of that reaches the file.
    return torch.from_numpy(np.memmap(folder / name, dtype, "c", shape=shape))
