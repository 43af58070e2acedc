"""Features that stay on the disk of a node, so that the next protocol, or the next command, need not make them."""

import hashlib
import json
import os
import re
import shutil
import socket
from collections.abc import Callable, Sequence
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

LABELS = "labels"
"""The array of labels, beside those of the taps."""

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
        trunks: Sequence[Trunk],
        dataset: Dataset,
        image_size: int,
        device: torch.device,
        limit: int | None = None,
        *,
        skip: bool = False,
        processes: int = 0,
        say: Callable[[str], None] = lambda line: None,
    ) -> list[Features]:
        """As `features.extract_all`, from the disk where they are there; on the CPU. A collective."""
        rows = rows_of(dataset, limit)
        folders = [self.folder / _key(trunk, dataset, image_size, rows, skip) for trunk in trunks]
        sizes = [widths(trunk, image_size, device) for trunk in trunks]
        # All ranks, or none: to make features is a collective.
        there = list(dist.all_gather_dicts({str(dist.rank()): [_is_done(folder) for folder in folders]}).values())
        found = {
            # Opened now: making room for others may remove it.
            folder: _opened(folder, rows, of)
            for number, (folder, of) in enumerate(zip(folders, sizes, strict=True))
            if all(of_rank[number] for of_rank in there)
        }
        missing = {
            folder: (trunk, of) for folder, trunk, of in zip(folders, trunks, sizes, strict=True) if folder not in found
        }
        if missing:
            arrays = self._begun({folder: of for folder, (_, of) in missing.items()}, rows)
            progress, start = Countdown(say, f"features of {dataset.uri}", rows), 0
            given = [trunk for trunk, _ in missing.values()], dataset, image_size, device, limit
            for parts in extract_rounds(*given, skip=skip, processes=processes):
                here = slice(start, start + len(parts[0].labels))
                for array, part in zip(arrays, parts, strict=False):
                    for name, values in array.items():
                        values[here] = (part.labels if name == LABELS else part.taps[name]).cpu().numpy()
                start = here.stop
                progress.add(len(parts[0].labels))
            for folder, array in zip(missing, arrays, strict=False):
                for values in array.values():
                    values.flush()
                made = _made(folder)
                (made / DONE).write_bytes(sealed({"rows": rows, "data": dataset.uri, "side": image_size}))
                _put(made, folder)
            dist.barrier()
            found |= {folder: _opened(folder, rows, of) for folder, (_, of) in missing.items()}
        return [found[folder] for folder in folders]

    def _begun(self, sizes: dict[Path, dict[str, int]], rows: int) -> list[dict[str, np.memmap]]:
        """New arrays in each of some folders, by their names; none but on the first rank of a node. A collective."""
        hosts = list(dist.all_gather_dicts({str(dist.rank()): socket.gethostname()}).values())
        if hosts.index(socket.gethostname()) != dist.rank():
            return []
        self._make_room()
        for folder in sizes:
            _made(folder).mkdir(parents=True, mode=0o700)
        return [
            {
                name: np.memmap(_made(folder) / name, dtype, "w+", shape=shape)
                for name, dtype, shape in _arrays(rows, of)
            }
            for folder, of in sizes.items()
        ]

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


def _made(folder: Path) -> Path:
    """Where this process makes what is to come into a folder."""
    return folder.with_name(f"{folder.name}.{socket.gethostname()}.{os.getpid()}.tmp")


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


def _arrays(rows: int, sizes: dict[str, int]) -> list[tuple[str, type, tuple[int, ...]]]:
    """Names, types and shapes of the arrays in a folder."""
    return [*((name, np.float32, (rows, width)) for name, width in sizes.items()), (LABELS, np.int64, (rows,))]


def _opened(folder: Path, rows: int, sizes: dict[str, int]) -> Features:
    """What is in a folder, mapped into memory; it counts as used now."""
    os.utime(folder)
    # "c": a tensor may be written to; nothing of that reaches the file.
    found = {
        name: torch.from_numpy(np.memmap(folder / name, dtype, "c", shape=shape))
        for name, dtype, shape in _arrays(rows, sizes)
    }
    labels = found.pop(LABELS)
    return Features(found, labels)
