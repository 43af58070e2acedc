"""jobs/clusterfit.py: features, clusters, training; cut off in each of them and typed again; and what is refused."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from jobs import clusterfit, embed, evaluate, export, pretrain
from jobs.evaluation import target_making
from pirl.clusterfit import from_features
from pirl.config import Config, from_json
from pirl.data.dataset import open_data
from pirl.evaluate import embed as embedder
from pirl.methods.models import Trunk
from pirl.runs.checkpoint import load_classifier
from pirl.runs.checkpoint_folder import newest_checkpoint, read_state
from pirl.runs.learned import learned, read_teacher
from pirl.storage.folder import Folder
from pirl.train import train
from tests.conftest import GlooPool
from tests.digits import write_digits_to

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--no-ray", "--model.width=2", "--optim.epochs=1", "--evaluation.enabled=false", "--checkpoint.every-steps=4"]

Type = Callable[..., tuple[object, str]]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that features have several."""
    monkeypatch.setattr(embedder, "SHARD_GROUPS", 8)


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Commands take SIGTERM, which is that of the tests again afterwards."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two first networks, `jigsaw` and `labels`, which was trained on labels of which half are wrong."""
    runs = tmp_path_factory.mktemp("first")
    patch = pytest.MonkeyPatch()
    for name, words in (
        ("jigsaw", ["digits_jigsaw", "--pretext.permutations=20"]),
        ("labels", ["digits_supervised", "--data.label-noise=0.5"]),
    ):
        patch.setattr(sys, "argv", ["pretrain.py", *words, *SMALL, f"--storage={runs}", f"--run={name}"])
        assert pretrain.main() == 0
    patch.undo()
    return runs


