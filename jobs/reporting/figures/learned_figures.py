"""What networks have learned, as charts: accuracy by layer, by setting and by task, and the distances of transforms."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import NullLocator
from numpy.typing import NDArray

from jobs.reporting.appended import MOST
from jobs.reporting.figures.drawing import GRAY, SERIES, Chart, LegendEntry, look_of
from jobs.reporting.findings import ACCURACIES, DAMAGED, Finding, accuracy_of, details_of, taps_of, test_images
from jobs.reporting.naming import differing, in_words, method_of
from jobs.reporting.record import RunRecord
from pirl.wording import text_of

SWEPT = {
    "loss.pretext_weight": ("lambda", "Weight of the pretext task", "λ", "0 is NPID, 1 the pretext view alone"),
    "loss.num_negatives": ("negatives", "Number of negatives", "negatives (log scale)", "rows of the bank a step sees"),
    "pretext.permutations": ("permutations", "Number of permutations", "permutations (log scale)", "orders of patches"),
}
"""The paper's Figures 6 to 8: a chart where runs differ in the setting."""
UNBOUNDED = 362_880
"""Permutations where none are set: all orders of nine patches."""
HOLLOW: dict[str, Any] = {"color": GRAY, "marker": "o", "markerfacecolor": "none"}
"""How random weights look."""
MOST_NAMED = 40
"""Runs that have a row each in a chart of accuracies."""


def charts_of_run(run: RunRecord) -> Iterator[Chart]:
    """Those of one run: by layer, by the number of labels, and the distances of transforms."""
    if taps := taps_of(run):
        yield _by_layer([(0, taps)], [LegendEntry(0, "trained", True)], with_random=True)
    yield from few_labels(run)
    yield from distances([run], {run.folder.uri: "trained"})


def charts_of_runs(runs: Sequence[RunRecord], labels: Mapping[str, str], protocol: str) -> Iterator[Chart]:
    """Those of several: which is best, which task, how settings matter, by layer, and the distances."""
    known = [(run, found) for run in runs if (found := accuracy_of(run, protocol))]
    if len(known) > 1:
        yield ranking([(labels[run.folder.uri], found) for run, found in known], protocol, test_images(known[0][0]))
        yield from by_task(known, protocol)
        for setting in SWEPT:
            yield from against(setting, known, protocol)
    by_layer = [(number, taps) for number, run in enumerate(runs) if (taps := taps_of(run))]
    if by_layer:
        legend = [LegendEntry(number, labels[runs[number].folder.uri], True) for number, _ in by_layer]
        yield _by_layer(by_layer, legend, with_random=len(by_layer) == 1)
    yield from distances(runs, labels)


def ranking(known: Sequence[tuple[str, Finding]], protocol: str, images: int | None) -> Chart:
    """A row for each run, the best one on top, beside random weights."""
    ordered = sorted(known, key=lambda each: each[1].value)[-MOST_NAMED:]
    left = f" The best {MOST_NAMED} of {len(known)} runs; the table has all." if len(known) > MOST_NAMED else ""
    chance = ""
    if images:
        shares = [found.value for _, found in ordered]
        middle = statistics.median(shares)
        chance = f" On {images:,} images, ± {196 * (middle * (1 - middle) / images) ** 0.5:.1f} may be chance."

    def draw(axes: Axes) -> None:
        for row, (_, found) in enumerate(ordered):
            _bar(axes, row, found)
        axes.set_yticks(range(len(ordered)), [shortened(label) for label, _ in ordered])
        axes.set_ylim(-0.6, len(ordered) - 0.4)
        axes.grid(False, axis="y")
        axes.set_xlabel("accuracy, %")

    caption = f"{ACCURACIES[protocol].capitalize()}, in %. Hollow: the same network with random weights.{chance}{left}"
    return Chart("ranking", "Accuracy of each run", caption, draw, inches=(4.8, max(1.6, 0.9 + 0.24 * len(ordered))))


