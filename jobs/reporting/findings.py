"""What was measured of a run: by its own end, and by jobs/evaluate.py; in one form, with what is comparable."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jobs.reporting.appended import MOST
from jobs.reporting.record import RunRecord
from pirl.runs.run_files import RunFile

OWN = RunFile.EVALUATION.removeprefix("evaluation/").removesuffix(".json")
"""What a run ends with, among the reports."""

DAMAGED = (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError)
"""What it raises to read a report as something that it is not."""
TAPS = ("conv1", "res2", "res3", "res4", "res5")
ACCURACIES = {"linear": "linear probe of res5", "few": "res5, few labels", "knn": "kNN on res5"}
"""What runs are compared by, the first one that they have."""


@dataclass(frozen=True)
class Finding:
    """A number.

    Attributes:
        protocol: Who measured it.
        name: What, as the protocol calls it.
        value: A share of 1 where the unit is `%`.
        random: The same of the network with random weights.
        interval: In which 95 % of the resamples of the test images lie.
        deviation: Over draws of the training images.
        elsewhere: The images that it is of, where these are not the run's own.
    """

    protocol: str
    name: str
    value: float
    random: float | None = None
    interval: tuple[float, float] | None = None
    deviation: float | None = None
    unit: str = "%"
    elsewhere: str = ""

    def text(self, value: float | None) -> str:
        """A number of this kind, as a person reads it; nothing for none."""
        if value is None or not math.isfinite(value):
            return "" if value is None else "no number"
        if self.unit == "%":
            return f"{100 * value:.1f}"
        return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}" if abs(value) >= 5e-4 else "0"


def findings_of(run: RunRecord) -> list[Finding]:
    """All numbers of a run: those of its end, but for protocols that measured its own images again, then theirs."""
    reported = [finding for name in sorted(run.evaluations) for finding in _of_report(run, name)]
    again = {finding.protocol for finding in reported if not finding.elsewhere}
    return [finding for finding in _of_end(run) if finding.protocol not in again] + reported


def accuracy_of(run: RunRecord, protocol: str) -> Finding | None:
    """The accuracy of res5 on the run's own images by a protocol of `ACCURACIES`; that of the run's end, if any."""
    own = [finding for finding in _of_end(run) if finding.protocol == protocol]
    found = own or [finding for finding in findings_of(run) if finding.protocol == protocol and not finding.elsewhere]
    return next((finding for finding in found if finding.name.startswith("res5")), None)


def compared_by(runs: Sequence[RunRecord]) -> str:
    """The protocol that most of the runs have an accuracy by, `linear` where there are as many."""
    counts = {protocol: sum(accuracy_of(run, protocol) is not None for run in runs) for protocol in ACCURACIES}
    return max(counts, key=lambda protocol: counts[protocol])


def taps_of(run: RunRecord) -> list[Finding]:
    """The accuracies of a linear classifier of each layer, in the network's order."""
    for protocol in ("linear", "linear_sgd"):
        found = [each for each in findings_of(run) if each.protocol == protocol and not each.elsewhere]
        by_tap = {each.name: each for each in found if each.name in TAPS}
        if len(by_tap) > 1:
            return [by_tap[tap] for tap in TAPS if tap in by_tap]
    return []


def test_images(run: RunRecord) -> int | None:
    """How many images the accuracies of its end are of."""
    count = _end(run).get("test_images")
    return count if isinstance(count, int) and 0 < count < MOST else None


def details_of(run: RunRecord, protocol: str) -> Mapping[str, Any]:
    """What else a protocol found."""
    details = run.evaluations.get(protocol, {}).get("details")
    return details if isinstance(details, dict) else {}


def _end(run: RunRecord) -> Mapping[str, Any]:
    found = run.evaluations.get(OWN) or (run.result or {}).get("evaluation")
    return found if isinstance(found, dict) else {}


def _of_end(run: RunRecord) -> list[Finding]:
    """What a run ended with; older runs have no `few`."""
    report = _end(run)
    try:
        random = report["random"]
        found = [
            Finding("linear", str(tap), float(value), float(random["linear"][tap]))
            for tap, value in report["linear"].items()
        ]
        if few := report.get("few"):
            name, deviation = f"res5, {few['per_class']} a class", few.get("deviation")
            spread = None if deviation is None else float(deviation)
            of_few = float(few["accuracy"]), float(random["few"]["accuracy"])
            found.append(Finding("few", name, *of_few, deviation=spread))
        vote = report["knn"]
        of_vote = float(vote["accuracy"]), float(random["knn"]["accuracy"])
        return [*found, Finding("knn", f"res5, k {vote['k']}", *of_vote)]
    except DAMAGED:
        if report:
            run.problems[RunFile.EVALUATION] = "it is not what a run of this version ends with"
        return []


def _of_report(run: RunRecord, name: str) -> Iterator[Finding]:
    report = run.evaluations[name]
    if "measurements" not in report:
        return
    try:
        other = _elsewhere(run, report)
        for each in report["measurements"]:
            low_high = each.get("interval")
            yield Finding(
                str(report["protocol"]),
                str(each["name"]),
                float(each["value"]),
                None if each.get("random") is None else float(each["random"]),
                (float(low_high[0]), float(low_high[1])) if low_high else None,
                None if each.get("deviation") is None else float(each["deviation"]),
                str(each.get("unit", "%")),
                other,
            )
    except DAMAGED:
        run.problems[f"evaluation/{name}.json"] = "it is not a report of this version"


def _elsewhere(run: RunRecord, report: Mapping[str, Any]) -> str:
    """The images that a report is of, where they are others than those of the run."""
    uri, own = str(report["data"]["train"]["uri"]), str(run.settings.get("data.uri", ""))
    is_own = uri == own or (own == "digits" and "/pirl/digits-v" in uri)
    return "" if is_own else uri
