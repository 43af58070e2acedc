"""Every command that the project documents or prints is typed as it stands, in a folder where its data lies.

Job files check what they are asked and start nothing (`--check`, `--dry-run`), in this process; of other commands the
words are read by the parser of the program that they are for. What is not checked is in a table, with the reason.
"""

import argparse
import inspect
import io
import os
import re
import runpy
import shlex
import shutil
import sys
import tarfile
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torchvision
from PIL import Image

from clusters.dev import command as devcluster
from jobs import clusterfit, embed, evaluate, export, prepare, pretrain, report, slurm
from jobs.batch import options
from pirl.config import Config, from_json, leaves, override
from pirl.data.dataset import open_dataset
from pirl.data.digits import ensure_digits
from pirl.data.pseudo_labels import PseudoLabels, write_pseudo_labels
from pirl.data.writer import ShardWriter
from pirl.methods.distill import LinearClassifier
from pirl.methods.models import Trunk
from pirl.recipes import FEWEST, RECIPES
from pirl.runs.learned import write_teacher
from pirl.runs.run_files import RunFile
from pirl.runs.weights import Weights
from pirl.storage.folder import Folder
from tests.evaluate.voc_folder import write_year
from tests.run_folder import write_run
from tests.s3 import START_S
from tune import request, sweep
from tune.rows import repeat

ROOT = Path(__file__).resolve().parents[2]

PROGRAMS = ("python", "torchrun", "ray", "make", "clusters/devcluster", "source", "export", "srun")
INLINE = re.compile(r"`((?:python|torchrun|ray job submit|make|clusters/devcluster|source)\s[^`]+)`")

COUNTS = {
    "README.md": 26,
    "docs/architecture.md": 0,
    "docs/devcluster.md": 8,
    "docs/evaluation.md": 19,
    "docs/gpu.md": 1,
    "docs/how-it-works.md": 0,
    "docs/measurements.md": 16,
    "docs/methods.md": 8,
    "docs/preemption.md": 0,
    "docs/report.md": 5,
    "docs/scaling.md": 1,
    "docs/slurm.md": 13,
    "docs/sweeps.md": 10,
    "docs/using.md": 8,
    "pretrain.py --help": 8,
    "prepare.py --help": 5,
    "slurm.py --help": 9,
    "sweep.py --help": 6,
    "evaluate.py --help": 10,
    "clusterfit.py --help": 7,
    "embed.py --help": 6,
    "export.py --help": 3,
    "report.py --help": 5,
    "recipes": 18,
    "clusters": 2,
}
"""Commands in each source: another number means that some are new, or no longer seen."""

NOT_CHECKED = {
    "source .venv/bin/activate": "of bash: .venv is made by make",
    "export SLURM_CONF=/var/tmp/pirl-devcluster-77/slurm.conf": "of bash: tests/on_slurm does so",
    "srun --nodes=3 hostname": "of SLURM: tests/on_slurm types it",
    "python tests/benchmarks/slurm_start.py": "takes no words, and would start a SLURM",
}


@dataclass(frozen=True)
class Documented:
    """A command and where it stands."""

    source: str
    line: str


def in_blocks(page: str) -> Iterator[str]:
    """The lines of a page's blocks of code, those that go on behind a backslash as one."""
    fenced = "\n".join(re.findall(r"^```\w*\n(.*?)^```", page, flags=re.MULTILINE | re.DOTALL))
    indented = "\n".join(re.findall(r"^ {4}(\S.*|    .*)$", page, flags=re.MULTILINE))
    yield from (line.strip() for line in re.sub(r"\\\n\s*", "", f"{fenced}\n{indented}").splitlines() if line.strip())


def in_page(page: str) -> Iterator[str]:
    """The commands of a page in Markdown, with its variables filled in."""
    known: dict[str, str] = {}
    for line in in_blocks(page):
        first = line.split()[0]
        if named := re.fullmatch(r'(\w+)="(.*)"', line):
            known[f"${named[1]}"] = named[2]
        elif first in PROGRAMS:
            line = re.sub(r"\$\w+", lambda word: known[word[0]], line)
            yield shlex.join(shlex.split(line, comments=True))
        else:
            assert first.endswith("/"), f"neither a command nor a folder of the list of folders: {line}"
    text = re.sub(r"^(```.*?^```| {4}\S.*?)$", "", page, flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(found.removesuffix("...").split()) for found in INLINE.findall(text))


