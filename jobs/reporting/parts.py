"""The parts of a page, and how they become HTML: Jinja escapes whatever a run, a file or an error is called."""

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
from markupsafe import Markup

from jobs.reporting.figures.drawing import Chart, svg_of
from jobs.reporting.figures.pictures import Sheet
from jobs.reporting.standing import Standing, StateWord

GENERATOR = "PIRL report"
"""How a page says that it is one: no other file is written over."""

DASHES = ("none", "7 3", "2 2", "8 3 2 3")
MARKS = (
    "M11 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0",
    "M15 1l5 5l-5 5l-5-5z",
    "M11 2h8v8h-8z",
    "M15 1l5 9h-10z",
    "M15 11l5-9h-10z",
    "M13 2h4v2.5h2.5v4h-2.5v2.5h-4v-2.5h-2.5v-4h2.5z",
    "M12 1l3 3l3-3l2 2l-3 3l3 3l-2 2l-3-3l-3 3l-2-2l3-3l-3-3z",
    "M15 1l1.5 3.5l3.8.3l-2.9 2.5l.9 3.7l-3.3-2l-3.3 2l.9-3.7l-2.9-2.5l3.8-.3z",
)
"""Lines and marks of a legend, as the charts have them."""


@dataclass(frozen=True)
class Cell:
    """Of a table: what stands there, and by what it is sorted where that is something else."""

    text: str
    key: float | str | None = None
    link: str = ""
    more: str = ""
    state: str = ""


@dataclass(frozen=True)
class ColumnHead:
    """Of a table."""

    title: str
    number: bool = False
    about: str = ""


@dataclass(frozen=True)
class SortableTable:
    """A table that a reader can sort."""

    id: str
    title: str
    columns: Sequence[ColumnHead]
    rows: Sequence[Sequence[Cell]]


@dataclass(frozen=True)
class CommandLine:
    """A command, and what it is for."""

    about: str
    command: str


@dataclass(frozen=True)
class Fold:
    """What is shown when a reader asks for it."""

    id: str
    title: str
    more: str = ""
    standing: Standing | None = None
    notes: Sequence[str] = ()
    commands: Sequence[CommandLine] = ()
    facts: Sequence[tuple[str, str]] = ()
    tables: Sequence[SortableTable] = ()


@dataclass(frozen=True)
class PageSection:
    """An answer to a question that a reader has."""

    id: str
    title: str
    tables: Sequence[SortableTable] = ()
    notes: Sequence[str] = ()
    charts: Sequence[Chart] = ()
    sheets: Sequence[Sheet] = ()
    commands: Sequence[CommandLine] = ()
    folded: Sequence[Fold] = ()


@dataclass(frozen=True)
class Tile:
    """A number that a reader looks for first."""

    value: str
    what: str
    beside: str = ""


@dataclass(frozen=True)
class Page:
    """A whole page.

    Attributes:
        title: Of the window.
        crumbs: What the page is of, and above it what that lies in; with links, where there are some.
        heading: What was run and what came out.
        lead: Sentences below it.
        warnings: What is wrong, and what to do.
        counts: How many runs are in each state.
    """

    title: str
    crumbs: Sequence[tuple[str, str]]
    heading: str
    lead: Sequence[str]
    sections: Sequence[PageSection]
    standing: Standing | None = None
    tiles: Sequence[Tile] = ()
    warnings: Sequence[str] = ()
    counts: Sequence[tuple[StateWord, int]] = ()
    footer: str = ""

    @property
    def charts(self) -> list[Chart]:
        """All of it."""
        return [chart for section in self.sections for chart in section.charts]

    @property
    def sheets(self) -> list[Sheet]:
        """All that have pictures."""
        return [sheet for section in self.sections for sheet in section.sheets if sheet.rows]


@dataclass(frozen=True)
class ShownChart:
    """A chart as HTML takes it."""

    id: str
    title: str
    caption: str
    svg: Markup
    legend: Sequence[dict[str, Any]] = field(default_factory=list)


def html_of(page: Page, now: float, *, every_s: float = 0.0) -> str:
    """The page as one file that needs nothing else, and may ask for nothing.

    Args:
        now: Unix time, for "as of".
        every_s: How often its server is asked for a newer one; 0 for a file.
    """
    script = _asset("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    asks = "; connect-src 'self'" if every_s else ""
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        f"form-action 'none'{asks}"
    )
    given = {name: getattr(page, name) for name in page.__dataclass_fields__ if name != "sections"}
    return _template().render(
        **given,
        sections=[_shown(section) for section in page.sections],
        generator=GENERATOR,
        policy=policy,
        css=Markup(_asset("page.css")),
        js=Markup(script),
        every_s=every_s,
        as_of=in_date(now),
    )


def in_date(at: float) -> str:
    """A time as people here write it, with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(at))


def _shown(section: PageSection) -> dict[str, Any]:
    parts = {name: getattr(section, name) for name in section.__dataclass_fields__}
    charts = [_shown_chart(chart, f"{section.id}-{chart.key}") for chart in section.charts]
    sheets = [{**vars(sheet), "id": f"{section.id}-{sheet.key}"} for sheet in section.sheets]
    return {**parts, "charts": charts, "sheets": sheets}


def _shown_chart(chart: Chart, id: str) -> ShownChart:
    legend = [
        {
            "label": entry.label,
            "color": entry.color,
            "dashes": DASHES[entry.dash],
            "mark": MARKS[entry.look % len(MARKS)] if entry.marked else "",
        }
        for entry in chart.legend
    ]
    return ShownChart(id, chart.title, chart.caption, Markup(svg_of(chart, f"{id}-")), legend)


@cache
def _template() -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined).get_template("page.html")


@cache
def _asset(name: str) -> str:
    return (Path(__file__).parent / name).read_text()