def last(run: Path) -> dict[str, Any]:
    """The trunk and the loss that a run ended with."""
    checkpoint = newest_checkpoint(Folder(str(run)))
    assert checkpoint is not None
    assert checkpoint.path is not None
    losses = [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {"trunk": load_file(checkpoint.path / "trunk.safetensors"), "losses": losses[-1:]}


def assert_same(one: Path, other: Path) -> None:
    a, b = last(one), last(other)
    assert a["losses"] == b["losses"]
    assert all(torch.equal(value, b["trunk"][name]) for name, value in a["trunk"].items())


def run_learned(config: Config, folder: Path) -> list[float]:
    """Trains on this rank what the config learns; returns the losses."""
    losses: list[float] = []
    targets = learned(config, open_data(config.data))
    folder.mkdir(parents=True, exist_ok=True)
    train(
        config,
        targets.dataset,
        report=lambda metrics, checkpoint: losses.append(metrics["loss"]),
        scratch=folder,
        teacher=targets.teacher,
    )
    return losses


class Killed(BaseException):
    """As a kill: nothing catches it."""


def kill_at(number: int, real: Callable[..., Any]) -> Callable[..., Any]:
    """A function that works some times, and then no more."""
    calls = []

    def call(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) > number:
            raise Killed
        return real(*args, **kwargs)

    return call


@pytest.mark.parametrize("more", [["--clusters=7"], ["--clusters=7", "--distill", "--tap=res4"]])
def test_cut_off_at_each_step_and_typed_again_it_ends_as_if_it_had_not_been(
    first: Path, typed: Type, tmp_path: Path, more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "jigsaw-distillation" if "--distill" in more else "jigsaw-clusterfit"
    words = [first / "jigsaw", "--no-ray", *more]
    assert typed(clusterfit.main, *words, f"--storage={tmp_path}/whole")[0] == 0
    cut = [*words, f"--storage={tmp_path}/cut"]
    for where, what, number in (
        (embedder.Embedder, "write", 1),  # the second of three shards of features
        (from_features, "kmeans", 0),
        (target_making, "run_here", 0),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(where, what, kill_at(number, getattr(where, what)))
            with pytest.raises(Killed):
                typed(clusterfit.main, *cut)
    (features,) = (tmp_path / "cut/.features").iterdir()
    assert len(list(features.glob("*.parquet"))) == 3
    code, said = typed(clusterfit.main, *cut)
    assert code == 0
    assert "k-means" not in said, "the clusters were there"
    assert_same(tmp_path / "whole" / name, tmp_path / "cut" / name)
    assert "was done before" in typed(clusterfit.main, *cut)[1]
    for file in (tmp_path / "whole" / name / "targets").glob("*.safetensors"):
        assert file.read_bytes() == (tmp_path / "cut" / name / "targets" / file.name).read_bytes()


def test_killed_while_it_trains_and_typed_again(first: Path, typed: Type, tmp_path: Path) -> None:
    """A real process and SIGKILL."""
    more = ["--clusters=7", "--no-ray", "--optim.epochs=3"]
    command = [sys.executable, "jobs/clusterfit.py", f"{first}/jigsaw", *more, f"--storage={tmp_path}/cut"]
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    run = tmp_path / "cut/jigsaw-clusterfit"
    while newest_checkpoint(Folder(str(run))) is None and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    for place in ("cut", "whole"):
        assert typed(clusterfit.main, f"{first}/jigsaw", *more, f"--storage={tmp_path}/{place}")[0] == 0
    assert_same(tmp_path / "whole/jigsaw-clusterfit", run)


def test_what_a_run_says_of_itself_and_what_takes_it(first: Path, typed: Type, tmp_path: Path) -> None:
    """Both methods, after noisy labels: checkpoints name the method, and evaluate, embed, export, weights take them."""
    place = f"--storage={tmp_path}"
    assert typed(clusterfit.main, first / "labels", "--clusters=20", "--no-ray", place)[0] == 0
    assert typed(clusterfit.main, first / "labels", "--distill", "--no-ray", place)[0] == 0
    for method in ("clusterfit", "distillation"):
        run = tmp_path / f"labels-{method}"
        checkpoint = newest_checkpoint(Folder(str(run)))
        assert checkpoint is not None
        assert read_state(checkpoint)["method"] == method
        config = from_json(checkpoint.read("config.json"))
        assert (config.method.name, config.data.label_noise, config.model.width) == (method, 0, 2)
        reports = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        assert all(0 <= report["pretext_accuracy"] <= 1 for report in reports)
        known = json.loads((run / "learned.json").read_text())
        assert known["uri"] == str(run / "targets")
        words = [run, "--protocol", "knn", "--knn.k", "5", "--no-random", f"--features={tmp_path}/features"]
        assert typed(evaluate.main, *words)[0] == 0
        assert open_data(config.data).labels == list("0123456789"), "judged by these"
        code, said = typed(embed.main, run, tmp_path / f"embedded-{method}")
        assert code == 0, said
        assert typed(export.main, run, tmp_path / f"{method}.pth", "--format=torchvision")[0] == 0
        more = [*SMALL, place, f"--run=after-{method}", f"--model.weights={run}"]
        assert typed(pretrain.main, "digits_rotation", *more)[0] == 0
    clusters = json.loads((tmp_path / "labels-clusterfit/targets/pseudo_labels.json").read_text())
    assert sum(clusters["sizes"]) == clusters["images"] == 1438
    assert (clusters["clusters"], clusters["seed"], clusters["tap"]) == (20, 0, "res5")
    assert clusters["weights"]["uri"].startswith(str(first / "labels"))
    assert clusters["inertia"] > 0
    teacher, about = read_teacher(Folder(str(tmp_path / "labels-distillation/targets")))
    assert about["classifier"] == "its own"
    source = newest_checkpoint(Folder(str(first / "labels")))
    assert source is not None
    assert torch.equal(teacher.weight, load_classifier(source)[0])
    assert teacher.classes == 10


@pytest.mark.parametrize("method", ["clusterfit", "distillation"])
def test_the_number_of_workers_does_not_matter(
    first: Path, typed: Type, run_ranks: GlooPool, tmp_path: Path, method: str
) -> None:
    more = ["--clusters=7", "--no-ray", *(["--distill"] if method == "distillation" else [])]
    norm = ["--model.norm=frozen", "--optim.lr=0.001", "--optim.bf16=false", "--checkpoint.log-every-steps=1"]
    assert typed(clusterfit.main, first / "jigsaw", *more, *norm, f"--storage={tmp_path}")[0] == 0
    config = from_json((tmp_path / f"jigsaw-{method}/config.json").read_text())
    worlds = [run_ranks(world, run_learned, config, tmp_path / str(world)) for world in (1, 3)]
    (alone,), several = worlds
    assert len(alone) == 12
    for losses in several:  # float32 sums in another order, carried through 12 steps
        assert losses == pytest.approx(alone, rel=1e-5)


def refused_words(runs: Path, tmp_path: Path) -> dict[str, tuple[list[object], str]]:
    small = write_digits_to(str(tmp_path / "digits"), {})
    bad = Trunk("resnet18", 2, "small").state_dict()
    dead = {name: torch.zeros_like(value) for name, value in bad.items()}
    bad["conv1.weight"] = bad["conv1.weight"] * float("nan")
    for name, tensors in (("nan", bad), ("dead", dead)):
        save_file(tensors, tmp_path / f"{name}.safetensors")
    one = runs / "jigsaw"
    dead_words = [tmp_path / "dead.safetensors", "digits", "--clusters=5", "--model.width=2", "--data=digits"]
    return {
        "more clusters than images": ([one, "--clusters=1439"], "--clusters 1439 is more than the 1,438 images"),
        "one cluster": ([one, "--clusters=1"], "'1' is not a whole number from 2 on"),
        "no number": ([one], "--clusters is missing"),
        "a number for its own head": ([runs / "labels", "--distill", "--clusters=5"], "means nothing to --distill"),
        "tap": ([one, "--clusters=5", "--tap=res6"], "--tap res6: use one of conv1, res2"),
        "no numbers": (
            [tmp_path / "nan.safetensors", "digits", "--clusters=5", "--data=digits"],
            "values that are no numbers",
        ),
        "same features": (dead_words, "all features are the same"),
        "a file alone": ([tmp_path / "dead.safetensors", "--clusters=5", "--data=digits"], "name a recipe behind it"),
        "its own settings": ([one, "--clusters=5", "--method.name=pirl"], "--method.name follows from the command"),
        "data.uri": ([one, "--clusters=5", f"--data.uri={small}"], f"type --data {small}"),
        "no target": (["--clusters=5"], "TARGET and perhaps RECIPE are needed"),
        "batch": ([one, "--clusters=5", "--data.batch-size=2000"], "data.batch_size 2000 is more than the 1438 images"),
    }


CASES = [
    *("more clusters than images", "one cluster", "no number", "a number for its own head", "tap", "no numbers"),
    *("same features", "a file alone", "its own settings", "data.uri", "no target", "batch"),
]


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_refused_before_a_run_begins(first: Path, typed: Type, tmp_path: Path, case: str) -> None:
    words, message = refused_words(first, tmp_path)[case]
    code, said = typed(clusterfit.main, *words, "--no-ray", f"--storage={tmp_path}/runs")
    assert code == 2
    assert message in said
    assert not list(tmp_path.glob("runs/*/config.json"))


def test_targets_that_are_not_those_of_the_run_are_refused(first: Path, typed: Type, tmp_path: Path) -> None:
    """Another count, other images, a file that has changed: before anything starts, and with what to type."""
    words, place = [first / "jigsaw", "--no-ray", "--clusters=7"], f"--storage={tmp_path}/runs"
    assert typed(clusterfit.main, *words, place, "--optim.epochs=1")[0] == 0
    run = tmp_path / "runs/jigsaw-clusterfit"
    code, said = typed(clusterfit.main, first / "jigsaw", "--no-ray", "--clusters=8", place)
    assert (code, "clusters 7, now 8: choose another name (--run jigsaw-clusterfit-2)" in said) == (
        2,
        True,
    )
    other = write_digits_to(str(tmp_path / "other"), {})
    fit = ["digits_clusterfit", "--no-ray", place, f"--data.pseudo-labels={run}/targets"]
    code, said = typed(pretrain.main, *fit, f"--data.uri={other}", "--run=other")
    assert (code, "are of other images, 1,438 of" in said) == (2, True)
    code, said = typed(pretrain.main, "digits_clusterfit", "--no-ray", place, "--data.pseudo-labels=nowhere")
    assert (code, "holds no pseudo-labels: python jobs/clusterfit.py" in said) == (2, True)
    (run / "result.json").unlink()
    known = json.loads((run / "learned.json").read_text())
    (run / "learned.json").write_text(json.dumps({**known, "sha256": "0"}))
    code, said = typed(clusterfit.main, *words, place)
    assert (code, "has changed since the run" in said) == (2, True)


def test_images_that_cannot_be_used_have_no_cluster(first: Path, typed: Type, tmp_path: Path) -> None:
    uri = write_digits_to(str(tmp_path / "digits"), {}, {5: b"no image"})
    words = [first / "jigsaw", f"--data={uri}", "--no-ray", "--clusters=7", f"--storage={tmp_path}/runs"]
    code, said = typed(clusterfit.main, *words)
    assert (code, "(id 5)" in said) == (1, True)
    assert typed(clusterfit.main, *words, "--data.on-error=skip", "--data.max-skipped=0.1")[0] == 0
    config = from_json((tmp_path / "runs/jigsaw-clusterfit/config.json").read_text())
    found = learned(config, open_data(config.data)).dataset.assigned
    assert found is not None
    assert np.flatnonzero(found < 0).tolist() == [5]
