import inspect
import re

import numpy as np
import pytest

from jobs.pretrain import parse
from pirl.config import Config, leaves
from pirl.data.order import Order
from pirl.errors import ConfigError
from pirl.recipes import RECIPES, photos

IMAGENET = [
    "imagenet_jigsaw",
    "imagenet_rotation",
    "imagenet_both",
    "imagenet_npid",
    "imagenet_mlp",
    "imagenet_c2x",
]

DIGITS = [
    *("digits_npid", "digits_jigsaw", "digits_rotation", "digits_supervised"),
    *("digits_clusterfit", "digits_distillation"),
]
COVARIANT = ["imagenet_covariant_jigsaw", "imagenet_covariant_rotation"]

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
    assert list(RECIPES) == ["digits", *DIGITS, "cifar10", "photos", *IMAGENET, *COVARIANT, "imagenet_clusterfit"]
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
    npid = {"imagenet_npid", "digits_npid"}
    labels = {"digits_supervised", "digits_clusterfit", "digits_distillation", "imagenet_clusterfit"}
    assert not any(RECIPES[name]().has_pretext for name in npid | labels)
    others = RECIPES.keys() - npid - labels
    assert all(RECIPES[name]().has_pretext for name in others)


@pytest.mark.parametrize("name", COVARIANT)
def test_the_covariant_runs_have_the_official_settings(name):
    values, jigsaw = settings(name), name == "imagenet_covariant_jigsaw"
    expected = {
        "method.name": "covariant",
        "data.batch_size": 256,
        "model.arch": "resnet50",
        "optim.epochs": 105,
        "optim.lr": 0.1,
        "optim.warmup_epochs": 5 if jigsaw else 0,
        "optim.momentum": 0.9,
        "optim.weight_decay": 1e-4,
        "augment.hue": 0,
        "augment.gray": 0.66 if jigsaw else 0,
        "pretext.permutations": 2000 if jigsaw else None,
        "pretext.crop_min": 0.6 if jigsaw else 0.08,
    }
    assert {key: values[key] for key in expected} == expected


def test_the_digits_differ_in_the_method_alone():
    for name in DIGITS:
        changed = {key for key, value in settings(name).items() if value != settings("digits")[key]}
        method = {"method.name", "pretext.name", "pretext.permutations", "loss.pretext_weight"}
        assert changed <= method | {"data.pseudo_labels", "method.teacher"}


@pytest.mark.parametrize("gpus", [False, True])
@pytest.mark.parametrize("rows", [32, 33, 63, 64, 100, 129, 200, 511, 513, 1000, 4097, 10_000, 50_000, 300_000])
def test_photos_fits_any_number_of_images_and_as_many_workers_as_it_has_streams(rows, gpus):
    config = photos(rows, gpus=gpus)
    assert config.data.batch_size <= rows
    assert 2 * config.loss.num_negatives <= rows
    assert config.optim.epochs >= (200 if gpus else 10)
    starts = np.append(np.arange(0, rows, 64), rows)
    order = Order(starts, 0, config.streams, config.data.batch_size, config.window_groups)
    assert min(order.shares(0, config.streams // 2)) >= 2, "batch norm needs two images"
    assert config.checkpoint.every_steps >= order.steps_per_epoch


@pytest.mark.parametrize(
    ("rows", "gpus", "batch", "lr", "epochs", "negatives", "network"),
    [
        (700, False, 32, 0.021, 64, 350, ("resnet18", 16)),
        (10_000, False, 256, 0.06, 10, 4096, ("resnet18", 16)),
        (100, True, 64, 0.03, 800, 50, ("resnet18", 64)),
        (700, True, 128, 0.042, 800, 350, ("resnet18", 64)),
        (100_000, True, 256, 0.06, 600, 16_384, ("resnet50", 64)),
        (300_000, True, 256, 0.06, 200, 16_384, ("resnet50", 64)),
    ],
)
def test_photos_follows_the_rules_that_it_states(rows, gpus, batch, lr, epochs, negatives, network):
    config = photos(rows, gpus=gpus)
    data, optim = config.data, config.optim
    assert (data.batch_size, optim.lr, optim.epochs, config.loss.num_negatives) == (batch, lr, epochs, negatives)
    assert (config.model.arch, config.model.width) == network
    assert data.image_size == (224 if gpus else 112)


@pytest.mark.parametrize(
    ("side", "gpus", "size", "stem"),
    [(1200, False, 112, "imagenet"), (100, True, 100, "imagenet"), (63, False, 63, "small"), (20, True, 32, "small")],
)
def test_photos_has_no_larger_views_than_images(side, gpus, size, stem):
    config = photos(700, side, gpus=gpus)
    assert (config.data.image_size, config.model.stem) == (size, stem)


def test_photos_is_refused_for_a_handful_of_images():
    with pytest.raises(ConfigError, match="photos needs 32 images or more, and there are 31"):
        photos(31)


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
    if name == "photos":  # looks at its data: tests/jobs/test_documented_commands.py
        return
    request = parse(command.split())
    assert request.name == name
    changed = {key for key, value in leaves(request.config).items() if value != settings(name)[key]}
    places = {"data.uri", "data.pseudo_labels", "method.teacher"}  # which become absolute
    assert changed <= places, "what it learns is in the recipe and not in the command"


def test_clusterfit_has_the_official_settings():
    values = settings("imagenet_clusterfit")
    expected = {
        "method.name": "clusterfit",
        "data.batch_size": 256,
        "model.arch": "resnet50",
        "augment.crop_min": 0.08,
        "optim.epochs": 105,
        "optim.lr": 0.1,
        "optim.warmup_epochs": 5,
        "optim.weight_decay": 1e-4,
        **{f"augment.{name}": 0.4 for name in ("brightness", "contrast", "saturation")},
        "augment.hue": 0.2,
        "augment.gray": 0,
        "augment.flip": 0.5,
        "augment.blur": 0,
    }
    assert {key: values[key] for key in expected} == expected


@pytest.mark.parametrize("name", [*IMAGENET, *COVARIANT, "imagenet_clusterfit"])
def test_papers_and_tables_are_named(name):
    assert re.search(r"[Tt]able|appendix|section|official", inspect.getdoc(RECIPES[name]))
