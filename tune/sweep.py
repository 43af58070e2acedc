"""Train PIRL with several values of settings, on Ray Tune, and show what they change."""

import json
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from functools import cache
from types import FrameType
from typing import Any

from jobs.live_line import LiveLine
from jobs.run.checks import check_request
from pirl.config import Config, from_dict, leaves
from pirl.errors import ConfigError, NameTakenError, StoreRefusedError
from pirl.runs.run import differences, open_run
from pirl.runs.run_files import RunFile
from pirl.sections import Data
from pirl.storage.checks import check_can_write
from tune.curve import Metric, curve_of, stopped_at, without_end, write_stopped
from tune.points import RECIPE, Trial
from tune.request import SweepRequest, parse
from tune.rows import SWEEP, Row, best_of, repeat, write


def main() -> int:
    """Runs the sweep; returns 0 if done, 1 if interrupted or a trial failed, 2 if the request is wrong: none began."""
    started = False
    try:
        request = parse(sys.argv[1:], __doc__)
        rows = known_rows(request)
        if request.check:
            waiting = to_go(request, rows)
            print(
                f"{waiting + sum(row.ended for row in rows)} trials, {waiting} of them to be trained\n{request.folder}"
            )
            return 0
        started = True
        signal.signal(signal.SIGTERM, as_ctrl_c)
        return run(request, rows)
    except KeyboardInterrupt:
        print("interrupted; to go on, type the same command again", file=sys.stderr)
        return 1
    except (ConfigError, OSError) as error:
        refused = isinstance(error, (StoreRefusedError, PermissionError, NotADirectoryError)) and not started
        wrong = refused or isinstance(error, ConfigError)
        print(f"{'error' if wrong else 'failed'}: {error}", file=sys.stderr)
        return 2 if wrong else 1


def as_ctrl_c(_: int, frame: FrameType | None) -> None:
    """Takes SIGTERM as Ctrl-C, of which Ray Tune knows what to do; also where a script has Ctrl-C ignored."""
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        raise KeyboardInterrupt
    handler(signal.SIGINT, frame)


def known_rows(request: SweepRequest) -> list[Row]:
    """The trials with what is known of them already; refuses those that cannot be trained. Writes nothing.

    Raises:
        ConfigError: Which trial cannot be, and why.
        StorageError: The store did not answer.
    """
    if request.folder.find(RunFile.CONFIG) is not None:
        raise ConfigError(f"{request.folder} is a run: choose another --name for the sweep")
    refuse_other_sweep(request)
    live, rows = LiveLine(sys.stdout), list[Row]()
    with live.passing("checking the trials"):
        for number, trial in enumerate(request.trials, 1):
            live.now(f"checking trial {number:,} of {len(request.trials):,}")
            rows.append(_known_row(request, trial))
    add_rounds(request, rows)
    if any(row.state == "waiting" for row in rows):
        check_can_write("--storage", request.folder)
    return rows


def refuse_other_sweep(request: SweepRequest) -> None:
    """Raises ConfigError for the folder of a sweep with other fixed settings, or over others: it would be lost."""
    known = json.loads(request.folder.find(SWEEP) or "{}")
    if "config" not in known:
        return
    values = known["trials"][0]["values"]
    alike = (trial for trial in request.trials if trial.values.get(RECIPE) == values.get(RECIPE))
    trial = next(alike, None)
    before, now = list(values), list(request.trials[0].values)
    changed = [f"compared: {', '.join(before)} -> {', '.join(now)}"] if before != now else []
    old = from_dict(known["config"])
    new = trial.config if trial else old  # other recipes have other settings
    for line in [*differences(old, new), *_measured_otherwise(leaves(old), leaves(new))]:
        changed += [line] if line.partition(":")[0] not in (*before, *now) else []
    if changed:
        raise ConfigError(
            "\n  ".join([f"the sweep {request.folder.name!r} exists with other settings:", *changed])
            + "\nchoose another --name"
        )


