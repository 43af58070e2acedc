"""Writes a data set from a source: shuffled once, each image checked, in a folder that is complete or says so.

`unfinished.json` lies in the folder until the data set is complete and holds the request; the same request goes on
behind the shards that are there. The order is a function of seed and source, so this is all that it needs.
"""

import re
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pirl.data.dataset import Ints
from pirl.data.digits import write_digits
from pirl.data.writer import MANIFEST, ShardWriter
from pirl.errors import BrokenImage, ConfigError, StoreRefusedError
from pirl.prepare.destination import check_apart, check_destination, clear, finish, start
from pirl.prepare.images import QUALITY, Checked
from pirl.prepare.scratch import Progress, Scratch
from pirl.prepare.sources.kinds import check_source, find_source
from pirl.prepare.sources.not_read import NotRead, lines
from pirl.prepare.sources.source import Columns, Source
from pirl.prepare.workers import Workers
from pirl.storage.checks import check_can_write, check_place, refuse_web
from pirl.storage.folder import Folder

LISTED = 1000
"""Images that are left out and named in the manifest; the others are only counted."""


class Split(NamedTuple):
    """What is written: where, the source, its rows in the order in which they are written, and what is said of it."""

    folder: Folder
    source: Source
    order: Ints
    about: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class PrepareRequest:
    """What a person asks for; `python jobs/prepare.py --help` says what each word means."""

    source: str
    destination: str
    test: str | None = None
    test_fraction: float | None = None
    seed: int = 0
    resize: int | None = None
    shard_mb: int = 32
    strict: bool = False
    overwrite: bool = False
    image_column: str = "image"
    label_column: str | None = None
    scratch: str | None = None
    also: Sequence[str] = ()

    @property
    def folder(self) -> Folder:
        """The destination."""
        return Folder(self.destination)

    @property
    def columns(self) -> Columns:
        """What images and labels are called."""
        return Columns(self.image_column, self.label_column)

    @property
    def sources(self) -> list[str]:
        """What is read: all of SOURCE and --test but digits, which are built in."""
        return [uri for uri in (self.source, self.test) if uri is not None and uri != "digits"]

    def decides(self) -> dict[str, Any]:
        """What decides the bytes that are written."""
        words = ("source", "test", "test_fraction", "seed", "resize", "shard_mb", "image_column", "label_column")
        # Without the last, if there is none: what was begun before there was such a word goes on.
        return {word: getattr(self, word) for word in words} | ({"also": list(self.also)} if self.also else {})


def prepare(request: PrepareRequest, progress: Progress) -> None:
    """Writes the data set, or goes on with it; the manifest of the training split comes last and completes it.

    Raises:
        ConfigError: The request is wrong; nothing was written.
        BrokenImage: With `strict`, the first image that cannot be used.
    """
    check(request)
    if request.source == "digits":
        start(request.folder, request.decides(), request.overwrite)
        write_digits(request.destination, request.seed)
        finish(request.folder)
        return
    with Scratch(request.scratch) as scratch:
        with _refusals_are_wrong_requests():
            splits = _find_splits(request, scratch, progress)
        content = zlib.crc32(repr([split.source.digest() for split in splits]).encode())
        start(request.folder, request.decides() | {"content": content}, request.overwrite)
        with Workers(scratch, request.resize) as workers:
            for split in splits:
                _write_split(split, request, workers, progress)
    finish(request.folder)


def check(request: PrepareRequest) -> None:
    """Refuses with a ConfigError what can be seen to be wrong before the source is looked through; writes nothing."""
    _check_words(request)
    with _refusals_are_wrong_requests():
        check_destination(request.folder, request.decides(), request.overwrite)
        for uri in request.sources:
            check_apart(request.destination, uri)
        check_can_write("DESTINATION", request.folder)


def check_sources(request: PrepareRequest) -> None:
    """Refuses, beside what `check` does, sources that cannot be used, as far as that is seen without reading them."""
    with Scratch(request.scratch), _refusals_are_wrong_requests():
        for uri in request.sources:
            check_source(uri, request.columns)


def _check_words(request: PrepareRequest) -> None:
    """Refuses what is wrong whatever lies on disks and in stores."""
    check_place("DESTINATION", request.destination, "photos")
    refuse_web("DESTINATION", request.destination)
    check_place("SOURCE", request.source, "photos")
    if request.test is not None:
        check_place("--test", request.test, "photos")
    if request.test is not None and _place(request.test) == _place(request.source):
        raise ConfigError(
            f"--test {request.test} is SOURCE itself, so all test images would be trained on: name other images, or "
            "use --test-fraction 0.1"
        )
    if request.scratch == "":
        raise ConfigError("--scratch is empty: name a folder on a local disk")
    if request.seed < 0:
        raise ConfigError(f"--seed {request.seed} is below 0: use 0 or more")
    if request.test_fraction is not None and not 0 < request.test_fraction < 1:
        raise ConfigError(f"--test-fraction {request.test_fraction} is not between 0 and 1: use 0.1, say")
    if request.source != "digits":
        return
    if request.test or request.test_fraction:
        raise ConfigError("digits bring a test split of their own: leave out --test and --test-fraction")
    if request.also:
        raise ConfigError("digits have no other folders: leave out --also")
    if request.resize:
        raise ConfigError("digits are 32 pixels wide and stay so: leave out --resize")


