import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pirl.data.dataset import Dataset, open_dataset
from pirl.data.order import Order, OrderReader
from pirl.data.writer import ShardWriter
from pirl.errors import CorruptImage, StorageError
from pirl.loading.decode import decode
from pirl.loading.loader import Loader
from pirl.loading.views import Views, sample_rng
from pirl.pretext import PRETEXTS
from pirl.sections import Augment
from pirl.storage.cache import SpanCache
from pirl.storage.folder import Folder

ROWS, BATCH, STREAMS, SEED = 300, 40, 4, 5


def png(row):
    pixels = np.random.default_rng(row).integers(0, 256, (12, 16, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write(folder, rows=ROWS, replaced=None, named=False):
    about = {"classes": None, "seed": 0, "source": "test", "shard_bytes": 30_000}
    with ShardWriter(Folder(str(folder)), **about, named=named) as writer:
        for row in range(rows):
            writer.add((replaced or {}).get(row, png(row)), None, f"ant/{row}.png" if named else None)
    return open_dataset(str(folder))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """300 small images in five row groups and several shards."""
    dataset = write(tmp_path_factory.mktemp("set"))
    assert len(dataset.shards) > 1
    return dataset


def views(pretext="rotation"):
    return Views(16, Augment(), PRETEXTS[pretext], 0.6)


def order_of(dataset, streams=STREAMS, window_groups=1):
    return Order(dataset.starts, SEED, streams, BATCH, window_groups)


def loader(dataset, rank=0, world=1, first=0, last=16, processes=0, streams=STREAMS, pretext="rotation", skip=False):
    return Loader(
        dataset,
        order_of(dataset, streams),
        views(pretext),
        seed=SEED,
        rank=rank,
        world_size=world,
        first_step=first,
        last_step=last,
        processes=processes,
        skip=skip,
    )


def whole(batch):
    """The views of a batch, of all loader processes together, each behind it their colours."""
    kinds = zip(*(part.views(torch.device("cpu")) for part in batch.parts), strict=True)
    return [tensor for views, colors in zip(kinds, batch.colors, strict=True) for tensor in (torch.cat(views), colors)]


def samples(batches):
    """The tensors of each sample by (step, id)."""
    found = {}
    for batch in batches:
        ids = batch.ids[batch.mine].tolist()
        tensors = whole(batch)
        assert {len(tensor) for tensor in tensors} == {len(ids)}
        for position, id in enumerate(ids):
            found[batch.step, id] = [tensor[position] for tensor in tensors]
    return found


def assert_same(some, others):
    assert some.keys() == others.keys()
    for key in some:
        assert all(torch.equal(a, b) for a, b in zip(some[key], others[key], strict=True)), key


@pytest.fixture(scope="module")
def alone(dataset):
    """Two epochs of eight steps on one rank without processes: what every other arrangement must give."""
    return samples(loader(dataset))


def test_an_epoch_has_each_image_once_and_each_sample_is_what_one_by_one_gives(dataset, alone):
    for epoch in range(2):
        assert sorted(id for step, id in alone if step // 8 == epoch) == list(range(ROWS))
    make = views()
    for (step, id), tensors in alone.items():
        group, row = divmod(id, 64)
        sample = make(decode(dataset.read_group(group).images[row]), sample_rng(SEED, step // 8, id))
        expected = [sample.image, sample.image_color, sample.pretext, sample.pretext_color]
        if id % 7 == 0:  # reading a group for each of them takes its time
            assert all(torch.equal(a, b) for a, b in zip(tensors, expected, strict=True))


def test_labels_are_those_of_the_images_that_are_served(tmp_path):
    """Also where another image takes the place of one that cannot be used; -1 where there is none."""
    classes = [str(number) for number in range(10)]
    with ShardWriter(Folder(str(tmp_path)), classes=classes, seed=0, source="test") as writer:
        for row in range(120):
            writer.add(b"none" if row == 33 else png(row), row % 10 if row % 4 else None)
    labelled = open_dataset(str(tmp_path))
    for processes in (0, 2):
        for batch in loader(labelled, last=3, processes=processes, skip=True):
            expected = [id % 10 if id % 4 else -1 for id in batch.served.tolist()]
            assert batch.labels.tolist() == expected
            assert 33 not in batch.served.tolist()


def test_images_of_a_data_set_without_labels_have_none(dataset):
    assert {label for batch in loader(dataset, last=1) for label in batch.labels.tolist()} == {-1}


def test_views_differ_between_epochs(alone):
    step_of = [{id: step for step, id in alone if step // 8 == epoch} for epoch in range(2)]
    same = [torch.equal(alone[step_of[0][id], id][0], alone[step_of[1][id], id][0]) for id in range(ROWS)]
    assert not any(same)


def test_the_pass_that_fills_the_bank_is_an_epoch_of_image_views_alone(dataset, alone):
    """Steps below 0; the views are not those of epoch 0, or each first positive would be the query itself."""
    first = samples(loader(dataset, first=-8, last=1))
    before = {id: tensors for (step, id), tensors in first.items() if step < 0}
    assert sorted(before) == list(range(ROWS))
    assert {len(tensors) for tensors in before.values()} == {2}
    assert_same(
        {key: t for key, t in first.items() if key[0] == 0}, {key: t for key, t in alone.items() if key[0] == 0}
    )
    assert not any(torch.equal(tensors[0], before[id][0]) for (step, id), tensors in alone.items() if step < 8)


@pytest.mark.parametrize("world", [2, 3, 4])
def test_any_number_of_ranks_gives_the_same_batches(dataset, alone, world):
    ranks = [list(loader(dataset, rank, world)) for rank in range(world)]
    together = {}
    for batches in ranks:
        part = samples(batches)
        assert not together.keys() & part.keys()
        together |= part
    assert_same(together, alone)
    for step, batches in enumerate(zip(*ranks, strict=True)):
        one = OrderReader(order_of(dataset)).batch_ids(step).tolist()
        for rank, batch in enumerate(batches):
            assert batch.step == step
            assert batch.ids.tolist() == one
            assert batch.shares == batches[0].shares
            assert batch.shares[rank] == batch.mine.stop - batch.mine.start
        # The parts cover the batch without a gap: rank after rank.
        assert [b.mine.start for b in batches] == [0, *(b.mine.stop for b in batches[:-1])]
        assert batches[-1].mine.stop == len(one)


def test_several_loader_processes_give_the_same_batches(dataset):
    # Three streams do not divide by two processes: one serves two of them.
    here = list(loader(dataset, last=10, streams=3))
    there = list(loader(dataset, last=10, streams=3, processes=2))
    assert [b.ids.tolist() for b in there] == [b.ids.tolist() for b in here]
    assert_same(samples(there), samples(here))


def test_there_are_no_more_processes_than_streams(dataset):
    assert loader(dataset, processes=9).processes == 4
    assert loader(dataset, rank=0, world=3, processes=9).processes == 1
    assert loader(dataset, rank=2, world=3, processes=9).processes == 2


@pytest.mark.parametrize("first", [1, 7, 8, 13, 16])
def test_it_resumes_at_any_step(dataset, alone, first):
    expected = {key: tensors for key, tensors in alone.items() if key[0] >= first}
    assert_same(samples(loader(dataset, first=first)), expected)


@pytest.mark.parametrize(
    ("pretext", "shapes"),
    [
        ("none", [(3, 16, 16), "P"]),
        ("rotation", [(3, 16, 16), "P", (1, 3, 16, 16), (1, "P")]),
        # 64 of 224 pixels of 16 are 5.
        ("jigsaw", [(3, 16, 16), "P", (9, 3, 5, 5), (9, "P")]),
    ],
)
def test_shapes_and_types(dataset, pretext, shapes):
    (batch,) = loader(dataset, last=1, pretext=pretext)
    tensors = whole(batch)
    colors = tensors[1].shape[-1]
    rows = len(batch.ids)
    expected = []
    for shape in shapes:
        lengths = (shape,) if isinstance(shape, str) else shape
        expected.append((rows, *(colors if length == "P" else length for length in lengths)))
    assert [tuple(tensor.shape) for tensor in tensors] == expected
    assert [tensor.dtype for tensor in tensors] == [torch.uint8, torch.float32] * (len(shapes) // 2)
    assert batch.wait_s > 0


class CountingDataset(Dataset):
    """A data set that remembers what was read."""

    reads: list[int]

    def load_group(self, number):
        self.reads.append(number)
        return super().load_group(number)


def test_each_row_group_is_read_once_a_stream_that_touches_it(dataset):
    counting = CountingDataset(**vars(dataset))
    object.__setattr__(counting, "reads", [])
    for rank in range(2):
        list(loader(counting, rank, 2, last=8))
    # Five groups; of the three borders between four streams each may go through one.
    assert 5 <= len(counting.reads) <= 5 + 3
    assert set(counting.reads) == set(range(5))


@pytest.fixture
def flipped(tmp_path):
    """A data set with one byte of an image changed that the first batch does not read; and where it is."""
    dataset = write(tmp_path)
    groups = OrderReader(order_of(dataset)).batch_ids(0) // 64
    id = 64 * min(set(range(5)) - set(groups.tolist())) + 10
    path = next(path for path in tmp_path.glob("*.parquet") if png(id) in path.read_bytes())
    data = bytearray(path.read_bytes())
    data[data.index(png(id)) + 60] ^= 1
    path.write_bytes(data)
    first = int(dataset.starts[dataset.first_groups[dataset.shards.index(path.name)]])
    return dataset, f"{path.name}: row {id - first} (id {id}) "


def until_corrupt(loader):
    """The batches before the corrupt image, and what the error says."""
    batches = []
    try:
        for batch in loader:
            batches.append(batch)
    except CorruptImage as error:
        return batches, str(error)
    pytest.fail("nothing was found to be corrupt")


def test_a_corrupt_image_ends_the_run_with_its_shard_and_row(flipped):
    dataset, place = flipped
    here, said = until_corrupt(loader(dataset, last=8))
    assert place in said
    # And so it does out of a process of the loader, which gives the same batches up to there.
    there, said_there = until_corrupt(loader(dataset, last=8, processes=1))
    assert said_there == said
    assert 0 < len(there) == len(here)
    assert_same(samples(there), samples(here))


def test_an_image_that_cannot_be_decoded_ends_the_run_with_its_shard_and_row(tmp_path):
    file = io.BytesIO()
    Image.fromarray(np.full((12, 16), 60_000, np.uint16)).save(file, "PNG")
    dataset = write(tmp_path, replaced={200: file.getvalue()})
    with pytest.raises(CorruptImage, match="not one image of 8 bits") as failure:
        list(loader(dataset, last=8))
    shard = int(np.searchsorted(dataset.first_groups, 3, side="right")) - 1
    row = 200 - int(dataset.starts[dataset.first_groups[shard]])
    assert f"{dataset.shards[shard]}: row {row} (id 200)" in str(failure.value)


def test_a_damaged_image_says_what_it_was_made_from_and_what_to_type(tmp_path):
    """Where the data set has names; an older one says shard and row alone."""
    cut = png(200)[:60]
    said = []
    for named in (True, False):
        dataset = write(tmp_path / str(named), replaced={200: cut}, named=named)
        said.append(until_corrupt(loader(dataset, last=8, processes=1))[1])
    assert "(id 200) (made from ant/200.png): cannot decode an image of 60 bytes: " in said[0]
    assert "(id 200): cannot decode an image of 60 bytes: " in said[1]
    for text in said:
        assert "--data.on_error skip" in text
        assert "python jobs/prepare.py SOURCE DESTINATION --overwrite" in text
        assert ".cpp" not in text


def test_an_image_with_another_checksum_says_what_it_was_made_from_and_what_to_type(tmp_path):
    dataset = write(tmp_path, named=True)
    for path in tmp_path.glob("*.parquet"):
        path.write_bytes(path.read_bytes().replace(png(200)[-40:], bytes(40)))
    said = until_corrupt(loader(dataset, last=8))[1]
    assert "(id 200) (made from ant/200.png) does not have its checksum" in said
    assert "--data.on_error skip" in said


DEADLINE_S = 30.0
"""Allows each try two seconds."""


@pytest.fixture
def remote(store):
    """The images of `dataset` in a bucket, read through the proxy; the log begins after the manifest."""
    with ShardWriter(store.past("set"), classes=None, seed=0, source="test", shard_bytes=30_000) as writer:
        for row in range(ROWS):
            writer.add(png(row), None)
    dataset = open_dataset(store.folder("set", deadline_s=DEADLINE_S))
    store.reset()
    return dataset


def test_an_epoch_is_one_request_for_each_row_group_and_nothing_else(store, remote, alone):
    first = {key: tensors for key, tensors in alone.items() if key[0] < 8}
    assert_same(samples(loader(remote, last=8, processes=1)), first)
    asked = [(entry["method"], entry["path"].rpartition("/")[2], entry["range"]) for entry in store.log()]
    spans = [
        ("GET", remote.shards[remote.shard_of(number)[0]], f"bytes={offset}-{offset + length - 1}")
        for number, (offset, length) in enumerate(remote.spans.tolist())
    ]
    assert sorted(asked) == sorted(spans)


def test_loader_processes_are_not_forked_from_this_one_which_has_threads(remote):
    assert "fsspecIO" in {thread.name for thread in threading.enumerate()}
    parts = iter(loader(remote, last=1, processes=1)._data_loader())
    status = Path(f"/proc/{parts._workers[0].pid}/status").read_text()
    assert int(re.search(r"PPid:\s+(\d+)", status)[1]) != os.getpid()
    assert len(list(parts)) == 1


def test_the_second_epoch_comes_out_of_the_cache_without_a_request(store, remote, alone, tmp_path):
    cached = replace(remote, cache=SpanCache(tmp_path, 10**7))
    list(loader(cached, rank=0, world=2, last=8, processes=1))
    list(loader(cached, rank=1, world=2, last=8, processes=1))
    store.reset()
    # Another number of processes: all of a node share the cache.
    second = samples(loader(cached, first=8, processes=2))
    assert store.log() == []
    assert_same(second, {key: tensors for key, tensors in alone.items() if key[0] >= 8})


def test_faults_on_the_way_change_nothing_and_are_counted(store, remote, alone):
    for fault in ("slowdown", "reset", "truncate", "flip", "stall"):
        store.fail(fault, 2 if fault != "stall" else 1, pattern="shard")
    batches = list(loader(remote, last=8, processes=2))
    assert_same(samples(batches), {key: tensors for key, tensors in alone.items() if key[0] < 8})
    # Seven and the two resets, where aiohttp asks by itself once more if the connection was one that it had kept;
    # and on a busy machine some that took too long.
    assert sum(batch.retries for batch in batches) >= 7


def test_past_the_deadline_a_loader_process_says_what_it_tried(store, remote):
    store.fail("slowdown", 10_000, pattern="shard")
    with pytest.raises(StorageError) as failure:
        list(loader(replace(remote, folder=replace(remote.folder, deadline_s=1.5)), last=8, processes=1))
    said = str(failure.value)
    assert re.match(rf"reading bytes \d+ to \d+ of {remote.uri}/shard-\d+\.parquet: gave up after \d+ tries", said)
    assert "Traceback" not in said


@pytest.fixture(scope="module")
def damaged(tmp_path_factory):
    """The images of `dataset`, but for one that cannot be decoded, and one that has changed."""
    folder = tmp_path_factory.mktemp("damaged")
    dataset = write(folder, replaced={200: b"not an image"})
    for path in folder.glob("*.parquet"):
        data = path.read_bytes()
        if png(70) in data:
            path.write_bytes(data.replace(png(70), png(70)[:-1] + b"!"))
    return dataset


def test_a_skipped_image_is_replaced_within_its_stream(damaged, alone):
    batches = list(loader(damaged, skip=True))
    found = samples(batches)
    order, make = order_of(damaged), views()
    replaced = {}
    for batch in batches:
        for id, other in zip(batch.ids.tolist(), batch.served.tolist(), strict=True):
            if id != other:
                replaced[batch.step, id] = other
    assert [id for _, id in sorted(replaced)] in (
        [70, 200, 70, 200],
        [70, 200, 200, 70],
        [200, 70, 70, 200],
        [200, 70] * 2,
    )
    for (step, id), other in replaced.items():
        (stream,) = (n for n in range(STREAMS) if id in OrderReader(order).batch_ids(step, range(n, n + 1)))
        epoch = range(step // 8 * 8, step // 8 * 8 + 8)
        assert any(other in OrderReader(order).batch_ids(later, range(stream, stream + 1)) for later in epoch)
        # With views of its own, so that no sample is there twice.
        expected = make(decode(png(other)), sample_rng(SEED, step // 8, id))
        assert torch.equal(found[step, id][0], expected.image)
    assert_same(
        {key: tensors for key, tensors in found.items() if key not in replaced},
        {key: tensors for key, tensors in alone.items() if key not in replaced},
    )


@pytest.mark.parametrize(("world", "processes"), [(3, 0), (1, 2)])
def test_what_is_skipped_does_not_depend_on_the_number_of_readers(damaged, world, processes):
    one = list(loader(damaged, skip=True, last=8))
    ranks = [list(loader(damaged, rank, world, last=8, processes=processes, skip=True)) for rank in range(world)]
    together = {}
    for batches in ranks:
        together |= samples(batches)
    assert_same(together, samples(one))
    for step, batches in enumerate(zip(*ranks, strict=True)):
        assert torch.equal(torch.cat([batch.served for batch in batches]), one[step].served)


def test_a_stream_without_one_good_image_ends_the_run(tmp_path):
    dataset = write(tmp_path, rows=80, replaced=dict.fromkeys(range(80), b"not an image"))
    with pytest.raises(CorruptImage, match="no image can take the place of that with id"):
        list(loader(dataset, last=1, skip=True))


ENDLESS = """
import sys, time
from tests.loading.test_loader import loader, open_dataset

if __name__ == "__main__":
    batches = iter(loader(open_dataset(sys.argv[1]), last=10**6, processes=2))
    next(batches)
    print("going", flush=True)
    time.sleep(1000)
"""


def test_loader_processes_end_with_a_training_that_is_killed(dataset, tmp_path):
    (tmp_path / "endless.py").write_text(ENDLESS)
    root = Path(__file__).parents[2]
    command = [sys.executable, str(tmp_path / "endless.py"), dataset.uri]
    env = {**os.environ, "PYTHONPATH": str(root)}
    training = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert training.stdout is not None
        assert training.stdout.readline() == "going\n"
        assert len(session(training.pid)) >= 4  # itself, the fork server and two loader processes
        training.kill()
        deadline = time.monotonic() + 30
        while session(training.pid) - {training.pid} and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not session(training.pid) - {training.pid}
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(training.pid, signal.SIGKILL)
        training.communicate()


def session(pid):
    """The processes that a process started, and theirs."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if int((process / "stat").read_text().rpartition(")")[2].split()[3]) == pid:
                found.add(int(process.name))
    return found
