"""The orders of a run's patches: written when it begins, read when it goes on, and refused when they are others."""

import numpy as np
import pytest
import torch

from jobs.run.checks import check_request
from jobs.run.worker import permutations_of, work
from pirl.config import Config, override
from pirl.errors import ConfigError
from pirl.permutations import permutation_set
from pirl.runs.checkpoint_folder import newest_checkpoint
from pirl.runs.run import Run
from pirl.runs.stored_permutations import read_permutations, write_permutations
from pirl.storage.folder import Folder
from tests.test_train import small

CONFIG = override(Config(), {"pretext.permutations": 30, "seed": 4})


@pytest.fixture
def folder(tmp_path):
    return Folder(str(tmp_path))


def test_what_a_run_begins_with_is_what_it_goes_on_with(folder):
    begun = permutations_of(folder, CONFIG, begins=True)
    assert np.array_equal(begun, permutation_set(4, 30))
    stored = begun[::-1]  # as if another version had made them
    write_permutations(folder, CONFIG, stored)
    again = permutations_of(folder, CONFIG, begins=False)
    assert again.dtype == np.uint8
    assert np.array_equal(again, stored)


@pytest.mark.parametrize("changes", [{}, {"pretext.name": "rotation"}, {"method.name": "supervised"}])
def test_a_run_that_has_no_set_writes_none(folder, changes, tmp_path):
    config = override(Config(), changes)
    assert permutations_of(folder, config, begins=True) is None
    assert permutations_of(folder, config, begins=False) is None
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_gone_damaged_or_of_another_run_is_refused(folder, tmp_path):
    with pytest.raises(ConfigError, match=r"permutations\.json is gone: put it back, or choose another --run"):
        read_permutations(folder, CONFIG)
    write_permutations(folder, CONFIG, permutation_set(4, 30))
    for changes in ({"seed": 5}, {"pretext.permutations": 31}):
        with pytest.raises(ConfigError, match="has 30 orders of seed 4, and the run"):
            read_permutations(folder, override(CONFIG, changes))
    file = tmp_path / "permutations.json"
    file.write_text(file.read_text().replace("1", "2", 1))
    with pytest.raises(ConfigError, match="is damaged"):
        read_permutations(folder, CONFIG)


def test_a_run_writes_them_and_goes_on_with_them_alone(folder, tmp_path):
    """A run whose orders are gone is refused before anything starts."""
    config = override(small(), {"pretext.permutations": 5, "optim.epochs": 1, "evaluation.enabled": False})
    run, scratch = folder / "run", tmp_path / "scratch"
    scratch.mkdir()

    def trained(config):
        work(config, run, scratch, lambda metrics, checkpoint, send: send(checkpoint), torch.device("cpu"), show=None)
        return Run(run, config, newest_checkpoint(run))

    begun = trained(config)
    assert np.array_equal(read_permutations(run, config), permutation_set(0, 5))
    check_request(begun, use_ray=False)
    longer = trained(override(config, {"optim.epochs": 2}))
    assert longer.checkpoint.name == "checkpoint_000000024"
    (tmp_path / "run" / "permutations.json").unlink()
    with pytest.raises(ConfigError, match="is gone"):
        check_request(longer, use_ray=False)
