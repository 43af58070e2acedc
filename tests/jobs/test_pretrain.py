import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs.pretrain import main, parse
from jobs.run.checks import check_shares_of_gpus
from pirl.config import leaves
from pirl.data.digits import ensure_digits
from pirl.errors import ConfigError
from pirl.recipes import RECIPES, cifar10, digits
from pirl.runs.run import Run
from pirl.sections import Cluster
from pirl.storage.folder import Folder

ROOT = Path(__file__).resolve().parents[2]


def pretrain(*words, cwd):
    command = [sys.executable, str(ROOT / "jobs" / "pretrain.py"), *map(str, words)]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "TORCHELASTIC"))}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=env, timeout=120)


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs the job in this process, which starts in no time; returns what it says when it exits with 2."""

    def run(*words):
        storage = tmp_path / "runs"
        before = sorted(tmp_path.rglob("*"))
        given = [] if "--storage" in words else ["--storage", storage]
        monkeypatch.setattr(sys, "argv", ["pretrain.py", *map(str, words), *map(str, given)])
        try:
            code = main()
        except SystemExit as left:
            code = left.code
        out, err = capsys.readouterr()
        assert (code, out) == (2, "")
        assert "Traceback" not in err
        assert sorted(tmp_path.rglob("*")) == before
        return err

    return run


def changed(config, recipe):
    """The settings that differ from the recipe's."""
    before = leaves(recipe())
    return {name: value for name, value in leaves(config).items() if value != before[name]}


def test_nothing_at_all_is_the_digits_recipe():
    request = parse([])
    assert request.config == digits()
    assert (request.name, request.resume, request.use_ray) == ("digits", "auto", True)
    assert request.storage == Folder(str(Path.cwd() / "runs"))


@pytest.mark.parametrize(
    "words",
    [
        "cifar10 --loss.num-negatives 8192 --optim.lr=1e-2",
        "cifar10 --loss.num_negatives=8192 --optim.lr 1e-2",
        "--loss.num-negatives 8192 cifar10 --optim.lr 1e-2",  # the recipe may come later
        "--run cifar10 --loss.num-negatives 8192 --optim.lr 1e-2 cifar10",
    ],
)
def test_a_recipe_and_settings_in_any_order(words):
    request = parse([*words.split(), "--data.uri", "memory://x"])
    expected = {"loss.num_negatives": 8192, "optim.lr": 0.01, "data.uri": "memory://x"}
    assert changed(request.config, cifar10) == expected
    assert request.name == "cifar10"


def test_settings_without_a_recipe_are_those_of_digits():
    request = parse(["--optim.epochs", "3", "--seed=5"])
    assert changed(request.config, digits) == {"optim.epochs": 3, "seed": 5}


def test_options_of_the_run(tmp_path):
    request = parse(["imagenet-jigsaw", "--run", "a", "--storage", str(tmp_path), "--resume", "must", "--no-ray"])
    assert (request.name, request.storage, request.resume) == ("a", Folder(str(tmp_path)), "must")
    assert not request.use_ray
    assert request.config.model == RECIPES["imagenet_jigsaw"]().model
    assert parse(["imagenet-jigsaw"]).name == "imagenet_jigsaw"


def test_json_objects_null_and_switches():
    options = '{"profile": "a b", "client_kwargs": {"endpoint_url": "http://here:9000", "verify": false}}'
    expected = {"profile": "a b", "client_kwargs": {"endpoint_url": "http://here:9000", "verify": False}}
    for words in (["--data.storage-options", options], [f"--data.storage-options={options}"]):
        assert parse(words).config.data.storage_options == expected
    assert parse(["--optim.clip-norm", "1"]).config.optim.clip_norm == 1
    config = parse(["--optim.clip-norm", "null", "--optim.bf16=false", "--checkpoint.every-steps", "7"]).config
    assert changed(config, digits) == {"optim.bf16": False, "checkpoint.every_steps": 7}


