"""The trials of a sweep: their names, what is refused before anything starts, and what the command line means."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pirl.errors import ConfigError
from pirl.recipes import digits
from tune.points import LONGEST_NAME, group_name, some_of, trials_of
from tune.request import parse

ROOT = Path(__file__).parents[2]


def names(**axes: list[object]) -> list[str]:
    return [trial.name for trial in trials_of(digits(), {k.replace("__", "."): v for k, v in axes.items()}, 1)]


def test_trials_are_all_points_of_the_grid_with_each_seed():
    trials = trials_of(digits(), {"loss.num_negatives": ["64", "128"], "optim.epochs": ["5", "10"]}, seeds=2)
    assert [trial.name for trial in trials[:3]] == [
        "num_negatives-64_epochs-5_seed-0",
        "num_negatives-64_epochs-5_seed-1",
        "num_negatives-64_epochs-10_seed-0",
    ]
    points = {(t.config.loss.num_negatives, t.config.optim.epochs, t.config.seed) for t in trials}
    assert points == {(n, e, s) for n in (64, 128) for e in (5, 10) for s in (0, 1)}
    assert len({group_name(trial) for trial in trials}) == 4


def test_a_name_is_a_function_of_the_values_and_not_of_how_they_are_written():
    assert names(optim__lr=["0.10"]) == names(optim__lr=["1e-1"]) == ["lr-0.1_seed-0"]
    assert names(optim__clip_norm=[None, "1"]) == ["clip_norm-null_seed-0", "clip_norm-1_seed-0"]


def test_names_that_would_be_the_same_or_too_long_are_told_apart():
    both = names(pretext__crop_min=["0.5"], augment__crop_min=["0.25", "0.5"])
    assert both[0] == "pretext.crop_min-0.5_augment.crop_min-0.25_seed-0"
    folders = names(data__cache_folder=["/a/b", "/a-b", "/a" + 90 * "b", "/a" + 91 * "b"])
    assert len(set(folders)) == 4
    assert all(len(name) <= LONGEST_NAME and "/" not in name for name in folders)


def test_a_random_choice_keeps_what_a_smaller_one_has_and_all_seeds_of_a_point():
    trials = trials_of(digits(), {"loss.num_negatives": [2**n for n in range(1, 10)]}, seeds=2)
    few, more = some_of(trials, 3), some_of(trials, 5)
    assert (len(few), len(more)) == (6, 10)
    assert {trial.name for trial in few} < {trial.name for trial in more}
    assert few == some_of(trials, 3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--set loss.temprature 0.1", "did you mean loss.temperature"),
        ("--epochs 1 2 3 4 5 6 7 8 9 nine", "optim.epochs 'nine'"),
        ("--epochs 5 5", "given twice"),
        ("--epochs 5 --optim.epochs 6", "optim.epochs is given twice"),
        ("--epochs 5 --set optim.epochs 6", "optim.epochs is given twice"),
        ("--set optim.warmup-epochs 1 4 --epochs 3 5", "optim.warmup_epochs"),
        ("--set loss.temperature", "needs values"),
        ("--set seed 1 2", "--seeds 3"),
        ("", "nothing to compare"),
        ("--num_negatives 64 128", "unknown option --num_negatives: did you mean --num-negatives?"),
        ("--negatives 64 128", "unknown option --negatives: did you mean --num-negatives?"),
        ("--epoch=5", "unknown option --epoch: did you mean --epochs?"),
        ("--set optim.lr=0.01,0.1", "with spaces: --set optim.lr 0.01 0.1"),
        ("--set optim.lr=[0.01,0.1]", "with spaces: --set optim.lr 0.01 0.1"),
        ("--set optim.lr 0.01,0.1", "type several with spaces between, --set optim.lr 0.01 0.1"),
        ("--num-negatives 64,128", "type several with spaces between, --set loss.num_negatives 64 128"),
        ("--epochs 5 --search random", "--num-samples"),
        ("--epochs 5 --search optuna", "--num-samples"),
        ("--epochs 5 --scheduler pbt", "weights"),
        ("--num-negatives 64 128 --metric loss", "--metric linear_res5 or knn"),
        ("--set loss.pretext-weight 0 1 --metric loss", "--metric linear_res5 or knn"),
        ("--epochs 5 --storage s3://", "names no bucket"),
        ("--epochs 5 --storage pyproject.toml", "is a file"),
        ("--epochs 5 --name a/b", "at most 100 of A-Z"),
        ("--epochs 5 --name a:b", "at most 100 of A-Z"),
        (f"--epochs 5 --name {300 * 'a'}", "at most 100 of A-Z"),
        ("--seeds three", "'three' is not a whole number from 1 on"),
        ("--reduction 1", "'1' is not a whole number from 2 on"),
        ("--set loss.temperature=0.05 0.1", "--set loss.temperature 0.05 0.1"),
        ("--set optim.lr 0.001..0.3", "--search optuna --num-samples N"),
        ("--set optim.lr 0.001..0.3 0.5 --search optuna --num-samples 4", "this range alone"),
        ("--set optim.lr 0.1 --set optim.lr 0.2", "behind one --set optim.lr"),
        ("--epochs 5 --epochs 10", "behind one --set optim.epochs"),
        ("--epochs 5 10 --num-samples 1", "add --search random or optuna"),
        ("--epochs 5 --grace 2", "--grace 2 says when trials are stopped: add --scheduler asha"),
        ("--epochs 5 --reduction 2", "add --scheduler asha"),
        ("--scheduler asha --seeds 2 --epochs 2 4 --grace 10", "comes after 10"),
        ("--scheduler asha --seeds 2 --epochs 4 --evaluate-every 9", "comes after 9"),
        ("--scheduler asha --epochs 5 10", "there are no two: optim.epochs is 5, 10"),
        ("--epochs 5 --evaluation.every-epochs 2", "type --evaluate-every"),
        ("--set evaluation.every_epochs 1 null", "type --evaluate-every"),
    ],
)
def test_what_cannot_be_is_refused(arguments: str, message: str):
    with pytest.raises(ConfigError) as refusal:
        parse(["digits", *arguments.split()])
    assert message in str(refusal.value)


def test_a_recipe_behind_values_is_shown_its_place():
    with pytest.raises(ConfigError, match=r"before the options, python tune/sweep.py cifar10 \.\.\."):
        parse(["--num-negatives", "256", "512", "cifar10"])


@pytest.mark.parametrize(
    "arguments",
    [
        "--pretext.name none --set loss.pretext_weight 0",
        "--optim.warmup-epochs 60 --epochs 100 200",
        "--cluster.workers 8 --set data.streams 8 16",
        "--optim.final-lr 0.1 --set optim.lr 0.2 0.3",
        "--optim.final-lr 0.1 --set optim.lr 0.2..0.3 --search optuna --num-samples 4",
    ],
)
def test_what_is_fixed_needs_to_fit_to_the_values_and_not_to_the_recipe(arguments: str):
    assert parse(["digits", *arguments.split()]).trials


def test_null_is_a_value_as_where_it_is_fixed():
    trials = parse(["--set", "optim.clip_norm", "null", "1"]).trials
    assert [trial.config.optim.clip_norm for trial in trials] == [None, 1.0]


def test_the_folder_of_swept_data_is_absolute_as_workers_run_elsewhere():
    first, second = parse(["--set", "data.uri", "one", "s3://bucket/two"]).trials
    assert first.config.data.uri == first.values["data.uri"] == str(Path("one").resolve())
    assert second.config.data.uri == "s3://bucket/two"


def test_settings_that_are_fixed_hold_in_all_trials_and_the_name_says_what_is_swept():
    request = parse(["digits", "--epochs", "1", "2", "--model.width", "4", "--set", "loss.temperature", "0.05", "0.1"])
    assert [trial.config.model.width for trial in request.trials] == [4] * 4
    assert request.folder.name == "digits-epochs-temperature"
    assert request.grace is None
    assert all(trial.config.evaluation.every_epochs == 1 for trial in request.trials)


def test_a_profile_says_what_a_trial_gets_and_where_it_lies_unless_something_else_is_typed(tmp_path: Path):
    profile = tmp_path / "profile.toml"
    profile.write_text(
        f'cluster = "slurm"\nstorage = "{tmp_path}/shared"\nnodes = 2\ncpus_per_node = 6\nworkers_per_node = 2\n'
    )
    request = parse(["--epochs", "1", "2", f"--cluster={profile}"])
    assert [(t.config.cluster.workers, t.config.cluster.cpus_per_worker) for t in request.trials] == [(4, 3)] * 2
    assert str(request.folder) == f"{tmp_path}/shared/digits-epochs"

    swept = ["--set", "cluster.cpus-per-worker", "1", "2"]
    typed = [*swept, "--cluster.workers=1", f"--storage={tmp_path}/own", f"--cluster={profile}"]
    request = parse(typed)
    assert [(t.config.cluster.workers, t.config.cluster.cpus_per_worker) for t in request.trials] == [(1, 1), (1, 2)]
    assert str(request.folder).startswith(f"{tmp_path}/own/")
    with pytest.raises(ConfigError, match=r"no such file; the examples are"):
        parse(["--epochs", "1", "2", "--cluster=nowhere.toml"])

    on_slurm = parse(["--cluster.workers=4", "--cluster.cpus-per-worker=3", "--set", "cluster.workers", "1", "2"])
    assert [t.config.cluster.workers for t in on_slurm.trials] == [1, 2], "a job's settings come from the profile"


def test_losses_of_one_kind_are_compared_without_any_evaluation_during_training():
    request = parse(["digits", "--set", "optim.lr", "0.01", "0.1", "--metric", "loss"])
    assert all(trial.config.evaluation.every_epochs is None for trial in request.trials)


def test_a_wrong_value_in_the_last_trial_is_refused_without_importing_ray(tmp_path: Path):
    """What takes long is not even imported, so that the answer comes in the first second or two."""
    arguments = ["digits", "--num-negatives", *map(str, range(2, 12)), "100000", f"--storage={tmp_path}"]
    check = "import sys; from tune import sweep; sys.argv[0] = ''; code = sweep.main(); "
    check += "print(code, [m for m in ('ray', 'torch', 'matplotlib') if m in sys.modules])"
    command = [sys.executable, "-c", check, *arguments]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert answer.stdout.strip() == "2 []", answer.stderr
    assert "num_negatives-100000" in answer.stderr
    assert not list(tmp_path.iterdir())


def test_check_says_how_many_trials_there_are_and_starts_nothing(tmp_path: Path):
    command = [sys.executable, "tune/sweep.py", "digits", "--epochs", "1", "2", "--seeds", "3", "--check"]
    answer = subprocess.run([*command, f"--storage={tmp_path}"], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert (answer.returncode, answer.stderr) == (0, "")
    assert answer.stdout == f"6 trials, 6 of them to be trained\n{tmp_path}/digits-epochs\n"
    assert not list(tmp_path.iterdir())


def test_a_ray_that_does_not_come_up_in_time_is_told_in_a_line(tmp_path: Path):
    """As on a machine that is too busy; here no time at all is allowed for it."""
    command = [sys.executable, "tune/sweep.py", "digits", "--epochs", "1", "2", f"--storage={tmp_path}"]
    env = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    env["RAY_gcs_server_port_wait_time_s"] = "0"
    answer = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=240)
    assert answer.returncode == 1, answer.stdout + answer.stderr
    assert answer.stderr.startswith("failed: Ray did not start on this machine: ")
    assert len(answer.stderr.splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_recipes_are_an_axis_each_with_its_settings_and_those_that_are_typed_and_mean_something_to_it():
    words = ["--set", "recipe", "digits", "digits-jigsaw", "digits_supervised", "--optim.epochs", "3", "--seeds", "2"]
    request = parse([*words, "--loss.temperature", "0.2", "--data.label-noise", "0.5"])
    found = {trial.values["recipe"]: trial.config for trial in request.trials}
    assert [config.method.name for config in found.values()] == ["pirl", "covariant", "supervised"]
    assert {config.optim.epochs for config in found.values()} == {3}
    assert [config.loss.temperature for config in found.values()] == [0.2, 0.1, 0.1]
    assert [config.data.label_noise for config in found.values()] == [0, 0, 0.5]
    assert len({trial.name for trial in request.trials}) == 6
    assert request.folder.name == "digits-recipe"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--set recipe digits digits", "a recipe is given twice"),
        ("digits --set recipe digits_npid digits_jigsaw", "recipe is given twice, digits and digits_npid"),
        ("--set recipe digits digts", "unknown recipe 'digts'"),
        ("--set recipe digits_jigsaw digits_rotation --loss.kind paper", "loss.kind means nothing to any of digits_j"),
        ("--set recipe digits digits_jigsaw --metric loss", "--metric loss cannot compare trials with other recipe"),
        ("--set recipe digits digits_npid --search optuna --num-samples 2", "optuna searches settings of one"),
    ],
)
def test_recipes_that_cannot_be_compared_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        parse(arguments.split())
