"""The page of runs, as a file: what the command writes and refuses, and what stands in it whatever runs are called."""

import html
import json
import os
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from jobs.report import main
from jobs.reporting.figures import learned_figures, progress_figures
from jobs.reporting.figures.drawing import Chart, LegendEntry, png_of, svg_of
from jobs.reporting.figures.pictures import views_sheet
from jobs.reporting.naming import labels_of
from jobs.reporting.overview_page import overview_page
from jobs.reporting.record import Collection, RunRecord
from jobs.reporting.run_page import run_page
from jobs.reporting.serving import Watch
from pirl.data.dataset import open_dataset
from pirl.loading.decode import decoded
from pirl.storage.folder import Folder
from pirl.storage.reading import FileInfo
from tests.jobs.left_behind import TAPS, fail, leave_report, leave_run
from tests.s3 import Store

HOSTILE = "<script>alert(1)</script>&\"'`$\\frac{ü"
ADDRESS = re.compile(r"""(?:https?:)?//[\w.-]+\.\w+""")


@pytest.fixture
def report(
    monkeypatch: pytest.MonkeyPatch, typed: Callable[..., tuple[object, str]], tmp_path: Path
) -> Callable[..., tuple[object, str]]:
    """Types `jobs/report.py` with words, in an empty folder; gives its exit code and what it says."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return partial(typed, main)


def text_of(page: str) -> str:
    """What a reader sees of a page, but for its pictures."""
    body = re.sub(r"<(style|script|svg).*?</\1>", "", page, flags=re.DOTALL)
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]+>", " ", body)))


def known_at(*folders: Path) -> list[RunRecord]:
    known = Collection([Folder(str(folder)) for folder in folders])
    known.look()
    return list(known.runs.values())


def test_the_page_of_a_run_says_what_was_run_and_what_came_out(tmp_path, report):
    run = tmp_path / "runs" / "first"
    leave_run(run, accuracy=0.9)
    distances = np.random.default_rng(0).integers(1, 9, (2, 80)).tolist()
    details = {"embeddings": "f(image) and g(transform)", "histogram": {"own": distances[0], "other": distances[1]}}
    near = [{"name": "distance of own transform, mean", "value": 0.9, "unit": ""}]
    leave_report(run, "invariance", near, details=details)
    few = [
        {"name": f"res5, {count} a class", "value": 0.1 * at, "deviation": 0.01} for at, count in enumerate((1, 3, 9))
    ]
    leave_report(run, "few", few, settings={"per_class": [1, 3, 9]})
    code, said = report(run, "--png", tmp_path / "png")
    assert code == 0
    assert said.splitlines()[-1] == (run / "report.html").as_uri()
    page = (run / "report.html").read_text()
    assert len(page.encode()) < 500_000
    assert not ADDRESS.search(page)
    seen = text_of(page)
    assert "PIRL jigsaw on digits: 80.0 % right from 10 labels a class; random weights 40.0 %" in seen
    assert "ResNet-18 of width 16, 40 epochs of digits, counted on 359 images" in seen
    assert "Not measured yet: python jobs/evaluate.py" in seen  # the nearest neighbours
    assert f"python jobs/evaluate.py {run} --protocol retrieval health" in seen
    assert f"python jobs/pretrain.py digits --run first-again --storage {run.parent}" in seen
    assert "As they were in the first epoch. The network is to see that both views are of one image." in seen
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', page))
    assert used <= set(ids)
    keys = ("learned-layers", "learned-invariance", "learned-few-labels", "saw-views", "went-loss", "went-lr")
    assert set(keys) < {path.stem for path in (tmp_path / "png").iterdir()}
    for path in (tmp_path / "png").iterdir():
        with Image.open(path) as image:
            assert min(image.size) > 50
            assert len(image.convert("L").getcolors() or [()] * 9) > 2  # not empty
    assert report(run)[0] == 0  # its own page is written over


def test_runs_beside_each_other_whatever_they_are_called(tmp_path, report):
    """In two storages under one name, with all letters; each state, and the settings that tell them apart."""
    for place in ("a", "b"):
        leave_run(tmp_path / place / HOSTILE.replace("/", "-"), {"seed": ord(place)}, accuracy=0.9)
    leave_run(tmp_path / "failed", until=10)
    fail(tmp_path / "failed", "<img src=x onerror=alert(1)>", None)
    (tmp_path / "failed" / "train.log").write_text("<b>bold</b>\n")
    code, said = report(tmp_path / "a", tmp_path / "b", tmp_path / "failed")
    assert code == 0
    assert said.splitlines()[-1] == (tmp_path / "here" / "report.html").as_uri()
    page = (tmp_path / "here" / "report.html").read_text()
    assert page.count("<script") == 1
    assert "<img src=x" not in page
    assert "<b>bold" not in page
    seen = text_of(page)
    name = HOSTILE.replace("/", "-")
    assert f"a/{name}" in seen
    assert f"b/{name}" in seen
    assert "1 failed" in seen
    assert "<img src=x onerror=alert(1)>" in seen
    assert "<b>bold</b>" not in seen  # it is in the run's own page


def test_a_sweep_is_shown_with_its_failed_trials_and_its_command(tmp_path, report):
    sweep = tmp_path / "sweep"
    trials = []
    for weight, accuracy in ((0.25, 0.7), (0.5, 0.9), (1.0, 0.6)):
        name = f"pretext_weight-{weight}_and-a-long-tail-of-other-settings"
        leave_run(sweep / name, {"loss.pretext_weight": weight}, accuracy=accuracy)
        trials.append({"name": name, "state": "done"})
    trials.append({"name": "gone", "state": "failed", "error": "out of memory"})
    content = {"trials": trials, "command": "python tune/sweep.py digits", "metric": "linear_res5", "best": None}
    (sweep / "sweep.json").write_text(json.dumps(content))
    code, said = report(sweep)
    assert code == 0
    assert said.startswith("4 runs on digits: λ 0.5 is best with 90.0 %")
    seen = text_of((sweep / "report.html").read_text())
    assert "python tune/sweep.py digits" in seen
    assert "3 done, 1 failed; by linear_res5" in seen
    assert "out of memory" in seen
    assert "Weight of the pretext task" in seen
    labels = labels_of(known_at(sweep))
    assert sorted(labels.values()) == ["gone", "λ 0.25", "λ 0.5", "λ 1"]


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "no run"),
        (["nothing"], "there is no such folder"),
        (["empty"], "there is no run in it"),
        (["run", "--out", "empty"], "is a folder"),
        (["run", "--out", "taken.html"], "is not a page of this command"),
        (["run", "--watch", "empty"], "leave RUN"),
        (["run", "--port", "80"], "is of --watch"),
        (["--watch", "nothing"], "no such folder"),
        (["--watch", "empty", "--port", "70000"], "use 1 to 65535"),
        (["run", "--optim.lr", "1"], "unknown option --optim.lr"),
        (["run", "--out", "https://example.com/x.html"], "web server"),
    ],
)
def test_a_wrong_request_is_refused_before_anything_is_written(tmp_path, report, words, why):
    here = tmp_path / "here"
    (here / "empty").mkdir()
    (here / "taken.html").write_text("mine")
    leave_run(here / "run", until=5)
    before = sorted(here.rglob("*"))
    code, said = report(*words)
    assert code == 2
    assert why in said
    assert sorted(here.rglob("*")) == before
    assert report("run", "--check") == (0, f"{here}/run/report.html\n")
    assert sorted(here.rglob("*")) == before


def test_runs_in_a_store_are_read_there(tmp_path, report, store: Store, s3_environment):
    """And listings have the times of files, of a disk and of a store."""
    leave_run(tmp_path / "digits", accuracy=0.9)
    folder = store.past("runs", "digits")
    for name in Folder(str(tmp_path / "digits")).sizes():
        folder.write(name, (tmp_path / "digits" / name).read_bytes())
    code, said = report(store.uri("runs", "digits"))
    assert (code, said.splitlines()[-1]) == (0, (tmp_path / "here" / "report.html").as_uri())
    assert "80.0 % right from 10 labels a class" in text_of((tmp_path / "here" / "report.html").read_text())
    assert folder.files()["config.json"].modified == pytest.approx(time.time(), abs=300)  # clocks may differ
    os.utime(tmp_path / "digits" / "train.log", (1e9, 1e9))
    assert Folder(str(tmp_path / "digits")).files()["train.log"] == FileInfo(
        (tmp_path / "digits" / "train.log").stat().st_size, 1e9
    )


def test_the_views_are_those_that_training_saw(tmp_path):
    """The first column is the image itself; the others are made of the run's seed, so another one has others."""
    sheets = []
    for seed in (0, 0, 1):
        leave_run(tmp_path / f"{len(sheets)}", {"seed": seed}, until=5)
        (run,) = known_at(tmp_path / f"{len(sheets)}")
        sheets.append(views_sheet(run))
    assert [[each.address for each in row] for row in sheets[0].rows] == [
        [each.address for each in row] for row in sheets[1].rows
    ]
    assert sheets[0].rows[0][1].address != sheets[2].rows[0][1].address
    assert sheets[0].headings == ["an image", "one view", "nine patches, shuffled"]
    dataset = open_dataset("digits")
    image = decoded(dataset, dataset.load_group(0), 0, 0).permute(1, 2, 0).numpy()
    assert np.array_equal(np.array(sheets[0].rows[0][0].image.convert("RGB")), image)
    (run,) = known_at(tmp_path / "0")
    run.config = run.config.model_copy(update={"data": run.config.data.model_copy(update={"uri": str(tmp_path)})})
    assert "cannot be made anew" in views_sheet(run).missing


