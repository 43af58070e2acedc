import json
import pickle
import re

import pytest

from pirl.config import Config, override, settle_streams
from pirl.errors import ConfigError, NameTakenError
from pirl.runs.checkpoint_folder import (
    VERSION,
    newest_checkpoint,
    prune_checkpoints,
    read_state,
    remove_checkpoint,
    upload,
)
from pirl.runs.run import differences, open_run, storage_at
from pirl.storage.folder import Folder
from pirl.storage.sealed import sealed

CONFIG = settle_streams(Config())


def write_checkpoint(folder, step, files=("rank 0", "rank 1")):
    """What `pirl.runs.checkpoint.save` leaves, as far as its completeness goes."""
    checkpoint = folder / f"checkpoint_{step:09d}"
    written = {f"__{rank}_0.distcp": text for rank, text in enumerate(files)} | {".metadata": "all"}
    for name, text in written.items():
        checkpoint.write(name, text)
    sizes = {name: len(text) for name, text in written.items()}
    checkpoint.write("state.json", sealed({"version": VERSION, "step": step, "bytes": sizes}))
    return checkpoint


@pytest.fixture(params=["disk", "store"])
def empty(request, tmp_path):
    """A folder for runs, on a disk and in an object store."""
    if request.param == "disk":
        return Folder(str(tmp_path / "runs"))
    store = request.getfixturevalue("store")
    return Folder(store.uri("runs"), store.options)


@pytest.fixture
def storage(empty):
    """A storage folder with the run `a`, which has two checkpoints."""
    open_run(empty, "a", CONFIG, "auto").write_config()
    write_checkpoint(empty / "a", 10)
    write_checkpoint(empty / "a", 9)
    return empty


def refuse(storage, name, resume, config=CONFIG):
    before = storage.sizes()
    with pytest.raises(ConfigError) as refusal:
        open_run(storage, name, config, resume)
    assert storage.sizes() == before
    return str(refusal.value)


@pytest.mark.parametrize("resume", ["auto", "never"])
def test_a_new_name_starts_a_run_and_writes_nothing_yet(empty, resume):
    run = open_run(empty, "a", CONFIG, resume)
    assert (run.folder, run.name, run.config) == (empty / "a", "a", CONFIG)
    assert run.checkpoint is None
    assert run.result is None
    assert empty.sizes() == {}


@pytest.mark.parametrize("resume", ["auto", "must"])
def test_a_known_name_goes_on_from_its_newest_checkpoint(storage, resume):
    run = open_run(storage, "a", CONFIG, resume)
    assert run.checkpoint == storage / "a" / "checkpoint_000000010"
    assert run.result is None


def test_a_run_that_has_no_checkpoint_yet_starts_again(empty):
    open_run(empty, "a", CONFIG, "auto").write_config()
    assert open_run(empty, "a", CONFIG, "auto").checkpoint is None


def test_never_refuses_a_known_name(storage):
    assert "choose another --run, or --resume auto" in refuse(storage, "a", "never")


def test_must_refuses_an_unknown_name_and_says_which_are_known(storage):
    message = refuse(storage, "b", "must")
    assert "no run 'b'" in message
    assert "Runs there: a" in message


def test_other_settings_are_refused_with_old_and_new_values_and_what_to_type(storage):
    config = override(CONFIG, {"optim.lr": 0.5, "loss.num_negatives": 8})
    message = refuse(storage, "a", "auto", config)
    assert "loss.num_negatives: 1024 -> 8" in message
    assert "optim.lr: 0.03 -> 0.5" in message
    assert "--run a-2" in message
    assert "--resume must" in message
    assert len(message.splitlines()) == 4  # no other setting is named


def test_must_goes_on_with_other_settings(storage):
    config = override(CONFIG, {"optim.lr": 0.5})
    run = open_run(storage, "a", config, "must")
    assert run.config == config
    assert run.checkpoint == storage / "a" / "checkpoint_000000010"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("data.uri", "elsewhere"),
        ("data.image_size", 64),
        ("model.arch", "resnet50"),
        ("pretext.name", "rotation"),
        ("seed", 1),
    ],
)
def test_must_refuses_settings_that_the_checkpoint_depends_on(storage, name, value):
    config = override(CONFIG, {name: value, "optim.lr": 0.5})
    for resume in ("must", "auto"):  # nor is it advised
        message = refuse(storage, "a", resume, config)
        assert f"{name}: " in message
        assert "--run a-2" in message
        assert "--resume must" not in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cluster.workers", 3),
        ("cluster.loader_processes", 0),
        ("data.storage_options", {"anon": True}),
        ("checkpoint.every_steps", 5),
        ("evaluation.knn_k", 5),
    ],
)
def test_auto_takes_new_settings_that_do_not_change_what_is_learned(storage, name, value):
    config = override(CONFIG, {name: value})
    run = open_run(storage, "a", config, "auto")
    assert run.config == config
    assert run.checkpoint == storage / "a" / "checkpoint_000000010"


