"""Features on a node's disk: two commands at once, what a kill leaves, and what is not ours."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from pirl.data.dataset import open_dataset
from pirl.evaluate import store as module
from pirl.evaluate.features import Features, extract
from pirl.evaluate.store import FeatureStore
from pirl.methods.models import Trunk
from tests.evaluate.pictures import CPU


def trunk(seed: int) -> Trunk:
    torch.manual_seed(seed)
    return Trunk("resnet18", 2, "small")


def features(store: FeatureStore, seed: int = 0) -> Features:
    return store.features([trunk(seed)], open_dataset("digits"), 16, CPU, 512)[0]


def same(a: Features, b: Features) -> bool:
    return torch.equal(a.labels, b.labels) and all(torch.equal(a.taps[name], rows) for name, rows in b.taps.items())


def test_two_commands_that_make_the_same_features_do_not_mix_them(tmp_path: Path, monkeypatch: Any) -> None:
    """512 images come in two rounds: another command begins and ends between them."""
    store, whole = FeatureStore(tmp_path), extract(trunk(0), open_dataset("digits"), 16, CPU, 512)
    rounds, pid, between = module.extract_rounds, os.getpid(), []

    def interrupted(*args: Any, **more: Any) -> Iterator[Features]:
        for number, part in enumerate(rounds(*args, **more)):
            if number == 1 and not between:
                between.append(True)
                monkeypatch.setattr("os.getpid", lambda: pid + 1)
                assert same(features(store), whole)
                monkeypatch.setattr("os.getpid", lambda: pid)
            yield part

    monkeypatch.setattr(module, "extract_rounds", interrupted)
    assert same(features(store), whole)
    assert between
    assert same(features(store), whole)
    (folder,) = tmp_path.iterdir()
    assert module.OURS.fullmatch(folder.name)


def test_what_a_killed_command_left_goes_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    key, host = "0" * 32, os.uname().nodename
    for name in ("photos", f"{key}.{host}.{ended.pid}.tmp", f"{key}.{host}.{os.getppid()}.tmp", f"{key}.other.1.tmp"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_bytes(b"x" * 100)
    store = FeatureStore(tmp_path, limit_bytes=1)
    features(store, 0)
    features(store, 1)  # for which the ones before have to go
    names = {path.name for path in tmp_path.iterdir()}
    assert {"photos", f"{key}.{host}.{os.getppid()}.tmp", f"{key}.other.1.tmp"} < names
    assert len(names) == 4
