"""What protocols found, as files: a report for each, and a table of all for people and spreadsheets."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from pirl.evaluate.features import rows_of
from pirl.evaluate.measurement import Measurement, Outcome
from pirl.evaluate.subject import Subject
from pirl.sections import Section
from pirl.storage.folder import Folder

TABLE = "table.csv"
"""The measurements of all reports in a folder, a line for each."""

VERSIONED = ("torch", "torchvision", "numpy", "scikit-learn")
"""Libraries whose versions a report has: numbers may depend on them."""

COLUMNS = ("protocol", "measured", "random", "trained", "low", "high", "deviation", "unit", "weights", "data")


def report_of(
    protocol: str, outcome: Outcome, settings: Section, subject: Subject, about: Mapping[str, Any], wall_s: float
) -> dict[str, Any]:
    """All that is needed to repeat a measurement, and what it found.

    Args:
        about: The weights (`weights`) and the command (`command`).
    """
    splits = {"train": subject.train, "test": subject.test}
    return {
        "protocol": protocol,
        "measurements": [asdict(each) for each in outcome.measurements],
        "details": outcome.details,
        "files": list(outcome.files),
        "settings": settings.model_dump(),
        **about,
        "data": {
            name: {
                "uri": data.uri,
                "images": data.rows,
                "used": rows_of(data, subject.limit),
                "fingerprint": data.fingerprint,
            }
            for name, data in splits.items()
            if data is not None
        },
        "image_size": subject.image_size,
        "max_images": subject.limit,
        "seed": subject.seed,
        "versions": {name: version(name) for name in VERSIONED},
        "wall_s": round(wall_s, 1),
    }


def write_report(folder: Folder, report: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Writes a report with its files, and the table of all reports there anew."""
    for name, content in files.items():
        folder.write(name, content)
    folder.write(f"{report['protocol']}.json", json.dumps(report, indent=2) + "\n")
    folder.write(TABLE, as_csv(reports_in(folder)))


def reports_in(folder: Folder) -> list[dict[str, Any]]:
    """The reports of a folder, by the names of their protocols."""
    names = sorted(name for name in folder.sizes() if name.endswith(".json") and "/" not in name)
    found = (_report(folder.read_bytes(name)) for name in names)
    return [report for report in found if report is not None]


def _report(content: bytes) -> dict[str, Any] | None:
    """None for another file: what a run ended with, or somebody else's."""
    try:
        report = json.loads(content)
    except ValueError:
        return None
    return report if isinstance(report, dict) and "measurements" in report else None


def as_csv(reports: Iterable[Mapping[str, Any]]) -> str:
    """A line for each measurement; shares of 1 as such."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(COLUMNS)
    for report in reports:
        for each in report["measurements"]:
            low, high = each["interval"] or (None, None)
            numbers = [each["random"], each["value"], low, high, each["deviation"], each["unit"]]
            rows.writerow(
                [report["protocol"], each["name"], *numbers, report["weights"]["uri"], report["data"]["train"]["uri"]]
            )
    return text.getvalue()


def as_text(found: Mapping[str, Sequence[Measurement]]) -> str:
    """The table that a person reads; shares in percent, with the 95 % interval over the test images."""
    rows = [(protocol, each) for protocol, measurements in found.items() for each in measurements]
    wide = max((len(each.name) for _, each in rows), default=0) + 2
    lines = [f"{'':<12}{'':<{wide}}{'random':>10}{'trained':>10}  95 % of resamples"]
    for protocol, each in rows:
        scale, digits = (100, 1) if each.unit == "%" else (1, 3)
        random = "" if each.random is None else f"{scale * each.random:.{digits}f}"
        spread = ""
        if each.interval:
            spread = f"  {scale * each.interval[0]:.{digits}f} to {scale * each.interval[1]:.{digits}f}"
        if each.deviation is not None:
            spread += f"  ± {scale * each.deviation:.{digits}f} over draws"
        unit = f" {each.unit}" if each.unit not in ("%", "") else ""
        lines.append(
            f"{protocol:<12}{each.name:<{wide}}{random:>10}{scale * each.value:>10.{digits}f}{unit}{spread}".rstrip()
        )
    return "\n".join(lines)