@pytest.mark.parametrize("text", ["", '{"loss": 1', "\x00\x00", "[]"])
def test_a_result_that_was_cut_off_is_none_and_the_run_goes_on_from_its_last_step(storage, text):
    (storage / "a").write("result.json", text)
    run = open_run(storage, "a", CONFIG, "auto")
    assert (run.result, run.checkpoint) == (None, storage / "a" / "checkpoint_000000010")


@pytest.mark.parametrize("name", ["", "a b", "a/b", ".a", "-a", "..", "ä", "a\n", "a:b", "a*", "a" * 101])
def test_a_name_that_is_not_one_for_a_folder_everywhere_is_refused(tmp_path, name):
    assert "use at most 100 of A-Z a-z 0-9 _ - . +" in refuse(Folder(str(tmp_path)), name, "auto")


@pytest.mark.parametrize("name", ["a", "photos-2", "v1.5+blur", "a" * 100, "num_negatives-256_loss.kind-npid_seed-0"])
def test_names_may_be_as_those_of_trials_are(tmp_path, name):
    assert open_run(Folder(str(tmp_path)), name, CONFIG, "auto").name == name


def test_differences_name_the_settings_that_differ_alone():
    other = override(CONFIG, {"optim.epochs": 3, "cluster.workers": 4})
    assert differences(CONFIG, other) == ["optim.epochs: 10 -> 3"]
    assert differences(CONFIG, CONFIG) == []


def test_a_done_run_is_known_with_its_result(storage):
    (storage / "a").write("result.json", '{"loss": 1.5}')
    assert open_run(storage, "a", CONFIG, "auto").result == {"loss": 1.5}
    assert open_run(storage, "a", CONFIG, "must").result == {"loss": 1.5}
    # More epochs are something to do: the run is not done any more.
    assert open_run(storage, "a", override(CONFIG, {"optim.epochs": 20}), "must").result is None


def test_going_on_with_other_settings_replaces_the_old_ones_and_the_result(storage):
    (storage / "a").write("result.json", '{"loss": 1.5}')
    config = override(CONFIG, {"optim.epochs": 20})
    open_run(storage, "a", config, "must").write_config()
    assert (storage / "a").find("result.json") is None
    run = open_run(storage, "a", config, "auto")
    assert (run.config, run.result) == (config, None)
    assert run.checkpoint == storage / "a" / "checkpoint_000000010"


def test_a_half_uploaded_checkpoint_is_not_taken(storage):
    good = storage / "a" / "checkpoint_000000010"

    def cut(step):
        return write_checkpoint(storage / "a", step)

    cut(11).remove("__1_0.distcp")
    cut(12).write("__1_0.distcp", "rank")
    cut(13).remove(".metadata")
    cut(14).remove("state.json")
    cut(15).write("state.json", '{"step": 15, "by')
    cut(16).write("state.json", (storage / "a" / "checkpoint_000000010").read("state.json"))  # of another one
    assert newest_checkpoint(storage / "a") == good
    assert open_run(storage, "a", CONFIG, "auto").checkpoint == good
    assert newest_checkpoint(storage) is None
    assert newest_checkpoint(cut(17).parent) == storage / "a" / "checkpoint_000000017"


def test_checkpoints_are_ordered_by_step_and_not_by_age(storage):
    write_checkpoint(storage / "a", 1_000_000)
    write_checkpoint(storage / "a", 999_999)
    assert newest_checkpoint(storage / "a") == storage / "a" / "checkpoint_001000000"


def test_a_folder_that_is_no_run_is_refused(empty):
    assert open_run(empty, "photos", CONFIG, "auto").checkpoint is None
    (empty / "photos").write("cat.jpg", "")
    assert "is not a run" in refuse(empty, "photos", "auto")


