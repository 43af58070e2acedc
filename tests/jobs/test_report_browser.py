"""The page in a real Chromium: one start, and all that is seen in it; and the server that keeps it up to date."""

import http.client
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, urlsplit

import pytest

from jobs.report import main
from jobs.reporting.serving import PageServer, Watch
from pirl.storage.folder import Folder
from tests.browser import Browser
from tests.jobs.left_behind import fail, finish, leave_report, leave_run, report_at
from tests.jobs.test_report import HOSTILE

PHONE, DESK = 390, 1280

WIDE = "[document.documentElement.scrollWidth, document.documentElement.clientWidth]"
SIZES = """[...document.querySelectorAll("figure svg[role=img], figure img")].map((each) => {
  const box = each.getBoundingClientRect();
  return [Math.round(box.width), Math.round(box.height), each.tagName === "IMG" ? each.naturalWidth : 1];
})"""
FIRST = """[...document.querySelectorAll("#all-runs tbody th")].map((each) => each.textContent.trim())"""
SORTED = (
    """[...document.querySelectorAll("#all-runs th[aria-sort]")].map((each) => [each.textContent, each.ariaSort])"""
)
CONTRAST = """(() => {
  const parts = (text) => text.match(/[\\d.]+/g).slice(0, 3).map((v) => v / 255)
    .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const light = (text) => { const [r, g, b] = parts(text); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const names = "h1, .lead, .note, figcaption, a, .badge, th button, figure text, dt, code";
  return [...document.querySelectorAll(names)].map((each) => {
    const style = getComputedStyle(each);
    const clear = style.backgroundColor === "rgba(0, 0, 0, 0)";
    const paper = light(clear ? getComputedStyle(document.body).backgroundColor : style.backgroundColor);
    const ink = light(each.tagName === "text" ? style.fill : style.color);
    return [each.textContent, (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05)];
  });
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four runs: two are done, one goes on under a name of all letters, one has failed."""
    folder = tmp_path_factory.mktemp("runs")
    leave_run(folder / "first", accuracy=0.7)
    leave_run(folder / "second", {"loss.pretext_weight": 0.25, "optim.lr": 0.01}, accuracy=0.9)
    long = "a-setting-with-a-long-name-and-" * 3
    leave_report(folder / "second", "knn", [{"name": f"{long}{at}", "value": 0.1 * at} for at in range(9)])
    leave_run(folder / HOSTILE.replace("/", "-"), until=20)
    leave_run(folder / "failed", until=10)
    fail(folder / "failed", "<img src=x onerror='window.pwned = 1'>" + "x" * 300, 10)
    return folder


def files_of(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in folder.rglob("*")}


def test_pages_look_right_from_a_file(browser, runs, tmp_path, monkeypatch):
    """On a desk, on a phone, in the dark and on paper: no request, no complaint, no scrolling sideways."""
    for place, out in ((runs, "all.html"), (runs / "second", "one.html"), (runs / "failed", "failed.html")):
        monkeypatch.setattr(sys, "argv", ["jobs/report.py", str(place), "--out", str(tmp_path / out)])
        assert main() == 0
        address = (tmp_path / out).as_uri()
        browser.shape(DESK)
        browser.open(address)
        sizes = browser.value(SIZES)
        assert len(sizes) == {"all.html": 6, "one.html": 6 + 12, "failed.html": 5 + 12}[out]  # charts, and views
        assert [size for size in sizes if size[0] < 80 or size[1] < 60 or size[2] < 1] == []
        paper = 1000 if out == "all.html" else 680  # A4 less its margins, on its long side for the table of all runs
        for width, dark, media in ((DESK, True, "screen"), (PHONE, False, "screen"), (paper, False, "print")):
            browser.shape(width, dark=dark, media=media)
            wide, room = browser.value(WIDE)
            assert wide <= room
            assert [size for size in browser.value(SIZES) if size[0] > room] == []
        pages = browser.printed()
        assert pages.startswith(b"%PDF")
        assert [each for each in browser.requests if not each.startswith("data:")] == [address]
        assert browser.complaints == []
        assert browser.value("[window.pwned, document.scripts.length]") == [None, 1]
    for dark in (False, True):
        browser.shape(DESK, dark=dark)
        browser.open((tmp_path / "all.html").as_uri())
        seen = browser.value(CONTRAST)
        assert len(seen) > 100
        assert [each for each in seen if each[1] < 4.5] == []  # WCAG 2, AA


