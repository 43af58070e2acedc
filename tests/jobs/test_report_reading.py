"""What a page is made of: files that grow, how runs stand, what they are called, which numbers compare."""

import json
import shlex
import time
from pathlib import Path

import numpy as np
import pytest

from jobs import pretrain
from jobs.reporting.appended import Appended, LogStory, Numbers, Restart
from jobs.reporting.findings import TAPS, accuracy_of, findings_of, taps_of
from jobs.reporting.naming import command_of, differing, labels_of, method_of
from jobs.reporting.record import Collection, RunRecord, split_by_run
from jobs.reporting.standing import QUIET_S, SENT_BYTES_PER_S, in_time, standing_of
from jobs.settings import absolute
from pirl.config import Config, leaves, override
from pirl.methods import models
from pirl.recipes import RECIPES
from pirl.runs import run_log
from pirl.runs.run import reports_in
from pirl.storage.folder import Folder
from pirl.storage.reading import FileInfo
from tests.jobs.left_behind import evaluation, fail, finish, leave_report, leave_run, report_at


def record_of(folder: Path) -> RunRecord:
    run = RunRecord(Folder(str(folder)))
    run.look(run.folder.files())
    return run


def test_constants_are_those_of_the_rooms_that_are_not_imported_here():
    """They import PyTorch, which takes longer than the page."""
    assert run_log.BYTES_PER_S == SENT_BYTES_PER_S
    assert models.TAPS == TAPS


def test_a_growing_file_is_read_line_by_line_as_it_is_read_at_once(tmp_path):
    """Cut anywhere, as a reader beside a writer sees it; and begun anew when a run dropped its end."""
    lines = [json.dumps(report_at(step)) + "\n" for step in range(1, 9)]
    text, file = "".join(lines), tmp_path / "metrics.jsonl"
    appended, numbers = Appended(Folder(str(file))), Numbers()
    for end in (0, 7, len(lines[0]), len(lines[0]) + 1, 2000, len(text) - 1, len(text)):
        file.write_text(text[:end])
        anew, news = appended.news(FileInfo(end, float(end)))
        assert not anew
        for line in news:
            numbers.add(line)
        assert (
            numbers["step"].tolist()
            == [each["step"] for each in reports_in(text[:end] if end != 7 else "")][: text[:end].count("\n")]
        )
    assert appended.news(FileInfo(len(text), float(len(text)))) == (False, [])  # nothing has changed
    again = "".join(lines[:3]) + json.dumps(report_at(99)) + "\n" * 1
    file.write_text(again)
    anew, news = appended.news(FileInfo(len(again), 1.0))
    assert anew
    assert [json.loads(line)["step"] for line in news] == [1, 2, 3, 99]
    longer = "".join(lines[:2]) + "".join(json.dumps(report_at(step)) + "\n" for step in range(30, 60))
    file.write_text(longer)
    anew, news = appended.news(FileInfo(len(longer), 2.0))
    assert anew
    assert len(news) == 32


def test_numbers_have_columns_with_gaps():
    numbers = Numbers()
    for line in (b'{"step": 1, "loss": 2}', b"cut", b"[1]", b'{"step": 2, "loss": NaN, "knn": 0.5, "x": "y"}'):
        numbers.add(line)
    assert numbers.rows == 2
    assert numbers["step"].tolist() == [1, 2]
    assert np.isnan(numbers["knn"][0])
    assert (numbers.last("loss"), numbers.last("knn"), numbers.last("nothing")) == (2, 0.5, None)
    assert "x" not in numbers


def test_a_log_tells_of_restarts_and_what_they_cost():
    story = LogStory()
    for line in (
        "filling the memory bank: step 1/12",
        "epoch   0.83/40   step 1,310/4,800   loss 6.4 (image 6.4, pretext 6.3)   lr 0.03   309 samples/s",
        "going on from checkpoint_000001200, with 3 workers",
        "epoch   0.83/40   step 1,400/4,800   loss 6.4 (image 6.4, pretext 6.3)   lr 0.03   309 samples/s",
        "going on from checkpoint_000001400, with 1 workers",
        "evaluating",
    ):
        story.add(line.encode())
    assert story.restarts == [Restart(1200, 110, 3), Restart(1400, 0, 1)]
    assert story.notes == ["evaluating"]
    assert story.last == "evaluating"