def _measured_otherwise(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Lines `name: old -> new` for settings without which accuracies cannot be compared; how often is none."""
    names = [name for name in old if name.startswith("evaluation.") and name != "evaluation.every_epochs"]
    return [f"{name}: {old[name]} -> {new[name]}" for name in names if old[name] != new[name]]


def add_rounds(request: SweepRequest, rows: list[Row]) -> None:
    """Adds the trials of a search's next rounds, up to the first round in which something is to be trained."""
    while request.search and all(row.ended for row in rows):
        trials, left = request.search.trials(rows)
        for trial in trials[len(rows) :]:
            try:
                rows.append(_known_row(request, trial))
            except ConfigError as error:  # no reason to end what is under way
                rows.append(Row(trial, "failed", error=str(error)))
        if not left:
            break


def to_go(request: SweepRequest, rows: list[Row]) -> int:
    """How many trials are to be trained yet; of a search, whose points may come again, the most there can be."""
    waiting = sum(not row.ended for row in rows)
    if not request.search:
        return waiting
    trials, left = request.search.trials(rows)
    return waiting + len(trials) - len(rows) + left * request.search.seeds


def run(request: SweepRequest, rows: list[Row]) -> int:
    """Trains what is to be trained, and shows what came out; returns the exit code."""
    from tune.show.tables import open_console, showing

    console = open_console()
    if any(row.state == "waiting" for row in rows):
        from jobs.run.on_ray import connect, starts_ray
        from jobs.run.outcome import interruption
        from jobs.run.preemption import preemption_for_workers

        with LiveLine(sys.stdout).passing("starting Ray" if starts_ray() else "connecting to Ray"):
            connect()
            from tune.run.tuner import concurrency, run_trials  # only now: it imports ray

        room = concurrency(request.folder, rows)
        at_once = request.max_concurrent if request.max_concurrent and request.max_concurrent <= room else room + 1
        with preemption_for_workers() as preempted, showing(console, rows, request.metric) as show:

            def changed(row: Row, before: str) -> None:
                if row.state == "stopped" and row.last:
                    write_stopped(request.folder / row.trial.name, request.metric, row.last.epoch)
                write(request.folder, rows, request.metric, request.recipe, request.command)
                show(row, before)

            with interruption() as ended:
                while any(row.state == "waiting" for row in rows) and not preempted.is_set():
                    run_trials(request, rows, at_once, changed, preempted)
                    if not all(row.ended for row in rows):  # after Ctrl-C, of which Tune says nothing
                        break
                    add_rounds(request, rows)
        if ended.why not in (None, "interrupted"):
            print(ended.why, file=sys.stderr)
    return finish(request, rows, console)


def finish(request: SweepRequest, rows: list[Row], console: Any) -> int:
    """Writes the tables and the picture, and shows them; returns the exit code."""
    from tune.show.picture import png_of
    from tune.show.tables import counts, groups_table, label, shown, trials_table

    for row in rows:
        if row.state in ("starting", "running"):  # cut off
            row.state = "waiting"
    write(request.folder, rows, request.metric, request.recipe, request.command)
    picture = png_of(rows, request.metric, request.folder.name, searched=request.search is not None)
    request.folder.write("sweep.png", picture)
    console.print(trials_table(rows, request.metric))
    console.print(counts(rows) + "\n")
    console.print(groups_table(rows, request.metric))
    lines = [f"{request.folder.name}: sweep.json, sweep.csv and sweep.png in {request.folder}"]
    if best := best_of(rows, request.metric):
        reached = f"{label(request.metric)} {shown(best.curve[-1].metric, request.metric)}"
        lines.append(f"  best        {request.folder / best.trial.name}   {reached}")
        lines.append(f"  alone       {repeat(best.trial, request.recipe, request.folder)}")
    lines.append(f"  again       {request.command}")
    print("\n".join(lines), flush=True)
    for row in rows:
        if row.state == "failed":
            print(f"failed: {row.trial.name}: {row.error}", file=sys.stderr)
    waiting = to_go(request, rows)
    if waiting:
        print(f"interrupted with {waiting} trials to go; to go on, type the same command again", file=sys.stderr)
    return int(waiting > 0 or any(row.state == "failed" for row in rows))


def _known_row(request: SweepRequest, trial: Trial) -> Row:
    try:
        run = open_run(request.folder, trial.name, trial.config, "auto")
        if run.result is None:
            check_request(run, use_ray=True)
            refuse_unlabelled(trial.config, request.metric)
    except NameTakenError as error:
        raise ConfigError(f"trial {trial.name}: {error.what}\nchoose another --name for the sweep") from None
    except ConfigError as error:
        raise ConfigError(f"trial {trial.name}: {error}") from None
    stopped = stopped_at(run.folder, request.metric) if request.grace and run.result is None else None
    if run.result is None and stopped is None:
        return Row(trial)
    curve = curve_of(run.folder, trial.config, request.metric, request.every)
    if stopped is not None:
        return Row(trial, "stopped", [point for point in curve if point.epoch <= stopped])
    problem = without_end(curve, run.folder, trial.config, request.metric)
    return Row(trial, "failed" if problem else "done", curve, problem)


def refuse_unlabelled(config: Config, metric: Metric) -> None:
    """Raises ConfigError for a metric without the labels, or the test split with the same classes, that it needs."""
    if metric != "loss" and (reason := _unmeasurable(config.data.model_dump_json())):
        raise ConfigError(f"--metric {metric} cannot be measured: {reason}. Or use --metric loss")


@cache
def _unmeasurable(data: str) -> str | None:
    from pirl.data.dataset import open_data
    from pirl.evaluate.splits import why_not

    dataset = open_data(Data.model_validate_json(data))
    return why_not(dataset, dataset.held_out())


if __name__ == "__main__":
    sys.exit(main())