def test_the_table_is_sorted_by_mouse_and_by_keyboard(browser, runs, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["jobs/report.py", str(runs), "--out", str(tmp_path / "all.html")])
    assert main() == 0
    browser.shape(DESK)
    browser.open((tmp_path / "all.html").as_uri())
    name = HOSTILE.replace("/", "-")
    assert browser.value(FIRST) == ["failed", name, "second", "first"]  # what needs a person, then the best
    browser.value("document.querySelectorAll('#all-runs th button')[3].click()")
    assert browser.value(FIRST) == ["second", "first", "failed", name]  # what has no number comes last
    assert browser.value(SORTED) == [["probe, %", "descending"]]
    browser.value("document.querySelectorAll('#all-runs th button')[3].click()")
    assert browser.value(FIRST)[:2] == ["first", "second"]
    browser.value("document.querySelector('#all-runs').parentElement.focus()")
    browser.press("Tab")
    assert browser.value("document.activeElement.textContent") == "run"
    browser.press("Enter", "\r")
    assert browser.value(SORTED) == [["run", "ascending"]]
    assert browser.value(FIRST)[-3:] == ["failed", "first", "second"]
    browser.value("document.querySelectorAll('#all-runs tbody th a')[3].click()")  # leads to the run, and opens it
    browser.until(lambda: browser.value("document.querySelector('details[open] summary')?.textContent") is not None)
    assert "second" in browser.value("document.querySelector('details[open] summary').textContent")


def test_a_watched_page_goes_on_with_its_runs(browser, runs):
    """What a reader has opened and sorted stays as it was; nothing is written, and no other address is asked for."""
    server = PageServer(Watch(Folder(str(runs)), every_s=0.3), 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        before = files_of(runs)
        browser.shape(DESK)
        browser.open(server.address)
        assert "1 running" in browser.value("document.querySelector('.counts').textContent")
        browser.value("document.querySelectorAll('#all-runs th button')[0].click()")
        order = browser.value(FIRST)
        browser.value("document.querySelector('#run-2').open = true")
        assert files_of(runs) == before
        run = runs / HOSTILE.replace("/", "-")
        with (run / "metrics.jsonl").open("a") as file:
            file.write(f"{report_at(25)}\n".replace("'", '"'))
        browser.until(lambda: "step 25 of 40" in browser.value("document.querySelector('#all-runs').textContent"))
        assert browser.value("document.querySelector('#run-2').open") is True
        assert (browser.value(FIRST), browser.value(SORTED)) == (order, [["run", "ascending"]])
        browser.open(f"{server.address}?run={quote(run.name, safe='')}")
        assert "step 25 of 40" in browser.value("document.querySelector('h1').textContent")
        finish(run, 0.95)
        browser.until(lambda: "85.0 % right" in browser.value("document.querySelector('h1').textContent"))
        asked = {urlsplit(each).netloc for each in browser.requests if not each.startswith("data:")}
        assert asked == {f"127.0.0.1:{server.server_port}"}
        assert browser.complaints == []
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    browser.until(lambda: "has ended" in browser.value("document.querySelector('#said').textContent"))


def test_who_has_no_token_or_comes_by_another_name_sees_nothing(runs):
    server = PageServer(Watch(Folder(str(runs))), 0)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    own, path = f"127.0.0.1:{server.server_port}", urlsplit(server.address).path

    def ask(path: str, host: str = own, **headers: str) -> tuple[int, bytes, str]:
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=60)
        connection.request("GET", path, headers={"Host": host, **headers})
        answer = connection.getresponse()
        found = answer.status, answer.read(), answer.headers.get("ETag", "")
        connection.close()
        return found

    try:
        status, text, tag = ask(path)
        assert status == 200
        assert b"first" in text
        assert ask(path, **{"If-None-Match": tag}) == (304, b"", tag)
        assert ask(path, f"localhost:{server.server_port}")[0] == 200
        assert ask(f"{path}?run=first")[0] == 200
        nothing = (404, b"", "")
        wrong = [(name, own) for name in ("/", f"/{'a' * len(path[1:-1])}/", path[:-1], f"{path}x", "/%C3%BC/")]
        wrong += [(path, "evil.example"), (path, f"evil.example:{server.server_port}"), (path, "127.0.0.1:1")]
        wrong += [(f"{path}?run={name}", own) for name in ("nothing", "..", "/etc", "%2e%2e", "first/checkpoint_1")]
        assert [ask(*each) for each in wrong] == [nothing] * len(wrong)
        first, second = (PageServer(Watch(Folder(str(runs))), 0) for _ in range(2))
        assert first.token != second.token
        assert len(first.token) >= 32
        first.server_close()
        second.server_close()
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_ctrl_c_ends_the_server(runs, monkeypatch, capsys):
    """As a person types it: the command, and Ctrl-C once the page was seen."""
    seen = []

    def look_and_end() -> None:
        end = time.monotonic() + 60
        said = ""
        while time.monotonic() < end and "http://" not in said:
            said += capsys.readouterr().out
            time.sleep(0.05)
        address = urlsplit(said.splitlines()[-1])
        connection = http.client.HTTPConnection(address.netloc, timeout=60)
        connection.request("GET", address.path)
        seen.append(connection.getresponse().status)
        connection.close()
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(sys, "argv", ["jobs/report.py", "--watch", str(runs)])
    helper = threading.Thread(target=look_and_end)
    helper.start()
    assert main() == 0
    helper.join()
    assert seen == [200]
    assert "ended" in capsys.readouterr().out
