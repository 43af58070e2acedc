"""Sweeps on a real Ray cluster: submitted as a job, killed and gone on with, stopped early, interrupted."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.ray_cluster import (
    LIMIT_S,
    ROOT,
    SMALL,
    WITHOUT_BANK,
    Cluster,
    finish,
    lines,
    processes,
    train_workers,
    wait_for,
)
from tests.s3 import SECRET

TINY = [*(word for word in SMALL if "epochs" not in word), "--checkpoint.every-steps=6", "--cluster.workers=1"]
LEFT = """
import ray
ray.init(logging_level="ERROR")
from ray._private.state import state
from ray.core.generated.gcs_pb2 import PlacementGroupTableData
table = map(PlacementGroupTableData.FromString, state._connect_and_get_accessor().get_placement_group_table())
left = [group for group in table if group.state != PlacementGroupTableData.REMOVED]
for group in left:
    print(group, state.job_table(), state.actor_table(group.creator_actor_id.hex()))
"""


SUPERVISED = ["digits_supervised", *WITHOUT_BANK]


def command(storage: Path, *arguments: str, begin: Sequence[str] = ("digits", *TINY)) -> list[str]:
    return ["tune/sweep.py", *begin, f"--storage={storage}", "--name=sweep", *arguments]


LEARNING_RATES = ["--set", "optim.lr", "0.03", "1e30", "0.01", "--optim.warmup-epochs=1", "--optim.epochs=3"]
LEARNING_RATES += ["--evaluate-every=1", "--max-concurrent=1"]
"""Three trials of 90 steps, one after the other; the second diverges."""


def start(cluster: Cluster, storage: Path, *arguments: str, **words: Sequence[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *command(storage, *arguments, **words)],
        cwd=ROOT,
        env={**cluster.env, "RAY_ADDRESS": cluster.gcs},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def table(storage: Path) -> list[dict[str, str]]:
    """`sweep.csv` without the times."""
    with (storage / "sweep" / "sweep.csv").open() as file:
        return [{name: value for name, value in row.items() if name != "train_s"} for row in csv.DictReader(file)]


def nothing_is_left(cluster: Cluster) -> None:
    """No worker, and no resources that are held for one: a stopped trial has left none behind."""
    env = {**cluster.env, "RAY_ADDRESS": cluster.gcs}
    wait_for(lambda: not train_workers(cluster), "workers stay")
    asked = [sys.executable, "-c", LEFT]
    deadline = time.monotonic() + 60
    while left := subprocess.run(asked, env=env, capture_output=True, text=True, check=True).stdout.strip():
        assert time.monotonic() < deadline, f"placement groups stay: {left}"


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The storage of a sweep that was submitted as README says; the second of its trials cannot go well."""
    storage = tmp_path_factory.mktemp("sweep")
    job = ["ray", "job", "submit", f"--address={cluster.dashboard}", "--working-dir=.", "--", "python"]
    deadline = time.monotonic() + LIMIT_S
    while True:
        answer = subprocess.run(
            [*job, *command(storage, *LEARNING_RATES)],
            cwd=ROOT,
            env=cluster.env,
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
        )
        # A cluster that has just started takes no jobs for some seconds.
        if "No available agent" not in answer.stderr or time.monotonic() > deadline:
            break
        time.sleep(1)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert "lr-1e30_seed-0" in answer.stdout
    return storage


def test_a_trial_that_fails_is_shown_with_its_error_and_the_others_go_on(cluster: Cluster, undisturbed: Path) -> None:
    logs = [path for path in cluster.scratch.rglob("*") if path.is_file()]
    assert len(logs) > 20
    assert not [path for path in logs if SECRET.encode() in path.read_bytes()]
    content = json.loads((undisturbed / "sweep" / "sweep.json").read_text())
    good, bad, other = content["trials"]
    assert [trial["state"] for trial in (good, bad, other)] == ["done", "failed", "done"]
    assert "learning rate" in bad["error"]
    assert [epoch for epoch, _, _ in good["curve"]] == [1, 2, 3]
    assert content["best"]["name"] in (good["name"], other["name"])
    for trial in (good, other):
        run = Path(trial["folder"])
        result = json.loads((run / "result.json").read_text())
        assert result["metrics"]["linear_res5"] == trial["metric"]
        assert Path(result["checkpoint"]).name == "checkpoint_000000090"
    assert (undisturbed / "sweep" / "sweep.png").stat().st_size > 10_000