def test_a_local_data_folder_becomes_absolute_because_workers_run_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert parse(["--data.uri", "images"]).config.data.uri == str(tmp_path / "images")
    assert parse(["--data.uri", "~/images"]).config.data.uri == str(Path.home() / "images")
    assert parse(["--data.uri", "s3://bucket/images"]).config.data.uri == "s3://bucket/images"
    assert parse(["--data.uri", "digits"]).config.data.uri == "digits"


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["cifra10"], ["unknown recipe 'cifra10'", *RECIPES]),
        (["digits", "cifar10"], ["unexpected 'cifar10'", "--section.field VALUE"]),
        (
            ["--loss.num-negative", "8"],
            ["unknown setting 'loss.num-negative'", "did you mean loss.num_negatives?"],
        ),
        (["--num-negatives", "8"], ["did you mean loss.num_negatives?"]),
        (["--stor", "x"], ["unknown option --stor: did you mean --storage?"]),  # options are not abbreviated either
        (["-x"], ["unexpected '-x'"]),
        (["--optim.epochs"], ["--optim.epochs needs a value"]),
        (["--optim.epochs", "--seed", "1"], ["--optim.epochs needs a value"]),
        (["--optim.epochs", "ten"], ["optim.epochs 'ten'", "valid integer"]),
        (["--optim.lr", "-0.1"], ["optim.lr '-0.1'", "greater than 0"]),
        (["--pretext.name", "puzzle"], ["'puzzle'", "'jigsaw', 'rotation'"]),
        (["--data.storage-options", "{key: 1}"], ["--data.storage-options: not a JSON object"]),
        (["--data.storage-options", "key"], ["data.storage_options: ", "dictionary"]),
        (["--cluster.workers", "65"], ["cluster.workers 65", "64 streams", "use at most 64"]),
        (["--data.batch-size", "127"], ["cluster.workers 2", "data.batch_size 127", "that is a multiple of 4"]),
        (["--resume", "maybe"], ["--resume", "'maybe'", "'auto', 'never', 'must'"]),
        (["--resume", "must"], ["no run 'digits'", "There are no runs there"]),
        (["--run", "a/b"], ["--run 'a/b'", "not a name for a folder"]),
        (["--run", "../a"], ["--run '../a'", "not a name for a folder"]),
        (["--run", "a b"], ["--run 'a b'", "A-Z a-z 0-9 _ - . +"]),
        (["--run", ""], ["--run ''", "not a name for a folder"]),
        (["--run", "a" * 101], ["not a name for a folder", "at most 100"]),
        (["--storage", ""], ["--storage is empty"]),
        (["--storage", "/proc/x", "--check"], ["--storage /proc/x cannot be written"]),
        (["--storage", "/proc/x"], ["--storage /proc/x cannot be written"]),
        (["--storage", "http://127.0.0.1:1/runs", "--check"], ["--storage http://127.0.0.1:1/runs", "web server"]),
        (["--cluster", "clusters"], ["--cluster clusters: a folder", "local.toml"]),
        (["--cluster", ""], ["--cluster ''", "local.toml"]),
        (["digits", "--", "x"], ["nothing to write behind --"]),
        (["--optim.lr", "1e-9"], ["optim.final_lr 3e-05 is above optim.lr 1e-09", "type --optim.final-lr as well"]),
        (
            ["--data.uri", "/nowhere"],
            ["/nowhere is not a data set", "python jobs/prepare.py SOURCE DESTINATION"],
        ),
        # The built-in data set has 1,438 images for training.
        (["--data.batch-size", "1440"], ["data.batch_size 1440", "1438 images", "--data.batch-size"]),
        # 1,438 images make 180 steps of 8, and some leave a worker of four one image: res5 of it would be one pixel.
        (
            [
                "--model.stem=imagenet",
                "--data.image_size=32",
                "--optim.bf16=false",
                "--data.batch-size=8",
                "--cluster.workers=4",
            ],
            ["data.batch_size 8 leaves one of 4 workers a single image in some steps", "a larger --data.batch-size"],
        ),
        (["--loss.num-negatives", "1438"], ["loss.num_negatives 1438", "--loss.num-negatives 1437 or less"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_request_exits_with_2_and_writes_nothing(refused, words, messages):
    said = refused(*words)
    for message in messages:
        assert message in said


def test_a_check_of_what_is_right_prints_the_run_folder_and_makes_none(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--check", "--storage", str(tmp_path / "new" / "runs")])
    assert main() == 0
    assert capsys.readouterr() == (f"{tmp_path}/new/runs/digits\n", "")
    assert not list(tmp_path.iterdir())


def test_a_run_name_that_other_settings_have_is_refused(refused, tmp_path):
    folder = tmp_path / "runs" / "digits"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(digits().model_dump_json())
    said = refused("--optim.epochs", "3")
    assert f"optim.epochs: {digits().optim.epochs} -> 3" in said
    assert "choose another name (--run digits-2), or --resume must" in said
    assert "choose another --run, or --resume auto" in refused("--resume", "never")
    said = refused("--model.width", "48", "--resume", "must")
    assert f"model.width: {digits().model.width} -> 48" in said
    assert "--run digits-2" in said
    assert "--resume must" not in said


def test_a_data_folder_that_is_damaged_is_refused(refused, tmp_path):
    (tmp_path / "manifest.json").write_text("{")
    assert "manifest.json cannot be read" in refused("--data.uri", tmp_path)


def test_a_store_that_refuses_to_be_read_is_a_wrong_request(refused, store):
    options = json.dumps(store.options)
    words = ["--data.uri", store.uri("data"), "--data.storage-options", options]
    store.fail("refused", 9)
    assert "the store refused: PermissionError" in refused(*words)
    assert "the store refused: PermissionError" in refused(*words, "--storage", store.uri("runs"))


def test_urls_with_a_password_are_refused_and_not_repeated(refused, monkeypatch):
    url = "s3://user:hidden@host/runs"
    for words in (["--storage", url], ["--data.uri", url], ["--data.uri", url, "--storage", "s3://bucket/runs"]):
        said = refused(*words)
        assert "has a user name or a password before @" in said
        assert "hidden" not in said
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://user:hidden@host:9000")
    said = refused()
    assert "AWS_ENDPOINT_URL has a user name or a password before @" in said
    assert "hidden" not in said


def test_a_disk_that_is_full_when_the_run_begins_is_told_in_a_line(monkeypatch, capsys, tmp_path):
    def full(run):
        raise OSError(errno.ENOSPC, "No space left on device", str(run.folder))

    monkeypatch.setattr(Run, "write_config", full)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "--no-ray", "--storage", str(tmp_path)])
    assert main() == 1
    assert capsys.readouterr().err == f"failed: [Errno 28] No space left on device: '{tmp_path}/digits'\n"


def test_the_exit_code_of_the_process_is_2_and_stderr_says_why(tmp_path):
    ensure_digits()
    done = pretrain("digits", "--loss.num-negatives", "2000", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: loss.num_negatives 2000 needs more than the 1438 images")
    assert len(done.stderr.splitlines()) == 1  # no traceback, no warnings
    assert not list(tmp_path.iterdir())


def test_what_takes_long_is_not_imported_before_ray_starts(tmp_path):
    """It is imported meanwhile; at this address nothing starts."""
    ensure_digits()
    check = "import sys; from jobs import pretrain; code = pretrain.main(); "
    check += "print(code, [m for m in ('ray', 'torch', 'torchvision') if m in sys.modules])"
    command = [sys.executable, "-c", check, f"--storage={tmp_path}"]
    env = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    answer = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert answer.stdout.strip() == "2 []", answer.stderr
    assert "no Ray at RAY_ADDRESS 127.0.0.1:1" in answer.stderr


def help_text(capsys, *words):
    with pytest.raises(SystemExit) as left:
        parse([*words])
    out, err = capsys.readouterr()
    assert (left.value.code, err) == (0, "")
    return out


def test_help_lists_recipes_and_options(capsys):
    out = help_text(capsys, "--help")
    assert out.startswith("usage: python jobs/pretrain.py [RECIPE] [--section.field VALUE ...]")
    for option in ("--run NAME", "--storage URI", "--resume {auto,never,must}", "--no-ray"):
        assert option in out
    listed = out.partition("recipes")[2].splitlines()
    for name, recipe in RECIPES.items():
        assert [line for line in listed if line.split()[:1] == [name] and recipe.__doc__.splitlines()[0] in line]
    # Every example is a command that is understood.
    examples = [line.split("jobs/pretrain.py")[1] for line in listed if "jobs/pretrain.py" in line]
    assert len(examples) >= 3
    for example in examples:
        words = example.partition("   ")[0].split()
        if not {"--help", "photos"} & {*words}:  # photos looks at its data: tests/jobs/test_documented_commands.py
            parse(words)


@pytest.mark.parametrize("words", [("cifar10", "--help"), ("-h", "cifar10")])
def test_help_of_a_recipe_lists_all_settings_with_its_values(capsys, words):
    out = help_text(capsys, *words)
    assert cifar10.__doc__.splitlines()[0] in out
    assert "--run, --storage, --resume, --cluster, --check, --no-ray: see" in out
    text = " ".join(out.partition("All settings")[2].replace("│", " ").split())
    for name, value in leaves(cifar10()).items():
        if not isinstance(value, dict):
            assert f"--{name.replace('_', '-')}" in text
            after = text.partition(f"--{name.replace('_', '-')} ")[2]
            assert f"(default: {value})" in after.partition(" --")[0], name


def test_help_of_an_unknown_recipe_is_refused():
    with pytest.raises(ConfigError, match="unknown recipe 'cifra10'"):
        parse(["cifra10", "--help"])


def test_help_of_the_process(tmp_path):
    done = pretrain("cifar10", "--help", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--loss.num-negatives" in done.stdout


@pytest.mark.parametrize(("gpus", "workers"), [(0.5, 2), (1.5, 1)])
def test_workers_that_would_share_a_gpu_are_refused(refused, gpus, workers):
    said = refused(f"--cluster.gpus-per-worker={gpus}", f"--cluster.workers={workers}", "--optim.bf16=false")
    assert f"cluster.gpus_per_worker {gpus} with cluster.workers {workers} gives workers a part of a GPU" in said
    assert "--cluster.gpus-per-worker 1" in said


def test_one_worker_may_have_a_share_of_a_gpu():
    for gpus, workers in ((0.5, 1), (1, 8), (0, 8)):
        check_shares_of_gpus(Cluster(gpus_per_worker=gpus, workers=workers))
