import json
import re

import pytest
from pydantic import ValidationError

from pirl.config import Config, from_dict, from_json, leaves, override, settle_streams
from pirl.errors import ConfigError


def refuse(changes):
    with pytest.raises(ConfigError) as refusal:
        override(Config(), changes)
    return str(refusal.value)


def test_a_config_is_frozen():
    config = Config()
    with pytest.raises(ValidationError, match="frozen"):
        config.seed = 1
    with pytest.raises(ValidationError, match="frozen"):
        config.loss.num_negatives = 1


def test_graphs_of_cuda_are_of_compiled_networks_on_gpus():
    asked = {"optim.cuda_graphs": True, "optim.compile": True}
    for missing in ({"optim.compile": False, "cluster.gpus_per_worker": 1}, {"cluster.gpus_per_worker": 0}):
        assert "add --optim.compile true and --cluster.gpus-per-worker 1" in refuse(asked | missing)
    assert override(Config(), asked | {"cluster.gpus_per_worker": 1}).optim.cuda_graphs


def test_override_changes_what_it_names_and_leaves_the_original():
    config = Config()
    before = leaves(config)
    changed = override(config, {"loss.num_negatives": 4096, "seed": 7})
    assert leaves(config) == before
    assert leaves(changed) == before | {"loss.num_negatives": 4096, "seed": 7}


def test_override_does_not_share_storage_options_with_the_original():
    config = override(Config(), {"data.storage_options": {"client_kwargs": {"region_name": "a"}}})
    override(config, {"seed": 1}).data.storage_options["client_kwargs"]["region_name"] = "b"
    assert config.data.storage_options == {"client_kwargs": {"region_name": "a"}}