def test_cut_off_in_three_ways_the_same_command_gives_the_same_table(
    cluster: Cluster, undisturbed: Path, tmp_path: Path
) -> None:
    """Also of numbers, to the last digit: what was cut off goes on from its checkpoint, what is done stays.

    In the end the process that watches a trial is lost, which the sweep survives.
    """
    first, last = (tmp_path / "sweep" / f"lr-{rate}_seed-0" for rate in ("0.03", "0.01"))

    def started(run: Path, step: int) -> subprocess.Popen[str]:
        """The command, when a trial has come to a step; one that was cut off may have come there before."""

        def going_on() -> int:
            log = run / "train.log"
            return log.read_text().count("going on from") if log.exists() else -1

        before = going_on()
        process = start(cluster, tmp_path, *LEARNING_RATES)
        wait_for(lambda: (len(lines(run)) >= step and going_on() > before) or process.poll() is not None, "no progress")
        return process

    def cut_off(process: subprocess.Popen[str], number: signal.Signals) -> None:
        """Sends a signal at which the sweep says how to go on; none is trained then that waits."""
        began = time.monotonic()
        process.send_signal(number)
        code, out, err = finish(process)
        assert time.monotonic() - began < 60
        assert code == 1, out + err
        assert "interrupted with 3 trials to go; to go on, type the same command again" in err
        assert "Traceback" not in err
        assert {row["state"] for row in table(tmp_path)} == {"waiting"}
        assert not last.exists()
        nothing_is_left(cluster)

    cut_off(started(first, 8), signal.SIGINT)
    cut_off(started(first, 24), signal.SIGUSR2)
    assert (first / f"checkpoint_{lines(first)[-1]['step']:09d}").exists(), "a warning has the trial save what it did"
    process = started(last, 14)
    process.kill()
    process.communicate()
    before = (first / "result.json").stat().st_mtime_ns
    process = start(cluster, tmp_path, *LEARNING_RATES)
    wait_for(lambda: "going on from" in (last / "train.log").read_text() or process.poll() is not None, "no progress")

    watching: list[int] = []

    def is_watched() -> bool:
        """By what Tune makes of RunTrial; Ray gives a process another name now and then, for a moment."""
        watching.extend(processes(cluster, b"ray::ResourceTrainable"))
        return bool(watching) or process.poll() is not None

    wait_for(is_watched, "no process watches the trial")
    os.kill(watching[0], signal.SIGKILL)
    code, out, err = finish(process)
    assert code == 1, out + err
    assert table(tmp_path) == table(undisturbed)
    assert (first / "result.json").stat().st_mtime_ns == before
    assert (first / "train.log").read_text().count("going on from checkpoint_") == 2
    assert (last / "train.log").read_text().count("going on from checkpoint_") == 2
    nothing_is_left(cluster)


def test_a_trial_that_asha_stops_leaves_its_room_to_the_next(cluster: Cluster, tmp_path: Path) -> None:
    """Each takes all of the cluster, so that nothing of one may be left when the next one starts; of another method."""
    arguments = ["--set", "optim.lr", "0.03", "0.00004", "0.05", "--optim.epochs=3", "--metric=loss"]
    arguments += ["--cluster.workers=2", "--cluster.cpus-per-worker=2", "--scheduler=asha", "--max-concurrent=1"]
    code, out, err = finish(start(cluster, tmp_path, *arguments, begin=SUPERVISED))
    assert code == 0, out + err
    good, slow, third = table(tmp_path)
    assert (good["state"], good["epoch"]) == ("done", "3")
    assert (slow["state"], slow["epoch"]) == ("stopped", "1")
    assert third["state"] in ("done", "stopped")
    assert not (tmp_path / "sweep" / slow["trial"] / "result.json").exists()
    nothing_is_left(cluster)

    log = tmp_path / "sweep" / slow["trial"] / "train.log"
    before = log.stat().st_mtime_ns
    code, out, err = finish(start(cluster, tmp_path, *arguments, begin=SUPERVISED))
    assert code == 0, out + err
    assert log.stat().st_mtime_ns == before, "nothing is trained again, not even what was stopped"
    assert [row["state"] for row in table(tmp_path)] == [good["state"], "stopped", third["state"]]


def test_what_the_cluster_can_never_carry_is_refused(cluster: Cluster, tmp_path: Path) -> None:
    """In the trial that asks for it, wherever it comes."""
    process = start(cluster, tmp_path, "--set", "cluster.cpus-per-worker", "1", "3")
    code, out, err = finish(process)
    assert code == 2, out + err
    assert "smaller --cluster.cpus-per-worker" in err
    assert not (tmp_path / "sweep").exists() or not any((tmp_path / "sweep").iterdir())
    assert os.listdir(tmp_path) in ([], ["sweep"])
