"""The page of one run, in the order in which a person asks: what it learned, from what, how it went, how to repeat."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from jobs.reporting.figures import learned_figures, progress_figures
from jobs.reporting.figures.pictures import invariance_sheet, neighbours_sheet, views_sheet
from jobs.reporting.findings import Finding, accuracy_of, findings_of, test_images
from jobs.reporting.naming import RULED, command_of, data_name, evaluate_command, method_of, network_of
from jobs.reporting.parts import (
    Cell,
    ColumnHead,
    CommandLine,
    Fold,
    Page,
    PageSection,
    SortableTable,
    Tile,
    in_date,
)
from jobs.reporting.record import RunRecord
from jobs.reporting.standing import Standing, how_far, in_time, standing_of
from pirl.config import Config, leaves
from pirl.runs.run_files import RunFile
from pirl.wording import text_of

USUAL = ("linear", "knn", "few", "retrieval", "health", "invariance")
"""Protocols that a run on any images can be measured by; without labels those of `UNLABELLED`."""
UNLABELLED = ("retrieval", "health", "invariance")


def run_page(run: RunRecord, now: float, crumbs: Sequence[tuple[str, str]] = ()) -> Page:
    """The page of a run at a time (Unix); `crumbs` are what it lies in."""
    standing = standing_of(run, now)
    what = f"{method_of(run.settings)} on {data_name(run.settings)}" if run.settings else "a run that has not begun"
    outcome = outcome_of(run)
    return Page(
        title=f"{run.name}: {what}",
        crumbs=[*crumbs, (run.name, "")],
        heading=f"{what}: {outcome or _state_in_short(run, standing)}",
        lead=_lead(run, standing, told_state=outcome is not None),
        sections=[section for section in _sections(run, standing) if section],
        standing=standing,
        tiles=tiles_of(run),
        warnings=[*([standing.why] if standing.state in ("failed", "stale") else []), *warnings_of(run)],
        footer=f"Made of the files in {run.folder}.",
    )


def outcome_of(run: RunRecord) -> str | None:
    """What the run has learned, in some words; None where nothing was measured."""
    few, linear = accuracy_of(run, "few"), accuracy_of(run, "linear")
    if few:
        count = few.name.partition(", ")[2].removesuffix(" a class")
        return f"{few.text(few.value)} % right from {count} labels a class{_beside(few)}"
    if linear:
        return f"{linear.text(linear.value)} % right by a linear probe{_beside(linear)}"
    return None


def standing_in_words(standing: Standing) -> str:
    """A state, for a sentence."""
    since = f" since {in_date(standing.since)}" if standing.since else ""
    return f"{standing.state}{since}" + (f", {standing.why}" if standing.why else "")


def tiles_of(run: RunRecord) -> list[Tile]:
    """The numbers that are looked for first."""
    found = []
    for protocol, what in (("few", "from {}"), ("linear", "linear probe of res5"), ("knn", "kNN ({})")):
        if each := accuracy_of(run, protocol):
            spread = f" ± {100 * each.deviation:.1f}" if each.deviation else ""
            name = what.format(each.name.replace("res5, ", "").replace(" a class", " labels a class"))
            found.append(Tile(f"{each.text(each.value)}{spread} %", name, _beside(each).lstrip("; ")))
    seconds = run.numbers.seconds(run.batch_size)
    if len(seconds):
        rate = run.numbers.last("samples_per_s")
        found.append(Tile(in_time(seconds[-1]), "of training", f"{rate:,.0f} images/s at the end" if rate else ""))
    loss = run.numbers["loss"]
    if len(loss):
        found.append(Tile(f"{loss[-1]:.2f}", "loss", f"{loss[0]:.2f} in the first report"))
    return found


def warnings_of(run: RunRecord) -> list[str]:
    """What is wrong with what lies there."""
    told = [f"{name} cannot be used: {why}" for name, why in sorted(run.problems.items())]
    if RunFile.CONFIG not in run.files and run.files:
        told.append("There is no config.json: what these numbers are of is not known.")
    return told + [note for note in run.story.notes if "have collapsed" in note][-1:]


def findings_table(run: RunRecord) -> SortableTable | None:
    """All numbers that were measured."""
    found = findings_of(run)
    if not found:
        return None
    heads = [ColumnHead("protocol"), ColumnHead("what")]
    heads += [ColumnHead(name, True) for name in ("random", "trained", "change")]
    about = "Interval over the test images, or deviation over draws"
    heads += [ColumnHead("95 % or ±", True, about), ColumnHead("unit")]
    rows = [_finding_row(each) for each in found]
    return SortableTable("findings", "All that was measured; random: the network before training", heads, rows)


def settings_fold(run: RunRecord) -> Fold:
    """All settings, first those that are not the default."""
    usual = leaves(Config())
    changed = [name for name, value in run.settings.items() if name not in RULED and usual.get(name, ...) != value]
    order = [*changed, *(name for name in run.settings if name not in changed)]
    facts = [(name, text_of(run.settings[name])) for name in order]
    return Fold("settings", "All settings", "first those that are not the default", facts=facts)


def commands_of(run: RunRecord, standing: Standing) -> list[CommandLine]:
    """What goes on with it, trains it again, and measures what was not measured."""
    commands = []
    if standing.state not in ("done", "running", "starting") and (again := command_of(run, again=False)):
        if (run.failure or {}).get("step") is not None:
            about = "To go on from the last checkpoint before the loss was lost, with smaller steps:"
            commands.append(CommandLine(about, f"{again} --resume must --optim.clip-norm 1"))
        else:
            commands.append(CommandLine("To begin it or to go on with it:", again))
    if again := command_of(run, again=True):
        about = "To train it again beside it (on Ray; with --no-ray in one process):"
        commands.append(CommandLine(about, again))
    if missing := missing_protocols(run, standing):
        commands.append(CommandLine(f"Not measured yet: {', '.join(missing)}.", evaluate_command(run.folder, missing)))
    return commands


def missing_protocols(run: RunRecord, standing: Standing) -> list[str]:
    """What a run that has weights could be measured by, and was not."""
    if standing.state not in ("done", "stopped"):
        return []
    labelled = accuracy_of(run, "linear") or accuracy_of(run, "knn")
    done = {finding.protocol for finding in findings_of(run)}
    return [protocol for protocol in (USUAL if labelled else UNLABELLED) if protocol not in done]


def facts_of(run: RunRecord) -> list[tuple[str, str]]:
    """What is told of a run in its fold."""
    facts = [("method", method_of(run.settings)), ("network", network_of(run.settings))]
    facts += [("data", str(run.settings.get("data.uri", "unknown"))), ("folder", str(run.folder))]
    facts += [(f"attempt {number} began", in_date(at)) for number, at in enumerate(run.began, 1)]
    checkpoint = (run.result or {}).get("checkpoint")
    return facts + ([("checkpoint", str(checkpoint))] if checkpoint else [])


def _lead(run: RunRecord, standing: Standing, *, told_state: bool) -> list[str]:
    settings = run.settings
    epochs, images = settings.get("optim.epochs"), test_images(run)
    trained = f"{network_of(settings)}, {epochs} epochs of {settings.get('data.uri')}" if settings else ""
    counted = f", counted on {images:,} images that were held out" if images else ""
    lead = [f"{trained}{counted}."] if trained else []
    if told_state and standing.state != "done":
        lead.append(f"It is {standing_in_words(standing)}.")
    linear, few = accuracy_of(run, "linear"), accuracy_of(run, "few")
    if few and linear:
        lead.append(f"With all labels, a linear probe of res5 gets {linear.text(linear.value)} %{_beside(linear)}.")
    if standing.state == "done" and not findings_of(run):
        no = next((note for note in run.story.notes if note.startswith("no evaluation")), "Nothing was measured of it")
        lead.append(f"{no[0].upper()}{no[1:]}.")
    return lead


def _sections(run: RunRecord, standing: Standing) -> list[PageSection | None]:
    table, charts = findings_table(run), list(learned_figures.charts_of_run(run))
    sheets = [neighbours_sheet(run, evaluate_command(run.folder, ["retrieval"]))]
    if not any(chart.key == "invariance" for chart in charts):
        sheets.append(invariance_sheet(run, evaluate_command(run.folder, ["invariance"])))
    notes = [_health(run)] if "health" in run.evaluations else []
    if run.result is None:
        sheets = [sheet for sheet in sheets if not sheet.missing]
    if not (table or charts or sheets):
        notes = ["Nothing was measured of it: that comes at its end, or with python jobs/evaluate.py."]
    folded = [Fold("all-findings", "All numbers", f"{len(table.rows)} of them", tables=[table])] if table else []
    progress = list(progress_figures.charts_of_run(run))
    return [
        PageSection("learned", "What did it learn?", charts=charts, sheets=sheets, notes=notes, folded=folded),
        PageSection("saw", "What did it learn from?", sheets=[views_sheet(run)]) if run.settings else None,
        PageSection("went", "How did training go?", charts=progress, notes=_history(run, how_far(run))),
        PageSection(
            "again",
            "How is it repeated?",
            commands=commands_of(run, standing),
            folded=[
                settings_fold(run),
                Fold("facts", "Where and when", facts=facts_of(run)),
                Fold("log", "What its log says", "without the lines of progress", notes=_log_lines(run)),
            ],
        ),
    ]


def _state_in_short(run: RunRecord, standing: Standing) -> str:
    """A state for a heading, without what an error says at length."""
    if standing.state == "failed":
        return "diverged" if (run.failure or {}).get("step") is not None else "failed"
    if standing.state == "done":
        return "done, and not measured"
    return standing_in_words(replace(standing, why="") if standing.since else standing)


def _history(run: RunRecord, far: str) -> list[str]:
    told = progress_figures.cost_of_restarts(run)
    if not run.numbers.rows:
        return ["Nothing was reported yet."]
    if not told:
        return [f"One attempt, without a restart ({far})."] if far else ["One attempt, without a restart."]
    return [f"{len(told)} restart{'s' * (len(told) > 1)}: {'; '.join(told)}."]


def _log_lines(run: RunRecord) -> list[str]:
    left = [f"({run.story.dropped} earlier lines are in train.log.)"] if run.story.dropped else []
    return [*left, *run.story.notes] or ["Nothing beside its progress."]


def _health(run: RunRecord) -> str:
    details: Mapping[str, object] = run.evaluations["health"].get("details") or {}
    return f"Health: {details.get('verdict', 'unknown')}, as {details.get('reason', 'its report does not say why')}."


def _beside(found: Finding) -> str:
    return "" if found.random is None else f"; random weights {found.text(found.random)} %"


def _finding_row(each: Finding) -> list[Cell]:
    change = None if each.random is None else each.value - each.random
    spread = f"{each.text(each.interval[0])} to {each.text(each.interval[1])}" if each.interval else ""
    spread = f"± {each.text(each.deviation)}" if each.deviation is not None and not spread else spread
    signed = "" if change is None else f"{'+' if change >= 0 else '−'}{each.text(abs(change))}"
    return [
        Cell(each.protocol),
        Cell(each.name, more=f"on {each.elsewhere}" if each.elsewhere else ""),
        Cell(each.text(each.random), key="" if each.random is None else each.random),
        Cell(each.text(each.value), key=each.value),
        Cell(signed, key="" if change is None else change),
        Cell(spread, key=each.interval[0] if each.interval else ""),
        Cell(each.unit),
    ]
