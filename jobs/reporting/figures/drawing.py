"""Charts as SVG that takes the page's colours and letters, and as PNG for papers and mails.

Matplotlib draws with the colours below, which stand for roles; in an SVG each becomes a variable of the page's style,
so that one drawing is right on light and on dark paper. Names of runs are in the legend, which is HTML, and in a PNG.
"""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK, FAINT, GRAY = "#1b1f23", "#d3d7dc", "#70777f"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#b0508c", "#8a6d00", "#3f9fd8", "#6b4fbb", "#5c6670")
"""After Okabe and Ito: people with any kind of colour vision tell the first ones apart."""
DASHES: tuple[Any, ...] = ("solid", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
MARKS = "oDs^vPX*"
VARIABLES = {INK: "--ink", FAINT: "--line", GRAY: "--soft", **{each: f"--s{n}" for n, each in enumerate(SERIES)}}

INCHES = (4.8, 2.75)
POINTS = 240
"""Of all lines of a chart together at most twenty times as many, and so many of one."""

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "pirl",
    "text.parse_math": False,
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "text.color": INK,
    "axes.edgecolor": GRAY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": FAINT,
    "grid.linewidth": 0.7,
    "xtick.color": GRAY,
    "ytick.color": GRAY,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "lines.linewidth": 1.6,
    "lines.markersize": 5,
    "axes.axisbelow": True,
    "axes.formatter.useoffset": False,
}


@dataclass(frozen=True)
class LegendEntry:
    """A line of a legend: a look, by number, and what it stands for."""

    look: int
    label: str
    marked: bool = False

    @property
    def color(self) -> int:
        """The number of its colour."""
        return self.look % len(SERIES)

    @property
    def dash(self) -> int:
        """The number of its line."""
        return self.look // len(SERIES) % len(DASHES)


@dataclass(frozen=True)
class Chart:
    """A figure of the page.

    Attributes:
        key: Its name among files.
        title: What it shows.
        caption: How to read it, in a line or two.
        draw: Draws it.
        legend: What its lines are.
        inches: Width and height.
    """

    key: str
    title: str
    caption: str
    draw: Callable[[Axes], None]
    legend: Sequence[LegendEntry] = ()
    inches: tuple[float, float] = INCHES


def look_of(number: int, *, marked: bool = False) -> dict[str, Any]:
    """Colour, line and mark of the lines with this number."""
    entry = LegendEntry(number, "")
    look: dict[str, Any] = {"color": SERIES[entry.color], "linestyle": DASHES[entry.dash]}
    return look | ({"marker": MARKS[number % len(MARKS)]} if marked else {})


def svg_of(chart: Chart, prefix: str) -> str:
    """The chart as an element for a page, whose ids begin with `prefix`."""
    with rc_context(_RC), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that the font has not got: the page's own has them
        figure = _drawn(chart)
        FigureCanvasSVG(figure)
        with io.StringIO() as file:
            figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator")))
            return _for_page(file.getvalue(), chart, prefix)


def png_of(chart: Chart) -> bytes:
    """The chart as a file, with its title and legend."""
    with rc_context(_RC), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figure = _drawn(chart)
        FigureCanvasAgg(figure)
        figure.suptitle(chart.title, fontsize=11, fontweight="bold")
        if chart.legend:
            lines = []
            for entry in chart.legend:  # with a space, as a label with an underscore first is not shown
                lines.append(Line2D([], [], label=f" {entry.label}", **look_of(entry.look, marked=entry.marked)))
            figure.legend(handles=lines, loc="outside lower center", ncols=min(3, len(lines)), frameon=False)
        with io.BytesIO() as image:
            figure.savefig(image, format="png", dpi=160, facecolor="white")
            return image.getvalue()


def _drawn(chart: Chart) -> Figure:
    figure = Figure(figsize=chart.inches, layout="constrained")
    axes = figure.add_subplot()
    chart.draw(axes)
    return figure


def _for_page(svg: str, chart: Chart, prefix: str) -> str:
    """Without what belongs to a file: addresses, sizes, fonts; with ids that are the page's only ones."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' (xmlns(:xlink)?|width|height|version)="[^"]*"', "", svg[: svg.index(">")]) + svg[svg.index(">") :]
    svg = svg.replace("xlink:href", "href")
    used = {*re.findall(r'(?:href="|url\()#([^")]+)', svg)}
    svg = re.sub(r' id="([^"]+)"', lambda found: f' id="{prefix}{found[1]}"' if found[1] in used else "", svg)
    svg = re.sub(r'(href="|url\()#', rf"\g<1>#{prefix}", svg)
    svg = re.sub(r"font-family: [^;\"]*; ?", "", svg)
    svg = re.sub(r'(?<=[ "])(-?\d+\.\d\d)\d+', r"\1", svg)
    for color, variable in VARIABLES.items():
        svg = re.sub(rf"{color}\b", f"var({variable})", svg, flags=re.IGNORECASE)
    svg = re.sub(r">\s+<", "><", svg)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{_attribute(chart.title)}" ', 1)


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
