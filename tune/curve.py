"""What was measured of a run so far, from the files of its folder: the same now, later, and after a kill."""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from pirl.config import Config
from pirl.runs.run import reports_in
from pirl.runs.run_files import RunFile
from pirl.storage.folder import Folder

Metric = Literal["linear_res5", "knn", "loss"]


class Point(NamedTuple):
    """One measurement.

    Attributes:
        epoch: Epochs that are done.
        metric: Share of 1, or the mean loss since the last measurement.
        train_s: Seconds of training until then, without start and measurements.
    """

    epoch: int
    metric: float
    train_s: float


def curve_of(folder: Folder, config: Config, metric: Metric, every: int) -> list[Point]:
    """All measurements of a run, in order; the last one is what its evaluation found, if it is done.

    A loss is averaged over `every` epochs; accuracies are those that the run measured.
    """
    points = list(_points(folder, config, metric, every))
    evaluation = json.loads(folder.find(RunFile.EVALUATION) or "null") if metric != "loss" else None
    if evaluation:
        final = evaluation["linear"]["res5"] if metric == "linear_res5" else evaluation["knn"]["accuracy"]
        *_, (line, train_s) = _timed(folder, config)
        points.append(Point(round(line["epoch"]), final, train_s))
    return points


def trained(folder: Folder, config: Config) -> tuple[float, float]:
    """Epochs, and seconds of training, that the newest line of a run tells of; zeros before the first."""
    told = [(line["epoch"], train_s) for line, train_s in _timed(folder, config)]
    return told[-1] if told else (0.0, 0.0)


def without_end(curve: Sequence[Point], folder: Folder, config: Config, metric: Metric) -> str | None:
    """Says that the curve of a run that is done has not the measurement after training; None if it has."""
    if curve and curve[-1].epoch == config.optim.epochs:
        return None
    return (
        f"{folder} is done and has no {metric} after epoch {config.optim.epochs}: its train.log may say why; without "
        "that folder the same command trains it again"
    )


def stopped_at(folder: Folder, metric: Metric) -> int | None:
    """The epoch after which a scheduler stopped a run, judging by this metric; None if none did."""
    epoch: int | None = json.loads(folder.find(RunFile.STOPPED) or "{}").get(metric)
    return epoch


def write_stopped(folder: Folder, metric: Metric, epoch: int) -> None:
    """Writes down what `stopped_at` says."""
    known = json.loads(folder.find(RunFile.STOPPED) or "{}")
    folder.write(RunFile.STOPPED, json.dumps({**known, metric: epoch}))


def _points(folder: Folder, config: Config, metric: Metric, every: int) -> Iterator[Point]:
    step, measured_step, passed, losses = 0, 0, 0, 0.0
    for line, train_s in _timed(folder, config):
        losses += (line["step"] - step) * line["loss"]
        step = line["step"]
        if metric in line and metric != "loss":
            yield Point(round(line["epoch"]), line[metric], train_s)
        elif metric == "loss" and (line["epoch"] // every > passed or step == line["last_step"]):
            passed = int(line["epoch"] // every)
            yield Point(int(line["epoch"]), losses / (step - measured_step), train_s)
            losses, measured_step = 0.0, step


def _timed(folder: Folder, config: Config) -> Iterator[tuple[dict[str, Any], float]]:
    """The lines of `metrics.jsonl`, each with the seconds of training that it and those before it took."""
    step, train_s = 0, 0.0
    for line in reports_in(folder.find(RunFile.METRICS) or ""):
        train_s += (line["step"] - step) * config.data.batch_size / line["samples_per_s"]
        step = line["step"]
        yield line, train_s
