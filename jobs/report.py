"""Show what runs have learned: one page for a run, for several, or for a sweep; or for all runs, as they go on."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import argparse
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jobs.settings import Parser, destination_at, exit_code, pairs, place_at, spread, storage_uri, target_at
from pirl.config import Config, override
from pirl.errors import ConfigError
from pirl.runs.run_files import RunFile
from pirl.storage.checks import check_can_write
from pirl.storage.folder import Folder

if TYPE_CHECKING:
    from jobs.reporting.parts import Page
    from jobs.reporting.record import Collection

PLACES = """

  RUN_OR_SWEEP  a run, a sweep, or a folder of them: a path, a URL, or the name of a run in the storage

The page is one HTML file that needs nothing else. By default it is report.html in the run or sweep, where that is on a
disk of this machine, and else in the current folder.
"""

EXAMPLES = """
examples:
  python jobs/report.py runs/digits                             the page of one run
  python jobs/report.py runs/digits runs/photos                 of two, beside each other
  python jobs/report.py runs --out all-runs.html                of all runs in a folder
  python jobs/report.py runs/digits --png figures               its figures as PNG files, too
  python jobs/report.py --watch runs                            all runs as they go on, in a browser on this machine
"""


@dataclass(frozen=True)
class ReportRequest:
    """What the command line asks for.

    Attributes:
        places: The runs, sweeps or folders of them.
        out: The page to be.
        png: Where its figures go as PNG files.
        watch: The folder that is watched instead.
        port: Where that is served; 0 for any that is free.
    """

    places: Sequence[Folder]
    out: Folder | None
    png: Folder | None
    watch: Folder | None
    port: int
    only_check: bool


def main() -> int:
    """Runs the job; returns 0 if it is done, 1 if it failed, 2 if the request is wrong and nothing was written."""
    return exit_code(make_or_watch)


def make_or_watch() -> int:
    """Reads the command line and does what it asks for; returns 0, or raises what `exit_code` knows."""
    request = parse(sys.argv[1:])
    return watch(request) if request.watch else report(request)


def report(request: ReportRequest) -> int:
    """Reads the runs and writes the page; returns the exit code."""
    known = read(request.places)
    out = request.out or default_out(request.places, known)
    refuse_other_file(out)
    if request.only_check:
        print(out)
        return 0
    check_can_write("--out", out.parent)
    if request.png:
        check_can_write("--png", request.png)
    from jobs.reporting.parts import html_of

    page, now = page_of(known, request.places), time.time()
    out.parent.write(out.name, html_of(page, now))
    if request.png:
        write_figures(page, request.png)
    print(page.heading)
    print(out.path.as_uri() if out.path else out)
    return 0


def read(places: Sequence[Folder]) -> "Collection":
    """What lies there; raises ConfigError for a place without any run."""
    from jobs.reporting.record import Collection

    known = Collection(places)
    known.look()
    for place in places:
        below = f"{place.uri.rstrip('/')}/"
        if not any(uri == place.uri or uri.startswith(below) for uri in known.runs):
            why = "there is no such folder" if not place.exists() else "there is no run in it (no config.json)"
            raise ConfigError(f"RUN_OR_SWEEP {place}: {why}. Name a run, a sweep, or a folder of them")
    return known


def page_of(known: "Collection", places: Sequence[Folder]) -> "Page":
    """The page of one run, or that of several."""
    from jobs.reporting.overview_page import overview_page
    from jobs.reporting.run_page import run_page

    (first, *others), now = known.runs.values(), time.time()
    if not others and not known.sweeps:
        return run_page(first, now)
    return overview_page(known, now, places[0].name if len(places) == 1 else f"{len(places)} places")


def default_out(places: Sequence[Folder], known: "Collection") -> Folder:
    """Where the page goes: into the run or the sweep, as long as that is on a disk of this machine."""
    alone = len(places) == 1 and (places[0].uri in known.runs or places[0].uri in known.sweeps)
    folder = places[0] if alone and places[0].is_local else Folder(str(Path.cwd()))
    return folder / RunFile.REPORT


def refuse_other_file(out: Folder) -> None:
    """Raises ConfigError where the page would take the place of what is no such page."""
    from jobs.reporting.parts import GENERATOR

    if out.is_folder():
        raise ConfigError(f"--out {out} is a folder: name a file, such as {out}/{RunFile.REPORT}")
    before = out.parent.find(out.name)
    if before is not None and f'<meta name="generator" content="{GENERATOR}">' not in before[:2000]:
        raise ConfigError(f"{out} exists and is not a page of this command: name another file with --out")


def write_figures(page: "Page", folder: Folder) -> None:
    """Writes each figure of a page as a PNG file, named as in the page."""
    from jobs.reporting.figures.drawing import png_of
    from jobs.reporting.figures.pictures import as_png

    files = {f"{section.id}-{chart.key}.png": png_of(chart) for section in page.sections for chart in section.charts}
    for section in page.sections:
        files |= {f"{section.id}-{sheet.key}.png": as_png(sheet) for sheet in section.sheets if sheet.rows}
    for name, content in files.items():
        folder.write(name, content)
    print(f"{len(files)} figures in {folder}")


def watch(request: ReportRequest) -> int:
    """Serves the page of all runs until Ctrl-C; returns the exit code."""
    from jobs.reporting.serving import PageServer, Watch

    assert request.watch is not None
    if not request.watch.is_folder():
        raise ConfigError(f"--watch {request.watch}: there is no such folder. Name the one in which runs lie")
    if request.only_check:
        print(request.watch)
        return 0
    try:
        server = PageServer(Watch(request.watch), request.port)
    except OSError as error:
        raise ConfigError(f"--port {request.port} cannot be had: {error}. Use another, or leave it away") from None
    print(f"{request.watch}, as it goes on; Ctrl-C ends it:\n{server.address}", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        print("ended", flush=True)
    finally:
        server.server_close()
    return 0


def parse(argv: list[str]) -> ReportRequest:
    """Reads the command line; raises ConfigError where it is wrong."""
    parser = Parser(
        prog="python jobs/report.py",
        usage="python jobs/report.py RUN_OR_SWEEP [RUN ...] | --watch STORAGE ...",
        description=__doc__ + PLACES,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    add = parser.add_argument
    add("--out", metavar="FILE", help="where the page goes, a path or a URL (default: see above)")
    add("--png", metavar="FOLDER", help="write each figure as a PNG file, too")
    add("--watch", metavar="STORAGE", help="serve the page of all runs below a folder on this machine, until Ctrl-C")
    add("--port", metavar="N", type=int, default=0, help="of --watch (default: any that is free)")
    add("--storage", metavar="URI", help="where runs lie, if a RUN is the name of one")
    add("--check", action="store_true", help="check the request, print where the page goes, write nothing")
    add("-h", "--help", action="store_true", help="this text")
    known, rest = parser.parse_known_args(spread(argv))
    if known.help:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `--help | head` ends without a word
        parser.print_help()
        sys.exit(0)
    words = [word for word in rest if not word.startswith("-")]
    _, changes = pairs([word for word in rest if word.startswith("-")])
    names = {name.replace("-", "_"): value for name, value in changes.items()}
    if strange := [name for name in names if name not in ("data.storage_options", "data.deadline_s")]:
        raise ConfigError(f"unknown option --{strange[0].replace('_', '-')}: see --help")
    return _request(known, words, override(Config(), names))


def _request(known: argparse.Namespace, words: list[str], config: Config) -> ReportRequest:
    if known.watch is not None and (words or known.out or known.png):
        raise ConfigError("--watch STORAGE shows all runs below it and writes nothing: leave RUN, --out, --png away")
    if known.watch is None and known.port:
        raise ConfigError(f"--port {known.port} is of --watch STORAGE: add that, or leave it away")
    if known.watch is None and not words:
        raise ConfigError("no run: python jobs/report.py RUN_OR_SWEEP [RUN ...], or --watch STORAGE")
    if not 0 <= known.port < 2**16:
        raise ConfigError(f"--port {known.port}: use 1 to 65535, or leave it away for any that is free")
    storage = storage_uri(known.storage)
    places = [target_at(word, storage, config) for word in words]
    return ReportRequest(
        places=list({place.uri: place for place in places}.values()),
        out=None if known.out is None else destination_at(known.out, config),
        png=None if known.png is None else destination_at(known.png, config),
        watch=None if known.watch is None else place_at("--watch", known.watch, config),
        port=known.port,
        only_check=known.check,
    )


if __name__ == "__main__":
    sys.exit(main())