def by_task(known: Sequence[tuple[RunRecord, Finding]], protocol: str) -> Iterator[Chart]:
    """Table 5: means over the runs of each method and task, where there are several."""
    groups: dict[str, list[Finding]] = {}
    for run, found in known:
        groups.setdefault(method_of(run.settings), []).append(found)
    if len(groups) < 2:
        return
    ordered = sorted(groups.items(), key=lambda each: statistics.fmean(found.value for found in each[1]))

    def draw(axes: Axes) -> None:
        for row, (_, found) in enumerate(ordered):
            values = [100 * each.value for each in found]
            axes.plot(values, [row] * len(values), "o", color=SERIES[0], alpha=0.35, markersize=4)
            axes.plot(statistics.fmean(values), row, "D", color=SERIES[0], markersize=6)
        names = [f"{name} ({len(found)})" if len(found) > 1 else name for name, found in ordered]
        axes.set_yticks(range(len(ordered)), names)
        axes.set_ylim(-0.6, len(ordered) - 0.4)
        axes.grid(False, axis="y")
        axes.set_xlabel("accuracy, %")

    caption = (
        f"{ACCURACIES[protocol].capitalize()} (the paper's Table 5). Diamonds: the mean of all runs of a task, which "
        "may differ in other settings too; dots: each run."
    )
    yield Chart("pretext", "Which pretext task", caption, draw, inches=(4.8, max(1.6, 0.9 + 0.3 * len(ordered))))


def against(setting: str, known: Sequence[tuple[RunRecord, Finding]], protocol: str) -> Iterator[Chart]:
    """Accuracy against a setting, a line for runs that differ in nothing else but the seed; none without such runs."""
    key, title, axis, meaning = SWEPT[setting]
    told = [name for name in differing([run for run, _ in known]) if name not in (setting, "seed")]
    groups: dict[str, list[tuple[RunRecord, float, float]]] = {}
    for run, found in known:
        place = _place(setting, run.settings)
        if place is not None:
            groups.setdefault(in_words(run.settings, told), []).append((run, place, 100 * found.value))
    groups = {key: group for key, group in groups.items() if len({place for _, place, _ in group}) > 1}
    if not groups:
        return
    firsts = [group[0][0] for group in groups.values()]
    apart = [name for name in differing(firsts) if name in told]
    lines: dict[str, dict[float, list[float]]] = {}
    for first, group in zip(firsts, groups.values(), strict=True):
        points = lines.setdefault(in_words(first.settings, apart), {})
        for _, place, value in group:
            points.setdefault(place, []).append(value)
    legend = [LegendEntry(number, label, True) for number, label in enumerate(lines)] if len(lines) > 1 else []
    seeds = max(len(values) for points in lines.values() for values in points.values())
    spread = f" Bars: standard deviation over up to {seeds} runs." if seeds > 1 else " One run each."
    same = f" All else but the seed is the same{' along a line' if legend else ''}."
    caption = f"{ACCURACIES[protocol].capitalize()} against {axis.partition(' (')[0]} ({meaning}).{same}{spread}"
    draw = partial(_draw_against, lines=list(lines.values()), axis=axis)
    yield Chart(key, title, caption, draw, legend)


def few_labels(run: RunRecord) -> Iterator[Chart]:
    """Accuracy against the number of labelled images of each class, where several were measured."""
    report = run.evaluations.get("few", {})
    try:
        counts = [int(count) for count in report["settings"]["per_class"]]
        found = [accuracy for accuracy in report["measurements"] if accuracy["unit"] == "%"]
        values = [(100 * each["value"], 100 * (each["deviation"] or 0), each["random"]) for each in found]
    except DAMAGED:
        return
    if len(counts) < 2 or len(values) != len(counts):
        return
    random = [100 * each[2] for each in values if each[2] is not None]

    def draw(axes: Axes) -> None:
        means, spread = [each[0] for each in values], [each[1] for each in values]
        axes.errorbar(counts, means, spread, capsize=3, **look_of(0, marked=True))
        if len(random) == len(counts):
            axes.plot(counts, random, **HOLLOW)
        _log_ticks(axes, [float(count) for count in counts])
        axes.set(xlabel="labelled images of each class (log scale)", ylabel="accuracy, %")

    caption = "A linear classifier of res5. Gray: random weights. Bars: deviation over draws of the labelled images."
    yield Chart("few-labels", "With few labels", caption, draw)


def distances(runs: Sequence[RunRecord], labels: Mapping[str, str]) -> Iterator[Chart]:
    """Figure 4: how far embeddings of images are from those of their own transforms; none of older reports."""
    known = [(number, run, h) for number, run in enumerate(runs) if (h := _histogram(run))]
    if not known:
        return
    alone = len(runs) == 1
    what = details_of(known[0][1], "invariance").get("embeddings", "embeddings")
    legend = [LegendEntry(number, labels[run.folder.uri]) for number, run, _ in known]
    if alone:
        legend = [LegendEntry(0, "own transform"), LegendEntry(1, "of another image")]

    def draw(axes: Axes) -> None:
        for number, _, (edges, rows) in known:
            for kind, counts in enumerate(rows[: 2 if alone else 1]):
                share = 100 * counts / counts.sum()
                look = look_of(kind if alone else number)
                axes.stairs(share, edges, fill=alone, alpha=0.35 if alone else None, color=look["color"])
                axes.stairs(share, edges, color=look["color"], linestyle=look["linestyle"], linewidth=1.5)
        axes.set(xlabel=f"distance of {what}", ylabel="% of pairs")
        axes.set_xlim(0, 2)

    others = ", as long as those of other images stay on the right" if alone else ""
    caption = (
        "Distances between an image's embedding and that of its transform (the paper's Figure 4): the further left and "
        f"the narrower, the less the network minds the transform{others}."
    )
    yield Chart("invariance", "Invariance", caption, draw, legend)


