import inspect
import re

import pytest

from jobs.pretrain import parse
from pirl.config import Config, leaves
from pirl.recipes import RECIPES

IMAGENET = [
    "imagenet_jigsaw",
    "imagenet_rotation",
    "imagenet_both",
    "imagenet_npid",
    "imagenet_mlp",
    "imagenet_c2x",
]

PAPER = {
    "data.batch_size": 1024,
    "data.image_size": 224,
    "model.arch": "resnet50",
    "model.width": 64,
    "model.stem": "imagenet",
    "model.head": "linear",
    "model.norm": "batch",
    "pretext.name": "jigsaw",
    "pretext.crop_min": 0.6,
    "loss.num_negatives": 32_000,
    "loss.temperature": 0.07,
    "loss.pretext_weight": 0.5,
    "memory.keep": 0.5,
    "optim.epochs": 800,
    "optim.lr": 0.12,
    "optim.final_lr": 0.00012,
    "optim.momentum": 0.9,
    "optim.weight_decay": 1e-4,
    "augment.blur": 0.0,
}
"""Section 3.2 of the paper, and section 4 for the epochs and negatives of the main run."""


def settings(name):
    return leaves(RECIPES[name]())


def test_all_recipes_are_there_under_their_own_names():
    assert list(RECIPES) == ["digits", "cifar10", *IMAGENET]
    assert [recipe.__name__ for recipe in RECIPES.values()] == list(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_valid_config_each_time_the_same(name):
    assert isinstance(RECIPES[name](), Config)
    assert RECIPES[name]() == RECIPES[name]()


def test_the_main_run_is_the_paper_s():
    values = settings("imagenet_jigsaw")
    assert {key: values[key] for key in PAPER} == PAPER


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("imagenet_rotation", {"pretext.name": "rotation"}),
        ("imagenet_both", {"pretext.name": "both"}),
        ("imagenet_npid", {"loss.pretext_weight": 0}),
        (
            "imagenet_mlp",
            {"model.head": "mlp", "loss.kind": "infonce", "loss.temperature": 0.1, "augment.blur": 0.5},
        ),
        ("imagenet_c2x", {"model.width": 128}),
    ],
)
def test_the_other_imagenet_runs_differ_in_what_names_them(name, expected):
    values = settings(name)
    assert {key: values[key] for key in expected} == expected
    # Whatever else differs is how long and with how many it trains, and what a second view needs.
    free = {"optim.epochs", "loss.num_negatives", "pretext.crop_min"} if name != "imagenet_c2x" else set()
    if name == "imagenet_npid":
        free |= {"pretext.name"}
    same = PAPER.keys() - expected.keys() - free
    assert {key: values[key] for key in same} == {key: PAPER[key] for key in same}


def test_npid_makes_no_second_view():
    assert not RECIPES["imagenet_npid"]().has_pretext
    assert all(RECIPES[name]().has_pretext for name in RECIPES if name != "imagenet_npid")


@pytest.mark.parametrize("name", ["digits", "cifar10"])
def test_small_recipes_fit_small_machines(name):
    config = RECIPES[name]()
    assert config.data.image_size <= 32
    assert config.model.stem == "small"
    assert config.cluster.workers * config.cluster.cpus_per_worker <= 2
    assert config.cluster.gpus_per_worker == 0
    assert config.loss.num_negatives < {"digits": 1438, "cifar10": 50_000}[name]


@pytest.mark.parametrize("name", RECIPES)
def test_the_docstring_says_what_to_expect_what_it_costs_and_what_to_type(name):
    text = inspect.getdoc(RECIPES[name])
    first = text.splitlines()[0]
    assert first.endswith(".")
    assert len(first) <= 91, "a line of --help, beside the name"
    for word in ("Expected: ", "Cost: ", "Command: "):
        assert len(re.findall(rf"^{word}", text, flags=re.MULTILINE)) == 1, word


@pytest.mark.parametrize("name", RECIPES)
def test_the_command_of_the_docstring_starts_the_recipe(name):
    (command,) = re.findall(r"python jobs/pretrain\.py ([^`\n]*)", inspect.getdoc(RECIPES[name]))
    request = parse(command.split())
    assert request.name == name
    changed = {key for key, value in leaves(request.config).items() if value != settings(name)[key]}
    assert changed <= {"data.uri"}, "what it learns is in the recipe and not in the command"


@pytest.mark.parametrize("name", IMAGENET)
def test_papers_and_tables_are_named(name):
    assert re.search(r"[Tt]able|appendix|section|official", inspect.getdoc(RECIPES[name]))