@pytest.mark.parametrize("name", ["", ".", "..", "../a", "a/b", ".hidden"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    assert f"--run {name!r}" in refuse(Folder(str(tmp_path)), name, "auto")


def test_a_run_that_was_killed_while_it_wrote_its_config_starts(empty):
    (empty / "a").write("config.json.17.tmp", '{"seed"')
    assert open_run(empty, "a", CONFIG, "auto").checkpoint is None


def test_a_damaged_config_is_refused_with_its_place(storage):
    (storage / "a").write("config.json", '{"seed": ')
    message = refuse(storage, "a", "auto")
    assert str(storage / "a" / "config.json") in message
    assert "--run" in message


def test_pruning_keeps_the_newest_complete_checkpoints(storage):
    write_checkpoint(storage / "a", 11).write("__0_0.distcp", "ra")
    write_checkpoint(storage / "a", 8)
    prune_checkpoints(storage / "a", 2)
    assert checkpoints(storage / "a") == {"checkpoint_000000009", "checkpoint_000000010"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda state: re.sub(rb'"__0_0.distcp": 6', b'"__0_0.distcp": 7', state),
        lambda state: state.replace(b"distcp", b"d\xffstcp"),
        lambda state: b"[]",
        lambda state: b'"bytes"',
        lambda state: sealed({"step": 11, "bytes": [1]}),
        lambda state: sealed({"step": "11", "bytes": {}}),
        lambda state: sealed({"step": 11}),
    ],
)
def test_a_state_that_is_damaged_is_no_complete_checkpoint_and_no_traceback(tmp_path, damage):
    folder = Folder(str(tmp_path))
    checkpoint = write_checkpoint(folder, 11)
    assert newest_checkpoint(folder) == checkpoint
    checkpoint.write("state.json", damage(checkpoint.read_bytes("state.json")))
    assert newest_checkpoint(folder) is None


def test_a_state_that_changed_on_its_way_is_read_again(store):
    folder = Folder(store.uri("runs"), store.options)
    checkpoint = write_checkpoint(folder, 11)
    store.fail("flip", 3, pattern="state.json")
    prune_checkpoints(folder, 1)
    assert newest_checkpoint(folder) == checkpoint
    assert [entry["fault"] for entry in store.log()].count("flip") == 3


def test_a_checkpoint_of_an_older_version_is_there_and_not_removed(storage):
    old = write_checkpoint(storage / "a", 11)
    state = read_state(old) | {"version": 2}
    del state["crc32"]
    old.write("state.json", json.dumps(state))
    prune_checkpoints(storage / "a", 1)
    assert newest_checkpoint(storage / "a") == old


def test_pruning_looks_twice_at_what_is_newer_than_the_newest_complete_checkpoint(storage, monkeypatch):
    """One listing of a shared disk or a store may lack a file that was just written."""
    write_checkpoint(storage / "a", 11)
    whole = Folder.sizes
    looks = []

    def late(folder):
        looks.append(folder)
        sizes = whole(folder)
        if len(looks) == 1:
            del sizes["checkpoint_000000011/__1_0.distcp"]
        return sizes

    monkeypatch.setattr(Folder, "sizes", late)
    prune_checkpoints(storage / "a", 2)
    assert newest_checkpoint(storage / "a") == storage / "a" / "checkpoint_000000011"


def checkpoints(folder):
    """Names of the checkpoints of which anything is left."""
    return {name.partition("/")[0] for name in folder.sizes() if name.startswith("checkpoint_")}


def test_a_checkpoint_that_is_being_removed_is_none(storage, monkeypatch):
    """What says that it is complete goes first."""
    remove = Folder.remove
    monkeypatch.setattr(Folder, "remove", lambda folder, *names: remove(folder, names[0]))
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    remove_checkpoint(storage / "a" / "checkpoint_000000010")
    assert newest_checkpoint(storage / "a") == storage / "a" / "checkpoint_000000009"


def test_a_checkpoint_is_uploaded_by_each_rank_and_complete_with_the_last_file(storage, tmp_path):
    whole = write_checkpoint(Folder(str(tmp_path)), 11)
    parts = [tmp_path / "0" / whole.name, tmp_path / "1" / whole.name]
    for part in parts:
        part.mkdir(parents=True)
    for file in whole.path.iterdir():
        file.rename(parts[file.name == "__1_0.distcp"] / file.name)
    upload(parts[0], storage / "a")
    assert newest_checkpoint(storage / "a").name == "checkpoint_000000010"
    upload(parts[1], storage / "a")
    assert newest_checkpoint(storage / "a").name == "checkpoint_000000011"


@pytest.mark.parametrize(
    "changes",
    [
        {"data.batch_size": 256},  # a step would be another place in the epoch
        {"data.streams": 8},  # the rest of a half-done epoch would come in another order
        {"loss.pretext_weight": 0},  # the checkpoint has a head g, and the network would not
    ],
)
def test_must_does_not_change_what_the_checkpoint_depends_on(storage, changes):
    assert next(iter(changes)) in refuse(storage, "a", "must", override(CONFIG, changes))


def test_a_done_run_is_evaluated_again_with_other_settings(storage):
    (storage / "a").write("result.json", "{}")
    assert open_run(storage, "a", CONFIG, "auto").result == {}
    assert open_run(storage, "a", override(CONFIG, {"evaluation.knn_k": 7}), "auto").result is None


def test_the_store_of_runs_is_reached_as_that_of_the_data_is():
    options = {"endpoint_url": "http://127.0.0.1:1", "anon": True}
    config = override(CONFIG, {"data.uri": "s3://images/a", "data.storage_options": options, "data.deadline_s": 9})
    endpoint = {"endpoint_url": "http://127.0.0.1:1"}
    assert storage_at("s3://runs/b", config) == Folder("s3://runs/b", endpoint, 9)  # nobody writes without a name
    assert storage_at("gs://runs/b", config) == Folder("gs://runs/b", {}, 9)
    assert storage_at("/runs", config) == Folder("/runs", {}, 9)


def test_a_refused_name_is_told_by_a_process_to_another(storage):
    with pytest.raises(NameTakenError) as refusal:
        open_run(storage, "a", override(CONFIG, {"optim.lr": 0.5}), "auto")
    assert str(pickle.loads(pickle.dumps(refusal.value))) == str(refusal.value)
