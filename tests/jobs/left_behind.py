"""What a run leaves in its folder, made in no time: by the code that writes it in a real one, with numbers made up."""

import json
from pathlib import Path
from typing import Any

from pirl.config import Config, override
from pirl.recipes import digits
from pirl.runs.run import Run, write_failure
from pirl.runs.run_files import RunFile
from pirl.runs.run_log import RunLog
from pirl.storage.folder import Folder

STEPS = 40
TAPS = ("conv1", "res2", "res3", "res4", "res5")


def report_at(step: int, **more: float) -> dict[str, float]:
    """A line of metrics.jsonl, after some steps of `STEPS`."""
    return {
        "step": step,
        "last_step": STEPS,
        "epoch": step / 10,
        "loss": 6 - step / 20,
        "loss_image": 5 - step / 20,
        "loss_pretext": 7 - step / 20,
        "lr": 0.03 - step / 2000,
        "samples_per_s": 200.0,
        "data_wait_s": 0.1,
        "data_wait_share": 0.05,
        "time_left_s": (STEPS - step) * 0.64,
        "retries": 0,
        "skipped": 0,
        "bank_effective_rank": 20 + step / 4,
        "batch_effective_rank": 21 + step / 4,
        **more,
    }


def evaluation(accuracy: float, random: float = 0.5) -> dict[str, Any]:
    """What a run ends with, with this accuracy of res5."""

    def of(value: float) -> dict[str, Any]:
        return {
            "linear": {tap: value - 0.01 * (4 - at) for at, tap in enumerate(TAPS)},
            "knn": {"k": 20, "temperature": 0.07, "accuracy": value - 0.02},
            "few": {"per_class": 10, "draws": 5, "accuracy": value - 0.1, "deviation": 0.013},
        }

    return {"train_images": 1438, "test_images": 359, **of(accuracy), "random": of(random)}


def leave_run(
    folder: Path, changes: dict[str, Any] | None = None, *, until: int = STEPS, accuracy: float | None = None
) -> Config:
    """A run that is done if it has an accuracy, and else goes on; `until` is the last step that it told of."""
    config = override(digits(), changes or {})
    place = Folder(str(folder))
    Run(place, config).write_config()
    with RunLog(place, 0, None) as log:
        for step in range(5, until + 1, 5):
            log.add(report_at(step))
    if accuracy is not None:
        finish(folder, accuracy)
    return config


def finish(folder: Path, accuracy: float) -> None:
    """Writes what the end of a run writes."""
    report = evaluation(accuracy)
    Folder(str(folder)).write(RunFile.EVALUATION, json.dumps(report))
    result = {"metrics": report_at(STEPS), "evaluation": report, "checkpoint": f"{folder}/checkpoint_000000040"}
    (folder / RunFile.RESULT).write_text(json.dumps({**result, "retries": 0, "skipped": 0, "wall_s": 30.0}))


def fail(folder: Path, error: str, step: int | None) -> None:
    """Writes down why a run cannot go on."""
    write_failure(Folder(str(folder)), error, step)


def leave_report(folder: Path, protocol: str, measurements: list[dict[str, Any]], **more: Any) -> None:
    """A report of jobs/evaluate.py on the run's own images, unless `data` says others."""
    empty = {"random": None, "interval": None, "deviation": None, "unit": "%"}
    uri = more.pop("data", "/cache/pirl/digits-v2")
    data = {"train": {"uri": uri, "images": 1438, "fingerprint": 1}}
    report = {
        "protocol": protocol,
        "measurements": [empty | each for each in measurements],
        "details": {},
        "data": data,
    }
    Folder(str(folder)).write(f"evaluation/{protocol}.json", json.dumps(report | more))
