"""Features as Parquet files: against one image at a time, the same bytes from any number of workers, after a kill."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from jobs.embed import main, parse
from jobs.evaluation.embedding import work
from pirl.config import Config, override
from pirl.data.parquet_pages import source_names
from pirl.data.writer import ShardWriter
from pirl.evaluate import embed as module
from pirl.loading.color import normalize
from pirl.loading.crops import plain_view
from pirl.methods.models import Trunk, pool
from pirl.storage.folder import Folder
from tests.conftest import GlooPool
from tests.runs.test_weights import write_run
from tests.s3 import Store

CPU = torch.device("cpu")
GROUPS = 2
"""In a shard: 330 images are 6 row groups, and so 3 shards."""
DEADLINE = ["--data.deadline-s", "20"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_GROUPS", GROUPS)


@pytest.fixture
def embed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[object, str]]:
    """Types `jobs/embed.py` with words; gives its exit code and what it says."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(*words: object) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["jobs/embed.py", *map(str, words)])
        monkeypatch.setattr("signal.signal", lambda *_: None)
        try:
            code: object = main()
        except SystemExit as left:
            code = left.code
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return code, out + err

    return run


def write_data(folder: Path, rows: int, broken: int | None = None) -> list[np.ndarray]:
    """Images of two classes, of several sizes; every tenth has no label."""
    random = np.random.default_rng(rows)
    images = [random.integers(0, 256, (20 + row % 3, 18 + row % 5, 3), dtype=np.uint8) for row in range(rows)]
    with ShardWriter(Folder(str(folder)), classes=["dark", "bright"], seed=0, source="a test") as writer:
        for row, image in enumerate(images):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            writer.add(b"no image" if row == broken else file.getvalue(), row % 2 if row % 10 else None)
    return images


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A run in `run`, and its 330 images in `data`, with 70 held out."""
    write_data(tmp_path / "data", 330)
    write_data(tmp_path / "data/test", 70)
    write_run(tmp_path / "run", of_run(tmp_path))
    return tmp_path


def of_run(folder: Path) -> Config:
    return override(Config(), {"model.width": 4, "data.image_size": 16, "data.uri": str(folder / "data")})


def rows(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(file) for file in sorted(folder.glob("*.parquet"))])


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


@pytest.mark.parametrize(("tap", "dtype"), [("res5", "float32"), ("res4", "float16")])
def test_each_row_is_what_the_network_makes_of_its_image(embed, world, tap, dtype):
    code, said = embed(world / "run", "--split", "test", world / "out", "--tap", tap, "--dtype", dtype)
    assert (code, said) == (0, f"{world}/out\n")
    table = rows(world / "out")
    assert table["id"].to_pylist() == list(range(70))
    assert table["name"].null_count == 70
    assert table["label"].to_pylist() == [("dark", "bright")[row % 2] if row % 10 else None for row in range(70)]
    images = write_data(world / "again", 70)
    trunk = Trunk("resnet18", 4, "small").eval()
    trunk.load_state_dict(load_file(world / "run/checkpoint_000000003/trunk.safetensors"))
    expected = []
    for image in images:
        view = plain_view(torch.from_numpy(image).permute(2, 0, 1), 16)
        with torch.no_grad():
            expected.append(pool(trunk.taps(normalize(view[None])))[tap][0].numpy())
    kind = table.schema.field("features").type
    assert (str(kind.value_type), kind.list_size) == ("float" if dtype == "float32" else "halffloat", len(expected[0]))
    got = np.array(table["features"].to_pylist(), np.float32)
    # An image alone and in a batch is added up in another order; float16 has 3 digits.
    tolerance = 1e-5 if dtype == "float32" else 1e-3
    np.testing.assert_allclose(got, np.array(expected), rtol=tolerance, atol=tolerance)


def test_the_file_at_the_end_says_what_they_are_of(embed, world):
    assert embed(world / "run", world / "out")[0] == 0
    about = json.loads((world / "out/embedding.json").read_text())
    found = {file.name: file.stat().st_size for file in (world / "out").glob("*.parquet")}
    assert {shard["path"]: shard["bytes"] for shard in about["shards"]} == found
    assert [shard["rows"] for shard in about["shards"]] == [128, 128, 74]
    assert (about["images"], about["dimensions"], about["tap"], about["image_size"]) == (330, 32, "res5", 16)
    assert about["weights"]["uri"] == f"{world}/run/checkpoint_000000003/trunk.safetensors"
    assert about["data"]["classes"] == ["dark", "bright"]
    assert not (world / "out/unfinished.json").exists()
    before = {file: file.stat().st_mtime_ns for file in (world / "out").iterdir()}
    assert embed(world / "run", world / "out")[0] == 0
    assert {file: file.stat().st_mtime_ns for file in (world / "out").iterdir()} == before


def of_ranks(words: list[str], threads: int) -> None:
    """On each rank, and with so many threads in each."""
    module.SHARD_GROUPS = GROUPS  # type: ignore[misc]
    torch.set_num_threads(threads)
    try:
        work(parse(words), CPU, lambda line: None)
    finally:
        torch.set_num_threads(1)


def test_any_number_of_workers_and_threads_writes_the_same_bytes(embed, world, run_ranks: GlooPool):
    assert embed(world / "run", world / "1")[0] == 0
    for ranks, threads in ((2, 1), (4, 3)):
        run_ranks(ranks, of_ranks, [str(world / "run"), str(world / str(ranks))], threads)
        assert contents(world / str(ranks)) == contents(world / "1")


def test_after_a_kill_what_is_whole_stays(embed, world):
    assert embed(world / "run", world / "whole")[0] == 0
    expected = contents(world / "whole")
    out = world / "out"
    out.mkdir()
    for name, content in expected.items():
        (out / name).write_bytes(content)
    request = {word: json.loads(expected["embedding.json"])[word] for word in _request(world)}
    (out / "unfinished.json").write_bytes(module.sealed(request))
    (out / "embedding.json").unlink()
    (out / "features-00000.parquet").unlink()
    (out / "features-00002.parquet.77.tmp").write_bytes(b"PAR1")
    damaged = bytearray(expected["features-00001.parquet"])
    damaged[len(damaged) // 2] ^= 1
    (out / "features-00001.parquet").write_bytes(damaged)
    untouched = (out / "features-00002.parquet").stat().st_mtime_ns
    assert embed(world / "run", out)[0] == 0
    assert contents(out) == expected
    assert (out / "features-00002.parquet").stat().st_mtime_ns == untouched
    (out / "features-00001.parquet").write_bytes(expected["features-00001.parquet"][:-9])
    assert embed(world / "run", out)[0] == 0
    assert contents(out) == expected


def _request(world: Path) -> dict[str, Any]:
    from jobs.evaluation.embedding import embedder_of
    from pirl.runs.weights import read_weights

    asked = parse([str(world / "run"), str(world / "out")])
    return embedder_of(asked, read_weights(asked.target)).request()


def test_another_embedding_is_not_replaced_unless_asked(embed, world):
    assert embed(world / "run", world / "out")[0] == 0
    before = contents(world / "out")
    write_data(world / "other", 70)
    state = load_file(world / "run/checkpoint_000000003/trunk.safetensors")
    save_file({name: 2 * value for name, value in state.items()}, world / "other.safetensors")
    data = ["--data", world / "data", "--image-size", 16]
    for words, said in (
        ([world / "other.safetensors", *data], "trunk_sha256"),
        ([world / "run", "--data", world / "other"], "data_fingerprint"),
        ([world / "run", "--tap", "res4"], "tap res5, now res4"),
        ([world / "run", "--image-size", 24], "image_size 16, now 24"),
        ([world / "run", "--dtype", "float16"], "dtype float32, now float16"),
    ):
        code, answer = embed(*words, world / "out")
        assert (code, said in answer, "--overwrite" in answer) == (2, True, True), answer
        assert contents(world / "out") == before
    assert embed(world / "run", world / "out", "--data", world / "other", "--overwrite")[0] == 0
    assert sorted(contents(world / "out")) == ["embedding.json", "features-00000.parquet"]
    assert rows(world / "out").num_rows == 70


def test_what_cannot_be_is_refused_and_nothing_is_written(embed, world, monkeypatch):
    monkeypatch.chdir(world)
    save_file(load_file(world / "run/checkpoint_000000003/trunk.safetensors"), world / "file.safetensors")
    (world / "notes.txt").write_text("none")
    before = sorted(world.rglob("*"))
    for words, said in (
        ([], "two words are needed, TARGET and DESTINATION, and none is given"),
        (["run", "out", "more"], "3 are given: run out more"),
        (["nothing", "out"], "is not there: name a run, a checkpoint, or a file"),
        (["file.safetensors", "out"], "which has no data of its own: add --data URI"),
        (["run", "out", "--data", "nothing"], "is not a data set"),
        (["run", "out", "--data", "data/test", "--split", "test"], "has no test split beside it"),
        (["run", "out", "--tap", "res6"], "use one of conv1, res2, res3, res4, res5"),
        (["run", "out", "--image-size", "8"], "use 16 or more"),
        (["run", "out", "--data.uri", "data"], "type --data data"),
        (["run", "out", "--knn.k", "3"], "--knn.k is no setting of data or cluster"),
        (["run", "out", "--cluster.gpus-per-worker", "64", "--no-ray"], "without it use 1 or 0"),
        (["run", "data"], "overlaps the data set"),
        (["run", "data/features"], "overlaps the data set"),
        (["run", "run"], "overlaps the checkpoint"),
        (["run", "run/checkpoint_000000003/x"], "overlaps the checkpoint"),
        (["run", "notes.txt"], "is a file: name a new folder"),
        (["run", "."], "overlaps the data set"),
        (["file.safetensors", "run", "--data", "data"], "holds other files (checkpoint_000000003/config.json)"),
        (["run", "https://a.org/features"], "is on a web server"),
        (["run", "notes.txt/out"], "cannot be written"),
    ):
        code, answer = embed(*words)
        assert (code, said in answer) == (2, True), (words, answer)
        assert sorted(world.rglob("*")) == before
    assert embed("run", "out", "--check") == (0, f"{world}/out\n")
    assert sorted(world.rglob("*")) == before


def test_an_image_that_cannot_be_used_ends_it_or_has_no_features(embed, world):
    write_data(world / "broken", 330, broken=200)
    words = [world / "run", "--data", world / "broken", world / "out"]
    code, answer = embed(*words)
    assert code == 1
    assert "(id 200)" in answer
    assert "add --data.on_error skip" in answer
    first = contents(world / "out")["features-00000.parquet"]
    code, answer = embed(*words, "--data.on-error", "skip")
    assert code == 0
    assert contents(world / "out")["features-00000.parquet"] == first
    assert "1 of 330 images could not be used" in answer
    features = rows(world / "out")["features"]
    assert [row for row, value in enumerate(features.to_pylist()) if value is None] == [200]
    assert json.loads((world / "out/embedding.json").read_text())["without_features"] == 1
    assert embed(*words, "--data.on-error", "skip")[0] == 0
    assert embed(*words)[0] == 1, "which takes no such image"


def test_features_that_a_type_cannot_hold_are_not_written(embed, world):
    state = load_file(world / "run/checkpoint_000000003/trunk.safetensors")
    save_file({**state, "layer4.1.bn2.bias": state["layer4.1.bn2.bias"] + 1e5}, world / "large.safetensors")
    words = [world / "large.safetensors", "--data", world / "data", "--image-size", 16]
    code, answer = embed(*words, world / "half", "--dtype", "float16")
    assert code == 1
    assert "its features do not fit into float16: use --dtype float32" in answer
    assert [name for name in contents(world / "half") if name.endswith(".parquet")] == []
    assert embed(*words, world / "single")[0] == 0


def test_names_are_read_where_the_data_set_holds_them():
    spans = []
    for table in (pa.table({"index": [0, 1], "name": ["a/1.png", None]}), pa.table({"index": [0, 1]})):
        file = io.BytesIO()
        pq.write_table(table, file)
        spans.append(file.getvalue())
    assert source_names(spans[0]) == ["a/1.png", None]
    assert source_names(spans[1]) == source_names(spans[0][9:]) == []


def test_a_store_takes_it_and_it_goes_on_there(embed, world, store: Store):
    options = ["--data.storage-options", json.dumps(store.direct), *DEADLINE]
    assert embed(world / "run", world / "out")[0] == 0
    place = store.uri("features")
    code, said = embed(world / "run", place, *options)
    assert code == 0, said
    assert {name: store.past("features").read_bytes(name) for name in store.past("features").sizes()} == contents(
        world / "out"
    )
    store.past("features").remove("features-00001.parquet")
    assert embed(world / "run", place, *options)[0] == 0
    assert (
        store.past("features").read_bytes("features-00001.parquet") == contents(world / "out")["features-00001.parquet"]
    )