def test_runs_are_found_below_a_folder_and_checkpoints_are_none():
    names = ["a/config.json", "a/checkpoint_000000040/config.json", "a/evaluation/knn.json", "s/sweep.json"]
    names += ["s/t1/config.json", "s/t1/metrics.jsonl", "notes.txt", "config.json"]
    by_run, sweeps = split_by_run(dict.fromkeys(names, FileInfo(1, None)))
    assert sorted(by_run) == ["", "a", "s/t1"]
    assert set(by_run["a"]) == {"config.json", "checkpoint_000000040/config.json", "evaluation/knn.json"}
    assert list(sweeps) == ["s"]


def test_how_a_run_stands_follows_from_its_files(tmp_path):
    """Each state, and that a run which says nothing is stale."""
    now, run = time.time(), tmp_path / "run"
    leave_run(run, until=20)
    standing = standing_of(record_of(run), now)
    assert (standing.state, standing.why) == ("running", "step 20 of 40, 13 s left")
    long_after = standing_of(record_of(run), now + QUIET_S + 60)
    assert long_after.state == "stale"
    assert long_after.since == pytest.approx(now, abs=30)  # the files were written just now
    with (run / "train.log").open("a") as log:
        log.write("evaluating\n")
    assert standing_of(record_of(run), now + QUIET_S + 60) == standing_of(record_of(run), now)
    assert standing_of(record_of(run), now).why == "measuring"
    with (run / "train.log").open("a") as log:
        log.write("stopped after step 20\n")
    assert standing_of(record_of(run), now + 10**6).state == "stopped"
    fail(run, "the loss is nan at step 20\nmore", 20)
    assert standing_of(record_of(run), now).state == "failed"
    assert standing_of(record_of(run), now).why == "diverged: the loss is nan at step 20"
    fail(run, "no space", None)
    assert standing_of(record_of(run), now).why == "no space"
    finish(run, 0.9)
    assert standing_of(record_of(run), now + 10**6).state == "done"


def test_a_run_with_long_pauses_between_reports_is_not_stale(tmp_path):
    """Its last reports are 2,000 s apart, so that ten minutes without one are nothing."""
    leave_run(tmp_path, until=10)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(report_at(15, samples_per_s=5 * 128 / 2000)) + "\n")
    run, now = record_of(tmp_path), time.time()
    assert standing_of(run, now + 600).state == "running"
    assert standing_of(run, now + 20_100).state == "stale"


def test_a_sweep_says_what_became_of_trials_that_have_no_folder(tmp_path):
    leave_run(tmp_path / "sweep" / "one", accuracy=0.8)
    leave_run(tmp_path / "sweep" / "two", until=10)
    trials = [{"name": "one", "state": "done"}, {"name": "two", "state": "failed", "error": "no <memory>\nmore"}]
    trials += [{"name": "three", "state": "waiting"}, {"name": "four", "state": "failed", "error": None}]
    (tmp_path / "sweep" / "sweep.json").write_text(
        json.dumps({"trials": trials, "command": "python x", "metric": "knn"})
    )
    known = Collection([Folder(str(tmp_path))])
    assert known.look()
    states = {run.name: standing_of(run, time.time()) for run in known.runs.values()}
    assert {name: each.state for name, each in states.items()} == {
        "one": "done",
        "two": "failed",
        "three": "waiting",
        "four": "failed",
    }
    assert states["two"].why == "no <memory>"
    assert not known.look()
    (tmp_path / "sweep" / "sweep.json").write_text("{cut")
    assert known.look()
    assert "cannot be read" in (next(iter(known.sweeps.values())).problem or "")


def test_only_what_has_changed_is_read_again(tmp_path, monkeypatch):
    """Hundreds of runs cost a list of their files."""
    for number in range(3):
        leave_run(tmp_path / f"run-{number}", until=20)
    known, read = Collection([Folder(str(tmp_path))]), list[str]()
    known.look()
    original = Folder.read_bytes

    def counted(folder: Folder, name: str = "", offset: int = 0, length: int | None = None) -> bytes:
        data = original(folder, name, offset, length)
        read.append(f"{folder}/{name}".removeprefix(str(tmp_path)).strip("/") + f" {len(data)}")
        return data

    monkeypatch.setattr(Folder, "read_bytes", counted)
    assert not known.look()
    assert read == []
    line = json.dumps(report_at(25)) + "\n"
    with (tmp_path / "run-1" / "metrics.jsonl").open("a") as file:
        file.write(line)
    assert known.look()
    last = json.dumps(report_at(20)) + "\n"  # of which it is seen that it is still there
    assert read == [f"run-1/metrics.jsonl {len(line) + len(last)}"]
    assert known.runs[str(tmp_path / "run-1")].numbers.last("step") == 25


