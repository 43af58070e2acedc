"""Features of a data set as Parquet files, for other programs: a row for each image, in the order of the ids.

A shard holds a fixed span of row groups, and is made by itself: any number of processes write the same bytes, and
after a kill the shards that are whole stay. `embedding.json` comes last: a folder without it is not complete.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.metadata import version
from threading import Lock
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from pirl.data.dataset import Dataset
from pirl.errors import ConfigError, RunFailed
from pirl.evaluate.features import widths
from pirl.evaluate.store import POOLING, checksum
from pirl.loading.color import normalize
from pirl.loading.crops import plain_view, view_rule
from pirl.loading.group_views import views_of
from pirl.methods.models import Trunk, pool
from pirl.prepare.destination import UNFINISHED
from pirl.storage.folder import Folder
from pirl.storage.sealed import is_whole, sealed

EMBEDDING = "embedding.json"
SHARD = re.compile(r"features-\d{5,}\.parquet")
OUR_FILES = re.compile(rf"(embedding\.json|unfinished\.json|{SHARD.pattern})(\.\d+\.tmp)?")

SHARD_GROUPS = 32
"""Row groups of the data set in a shard: 2,048 images, and 16 MB of ResNet-50's res5."""

Dtype = Literal["float32", "float16"]

_ARROW: dict[Dtype, pa.DataType] = {"float32": pa.float32(), "float16": pa.float16()}

Entry = dict[str, Any]
"""Of a shard in `embedding.json`: its path, rows, bytes, and the images without features."""


