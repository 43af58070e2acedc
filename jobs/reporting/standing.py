"""How a run stands: running, done, failed and why, or silent since when; judged from what lies in its folder.

Nobody is asked: not the process, not the scheduler. A run that was killed says nothing, so all that shows it is that
nothing was written for longer than it usually takes. Times are those of the files, beside this machine's clock.
"""

from dataclasses import dataclass
from typing import Literal

from jobs.reporting.record import RunRecord
from pirl.runs.run_files import RunFile

StateWord = Literal["running", "starting", "waiting", "stale", "stopped", "failed", "done"]

ORDER: tuple[StateWord, ...] = ("failed", "stale", "running", "starting", "waiting", "stopped", "done")
"""What needs a person first."""

QUIET_S = 300.0
"""A run that wrote nothing for so long, or for ten times as long as between its last reports, is stale."""
SENT_BYTES_PER_S = 10**5
"""What `run_log` sends of a growing file into a store: the numbers of long runs come as much later."""
QUIET_EVALUATING_S = 3600.0
"""The same while it measures, of which a long part writes nothing."""


@dataclass(frozen=True)
class Standing:
    """A state, in words.

    Attributes:
        why: What a person wants to know of it: the error, how far it is, what to type.
        since: Of one that is stale, when it wrote last, as Unix time.
    """

    state: StateWord
    why: str = ""
    since: float | None = None


def standing_of(run: RunRecord, now: float) -> Standing:
    """How a run stands at a time (Unix)."""
    told = run.trial or {}
    if run.result is not None:
        return Standing("done")
    if run.failure is not None:
        return Standing("failed", _why_failed(run.failure))
    if told.get("state") == "failed":
        return Standing("failed", str(told.get("error") or "its sweep does not say why").strip().partition("\n")[0])
    if told.get("state") == "stopped" or run.stopped:
        epochs = sorted({str(epoch) for epoch in (run.stopped or {}).values()}) or [str(told.get("epoch", "?"))]
        return Standing("stopped", f"by the sweep's scheduler, after epoch {', '.join(epochs)}")
    if not run.files:
        return Standing("waiting", "its sweep has not begun it")
    if run.story.last.startswith("stopped after step"):
        return Standing("stopped", f"{run.story.last}, as asked; the same command goes on")
    quiet = None if run.last_sign is None else now - run.last_sign
    if quiet is not None and quiet > patience_s(run):
        return Standing("stale", "killed, lost or held up; the same command goes on", run.last_sign)
    if not run.numbers.rows:
        return Standing("starting", run.story.last)
    return Standing("running", "measuring" if _is_measuring(run) else how_far(run))


def patience_s(run: RunRecord) -> float:
    """Seconds without a sign after which a run is stale."""
    if _is_measuring(run):
        return QUIET_EVALUATING_S
    times = run.numbers.seconds(run.batch_size)
    between = float(times[-1] - times[-2]) if len(times) > 1 else 0.0
    info = run.files.get(RunFile.METRICS)
    until_sent = info.size / SENT_BYTES_PER_S if info and not run.folder.is_local else 0.0
    return max(QUIET_S, 10 * between) + until_sent


def how_far(run: RunRecord) -> str:
    """Steps of the newest report, and the time that is left."""
    step, last, left = (run.numbers.last(name) for name in ("step", "last_step", "time_left_s"))
    if step is None or not last:
        return ""
    return f"step {step:,.0f} of {last:,.0f}" + (f", {in_time(left)} left" if left else "")


def in_time(seconds: float) -> str:
    """A time for people: `42 s`, `3 min`, `2 h 5 min`, `3 d 4 h`."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{seconds // 3600:.0f} h {seconds % 3600 // 60:.0f} min"
    return f"{seconds // 86400:.0f} d {seconds % 86400 // 3600:.0f} h"


def _is_measuring(run: RunRecord) -> bool:
    return run.story.last == "evaluating"


def _why_failed(failure: dict[str, object]) -> str:
    text = str(failure.get("error", "failure.json does not say why")).strip()
    first, _, _ = text.partition("\n")
    if failure.get("step") is None:
        return first
    return f"diverged: {first}"