def shortened(text: str, most: int = 26) -> str:
    """A name for which there is little room: its end, which tells it from others."""
    return text if len(text) <= most else "…" + text[1 - most :]


def _by_layer(known: Sequence[tuple[int, list[Finding]]], legend: list[LegendEntry], *, with_random: bool) -> Chart:
    names = [each.name for each in max((taps for _, taps in known), key=len)]

    def draw(axes: Axes) -> None:
        for number, taps in known:
            places = [names.index(each.name) for each in taps if each.name in names]
            axes.plot(places, [100 * each.value for each in taps], **look_of(number, marked=True))
            for place, each in zip(places, taps, strict=False):
                if each.interval and len(known) == 1:
                    low, high = each.interval
                    axes.vlines(place, 100 * low, 100 * high, color=look_of(number)["color"])
        if with_random:
            random = [each for each in known[0][1] if each.random is not None]
            places = [names.index(each.name) for each in random]
            axes.plot(places, [100 * (each.random or 0) for each in random], **HOLLOW)
        axes.set_xticks(range(len(names)), names)
        axes.set(xlabel="layer", ylabel="accuracy, %")

    random = " Gray: the same network with random weights." if with_random else ""
    caption = f"A linear classifier of the features of each layer (the paper's Figure 5).{random}"
    return Chart("layers", "Accuracy by layer", caption, draw, legend if len(known) > 1 else [])


def _draw_against(axes: Axes, lines: Sequence[Mapping[float, Sequence[float]]], axis: str) -> None:
    for number, points in enumerate(lines):
        places = sorted(points)
        means = [statistics.fmean(points[place]) for place in places]
        spread = [statistics.stdev(points[place]) if len(points[place]) > 1 else 0.0 for place in places]
        axes.errorbar(places, means, spread if any(spread) else None, capsize=3, **look_of(number, marked=True))
    places = sorted({place for points in lines for place in points})
    if "log" in axis:
        _log_ticks(axes, places)
    elif len(places) <= 8:
        axes.set_xticks(places, [text_of(place) for place in places])
    axes.set(xlabel=axis, ylabel="accuracy, %")


def _log_ticks(axes: Axes, places: Sequence[float]) -> None:
    """A logarithmic axis with a tick at each value, as far as their texts do not meet."""
    axes.set_xscale("log")
    axes.xaxis.set_minor_locator(NullLocator())
    told: list[float] = []
    room = np.log(places[-1] / places[0]) / 6
    for place in places:
        if not told or np.log(place / told[-1]) >= room:
            told.append(place)
    axes.set_xticks(told, ["all" if place == UNBOUNDED else f"{place:,.0f}" for place in told])


def _place(setting: str, settings: Mapping[str, Any]) -> float | None:
    """Where a run lies on the axis of a setting; None where it has no use for it."""
    value = settings.get(setting)
    if setting != "loss.pretext_weight" and method_of(dict(settings)) == "supervised":
        return None
    if setting == "pretext.permutations" and value is None and str(settings.get("pretext.name")) in ("jigsaw", "both"):
        return float(UNBOUNDED)
    return float(value) if isinstance(value, int | float) and 0 <= value < MOST else None


def _bar(axes: Axes, row: int, found: Finding) -> None:
    """A value with its interval, beside random weights."""
    if found.interval:
        low, high = found.interval
        axes.hlines(row, 100 * low, 100 * high, color=SERIES[0], alpha=0.5)
    if found.random is not None:
        axes.plot(100 * found.random, row, **HOLLOW)
    axes.plot(100 * found.value, row, "o", color=SERIES[0])


def _histogram(run: RunRecord) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]] | None:
    known = details_of(run, "invariance").get("histogram") or {}
    try:
        edges = np.linspace(0, 2, len(known["own"]) + 1)
        rows = [np.array(known[kind], np.float64) for kind in ("own", "other")]
    except DAMAGED:
        return None
    return (edges, rows) if all(row.sum() > 0 and len(row) == len(edges) - 1 for row in rows) else None
