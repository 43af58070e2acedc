"""How a run ended: written into its folder, and shown to whoever started it."""

import json
import re
import shlex
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from pirl.errors import RunFailed, RunStopped
from pirl.runs.checkpoint_folder import newest_checkpoint, remove_checkpoint, steps_done
from pirl.runs.run import Run, last_failure, reports_in
from pirl.runs.run_files import CheckpointFile, RunFile, checkpoint_name
from pirl.storage.folder import Folder


def conclude(run: Run, began: float, failure: str | None) -> int:
    """Writes `result.json` and shows what was reached, or says what went wrong; returns the exit code."""
    try:
        result = settle(replace(run, folder=run.folder.hurried()) if failure else run, began, failure)
    except RunFailed as error:
        print(error, file=sys.stderr)
        return 1
    except OSError as error:
        first = failure or f"error: {error}"
        print(f"{first}\nto go on from the last checkpoint, type the same command again", file=sys.stderr)
        return 1
    return show_result(run.folder, result, f"done in {result['wall_s']:.0f} s")


def settle(run: Run, began: float, failure: str | None) -> dict[str, Any]:
    """Writes `result.json` of a run that is done, and returns what it holds.

    Args:
        began: When, as `time.time()` tells it.
        failure: What `interruption` told.

    Raises:
        RunFailed: It is not done; RunStopped where that is because it was asked to.
        OSError: The run folder cannot be read or written.
    """
    remedy = "type the same command again"
    if lasting := last_failure(run.folder):
        failure = f"error: {lasting['error']}"
        if lasting["step"] is not None:  # the weights of this step gave the loss that is no number
            remove_checkpoint(run.folder / checkpoint_name(lasting["step"]))
            remedy += ", with --resume must and a lower --optim.lr or --optim.clip-norm 1"
    checkpoint = newest_checkpoint(run.folder)
    not_done = RunFailed
    if not failure:
        reports = reports_in(run.folder.read(RunFile.METRICS))
        if not reports or steps_done(checkpoint) < reports[-1]["step"]:
            failure = f"error: the last checkpoint did not reach {run.folder}"
        elif reports[-1]["step"] < reports[-1]["last_step"]:
            failure, not_done = f"stopped after step {reports[-1]['step']:,}, as asked", RunStopped
    if failure:
        what = f"go on from {checkpoint.name}" if checkpoint else "start again, as there is no checkpoint yet"
        raise not_done(f"{failure}\nto {what}, {remedy}")
    result = {
        "metrics": reports[-1],
        "retries": sum(report["retries"] for report in reports),
        "skipped": sum(report["skipped"] for report in reports),
        "evaluation": json.loads(run.folder.find(RunFile.EVALUATION) or "null"),
        "checkpoint": str(checkpoint),
        "wall_s": round(time.time() - began, 1),
    }
    run.folder.write(RunFile.RESULT, json.dumps(result, indent=2) + "\n")
    return result


def show_result(folder: Folder, result: dict[str, Any], state: str) -> int:
    """Prints the table of a finished run and where everything lies; returns the exit code."""
    if result["evaluation"]:
        from pirl.evaluate.evaluate import table

        print("\n" + table(result["evaluation"]))
    print(
        f"\n{folder.name}: {state}\n"
        f"  numbers     {folder / RunFile.RESULT}, {RunFile.METRICS}, {RunFile.LOG}\n"
        f"  trunk       {result['checkpoint']}/{CheckpointFile.TRUNK} (names as in torchvision)\n"
        f"  checkpoint  {result['checkpoint']}\n"
        f"  curves      tensorboard --logdir {folder}\n"
        f"  measure     python jobs/evaluate.py {shlex.quote(str(folder))}\n"
        f"  page        python jobs/report.py {shlex.quote(str(folder))}"
    )
    return 0


DIED = "its worker process has died"
"""In what Ray says of a worker that is gone."""

LOST = "the process of a worker was lost: killed from outside, or it crashed; `dmesg` there says if memory ran out\n"

_told_to_end = threading.Event()


def end(*_: object) -> None:
    """Takes SIGTERM: an exception, so that what is temporary is removed."""
    _told_to_end.set()
    sys.exit(1)


@dataclass
class Interruption:
    """What ended a block of code, for a person to read; None when it ended well."""

    why: str | None = None


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Runs a block, and lets nothing out of it that ends it: that is told instead."""
    ended = Interruption()
    try:
        yield ended
    except (KeyboardInterrupt, SystemExit):  # Ray's own SIGINT handler exits
        ended.why = "interrupted"
    except Exception as error:
        # torch makes another error of what ends it while it writes
        ended.why = "interrupted" if _told_to_end.is_set() else f"error: {in_words(error)}"


def in_words(error: Exception) -> str:
    """An error, and what a worker of Ray raised before where: Ray's own text begins with where."""
    if failures := getattr(error, "worker_failures", None):
        from jobs.run.ray_internals import raised_by

        cause = next(iter(failures.values()))
        raised, text = raised_by(cause), str(cause).strip()
        what = f"{type(raised).__name__}: {raised}\n" if raised else LOST if DIED in text else ""
        return f"{what}{without_guesses(text)}"
    return without_guesses(str(error).strip())


def without_guesses(text: str) -> str:
    """What Ray says of a process that is lost, without its list of what may have been: it names the OOM killer first,
    whoever ended the process.
    """
    return re.sub(r" *(Some common causes include|There are some potential root causes).*", "", text)