@dataclass(frozen=True)
class Embedder:
    """What makes shards, each by itself.

    Attributes:
        trunk: On `device`, in evaluation mode.
        folder: Where they are written.
        image_size: Side of `crops.plain_view`, in pixels.
        tap: Whose features, averaged as `models.pool` does.
        skip: An image that cannot be used gets null for its features; else it ends the work.
    """

    trunk: Trunk
    dataset: Dataset
    folder: Folder
    image_size: int
    device: torch.device
    tap: str = "res5"
    dtype: Dtype = "float32"
    skip: bool = False

    @property
    def shards(self) -> int:
        """How many there are."""
        return -(-(len(self.dataset.starts) - 1) // SHARD_GROUPS)

    def rows(self, number: int) -> int:
        """Images of a shard."""
        groups = self._groups(number)
        return int(self.dataset.starts[groups.stop] - self.dataset.starts[groups.start])

    def request(self) -> dict[str, Any]:
        """All that decides the bytes."""
        return {
            "trunk_sha256": checksum(self.trunk),
            "data_fingerprint": self.dataset.fingerprint,
            "images": self.dataset.rows,
            "tap": self.tap,
            "image_size": self.image_size,
            "dtype": self.dtype,
            "device": self.device.type,
            "pooling": POOLING,
            "torch": version("torch"),
            "torchvision": version("torchvision"),
            "pyarrow": version("pyarrow"),
        }

    def find(self, number: int) -> Entry | None:
        """A shard that is there, whole and as asked for, read from end to end; None for any other."""
        name = shard_name(number)
        try:
            with self.folder.reading(name) as file:
                table = pq.read_table(file, page_checksum_verification=True)
        except (FileNotFoundError, pa.ArrowException, ValueError):
            return None
        except OSError as error:
            if type(error) is OSError and error.errno is None:  # of Arrow: not the bytes that were written
                return None
            raise
        if table.schema != self.schema or table.num_rows != self.rows(number):
            return None
        entry = self._entry(number, table)
        return entry if self.skip or not entry["without_features"] else None

    def write(self, number: int, done: Callable[[int], None] = lambda images: None) -> Entry:
        """Makes a shard.

        Args:
            done: Takes the images of each row group that is through.

        Raises:
            CorruptImage: An image cannot be used, and `skip` is off; says shard, row and id.
            RunFailed: A feature is no number that its type can hold.
            StorageError: The store did not give or take it.
        """
        lock = Lock() if self.device.type == "cuda" else nullcontext()  # memory for one batch
        threads, schema = torch.get_num_threads(), self.schema
        # One thread for each row group: a layer that is shared out over threads adds in another order for each number
        # of them, and decoding would use one.
        parts = []
        try:
            with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as workers:
                pending = [workers.submit(self._part, group, schema, lock) for group in self._groups(number)]
                try:
                    for each in pending:
                        parts.append(each.result())
                        done(parts[-1].num_rows)
                except BaseException:
                    workers.shutdown(wait=False, cancel_futures=True)
                    raise
        finally:
            torch.set_num_threads(threads)
        table = pa.concat_tables(parts).combine_chunks()
        with self.folder.writing(shard_name(number)) as file:
            pq.write_table(table, file, compression="none", use_dictionary=["label"], write_page_checksum=True)
        return self._entry(number, table)

    @cached_property
    def schema(self) -> pa.Schema:
        """Of each shard."""
        width = widths(self.trunk, self.image_size, self.device)[self.tap]
        columns = {"id": pa.int64(), "name": pa.string(), "label": pa.string()}
        return pa.schema({**columns, "features": pa.list_(_ARROW[self.dtype], width)})

    def _part(self, group: int, schema: pa.Schema, lock: Any) -> pa.Table:
        """The rows of a row group."""
        read = self.dataset.load_group(group)
        pixels, usable = views_of(self.dataset, read, partial(plain_view, image_size=self.image_size), skip=self.skip)
        with lock, torch.inference_mode():
            views = normalize(pixels.to(self.device).movedim(-1, -3))
            values = pool(self.trunk.taps(views))[self.tap].float().cpu().numpy()
        with np.errstate(over="ignore"):
            values = values.astype(self.dtype)
        if not np.isfinite(values[usable]).all():
            wrong = int(read.ids[usable & ~np.isfinite(values).all(1)][0])
            wider = ": use --dtype float32" if self.dtype == "float16" else ""
            raise RunFailed(f"{self.dataset.place(wrong)}: its features do not fit into {self.dtype}{wider}")
        classes = self.dataset.labels or []
        labels = np.full(len(read.ids), -1) if read.labels is None else read.labels
        features = pa.FixedSizeListArray.from_arrays(
            pa.array(values.reshape(-1)), values.shape[1], mask=pa.array(~usable)
        )
        names = [classes[label] if label >= 0 else None for label in labels]
        return pa.Table.from_arrays([pa.array(read.ids), read.names(), names, features], schema=schema)

    def _groups(self, number: int) -> range:
        first = number * SHARD_GROUPS
        return range(first, min(first + SHARD_GROUPS, len(self.dataset.starts) - 1))

    def _entry(self, number: int, table: pa.Table) -> Entry:
        name = shard_name(number)
        left_out = table["features"].null_count
        return {"path": name, "rows": table.num_rows, "bytes": self.folder.size(name), "without_features": left_out}


def shard_name(number: int) -> str:
    """Of the shards in a folder, in the order of the ids."""
    return f"features-{number:05d}.parquet"


def is_done(folder: Folder, request: Mapping[str, Any], skip: bool) -> bool:
    """Whether the folder holds all of this embedding; with `skip` images may lack features."""
    files = folder.sizes()
    if EMBEDDING not in files or UNFINISHED in files:
        return False
    about = _found(folder)
    return (
        about is not None
        and not _differs(about, request)
        and (skip or not about["without_features"])
        and all(files.get(entry["path"]) == entry["bytes"] for entry in about["shards"])
    )


def check_destination(folder: Folder, request: Mapping[str, Any], overwrite: bool) -> None:
    """Refuses a folder with other files or another embedding in it: raises ConfigError, which says what to type."""
    if not folder.exists():
        return
    if not folder.is_folder():
        raise ConfigError(f"DESTINATION {folder} is a file: name a new folder")
    files = sorted(folder.sizes())
    if foreign := [name for name in files if not OUR_FILES.fullmatch(name)]:
        raise ConfigError(f"DESTINATION {folder} holds other files ({foreign[0]}): name a new or empty folder")
    if not files or overwrite:
        return
    about = _found(folder)
    if about is None:
        raise ConfigError(
            f"DESTINATION {folder} holds shards, and does not say of what: name another, or add --overwrite"
        )
    if word := _differs(about, request):
        raise ConfigError(
            f"DESTINATION {folder} holds another embedding ({word} {about.get(word)}, now {request[word]}): name "
            "another folder, or add --overwrite to replace it"
        )


def start(folder: Folder, request: Mapping[str, Any], overwrite: bool) -> None:
    """Makes the folder ready: what the same request has begun in it stays, and all else that is ours goes."""
    about = _found(folder)
    names = [name for name in folder.sizes() if OUR_FILES.fullmatch(name)]
    goes_on = about is not None and not _differs(about, request) and (UNFINISHED in names or not overwrite)
    whole = [EMBEDDING, UNFINISHED]  # first: a part never looks complete
    folder.remove(*([] if goes_on else whole), *(n for n in names if n.endswith(".tmp") or not goes_on))
    folder.write(UNFINISHED, sealed(dict(request)))
    folder.remove(EMBEDDING)


def finish(embedder: Embedder, request: Mapping[str, Any], about: Mapping[str, Any], found: Iterable[Entry]) -> int:
    """Writes `embedding.json`, which says that all is there; returns the number of images without features.

    Raises RunFailed where a shard is not there: the processes do not write into the same folder.
    """
    shards = sorted(found, key=lambda entry: str(entry["path"]))
    sizes = embedder.folder.sizes()
    for entry in shards:
        if sizes.get(entry["path"]) != entry["bytes"]:
            raise RunFailed(
                f"{embedder.folder / entry['path']} is not there as it was written: use a folder that all nodes "
                "mount, or an object store"
            )
    without: int = sum(entry["without_features"] for entry in shards)
    whole = {
        "version": 1,
        **request,
        **about,
        "data": {"uri": embedder.dataset.uri, "classes": embedder.dataset.labels},
        "view": view_rule(embedder.image_size),
        "dimensions": embedder.schema.field("features").type.list_size,
        "without_features": without,
        "shards": shards,
    }
    embedder.folder.write(EMBEDDING, sealed(whole))
    embedder.folder.remove(UNFINISHED)
    return without


def _found(folder: Folder) -> dict[str, Any] | None:
    """Of what the shards of a folder are; None where it does not say."""
    for name in (UNFINISHED, EMBEDDING):  # both are there where the end was cut off
        text = folder.find(name)
        if text is not None and is_whole(text.encode()):
            found: dict[str, Any] = json.loads(text)
            return found
    return None


def _differs(about: Mapping[str, Any], request: Mapping[str, Any]) -> str | None:
    """The first word of a request in which it is not that of a folder."""
    return next((word for word, value in request.items() if about.get(word) != value), None)