def test_hyphens_count_as_underscores():
    assert override(Config(), {"loss.num-negatives": 8}) == override(Config(), {"loss.num_negatives": 8})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("loss.num_negative", "loss.num_negatives"),  # a slip
        ("num-negatives", "loss.num_negatives"),  # the section is missing
        ("loss.lr", "optim.lr"),  # the wrong section
        ("data.batchsize", "data.batch_size"),
        ("Seed", "seed"),
        ("optim.learning_rate", "optim.lr"),  # as others call it
        ("tau", "loss.temperature"),
        ("loss.lambda", "loss.pretext_weight"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest_one(given, meant):
    assert refuse({given: 1}) == f"unknown setting {given!r}: did you mean {meant}?"


def test_an_unknown_name_that_resembles_none_is_refused_with_all_of_them():
    message = refuse({"zzz": 1})
    assert all(name in message for name in leaves(Config()))


@pytest.mark.parametrize("given", ["memory.size", "memory"])
def test_an_unknown_name_in_a_section_that_resembles_none_is_refused_with_those_of_the_section(given):
    names = "memory.keep, memory.init, memory.wire_dtype"
    assert refuse({given: 1}) == f"unknown setting {given!r}: valid names: {names}"


def test_a_section_is_not_a_setting():
    assert "unknown setting 'loss'" in refuse({"loss": {"num_negatives": 8}})


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        (
            {"loss": {"num_negative": 8}},
            "unknown setting 'loss.num_negative': did you mean loss.num_negatives?",
        ),
        ({"los": {}}, "unknown setting 'los': valid names: seed, data.uri, "),
        ({"sead": 1}, "unknown setting 'sead': did you mean seed?"),
    ],
)
def test_from_dict_refuses_unknown_names_as_override_does(tree, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        from_dict(tree)


@pytest.mark.parametrize(
    ("name", "lowest", "below"),
    [
        ("data.batch_size", 8, 0),
        ("data.image_size", 16, 15),
        ("data.window_groups", 1, 0),
        ("data.max_skipped", 0, -0.1),
        ("data.deadline_s", 0.1, 0),
        ("data.read_ahead_mb", 0.1, 0),
        ("data.cache_gb", 0, -1),
        ("augment.crop_min", 0.01, 0),
        ("augment.flip", 0, -0.1),
        ("model.width", 1, 0),
        ("pretext.crop_min", 0.01, 0),
        ("loss.num_negatives", 1, 0),
        ("loss.temperature", 0.001, 0),
        ("loss.pretext_weight", 0, -0.1),
        ("memory.keep", 0, -0.1),
        ("optim.epochs", 1, 0),
        ("optim.final_lr", 0, -1e-9),
        ("optim.momentum", 0, -0.1),
        ("optim.weight_decay", 0, -1e-4),
        ("optim.clip_norm", 0.001, 0),
        ("cluster.workers", 1, 0),
        ("cluster.gpus_per_worker", 0, -1),
        ("cluster.loader_processes", 0, -1),
        ("cluster.max_failures", 0, -1),
        ("checkpoint.every_steps", 1, 0),
        ("checkpoint.keep", 2, 1),
        ("seed", 0, -1),
    ],
)
def test_lower_ends_of_ranges(name, lowest, below):
    assert leaves(override(Config(), {name: lowest}))[name] == lowest
    message = refuse({name: below})
    assert message.startswith(f"{name} {below!r}: Input should be greater than"), message


@pytest.mark.parametrize(
    ("name", "highest", "above"),
    [
        ("augment.crop_min", 1, 1.01),
        ("data.max_skipped", 1, 1.01),
        ("augment.hue", 0.5, 0.51),
        ("augment.gray", 1, 1.01),
        ("loss.pretext_weight", 1, 1.01),
        ("memory.keep", 0.99, 1),
        ("optim.momentum", 0.99, 1),
        ("seed", 2**32 - 1, 2**32),
    ],
)
def test_upper_ends_of_ranges(name, highest, above):
    assert leaves(override(Config(), {name: highest}))[name] == highest
    message = refuse({name: above})
    assert message.startswith(f"{name} {above!r}: Input should be less than"), message


def test_a_choice_is_refused_with_the_choices():
    message = refuse({"pretext.name": "puzzle"})
    assert all(word in message for word in ("pretext.name", "puzzle", "jigsaw", "rotation", "both", "none"))


def test_not_a_number_is_no_number():
    assert "optim.lr" in refuse({"optim.lr": float("nan")})
    assert "optim.lr" in refuse({"optim.lr": "inf"})


def test_every_wrong_value_has_a_line():
    message = refuse({"loss.temperature": -1, "seed": -1})
    assert [line.split()[0] for line in message.splitlines()] == ["seed", "loss.temperature"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data.batch_size": 130, "data.streams": 4}, r"data\.batch_size 130 .* data\.streams 4 .* a multiple of 4"),
        # A stream of one image a step could be left without any in some step.
        ({"data.batch_size": 4, "data.streams": 4}, r"data\.batch_size 4 .* at least 2 images.* from 8 on"),
        (
            {"cluster.workers": 5, "data.streams": 4},
            r"cluster\.workers 5 .* 4 streams.* most 4, or --data\.streams 8",
        ),
        ({"cluster.workers": 65, "data.batch_size": 256}, r"64 streams .* use at most 64, or --data\.streams 128"),
        ({"cluster.workers": 65}, r"64 streams .* use at most 64, or a --data\.batch-size that is a multiple of 130"),
        ({"pretext.name": "none"}, r"pretext\.name none .* --loss\.pretext_weight 0"),
        ({"optim.final_lr": 0.1}, r"optim\.final_lr 0\.1 is above optim\.lr 0\.03"),
        ({"model.stem": "imagenet", "data.image_size": 57}, r"57 with model\.stem imagenet .* --optim\.bf16 false"),
        (
            {"model.stem": "imagenet", "data.image_size": 16, "pretext.name": "rotation"},
            r"maps of one pixel.* --optim\.bf16 false",
        ),
        ({"optim.warmup_epochs": 10}, r"optim\.warmup_epochs 10\.0 leaves nothing of optim\.epochs 10"),
    ],
)
def test_fields_that_do_not_fit_together_are_refused(changes, message):
    assert re.search(message, refuse(changes))


def test_fields_that_fit_together_at_the_edge_are_allowed():
    override(Config(), {"data.batch_size": 8, "cluster.workers": 4})
    override(Config(), {"optim.final_lr": 0.03, "optim.warmup_epochs": 9.9})


def test_fields_that_only_fit_together_are_changed_together():
    config = override(Config(), {"pretext.name": "none", "loss.pretext_weight": 0})
    assert override(config, {"loss.pretext_weight": 0.5, "pretext.name": "both"}).pretext.name == "both"


def test_npid_has_no_pretext_view():
    assert Config().has_pretext
    assert not override(Config(), {"loss.pretext_weight": 0}).has_pretext
    assert not override(Config(), {"loss.pretext_weight": 0, "pretext.name": "none"}).has_pretext
    assert override(Config(), {"loss.pretext_weight": 1}).has_pretext