def drawn(chart: Chart) -> Figure:
    figure = Figure()
    chart.draw(figure.add_subplot())
    return figure


def test_settings_are_compared_where_all_else_is_the_same(tmp_path):
    """λ with two seeds each; a run with other negatives is of another line, and alone, so it is not in this one."""
    for weight, accuracy in ((0.25, 0.7), (0.5, 0.9)):
        for seed in (0, 1):
            changes = {"loss.pretext_weight": weight, "seed": seed}
            leave_run(tmp_path / f"{weight}-{seed}", changes, accuracy=accuracy + 0.02 * seed)
    leave_run(tmp_path / "other", {"loss.pretext_weight": 0.5, "loss.num_negatives": 64}, accuracy=0.1)
    runs = known_at(tmp_path)
    charts = {chart.key: chart for chart in learned_figures.charts_of_runs(runs, labels_of(runs), "linear")}
    assert set(charts) == {"ranking", "lambda", "negatives", "layers"}
    (line,) = (each for each in drawn(charts["lambda"]).axes[0].get_lines() if each.get_marker() == "o")
    assert line.get_xdata().tolist() == [0.25, 0.5]
    assert line.get_ydata().tolist() == pytest.approx([71, 91])
    (line,) = (each for each in drawn(charts["negatives"]).axes[0].get_lines() if each.get_marker() == "o")
    assert line.get_ydata().tolist() == pytest.approx([10, 91])