def _place(uri: str) -> str:
    """The same for all ways to name a place."""
    return uri.rstrip("/") if (path := Folder(uri).path) is None else str(path.resolve())


@contextmanager
def _refusals_are_wrong_requests() -> Iterator[None]:
    """For what is done before anything is written: there is nothing that the same command could go on with."""
    try:
        yield
    except (StoreRefusedError, PermissionError, FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(str(error)) from None
    except UnicodeEncodeError as error:
        raise ConfigError(f"{error.object!r} is not text in UTF-8, and names of images and classes must be") from None


def _find_splits(request: PrepareRequest, scratch: Scratch, progress: Progress) -> list[Split]:
    """What is to be written, in this order: the held-out split comes first, for the other one completes the whole."""
    of_source, of_test = NotRead(), NotRead()
    asked = find_source(request.test, request.columns, scratch, progress, (), of_test) if request.test else (None, None)
    train, inside = find_source(request.source, request.columns, scratch, progress, request.also, of_source)
    for not_read, unused in ((of_test, asked[1]), (of_source, inside if request.test else None)):
        if unused is not None:
            not_read.add("images of the test split there", unused.name(0), len(unused.labels))
    test = asked[0] or inside
    if test is not None and train.classes is not None:
        test = test.with_classes(train.classes)
    left = of_source.record(), of_test.record()
    about: dict[str, Any] = {"not_read": left[0]} if left[0] else {}
    about_test: dict[str, Any] = {"not_read": left[1]} if left[1] else {}
    if asked[0] is None and of_source.held_out:
        about_test["held_out"] = of_source.held_out
    if request.strict and (said := lines([entry for record in left for entry in record if entry["may_be_images"]])):
        raise ConfigError(f"{said[0]}. Without --strict they are left out; images in other folders: --also NAME")
    rng = np.random.default_rng(request.seed)
    order, below = rng.permutation(len(train.labels)), request.folder / "test"
    if (fraction := request.test_fraction) is None:
        held_out_split = [] if test is None else [Split(below, test, rng.permutation(len(test.labels)), about_test)]
        return [*held_out_split, Split(request.folder, train, order, about)]
    if test is not None:
        raise ConfigError("SOURCE has a test split (test/ or val/): leave out --test-fraction")
    # Of images with and without labels only those with one are of use there.
    pool = order[train.labels[order] >= 0] if request.also and train.classes else order
    held_out = round(fraction * len(pool))
    if not 0 < held_out < len(order):
        raise ConfigError(f"--test-fraction {fraction} holds out {held_out} of {len(pool)} images: use 0.1, say")
    rest = order[np.isin(order, pool[:held_out], invert=True)]
    return [Split(below, train, pool[:held_out], {}), Split(request.folder, train, rest, about)]


def _write_split(split: Split, request: PrepareRequest, workers: Workers, progress: Progress) -> None:
    """Writes these rows of a source, in this order, behind those that are there."""
    folder, source, order, said = split
    if folder.exists(MANIFEST):  # it was complete when the job was stopped
        return
    about: dict[str, Any] = {"classes": source.classes, "seed": request.seed, "source": source.uri}
    with ShardWriter(folder, **about, shard_bytes=request.shard_mb * 2**20, resume=True, named=True) as writer:
        if not writer.record:
            writer.record = _new_record(request.resize)
        writer.record |= said
        record = writer.record
        progress(f"writing {folder}", record["taken"], len(order), "images")
        for row, checked in workers.check(source, order[record["taken"] :]):
            label = int(source.labels[row])
            _count(record, checked)
            if checked.image is None:
                left_out = f"{source.name(row)}: {checked.note}"
                if request.strict:
                    raise BrokenImage(left_out)
                record["left_out"]["first"] = [*record["left_out"]["first"], left_out][:LISTED]
            else:
                writer.add(checked.image, None if label < 0 else label, _short(source.name(row), request.sources))
            progress(f"writing {folder}", record["taken"], len(order), "images")
        if writer.rows == 0:
            clear(request.folder)
            raise ConfigError(f"none of the {len(order)} images can be used: {record['left_out']['first'][0]}")


def _new_record(short_side: int | None) -> dict[str, Any]:
    """What the manifest says of the images beside where they are, before the first."""
    return {
        "taken": 0,
        "short_side": short_side,
        "jpeg_quality": QUALITY,
        "found": {},
        "encoded": {},
        "left_out": {"count": 0, "first": []},
        "width": None,
        "height": None,
    }


def _count(record: dict[str, Any], checked: Checked) -> None:
    """Adds an image to the record."""
    record["taken"] += 1
    if checked.image is None:
        record["left_out"]["count"] += 1
        return
    record["found"][checked.kind] = record["found"].get(checked.kind, 0) + 1
    if checked.note:
        record["encoded"][checked.note] = record["encoded"].get(checked.note, 0) + 1
    for side, pixels in zip(("width", "height"), checked.size, strict=True):
        least, most = record[side] or (pixels, pixels)
        record[side] = [min(least, pixels), max(most, pixels)]


def _short(name: str, sources: list[str]) -> str:
    """The name of an image, from the source on: so it is the same wherever the source lies."""
    for uri in sources:
        # A file or a pattern is named from its folder on.
        for folder in (uri.rstrip("/"), re.split(r"[*?\[]", uri)[0].rpartition("/")[0]):
            if name.startswith(f"{folder}/"):
                return name[len(folder) + 1 :]
    return name