def in_help(text: str) -> Iterator[str]:
    """The examples at the end of a `--help`; what they do stands behind some spaces."""
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    yield from (re.split(r" {3,}", line.strip())[0] for line in lines if line.split()[:1] in ([p] for p in PROGRAMS))


def documented() -> Iterator[Documented]:
    sources = {str(page.relative_to(ROOT)): in_page(page.read_text()) for page in [ROOT / "README.md", *PAGES]}
    sources |= {f"{name} --help": in_help(text) for name, (_, text) in HELPS.items()}
    sources["recipes"] = (
        line for recipe in RECIPES.values() for line in re.findall(r"Command: (.*)", inspect.getdoc(recipe) or "")
    )
    files = [*(ROOT / "clusters").glob("*.toml"), *(ROOT / "clusters").glob("*.yaml")]
    sources["clusters"] = (
        line for file in files for line in re.findall(r"\bpython /?\w+/[^#\n]*(?:\n +--.*)*", file.read_text())
    )
    for source, lines in sources.items():
        yield from (Documented(source, line) for line in lines)


PAGES = sorted((ROOT / "docs").glob("*.md"))
HELPS = {
    "pretrain.py": (pretrain.main, pretrain.EXAMPLES),
    "prepare.py": (prepare.main, prepare.EXAMPLES),
    "slurm.py": (slurm.main, options.EPILOG),
    "sweep.py": (sweep.main, request.EXAMPLES),
    "evaluate.py": (evaluate.main, evaluate.EXAMPLES),
    "clusterfit.py": (clusterfit.main, clusterfit.EXAMPLES),
    "embed.py": (embed.main, embed.EXAMPLES),
    "export.py": (export.main, export.EXAMPLES),
    "report.py": (report.main, report.EXAMPLES),
}
ALL = list(documented())


def picture(side: int, shade: int = 0) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (side, side), (shade % 256, shade // 256, 99)).save(file, "PNG")
    return file.getvalue()


def write_data(folder: Path, rows: int, side: int) -> None:
    """A data set of two classes with a test split beside it, its images all the same, and as large as it is told."""
    image = picture(32)
    for place, count in ((folder, rows), (folder / "test", 200)):
        with ShardWriter(Folder(str(place)), classes=["a", "b"], seed=0, source="test") as writer:
            writer.record = {"width": [side, side], "height": [side, side]}
            for row in range(count):
                writer.add(image, row % 2)


def write_images(folder: Path, count: int) -> None:
    for at in range(count):
        (folder / f"{at % 2}").mkdir(parents=True, exist_ok=True)
        (folder / f"{at % 2}" / f"{at}.png").write_bytes(picture(80, at))


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, s3_server: tuple[str, str]) -> Path:
    """What the commands name: data sets, sources of images, profiles, a home, and a bucket with data sets."""
    top = tmp_path_factory.mktemp("world")
    for name, rows, side in (("photos", 700, 300), ("cifar10", 9000, 32), ("imagenet", 33_000, 256)):
        write_data(top / "shared" / name, rows, side)
        (top / "data").mkdir(exist_ok=True)
        (top / "data" / name).symlink_to(top / "shared" / name)
    for name in ("places205", "inat2018"):
        (top / "data" / name).symlink_to(top / "shared/photos")
    shutil.copytree(top / "shared/cifar10", top / "data/cifar8k")
    (top / "shared/c10").symlink_to(top / "shared/cifar10")
    write_images(top / "home/photos", 60)
    with tarfile.open(top / "photos.tar", "w") as tar:
        tar.add(top / "home/photos", "photos")
    for path in ("cifar10/train", "cifar10/test", "imagenet/train-0", "imagenet/validation-0"):
        (top / path).parent.mkdir(exist_ok=True)
        pq.write_table(pa.table({"image": [picture(32, at) for at in range(9)]}), top / f"{path}.parquet")
    shutil.copytree(ROOT / "clusters", top / "clusters", ignore=shutil.ignore_patterns("*.py", "dev", "node", "slurm"))
    shutil.copy(top / "clusters/slurm-cpu.toml", top / "clusters/mine.toml")
    config = override(Config(), {"model.width": 4, "data.uri": str(top / "shared/photos")})
    write_run(top / "shared/runs/pets", config)
    shutil.copytree(top / "shared/runs", top / "runs")
    write_year(top / "VOCdevkit/VOC2007", {"trainval": 400, "test": 9})
    torch.save(Trunk("resnet50", 4).state_dict(), top / "resnet50.pth")
    (top / "seeds.txt").write_text("--seed 1 --run digits-1\n")
    ensure_digits()
    for name in ("bucket", "my-bucket"):
        bucket = urllib.request.Request(f"{s3_server[0]}/{name}", method="PUT")
        urllib.request.urlopen(bucket, timeout=START_S).close()
        remote = Folder(f"s3://{name}", {"endpoint_url": s3_server[0]})
        for file in (path for path in (top / "shared").rglob("*") if path.is_file() and "c10" not in path.parts):
            remote.write(file.relative_to(top / "shared").as_posix(), file.read_bytes())
    return top