def test_tasks_are_compared_by_the_means_of_their_runs(tmp_path):
    leave_run(tmp_path / "a", accuracy=0.8)
    leave_run(tmp_path / "b", {"seed": 1}, accuracy=0.9)
    leave_run(tmp_path / "c", {"pretext.name": "rotation"}, accuracy=0.95)
    runs = known_at(tmp_path)
    charts = learned_figures.charts_of_runs(runs, labels_of(runs), "linear")
    (chart,) = (each for each in charts if each.key == "pretext")
    axes = drawn(chart).axes[0]
    assert [each.get_text() for each in axes.get_yticklabels()] == ["PIRL jigsaw (2)", "PIRL rotation"]
    diamonds = [each.get_xdata()[0] for each in axes.get_lines() if each.get_marker() == "D"]
    assert diamonds == pytest.approx([85, 95])


def test_accuracy_by_layer_is_in_the_order_of_the_network(tmp_path):
    leave_run(tmp_path, accuracy=0.9)
    (run,) = known_at(tmp_path)
    (chart,) = (each for each in learned_figures.charts_of_run(run) if each.key == "layers")
    trained, random = drawn(chart).axes[0].get_lines()
    assert trained.get_ydata().tolist() == pytest.approx([86, 87, 88, 89, 90])
    assert random.get_ydata().tolist() == pytest.approx([46, 47, 48, 49, 50])
    assert [each.get_text() for each in drawn(chart).axes[0].get_xticklabels()] == list(TAPS)


def test_long_runs_are_drawn_by_means_of_neighbours(tmp_path):
    leave_run(tmp_path, until=40)
    (run,) = known_at(tmp_path)
    x, y = progress_figures.line_of(run, "loss", most=3)
    assert x.tolist() == [15, 30, 40]
    assert y.tolist() == pytest.approx([6 - 10 / 20, 6 - 25 / 20, 6 - 37.5 / 20])


def test_a_chart_takes_the_colours_and_letters_of_the_page():
    chart = Chart("x", '<"&', "", lambda axes: axes.plot([1, 2], color="#0072b2"), [LegendEntry(0, "_$\\frac{<b>ü")])
    svg = svg_of(chart, "p-")
    assert "var(--s0)" in svg
    assert "#0072b2" not in svg
    assert "xmlns" not in svg
    assert 'aria-label="&lt;&quot;&amp;"' in svg
    assert svg == svg_of(chart, "p-")
    assert png_of(chart).startswith(b"\x89PNG")