def test_words_of_a_command_line_become_numbers_and_switches():
    config = override(
        Config(),
        {
            "loss.num-negatives": "4096",
            "optim.lr": "1e-2",
            "optim.bf16": "false",
            "cluster.gpus-per-worker": "1",
        },
    )
    assert (config.loss.num_negatives, config.optim.lr, config.optim.bf16) == (4096, 0.01, False)
    assert leaves(config) == leaves(
        override(
            Config(),
            {
                "loss.num_negatives": 4096,
                "optim.lr": 0.01,
                "optim.bf16": False,
                "cluster.gpus_per_worker": 1.0,
            },
        )
    )
    message = refuse({"loss.num_negatives": "many"})
    assert message.startswith("loss.num_negatives 'many': Input should be a valid integer")
    assert "1.5" in refuse({"loss.num_negatives": "1.5"})


def test_json_round_trip():
    config = override(
        Config(),
        {
            "data.storage_options": {"endpoint_url": "http://here:9000", "retries": 3},
            "optim.clip_norm": 0.1 + 0.2,  # a number without a short decimal form
            "checkpoint.every_steps": 5,
            "seed": 2**32 - 1,
        },
    )
    assert from_json(config.model_dump_json()) == config
    assert from_json(config.model_dump_json(indent=2)) == config
    assert from_dict(json.loads(config.model_dump_json())) == config


@pytest.mark.parametrize("text", ["", '{"seed": 1', "[1]", "null"])
def test_text_that_is_no_config_is_refused(text):
    with pytest.raises(ConfigError):
        from_json(text)


def test_leaves_name_every_setting_once():
    values = leaves(Config())
    tree = Config().model_dump()
    sections = {name: section for name, section in tree.items() if isinstance(section, dict)}
    expected = {f"{name}.{leaf}": value for name, section in sections.items() for leaf, value in section.items()}
    assert values == {"seed": 0} | expected
    assert override(Config(), values) == Config()


def test_options_that_are_none_are_not_repeated():
    assert "hunter2" not in refuse({"data.storage_options": "secret=hunter2"})


@pytest.mark.parametrize(
    "options",
    [
        {"key": "hidden", "secret": "hidden"},
        {"token": "hidden"},
        {"password": "hidden"},
        {"client_kwargs": {"aws_access_key_id": "hidden", "region_name": "x"}},
        {"connection_string": "hidden"},
        {"s3_additional_kwargs": {"SSECustomerKey": "hidden"}},
        {"endpoint_url": "https://user:hidden@here:9000"},
        {"client_kwargs": {"endpoint_url": "https://hidden@here"}},
    ],
)
def test_secrets_are_refused_by_name_and_not_repeated(options):
    message = refuse({"data.storage_options": options})
    assert "hidden" not in message
    assert (
        next(iter(options)) in message
        or "aws_access_key_id" in message
        or "SSECustomerKey" in message
        or ("endpoint_url" in message)
    )
    assert "AWS_ACCESS_KEY_ID" in message
    with pytest.raises(ValidationError) as refusal:
        Config.model_validate({"data": {"storage_options": options}})
    assert "hidden" not in str(refusal.value)


@pytest.mark.parametrize("url", ["s3://user:hidden@host/a", "simplecache::https://hidden@host/a", "az://a:hidden@b"])
def test_a_url_with_a_user_or_a_password_is_refused_and_not_repeated(url):
    message = refuse({"data.uri": url})
    assert message.startswith("data.uri has a user name or a password before @")
    assert "hidden" not in message


def test_an_empty_place_of_the_data_is_refused():
    assert refuse({"data.uri": ""}) == "data.uri is empty: name the folder or URL of a data set"


@pytest.mark.parametrize("url", ["s3://bucket/a@b", "abfs://container@account.dfs.core.windows.net/a", "/a:b@c/d"])
def test_other_names_with_an_at_are_no_secrets(url):
    assert override(Config(), {"data.uri": url}).data.uri == url


def test_endpoint_region_and_profile_are_no_secrets():
    options = {
        "endpoint_url": "http://127.0.0.1:9000",
        "profile": "team",
        "anon": False,
        "client_kwargs": {"region_name": "eu-west-1"},
        "config_kwargs": {"s3": {"addressing_style": "path"}},
    }
    assert override(Config(), {"data.storage_options": options}).data.storage_options == options