@pytest.fixture
def type_in(
    world: Path, s3_environment: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Calls `main()` of a job file with words in the folder of the data; gives what it prints."""
    monkeypatch.chdir(world)
    monkeypatch.setenv("HOME", str(world / "home"))
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent))  # no sbatch, which would be asked too
    monkeypatch.delenv("RAY_ADDRESS", raising=False)

    def run(main: Callable[[], int], *words: str) -> str:
        words = tuple(os.path.expanduser(re.sub(r"^/shared/", f"{world}/shared/", word)) for word in words)
        monkeypatch.setattr(sys, "argv", ["job.py", *words])
        try:
            code: object = main()
        except SystemExit as left:
            code = left.code
        out, err = capsys.readouterr()
        assert code == 0, err
        return out

    return run


def check(line: str, type_in: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Has whoever a command is for read it, and check it where that is a job of ours; gives what is printed."""
    program, *words = shlex.split(line)
    if program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        assert {word for word in words if "=" not in word} <= {*targets}
        return ""
    if program == "clusters/devcluster":
        devcluster._parser().parse_args(words)
        return ""
    if program == "torchrun":
        from torch.distributed.run import parse_args

        given = parse_args(words)
        return check_job(given.training_script, given.training_script_args, type_in, monkeypatch)
    if program == "ray":
        from ray.dashboard.modules.job.cli import submit

        assert words[:2] == ["job", "submit"]
        python, *words = submit.make_context("submit", words[2:]).params["entrypoint"]
        assert python == "python"
    return check_job(words[0], words[1:], type_in, monkeypatch)


def check_job(script: str, words: list[str], type_in: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Checks the words for a file of ours."""
    words = [word.removeprefix("/pirl/") for word in words]
    if "--after" in words:  # there is no job to wait for
        words = words[: words.index("--after")] + words[words.index("--after") + 2 :]
    match script.removeprefix("/pirl/"):
        case "jobs/pretrain.py":
            with targets():
                return type_in(pretrain.main, *words, "--check")
        case "tune/sweep.py":
            with targets():
                return type_in(sweep.main, *words, "--check")
        case "jobs/embed.py":
            return type_in(embed.main, *words, "--check")
        case "jobs/export.py":
            return type_in(export.main, *words, "--check")
        case "jobs/prepare.py":
            # Overwriting, as the data for other commands lies there.
            return type_in(prepare.main, *words, *([] if "--inspect" in words else ["--check", "--overwrite"]))
        case "jobs/evaluate.py":
            with runs():
                return type_in(evaluate.main, *words, "--check")
        case "jobs/report.py":
            with runs():
                return type_in(report.main, *words, "--check")
        case "jobs/clusterfit.py":
            with runs():
                return type_in(clusterfit.main, *words, "--check")
        case "jobs/slurm.py" if {"jobs/evaluate.py", "jobs/clusterfit.py"} & {*words}:
            with runs():
                return type_in(slurm.main, *([] if "--dry-run" in words else ["--dry-run"]), *words)
        case "jobs/slurm.py" if "--" in words:
            return type_in(slurm.main, *([] if "--dry-run" in words else ["--dry-run"]), *words)
        case "jobs/slurm.py" if words[0] in ("retry", "doctor"):  # there is no job and no SLURM to ask
            parser = options.doctor_parser() if words[0] == "doctor" else options.retry_parser()
            parser.parse_args(words[1:])
            return ""
        case "jobs/slurm.py":  # there is no job to ask about
            options.watch_parser(words[0]).parse_args(words[1:])
            return ""
        case benchmark if benchmark.startswith(("tests/benchmarks/", "tests/gpu/")):
            return read_only(ROOT / benchmark, words, monkeypatch)
        case other:
            raise AssertionError(f"no file of ours: {other}")


@contextmanager
def runs() -> Iterator[None]:
    """In the block there are runs and weights, which else would be in the way of commands that make them."""
    names = ("digits", "digits_jigsaw", "digits_supervised", "photos", "cifar10", "imagenet", "imagenet-2")
    places = [Path(storage, name) for storage in ("runs", "shared/runs") for name in names]
    for place in places:
        data, _, other = place.name.partition("-")
        uri = "digits" if data.startswith("digits") else str(Path("data", data).resolve())
        method = "supervised" if data == "digits_supervised" else "pirl"
        write_run(place, override(Config(), {"model.width": 2 if other else 1, "data.uri": uri, "method.name": method}))
    torch.save(torchvision.models.resnet18().state_dict(), "resnet18.pth")
    try:
        yield
    finally:
        for place in places:
            shutil.rmtree(place)


@contextmanager
def targets() -> Iterator[None]:
    """In the block there are clusters and a teacher, which else would be in the way of commands that make them."""
    places = {"digits_jigsaw-clusterfit": "digits", "imagenet_covariant_rotation-clusterfit": "shared/imagenet"}
    for name, uri in places.items():
        dataset = open_dataset(uri)
        labels, about = np.zeros(dataset.rows, np.int32), {"data_uri": uri, "images": dataset.rows, "sizes": [1, 1]}
        found = PseudoLabels(labels, np.eye(2, dtype=np.float32), {**about, "data_fingerprint": dataset.fingerprint})
        write_pseudo_labels(Folder(f"runs/{name}/targets"), found)
    weights = Weights("a file", "0", Trunk("resnet18", 1, "small").state_dict(), "resnet18", 1, "small")
    teacher = Folder("runs/digits_jigsaw-distillation/targets")
    write_teacher(teacher, weights, LinearClassifier(torch.zeros(2, 8), torch.zeros(2)), {})
    try:
        yield
    finally:
        for name in (*places, "digits_jigsaw-distillation"):
            shutil.rmtree(Path("runs", name))


def read_only(script: Path, words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a script until it has read its words."""
    real, read = argparse.ArgumentParser.parse_known_args, []

    def stop(parser: argparse.ArgumentParser, *given: object) -> object:
        read.append(real(parser, *given))  # type: ignore[call-overload]
        _, unknown = read[-1]
        assert not unknown or script.name == "learning.py", "which hands them to jobs/pretrain.py"
        sys.exit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_known_args", stop)
    monkeypatch.setattr(sys, "argv", [str(script), *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(script), run_name="__main__")
    assert (left.value.code, len(read)) == (0, 1)
    return ""


def test_all_commands_are_seen():
    counts = {source: sum(one.source == source for one in ALL) for source in {**COUNTS, **{c.source: 0 for c in ALL}}}
    assert counts == COUNTS
    lines = {one.line for one in ALL}
    assert lines.issuperset(NOT_CHECKED), "one of the table is documented no more"
    runpy.run_path(str(ROOT / "tests/benchmarks/slurm_start.py"))  # what it imports is there


@pytest.mark.parametrize("name", HELPS)
def test_the_examples_are_those_of_help(name, type_in):
    main, text = HELPS[name]
    assert text.strip() in type_in(main, "--help")


@pytest.mark.parametrize("line", dict.fromkeys(one.line for one in ALL if one.line not in NOT_CHECKED))
def test_a_documented_command_runs(line, type_in, monkeypatch):
    check(line, type_in, monkeypatch)


@pytest.mark.parametrize(
    ("rows", "side", "recipe"),
    [
        (FEWEST, 300, "photos"),
        (540, 300, "photos"),
        (700, 32, "photos"),
        (4096, 64, "photos"),
        (4097, 64, "cifar10"),
        (33_000, 65, "photos"),
    ],
)
def test_what_prepare_prints_as_next_runs(rows, side, recipe, type_in, monkeypatch, capsys, tmp_path):
    write_data(tmp_path / "my images", rows, side)
    prepare.summarize(prepare.parse(["somewhere", str(tmp_path / "my images")]))
    *_, last = capsys.readouterr().out.splitlines()
    assert last == f"next: python jobs/pretrain.py {recipe} --data.uri '{tmp_path}/my images'"
    check(last.removeprefix("next: "), type_in, monkeypatch)


def test_prepare_names_no_command_for_fewer_images_than_any_recipe_takes(capsys, tmp_path):
    write_data(tmp_path, FEWEST - 1, 80)
    prepare.summarize(prepare.parse(["somewhere", str(tmp_path)]))
    *_, last = capsys.readouterr().out.splitlines()
    assert last == "these are too few to train on: prepare 32 images or more"


@pytest.mark.parametrize("source", ["digits", "~/photos"])
def test_from_images_to_a_run_by_typing_what_is_printed(source, type_in, monkeypatch, tmp_path):
    *_, last = type_in(prepare.main, os.path.expanduser(source), str(tmp_path / "data")).splitlines()
    check(last.removeprefix("next: "), type_in, monkeypatch)


def test_photos_asks_for_images(type_in):
    for main, words in ((pretrain.main, ["photos"]), (sweep.main, ["photos", "--seeds", "2", "--epochs", "2", "3"])):
        with pytest.raises(
            AssertionError, match=r"python jobs/prepare\.py SOURCE data/photos, then --data.uri data/photos"
        ):
            type_in(main, *words)


def test_photos_is_written_down_as_numbers_and_goes_on_by_the_same_command(type_in, tmp_path):
    words = ["photos", "--data.uri", "data/photos", "--storage", str(tmp_path)]
    assert type_in(pretrain.main, *words, "--check") == f"{tmp_path}/photos\n"
    request = pretrain.parse(words)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / RunFile.CONFIG).write_text(request.config.model_dump_json())
    assert from_json((tmp_path / "photos" / RunFile.CONFIG).read_text()) == request.config
    assert type_in(pretrain.main, *words, "--check", "--resume", "must") == f"{tmp_path}/photos\n"
    told = {name: value for name, value in leaves(request.config).items() if value != leaves(Config())[name]}
    assert told["optim.epochs"] == 45_000 // 700
    assert told["loss.num_negatives"] == 350


def test_a_sweep_with_photos_says_how_its_best_trial_is_trained_alone(type_in, tmp_path):
    words = ["photos", "--data.uri", "data/photos", "--storage", str(tmp_path), "--set", "optim.lr", "0.01", "0.02"]
    assert type_in(sweep.main, *words, "--optim.epochs", "64", "--model.width=8", "--check").startswith("2 trials, 2 ")
    asked = request.parse([*words, "--optim.epochs", "64", "--model.width=8"])
    trial = asked.trials[1]
    command = repeat(trial, "photos", asked.folder)
    assert command.startswith("python jobs/pretrain.py photos --seed 0 --data.uri ")
    assert "--model.width 8" in command
    assert "epochs 64" not in command, "as the recipe has it for these images"
    assert pretrain.parse(shlex.split(command)[2:]).config == trial.config
    asked = request.parse([*words, "--cluster.gpus-per-worker=1"])
    command = repeat(asked.trials[0], "photos", asked.folder)
    assert pretrain.parse(shlex.split(command)[2:]).config == asked.trials[0].config


def test_photos_follows_the_profile_and_what_is_typed(type_in, tmp_path):
    words = ["photos", "--data.uri", "s3://bucket/photos", "--cluster"]
    config = pretrain.parse([*words, "clusters/slurm-a100.toml", "--optim.lr", "0.05"]).config
    assert (config.data.image_size, config.cluster.workers, config.optim.epochs) == (224, 32, 800)
    assert config.optim.lr == 0.05
    config = pretrain.parse([*words, "clusters/slurm-cpu.toml"]).config
    assert (config.data.image_size, config.cluster.workers, config.optim.epochs) == (112, 4, 64)
    config = pretrain.parse([*words, "clusters/slurm-cpu.toml", "--cluster.gpus-per-worker=1"]).config
    assert config.data.image_size == 224
