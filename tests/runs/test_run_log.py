import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from pirl.errors import StorageError
from pirl.runs.progress_lines import progress_line
from pirl.runs.run_log import RunLog, keep_until
from pirl.storage.folder import Folder

METRICS = {
    "step": 1500,
    "last_step": 12_000,
    "epoch": 12.5,
    "loss": 3.25,
    "loss_image": 3.5,
    "loss_pretext": 3.0,
    "lr": 0.0295,
    "samples_per_s": 1234.5,
    "data_wait_s": 0.21,
    "data_wait_share": 0.021,
    "time_left_s": 3661.4,
}


def metrics(step):
    return METRICS | {"step": step, "epoch": step / 120}


def steps(folder):
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_reports_are_recorded_and_shown(tmp_path):
    shown = []
    log = RunLog(Folder(str(tmp_path / "run")), 0, shown.append)
    log.add(metrics(10))
    log.line("done")
    log.add(metrics(20))
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [metrics(10), metrics(20)]
    expected = [progress_line(metrics(10)), "done", progress_line(metrics(20))]
    assert shown == expected
    assert (tmp_path / "run" / "train.log").read_text().splitlines() == expected


def test_tensorboard_reads_the_events(tmp_path):
    log = RunLog(Folder(str(tmp_path)), 0, None)
    log.add(metrics(10))
    log.add(metrics(20))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 3.25), (20, 3.25)]
    assert {"loss_image", "loss_pretext", "lr", "samples_per_s"} <= set(events.Tags()["scalars"])


def test_npid_has_no_pretext_term(tmp_path):
    alone = {name: value for name, value in metrics(10).items() if name != "loss_pretext"}
    RunLog(Folder(str(tmp_path)), 0, None).add(alone)
    assert steps(tmp_path) == [10]
    assert "loss 3.250 (image 3.500)" in progress_line(alone)


def test_going_on_drops_what_was_written_after_the_checkpoint(tmp_path):
    log = RunLog(Folder(str(tmp_path)), 0, None)
    for step in (10, 20, 30):
        log.add(metrics(step))
    log = RunLog(Folder(str(tmp_path)), 20, None)
    assert steps(tmp_path) == [10, 20]
    log.add(metrics(25))
    assert steps(tmp_path) == [10, 20, 25]
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20, 25]


def test_a_start_from_nothing_drops_all(tmp_path):
    RunLog(Folder(str(tmp_path)), 0, None).add(metrics(10))
    RunLog(Folder(str(tmp_path)), 0, None)
    assert steps(tmp_path) == []


@pytest.mark.parametrize("cut", [1, 5, len(json.dumps(metrics(20))) - 1])
def test_a_last_line_that_was_cut_off_is_dropped(tmp_path, cut):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(metrics(10)) + "\n" + json.dumps(metrics(20))[:cut])
    keep_until(path, 100)
    assert path.read_text() == json.dumps(metrics(10)) + "\n"


def test_a_line_that_lacks_its_end_alone_gets_it(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(metrics(10)))
    keep_until(path, 100)
    assert path.read_text() == json.dumps(metrics(10)) + "\n"


def test_progress_reads_well():
    assert progress_line(METRICS) == (
        "epoch  12.50/100   step 1,500/12,000   loss 3.250 (image 3.500, pretext 3.000)   lr 0.029   "
        "1,234 samples/s   waiting for data 2%   left 1:01:01"
    )
    last = METRICS | {"step": 12_000, "epoch": 100.0, "time_left_s": 0.0, "lr": 0.00003}
    assert progress_line(last).startswith("epoch 100.00/100   step 12,000/12,000 ")
    assert progress_line(last).endswith("left 0:00:00")
    assert "lr 3e-05" in progress_line(last)
    assert progress_line(METRICS | {"time_left_s": 200_000}).endswith("left 2 days, 7:33:20")


def test_in_a_store_the_folder_is_as_on_a_disk(store, tmp_path):
    """Also when a run goes on, and while and after a checkpoint waits to be uploaded."""
    folder = Folder(store.uri("run"), store.options)
    store.fail("slowdown", 8, method="PUT")
    with RunLog(folder, 0, None) as log:
        log.add(metrics(10))
        log.add(metrics(20))
        log.send()
        assert folder.read("metrics.jsonl").count("\n") == 2
        log.add(metrics(30))
    with RunLog(folder, 20, None) as log:
        log.line("going on")
        log.add(metrics(25))
    lines = [json.loads(line)["step"] for line in folder.read("metrics.jsonl").splitlines()]
    assert lines == [10, 20, 25]
    shown = [progress_line(metrics(step)) for step in (10, 20, 30)] + ["going on", progress_line(metrics(25))]
    assert folder.read("train.log").splitlines() == shown
    for name in folder.sizes():
        (tmp_path / name).write_bytes(folder.read_bytes(name))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert [event.step for event in events.Scalars("loss")] == [10, 20, 25]


def test_a_store_that_does_not_answer_is_told_at_the_end(store):
    """And not by the thread that sends from time to time; nor after another failure."""
    folder = Folder(store.uri("run"), store.options, deadline_s=1)
    store.fail("slowdown", 10_000, method="PUT")
    with pytest.raises(StorageError, match="gave up after"), RunLog(folder, 0, None) as log:
        log.add(metrics(10))
    log = RunLog(folder, 0, None)
    log.__exit__(ZeroDivisionError)
    assert not log.folder.exists()