@pytest.mark.parametrize(
    ("batch", "streams", "window"),
    [
        *[(1, 1, 64), (8, 4, 16), (32, 16, 4), (48, 24, 2), (64, 32, 2), (127, 1, 64), (128, 64, 1), (130, 26, 2)],
        *[(256, 64, 1), (512, 128, 1), (1000, 250, 1), (1024, 256, 1)],
    ],
)
def test_an_epoch_is_dealt_by_the_batch_alone_so_that_many_workers_can_share_it(batch: int, streams: int, window: int):
    """And what is held in memory, streams times windows, is as much for few streams as for many."""
    config = override(Config(), {"data.batch_size": batch, "cluster.workers": 1})
    assert (config.streams, config.window_groups) == (streams, window)
    plain = [n for n in range(1, batch + 1) if batch % n == 0 and ((n <= 64 and 2 * n <= batch) or 4 * n <= batch)]
    assert config.streams == max([1, *plain])


def test_a_run_has_its_streams_as_numbers_and_one_that_has_begun_keeps_them():
    new = settle_streams(Config())
    assert (new.data.streams, new.data.window_groups) == (64, 1)
    begun = override(Config(), {"data.streams": 4, "data.window_groups": 16})
    assert settle_streams(Config(), begun) == begun
    typed = override(Config(), {"data.streams": 8})
    assert settle_streams(typed, begun).data.streams == 8, "which is then refused as another setting"
    with pytest.raises(ConfigError, match=r"cluster\.workers 8 is more than the 4 streams"):
        settle_streams(override(Config(), {"cluster.workers": 8}), begun)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pretext.permutations": 362_881}, "is more than the 362880 orders of nine patches"),
        ({"pretext.permutations": 0}, "pretext.permutations 0"),
        ({"pretext.permutations": 100, "pretext.name": "rotation"}, "pretext.name rotation cuts none"),
        ({"method.name": "covariant"}, "--pretext.permutations 100"),
        ({"method.name": "covariant", "pretext.permutations": 1}, "use 2 or more"),
        ({"method.name": "covariant", "pretext.name": "none"}, "nothing to learn from pretext.name none"),
        ({"data.label_noise": 0.1}, "add --method.name supervised"),
        ({"method.name": "supervised", "data.label_noise": 1.5}, "data.label_noise 1.5"),
        ({"method.name": "supervised", "loss.num_negatives": 5}, "loss.num_negatives means nothing to "),
        (
            {"method.name": "supervised", "memory.keep": 0.1, "pretext.name": "jigsaw"},
            "memory.keep, pretext.name means",
        ),
        ({"method.name": "covariant", "pretext.name": "rotation", "loss.pretext-weight": 0.5}, "loss.pretext-weight"),
        ({"method.name": "covariant", "pretext.name": "rotation", "augment.crop_min": 0.5}, "augment.crop_min means"),
        ({"method.name": "simclr"}, "'pirl', 'covariant', 'supervised', 'clusterfit' or 'distillation'"),
    ],
)
def test_methods_refuse_what_does_not_go_with_them(changes, message):
    assert message in refuse(changes)


def test_what_a_recipe_says_of_the_bank_is_no_matter_to_a_method_without_one():
    config = override(
        override(Config(), {"loss.num_negatives": 7, "loss.pretext_weight": 0}), {"method.name": "supervised"}
    )
    assert (config.has_bank, config.has_pretext, config.has_image_view) == (False, False, True)
    covariant = override(config, {"method.name": "covariant", "pretext.permutations": 100})
    assert (covariant.has_bank, covariant.has_pretext, covariant.has_image_view) == (False, True, False)
    assert from_json(covariant.model_dump_json()) == covariant


def test_targets_of_the_pretext_tasks():
    def targets(**pretext):
        config = override(Config(), {"method.name": "covariant", **{f"pretext.{k}": v for k, v in pretext.items()}})
        return config.second_view.targets(config.permutations or 0)

    assert targets(name="rotation") == 4
    assert targets(permutations=100) == 100
    assert targets(name="both", permutations=100) == 400


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method.name": "clusterfit"}, "needs data.pseudo_labels: python jobs/clusterfit.py RUN --clusters 50"),
        ({"method.name": "distillation"}, "needs method.teacher: python jobs/clusterfit.py RUN --distill"),
        ({"data.pseudo_labels": "a"}, "data.pseudo_labels a means nothing to method.name pirl"),
        ({"method.name": "supervised", "method.teacher": "a"}, "method.teacher a means nothing to method.name superv"),
        ({"method.name": "clusterfit", "data.pseudo_labels": "s3://u:p@b/c"}, "data.pseudo_labels"),
    ],
)
def test_targets_go_with_the_methods_that_learn_them(changes, message):
    with pytest.raises(ConfigError, match=message):
        override(Config(), changes)
