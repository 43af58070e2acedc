"""Train PIRL with several values of settings, on Ray Tune, and show what they change."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from typing import Any

from jobs.pretrain import check_request
from pirl.config import Config, ConfigError
from pirl.runs import open_run
from pirl.writable import check_can_write
from tune.measured import Metric, curve_of
from tune.request import Request, parse
from tune.results import Row, best_of, repeat, stopped_before, write
from tune.space import Trial


def main() -> int:
    """Runs the sweep.

    Returns:
        The exit code: 0 done, 1 interrupted or a trial failed, 2 the request is wrong and nothing was started.
    """
    try:
        request = parse(sys.argv[1:], __doc__)
        rows = known_rows(request)
        if request.check:
            waiting = to_go(request, rows)
            print(
                f"{waiting + sum(row.ended for row in rows)} trials, {waiting} of them to be trained\n{request.folder}"
            )
            return 0
        return run(request, rows)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1


def known_rows(request: Request) -> list[Row]:
    """The trials with what is known of them already; refuses those that cannot be trained. Writes nothing.

    Raises:
        ConfigError: Which trial cannot be, and why.
        StorageError: The store did not answer.
    """
    if request.folder.find("config.json") is not None:
        raise ConfigError(f"{request.folder} is a run: choose another --name for the sweep")
    if request.metric != "loss":
        refuse_unlabelled(request.trials[0].config, request.metric)
    stopped = stopped_before(request.folder, request.metric) if request.grace else {}
    rows = [_known_row(request, trial, stopped.get(trial.name)) for trial in request.trials]
    add_rounds(request, rows)
    if any(row.state == "waiting" for row in rows):
        check_can_write("--storage", request.folder)
    return rows


def add_rounds(request: Request, rows: list[Row]) -> None:
    """Adds the trials of a search's next rounds, up to the first round in which something is to be trained."""
    while request.search and all(row.ended for row in rows):
        trials, left = request.search.trials(rows)
        rows += [_known_row(request, trial, None) for trial in trials[len(rows) :]]
        if not left:
            break


def to_go(request: Request, rows: list[Row]) -> int:
    """How many trials are to be trained yet; of a search, whose points may come again, the most there can be."""
    waiting = sum(not row.ended for row in rows)
    if not request.search:
        return waiting
    trials, left = request.search.trials(rows)
    return waiting + len(trials) - len(rows) + left * request.search.seeds


def refuse_unlabelled(config: Config, metric: Metric) -> None:
    """Refuses a metric that cannot be measured on this data.

    Raises:
        ConfigError: It has no labels, or no test split.
    """
    from pirl.shards import open_data, test_uri

    held_out = test_uri(config.data.uri, config.data.storage_options)
    splits = [open_data(config.data), open_data(config.data, held_out)] if held_out else []
    if not splits or any(split.labels is None for split in splits):
        raise ConfigError(
            f"--metric {metric} needs labels and a test split, which {config.data.uri} lacks: python jobs/prepare.py "
            "writes them from class folders; or use --metric loss"
        )


def run(request: Request, rows: list[Row]) -> int:
    """Trains what is to be trained, and shows what came out; returns the exit code."""
    from tune.live import open_console, showing

    console = open_console()
    if any(row.state == "waiting" for row in rows):
        from jobs.launch import connect, interruption
        from jobs.warning import warnings_for_workers

        connect()
        from tune.drive import concurrency, drive  # only now: it imports ray

        room = concurrency(request.folder, rows)
        at_once = request.max_concurrent if request.max_concurrent and request.max_concurrent <= room else room + 1
        with warnings_for_workers() as warned, showing(console, rows, request.metric) as show:

            def changed(row: Row, before: str) -> None:
                write(request.folder, rows, request.metric, request.recipe, request.command)
                show(row, before)

            def train() -> None:
                asha = (request.grace, request.reduction) if request.grace else None
                while any(row.state == "waiting" for row in rows) and not warned.is_set():
                    drive(request.folder, rows, request.metric, request.every, asha, at_once, changed, warned)
                    if not all(row.ended for row in rows):  # after Ctrl-C, of which Tune says nothing
                        return
                    add_rounds(request, rows)

            failure = interruption(train)
        if failure not in (None, "interrupted"):
            print(failure, file=sys.stderr)
    return conclude(request, rows, console)


def conclude(request: Request, rows: list[Row], console: Any) -> int:
    """Writes the tables and the picture, and shows them; returns the exit code."""
    from tune.live import counts, groups_table, label, shown, trials_table
    from tune.picture import png_of

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


def _known_row(request: Request, trial: Trial, stopped_at: int | None) -> Row:
    try:
        run = open_run(request.folder, trial.name, trial.config, "auto")
    except ConfigError as error:
        raise ConfigError(f"trial {trial.name}: {error}\nfor a sweep: choose another --name") from None
    try:
        if run.result is None:
            check_request(run, use_ray=True)
    except ConfigError as error:
        raise ConfigError(f"trial {trial.name}: {error}") from None
    if run.result is None and stopped_at is None:
        return Row(trial)
    curve = curve_of(run.folder, trial.config, request.metric, request.every)
    if run.result is None:
        return Row(trial, "stopped", [point for point in curve if point.epoch <= (stopped_at or 0)])
    return Row(trial, "done", curve)


if __name__ == "__main__":
    sys.exit(main())
