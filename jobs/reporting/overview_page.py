"""The page of several runs, or of a sweep: a table of all, what tells them apart, and what became of each."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from jobs.reporting.figures import learned_figures, progress_figures
from jobs.reporting.findings import ACCURACIES, Finding, accuracy_of, compared_by
from jobs.reporting.naming import data_name, differing, in_words, labels_of, method_of, short_settings
from jobs.reporting.parts import Cell, ColumnHead, CommandLine, Fold, Page, PageSection, SortableTable
from jobs.reporting.record import Collection, RunRecord, SweepRecord
from jobs.reporting.run_page import (
    commands_of,
    facts_of,
    findings_table,
    outcome_of,
    standing_in_words,
    warnings_of,
)
from jobs.reporting.standing import ORDER, Standing, StateWord, in_time, standing_of
from pirl.wording import text_of

MOST_DRAWN = 60
"""Runs whose lines can still be followed in one chart: the best and the newest ones are drawn."""

SHORT = {"linear": "probe", "few": "few labels", "knn": "kNN"}
"""As `ACCURACIES`, where there is little room."""
UNTOLD = ("method.name", "pretext.name", "seed")
"""Settings that tell runs apart and that the sentence on top leaves out."""

LinkTo = Callable[[RunRecord], str]


def overview_page(known: Collection, now: float, heading: str, link_to: LinkTo | None = None) -> Page:
    """The page of all runs of a collection at a time (Unix).

    Args:
        heading: What they are: `a sweep`, a folder.
        link_to: The address of a run's own page; without it, the place in this page.
    """
    standings = {run: standing_of(run, now) for run in known.runs.values()}
    protocol = compared_by(list(standings))
    runs = sorted(standings, key=lambda run: _rank(run, standings[run], protocol))
    labels = labels_of(runs)
    counts = Counter(standing.state for standing in standings.values())
    ids = {run: f"run-{number}" for number, run in enumerate(runs, 1)}
    links = {run: link_to(run) if link_to else f"#{ids[run]}" for run in runs}
    table = runs_table(runs, standings, labels, protocol, links)
    drawn, left = runs[:MOST_DRAWN], max(0, len(runs) - MOST_DRAWN)
    notes = [f"Charts show {MOST_DRAWN} of the {len(runs)} runs: the first of the table above."] if left else []
    if len({str(run.settings.get("data.uri")) for run in runs if run.settings}) > 1:
        notes.append("The runs are not all of the same images: their accuracies do not compare.")
    learned = list(learned_figures.charts_of_runs(drawn, labels, protocol))
    went = list(progress_figures.charts_of_runs(drawn, labels))
    sections = [
        PageSection("runs", "Which runs are these?", tables=[table], commands=_sweep_commands(known)),
        PageSection("learned", "What did they learn?", charts=learned, notes=notes or _nothing(learned, "measured")),
        PageSection("went", "How did training go?", charts=went, notes=_nothing(went, "reported")),
        PageSection("each", "Each run", folded=[_fold(run, standings[run], labels, ids[run]) for run in runs]),
    ]
    return Page(
        title=f"{heading}: {len(runs)} runs",
        crumbs=[(heading, "")],
        heading=_heading(runs, labels, protocol, counts),
        lead=_lead(runs, labels, protocol),
        sections=sections,
        warnings=[sweep.problem for sweep in known.sweeps.values() if sweep.problem],
        counts=[(state, counts[state]) for state in ORDER if counts[state]],
        footer=f"Made of the files below {', '.join(map(str, known.places))}.",
    )


def runs_table(
    runs: Sequence[RunRecord],
    standings: Mapping[RunRecord, Standing],
    labels: Mapping[str, str],
    protocol: str,
    links: Mapping[RunRecord, str],
) -> SortableTable:
    """A row for each run, with the settings that tell it from the others."""
    apart = [name for name in differing(runs) if name not in ("method.name", "pretext.name")]
    measured = [each for each in ("linear", "few", "knn") if any(accuracy_of(run, each) for run in runs)]
    measured.sort(key=lambda each: each != protocol)
    heads = [ColumnHead("run"), ColumnHead("state"), ColumnHead("method")]
    heads += [
        ColumnHead(f"{SHORT[each]}, %", True, f"{ACCURACIES[each]}; in brackets: random weights") for each in measured
    ]
    heads += [ColumnHead(short, _are_numbers(runs, name), name) for name, short in short_settings(apart).items()]
    heads += [ColumnHead(name, True) for name in ("loss", "epochs", "training", "images/s")]
    rows = []
    for run in runs:
        standing = standings[run]
        why = standing_in_words(standing).partition(", ")[2] if standing.state != "done" else ""
        row = [
            Cell(labels[run.folder.uri], link=links[run]),
            Cell("", key=ORDER.index(standing.state), state=standing.state, more=_cut(_since(standing) or why)),
            Cell(method_of(run.settings).replace(" ", "\N{NO-BREAK SPACE}") if run.settings else ""),
            *(_accuracy(accuracy_of(run, each)) for each in measured),
            *(_setting(run, name) for name in apart),
            *_numbers(run),
        ]
        rows.append(row)
    title = "Accuracies in % (random weights in brackets). Sort by any column; a name leads to the run."
    return SortableTable("all-runs", title, heads, rows)


def _rank(run: RunRecord, standing: Standing, protocol: str) -> tuple[int, float, str]:
    """What needs a person comes first, then the best."""
    found = accuracy_of(run, protocol)
    return ORDER.index(standing.state), -(found.value if found else 0.0), run.folder.uri


def _heading(runs: Sequence[RunRecord], labels: Mapping[str, str], protocol: str, counts: Counter[StateWord]) -> str:
    data = sorted({data_name(run.settings) for run in runs if run.settings})
    on = f" on {data[0]}" if len(data) == 1 else f" on {len(data)} data sets" if data else ""
    best = _best(runs, protocol)
    if not best:
        states = ", ".join(f"{counts[state]} {state}" for state in ORDER if counts[state])
        return f"{len(runs)} run{'s' * (len(runs) != 1)}{on}: {states or 'none yet'}"
    run, found = best
    told = [name for name in differing(runs) if name not in UNTOLD and run.settings.get(name) is not None]
    apart = in_words(run.settings, told[:3])
    label = labels[run.folder.uri]
    by = f" ({apart})" if apart and not run.trial else ""  # whose name is what tells them apart
    return f"{len(runs)} runs{on}: {label} is best with {found.text(found.value)} %{by}"


def _lead(runs: Sequence[RunRecord], labels: Mapping[str, str], protocol: str) -> list[str]:
    best = _best(runs, protocol)
    if not best:
        return []
    run, found = best
    random = "" if found.random is None else f"; the same network with random weights gets {found.text(found.random)} %"
    told = [f"That is the accuracy of a {ACCURACIES[protocol]}{random}."] if protocol == "linear" else []
    told = told or [f"That is by {ACCURACIES[protocol]}{random}."]
    if protocol != "few" and (outcome := outcome_of(run)):
        told.append(f"{labels[run.folder.uri]}: {outcome}.")
    return told


def _best(runs: Sequence[RunRecord], protocol: str) -> tuple[RunRecord, Finding] | None:
    known = [(run, found) for run in runs if (found := accuracy_of(run, protocol))]
    return max(known, key=lambda each: each[1].value, default=None)


def _sweep_commands(known: Collection) -> list[CommandLine]:
    commands = []
    for sweep in known.sweeps.values():
        if command := sweep.content.get("command"):
            commands.append(CommandLine(_about_sweep(sweep), str(command)))
        best = sweep.content.get("best") or {}
        if isinstance(best, dict) and best.get("command"):
            commands.append(CommandLine(f"Its best trial, {best.get('name')}, alone:", str(best["command"])))
    return commands


def _about_sweep(sweep: SweepRecord) -> str:
    states = Counter(str(trial.get("state")) for trial in sweep.content.get("trials", []))
    told = ", ".join(f"{count} {state}" for state, count in states.items())
    return f"The sweep {sweep.folder.name} ({told}; by {sweep.content.get('metric')}) is made again, or goes on, with:"


def _fold(run: RunRecord, standing: Standing, labels: Mapping[str, str], id: str) -> Fold:
    table = findings_table(run)
    if table:
        table = SortableTable(f"{id}-findings", table.title, table.columns, table.rows)
    notes = [standing_in_words(standing)] if standing.state != "done" else []
    notes += [f"Restarted: {told}." for told in progress_figures.cost_of_restarts(run)]
    return Fold(
        id,
        labels[run.folder.uri],
        outcome_of(run) or "",
        standing,
        notes + warnings_of(run),
        commands_of(run, standing),
        facts_of(run),
        [table] if table else [],
    )


def _numbers(run: RunRecord) -> list[Cell]:
    loss, epoch, rate = (run.numbers.last(name) for name in ("loss", "epoch", "samples_per_s"))
    seconds = run.numbers.seconds(run.batch_size)
    epochs = run.settings.get("optim.epochs", "?")
    return [
        Cell("", "") if loss is None else Cell(f"{loss:.3f}", loss),
        Cell("", "") if epoch is None else Cell(f"{epoch:.4g}", epoch, more=f"of {epochs}"),
        Cell(in_time(seconds[-1]), float(seconds[-1])) if len(seconds) else Cell("", ""),
        Cell("", "") if rate is None else Cell(f"{rate:,.0f}", rate),
    ]


def _setting(run: RunRecord, name: str) -> Cell:
    """A value of a setting; without one, of what that means."""
    value = run.settings.get(name)
    if value is None:
        return Cell("all" if name == "pretext.permutations" and run.settings else "–", "")
    return Cell(text_of(value), value if isinstance(value, int | float) else None)


def _accuracy(found: Finding | None) -> Cell:
    if found is None:
        return Cell("", "")
    more = "" if found.random is None else f"({found.text(found.random)})"
    spread = f" ± {100 * found.deviation:.1f}" if found.deviation else ""
    return Cell(f"{found.text(found.value)}{spread}", found.value, more=more)


def _are_numbers(runs: Sequence[RunRecord], name: str) -> bool:
    values = [run.settings[name] for run in runs if run.settings.get(name) is not None]
    return all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _since(standing: Standing) -> str:
    return standing_in_words(standing).partition(", ")[0].removeprefix("stale ") if standing.since else ""


def _cut(text: str, most: int = 90) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _nothing(charts: Sequence[object], what: str) -> list[str]:
    return [] if charts else [f"Nothing was {what} yet."]