def test_runs_of_one_name_are_told_apart_by_their_folders(tmp_path):
    runs = [RunRecord(Folder(uri)) for uri in ("/a/x/digits", "/b/x/digits", "/b/x/other", "s3://c/digits")]
    assert list(labels_of(runs).values()) == ["a/x/digits", "b/x/digits", "other", "c/digits"]


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({}, "PIRL jigsaw"),
        ({"pretext.name": "both"}, "PIRL jigsaw and rotation"),
        ({"loss.pretext_weight": 0}, "NPID"),
        ({"pretext.name": "none", "loss.pretext_weight": 0}, "NPID"),
        ({"method.name": "covariant", "pretext.name": "rotation"}, "covariant rotation"),
        ({"method.name": "supervised"}, "supervised"),
    ],
)
def test_a_run_is_called_by_what_it_learns(changes, name):
    assert method_of(leaves(override(Config(), changes))) == name


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name != "photos"])
def test_the_command_of_a_run_makes_its_config_again(tmp_path, recipe, monkeypatch):
    """Typed as it stands, with settings of all kinds beside the recipe's."""
    changes = {"optim.epochs": 6, "evaluation.every_epochs": 1, "data.uri": "digits", "data.streams": 4}
    changes |= {"cluster.workers": 2}
    changes |= {
        "cluster.workers": 2,
        "data.batch_size": 64,
        "data.storage_options": {"a": "b c"},
        "optim.clip_norm": None,
    }
    run = RunRecord(Folder(str(tmp_path / "it's")))
    run.config = absolute(override(RECIPES[recipe](), changes))
    command = command_of(run, again=True)
    assert command is not None
    request = pretrain.parse(shlex.split(command)[2:])
    assert leaves(request.config) == leaves(run.config)
    assert request.name == "it's-again"


def test_numbers_of_other_images_are_not_taken_for_the_run_s_own(tmp_path):
    leave_run(tmp_path, accuracy=0.9)
    leave_report(tmp_path, "linear", [{"name": "res5", "value": 0.3}], data="/data/other")
    leave_report(tmp_path, "knn", [{"name": "res5, k 20", "value": 0.88, "interval": [0.86, 0.9]}])
    run = record_of(tmp_path)
    assert accuracy_of(run, "linear").value == 0.9
    assert [(each.value, each.elsewhere) for each in findings_of(run) if each.protocol == "linear"][-1] == (
        0.3,
        "/data/other",
    )
    assert [each.value for each in findings_of(run) if each.protocol == "knn"] == [0.88]
    assert [each.name for each in taps_of(run)] == list(TAPS)


def test_what_an_older_version_left_is_shown_as_far_as_it_is_understood(tmp_path):
    leave_run(tmp_path, accuracy=0.9)
    older = evaluation(0.8)
    del older["few"], older["random"]["few"]
    (tmp_path / "evaluation/pretrain.json").write_text(json.dumps(older))
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "gone": {"setting": 1}}))
    (tmp_path / "evaluation/knn.json").write_text('{"measurements": [{"name": "x"}]}')
    (tmp_path / "evaluation/auc.json").write_text("{")
    run = record_of(tmp_path)
    assert accuracy_of(run, "few") is None
    assert accuracy_of(run, "linear").value == 0.8
    assert run.config is None
    assert run.settings["gone.setting"] == 1
    assert command_of(run, again=True) is None
    findings_of(run)
    assert set(run.problems) == {"config.json", "evaluation/knn.json", "evaluation/auc.json"}


def test_settings_that_differ_are_those_that_change_what_is_learned(tmp_path):
    runs = []
    for name, changes in {
        "a": {},
        "b": {"loss.pretext_weight": 0.7, "cluster.workers": 4, "data.batch_size": 64},
    }.items():
        leave_run(tmp_path / name, changes, until=5)
        runs.append(record_of(tmp_path / name))
    assert differing(runs) == ["data.batch_size", "loss.pretext_weight"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(42.2, "42 s"), (150, "2 min"), (7500, "2 h 5 min"), (10**6, "11 d 13 h")]
)
def test_times_for_people(seconds, text):
    assert in_time(seconds) == text