JUNK = ("x", [{}], -(10**400))
MANGLED = ("config.json", "result.json", "failure.json", "stopped.json", "evaluation/pretrain.json")
MANGLED += ("evaluation/knn.json", "evaluation/few.json", "evaluation/invariance.json")


def mangled(content: Any) -> Iterator[Any]:
    """The same with something else in one place, for each place; and something else altogether."""
    yield from JUNK
    if isinstance(content, dict):
        for key in content:
            yield {name: value for name, value in content.items() if name != key}
            yield from ({**content, key: inner} for inner in mangled(content[key]))


@pytest.mark.parametrize("name", MANGLED)
def test_a_page_is_made_whatever_lies_in_the_files(tmp_path, name):
    """Nothing of another version, or written by something else, takes the pages of all other runs away."""
    leave_run(tmp_path / "run", {"data.uri": str(tmp_path / "nothing"), "pretext.permutations": 9}, accuracy=0.9)
    histogram = {"own": [1, 2], "other": [3, 4]}
    leave_report(tmp_path / "run", "invariance", [], details={"histogram": histogram, "embeddings": "res5"})
    leave_report(tmp_path / "run", "knn", [{"name": "res5, k 20", "value": 0.5, "interval": [0.4, 0.6]}])
    few = [{"name": f"res5, {count} a class", "value": 0.1, "deviation": 0.1, "random": 0.1} for count in (1, 9)]
    leave_report(tmp_path / "run", "few", few, settings={"per_class": [1, 9]})
    fail(tmp_path / "run", "no more", 3)
    (tmp_path / "run" / "stopped.json").write_text('{"knn": 3}')
    if name in ("failure.json", "stopped.json"):
        (tmp_path / "run" / "result.json").unlink()
    leave_run(tmp_path / "other", accuracy=0.8)
    original = json.loads((tmp_path / "run" / name).read_text())
    if name == "result.json":
        original = {"evaluation": {}, "checkpoint": "x", "metrics": {}}  # of what is in it the end is measured alone
    if name == "evaluation/pretrain.json":
        for part in (original, original["random"]):
            part["linear"] = {"res4": 0.5, "res5": 0.6}
    if name == "config.json":  # a section is enough: they are all read alike
        original = {key: original[key] for key in ("seed", "method", "pretext", "loss")}
        original |= {"data": {"uri": "x", "batch_size": 8}, "optim": {"epochs": 3}}
    known = Collection([Folder(str(tmp_path))])
    for number, content in enumerate(mangled(original)):
        (tmp_path / "run" / name).write_text(json.dumps(content))
        os.utime(tmp_path / "run" / name, (number, number))
        known.look()
        if name in ("config.json", "evaluation/pretrain.json"):  # what runs are compared by
            page = overview_page(known, 0.0, "all")
        else:
            page = run_page(known.runs[str(tmp_path / "run")], 0.0)
        assert len(page.heading) > 5
        assert all(chart.title for chart in page.charts)


def test_an_older_report_is_shown_by_its_picture(tmp_path, report):
    leave_run(tmp_path / "run", accuracy=0.9)
    leave_report(tmp_path / "run", "invariance", [{"name": "distance of own transform, mean", "value": 1, "unit": ""}])
    Image.new("RGB", (300, 200), "red").save(tmp_path / "run" / "evaluation" / "invariance.png")
    assert report(tmp_path / "run")[0] == 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert 'width="300" height="200"' in page[page.index('id="learned-invariance"') :][:3000]
    (tmp_path / "run" / "evaluation" / "invariance.png").write_bytes(b"cut")
    assert report(tmp_path / "run")[0] == 0
    assert "evaluation/invariance.png cannot be shown" in text_of((tmp_path / "run" / "report.html").read_text())


def test_a_folder_without_runs_is_watched_too(tmp_path):
    """A sweep that is to begin: the page says that there is nothing yet, and goes on."""
    watch = Watch(Folder(str(tmp_path)), every_s=0.0)
    tag, page = watch.answer("") or ("", b"")
    assert "0 runs: none yet" in text_of(page.decode())
    leave_run(tmp_path / "first", until=10)
    other, page = watch.answer("") or ("", b"")
    assert other != tag
    assert "1 run on digits: 1 running" in text_of(page.decode())
