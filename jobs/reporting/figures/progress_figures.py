"""How training went, as charts over steps or epochs: losses, learning rate, speed, waiting, the bank, measurements."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from jobs.reporting.appended import groups_of_points
from jobs.reporting.figures.drawing import GRAY, POINTS, Chart, LegendEntry, look_of
from jobs.reporting.record import RunRecord
from jobs.reporting.standing import in_time

LOSSES = {"loss": "all, weighted", "loss_image": "image view", "loss_pretext": "pretext view"}
RANKS = {"bank_effective_rank": "memory bank", "batch_effective_rank": "newest batch"}
MEASURED = {"linear_res5": "linear probe of res5", "knn": "kNN on res5"}

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Places from left to right and values, each (points,)."""


def charts_of_run(run: RunRecord) -> Iterator[Chart]:
    """Those of one run, over steps; none of numbers that it has not got."""
    if not run.numbers.rows:
        return
    restarts = [restart.step for restart in run.story.restarts]
    marks = " Dotted: the run went on from a checkpoint." if restarts else ""
    curves = {label: line_of(run, name) for name, label in LOSSES.items() if name in run.numbers}
    if len(curves) == 2:  # one term, which is all of it
        curves = {"all": curves[LOSSES["loss"]]}
    caption = f"Lower is better; the level depends on negatives and temperature.{marks}"
    yield _over_steps("loss", "Loss", caption, "loss", curves, restarts)
    if "pretext_accuracy" in run.numbers:
        said = {"said right": _percent(line_of(run, "pretext_accuracy"))}
        text = f"Share of the training images of which the network says the target right.{marks}"
        yield _over_steps("target", "What the network says", text, "%", said, restarts)
    measured = {label: _percent(line_of(run, name)) for name, label in MEASURED.items() if name in run.numbers}
    if measured:
        text = "Accuracy on the test images, measured during training."
        yield _over_steps("during", "Learned by when", text, "accuracy, %", measured, restarts, marked=True)
    rates = {"learning rate": line_of(run, "lr")}
    yield _over_steps("lr", "Learning rate", "As the schedule has it.", "learning rate", rates, restarts)
    speed = {"images/s": line_of(run, "samples_per_s")}
    text = f"Images per second between reports, all workers together; dips are other work on the machine.{marks}"
    yield _over_steps("throughput", "Throughput", text, "images/s", speed, restarts, from_zero=True)
    waits = {"share": _percent(line_of(run, "data_wait_share"))}
    text = "Share of the time that steps waited for images: near zero, the network is what takes the time."
    yield _over_steps("data-wait", "Waiting for data", text, "% of the time", waits, restarts, from_zero=True)
    ranks = {label: line_of(run, name) for name, label in RANKS.items() if name in run.numbers}
    if ranks:
        text = "Effective rank of embeddings, of 128: directions that they use. Near 1 all images look the same."
        yield _over_steps("bank", "Health of the memory bank", text, "effective rank", ranks, restarts, from_zero=True)


def charts_of_runs(runs: Sequence[RunRecord], labels: Mapping[str, str]) -> Iterator[Chart]:
    """Those of several runs, over epochs."""
    known = [(number, run) for number, run in enumerate(runs) if run.numbers.rows]
    if not known:
        return
    legend = [LegendEntry(number, labels[run.folder.uri]) for number, run in known]
    most = max(20, min(POINTS, 20 * POINTS // len(known)))
    for key, title, name, unit, caption in (
        ("loss", "Loss", "loss", "loss", "Lower is better, but only runs with the same λ and negatives compare."),
        ("target", "What the networks say", "pretext_accuracy", "%", "Training images whose target is said right."),
        ("during", "Learned by when", "linear_res5", "accuracy, %", "Linear probe of res5, during training."),
        ("throughput", "Throughput", "samples_per_s", "images/s", "Images per second, all workers together."),
        ("data-wait", "Waiting for data", "data_wait_share", "% of the time", "Share that steps waited for images."),
        ("bank", "Memory bank", "bank_effective_rank", "effective rank", "Of 128; near 1, all look the same."),
    ):
        lines = [(number, line_of(run, name, "epoch", most)) for number, run in known if name in run.numbers]
        if lines:
            scaled = [(number, _percent(line) if unit.startswith(("%", "acc")) else line) for number, line in lines]
            shown = [entry for entry in legend if entry.look in dict(lines)]
            draw = partial(_draw, lines=scaled, x="epoch", y=unit, marks=(), from_zero=key == "data-wait", marked=False)
            yield Chart(key, title, caption, draw, shown)


def line_of(run: RunRecord, name: str, across: str = "step", most: int = POINTS) -> Curve:
    """A number of a run over its steps: means of neighbours, where there are more than can be seen."""
    x, y = run.numbers[across], run.numbers[name]
    known = ~np.isnan(y) & ~np.isnan(x)
    x, y = x[known], y[known]
    parts = list(groups_of_points(len(x), most))
    return np.array([x[part][-1] for part in parts]), np.array([y[part].mean() for part in parts])


def cost_of_restarts(run: RunRecord) -> list[str]:
    """A sentence for each time that a run went on."""
    rate = run.numbers.last("samples_per_s")
    told = []
    for restart in run.story.restarts:
        text = f"went on from step {restart.step:,} with {restart.workers} worker{'s' * (restart.workers != 1)}"
        if restart.lost:
            seconds = restart.lost * run.batch_size / rate if rate else 0.0
            cost = f", about {in_time(seconds)}" if seconds else ""
            text += f"; {restart.lost:,} steps or more were trained twice{cost}"
        else:
            text += "; no reported step was lost"
        told.append(text)
    return told


def _percent(line: Curve) -> Curve:
    return line[0], 100 * line[1]


def _over_steps(
    key: str,
    title: str,
    caption: str,
    unit: str,
    curves: Mapping[str, Curve],
    restarts: Sequence[int],
    *,
    from_zero: bool = False,
    marked: bool = False,
) -> Chart:
    lines = list(enumerate(curves.values()))
    legend = [LegendEntry(number, label, marked) for number, label in enumerate(curves)] if len(curves) > 1 else []
    draw = partial(_draw, lines=lines, x="step", y=unit, marks=restarts, from_zero=from_zero, marked=marked)
    return Chart(key, title, caption, draw, legend)


def _draw(
    axes: Axes,
    lines: Sequence[tuple[int, Curve]],
    x: str,
    y: str,
    marks: Sequence[int],
    from_zero: bool,
    marked: bool,
) -> None:
    for number, (across, up) in lines:
        axes.plot(across, up, **look_of(number, marked=marked or len(across) == 1))
    for step in marks:
        axes.axvline(step, color=GRAY, linestyle=":", linewidth=1.2)
    axes.set(xlabel=x, ylabel=y)
    if from_zero:
        axes.set_ylim(bottom=0)
