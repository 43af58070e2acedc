"""What `health` says of res5, f and the bank, against plain computations; and its verdicts."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from pirl.data.dataset import open_dataset
from pirl.errors import ConfigError
from pirl.evaluate.evaluate import PROTOCOLS
from pirl.evaluate.measurement import Measurement, Outcome
from pirl.evaluate.pairs import Pairs, by_trunk, views_of
from pirl.evaluate.protocols import health
from pirl.evaluate.protocols.health import Health, alignment, measure, refuse, verdict_on
from pirl.evaluate.subject import Subject
from pirl.methods.spread import spread_of
from pirl.runs import checkpoint
from pirl.runs.checkpoint import load_bank
from pirl.storage.folder import Folder
from pirl.train import first_state
from tests.conftest import GlooPool
from tests.digits import write_digits_to
from tests.evaluate.pictures import CPU, config_of, subject_of

IMAGES = 40


def by_name(outcome: Outcome) -> dict[str, Measurement]:
    return {each.name: each for each in outcome.measurements}


def rank(rows: np.ndarray) -> float:
    singular = np.linalg.svd(rows.astype(np.float64), compute_uv=False)
    shares = singular / singular.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def test_alignment_equals_a_loop() -> None:
    rows = F.normalize(torch.randn(2, 30, 6, generator=torch.Generator().manual_seed(0)), dim=2).double()
    distances = [float((x - y).norm()) ** 2 for x, y in zip(*rows, strict=True)]
    assert alignment(rows) == pytest.approx(sum(distances) / len(distances), rel=1e-12)


def test_all_that_a_run_has_is_measured(tmp_path: Path) -> None:
    config = config_of({"model.norm": "batch"})
    subject = subject_of(tmp_path / "checkpoint_000000007", config)
    outcome = measure(subject, Health(images=IMAGES))
    found = by_name(outcome)
    for trained, value in ((True, "value"), (False, "random")):
        features = subject.features("train", trained=trained).taps["res5"].numpy()
        # Squares of singular values in float64 of float32 features.
        assert getattr(found["res5, effective rank"], value) == pytest.approx(rank(features), rel=1e-5)
    bank = first_state(config.model_copy(update={"seed": 5}), subject.train, CPU).bank.local
    assert found["bank, effective rank"].value == pytest.approx(rank(bank.numpy()), rel=1e-5)
    assert found["bank, effective rank"].random is None
    # Random unit rows are 90 degrees, √2, from any embedding; 40 pairs of them by 2·2/√128, over √40.
    assert found["bank, alignment"].value == pytest.approx(2, abs=0.2)
    views = views_of(config, 16, pretext=False)
    rows = Pairs(subject.train, views, CPU, 0).rows(IMAGES, 1, by_trunk(subject.trunk))
    expected = (rows[0] - rows[1]).square().sum(1).mean()
    assert found["res5, alignment"].value == pytest.approx(float(expected), rel=1e-9)
    assert 0 < found["f, alignment"].value < 2
    assert found["f, norm"].value == pytest.approx(1, abs=1e-6)
    assert outcome.details["verdict"] == "healthy"


def test_alignment_of_the_bank_is_zero_where_its_rows_are_the_embeddings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bank holds f of fresh views; and none is compared where it is of other images."""
    config = config_of()
    subject = subject_of(tmp_path / "checkpoint_000000007", config)
    pairs = Pairs(subject.train, views_of(config, 16, pretext=False), CPU, 0)
    network = health.network_of(subject, trained=True)
    rows = pairs.rows(IMAGES, 1, health.by_heads(network, g=False))[1].float()
    state = first_state(config, subject.train, CPU)
    state.network.load_state_dict(network.state_dict())
    state.bank.fill(torch.arange(IMAGES), rows)
    folder = tmp_path / "checkpoint_000000008"
    checkpoint.save(folder, config, state, 8, subject.train.fingerprint)
    subject.checkpoint = Folder(str(folder))
    found = by_name(measure(subject, Health(images=IMAGES)))
    assert found["bank, alignment"].value == pytest.approx(0, abs=1e-10)
    subject.train = open_dataset(write_digits_to(str(tmp_path / "others"), {}))
    assert "bank, alignment" not in by_name(measure(subject, Health(images=IMAGES)))


def test_weights_alone_are_judged_by_res5() -> None:
    """Without labels, a test split and a random network."""
    subject = subject_of(None, config_of(), test=False, random=False)
    outcome = measure(subject, Health(images=IMAGES))
    assert {each.name.partition(",")[0] for each in outcome.measurements} == {"res5"}
    assert all(each.random is None for each in outcome.measurements)
    assert outcome.details["threshold"] == health.MOST_IN_FIRST
    assert outcome.details["verdict"] == "healthy"
    assert not PROTOCOLS["health"].labels


def test_f_that_maps_all_to_one_point_has_collapsed(tmp_path: Path) -> None:
    config = config_of()
    said: list[str] = []
    subject = subject_of(None, config, say=said.append)
    state = first_state(config, subject.train, CPU)
    with torch.no_grad():
        state.network.f.embed.weight.mul_(1e-3)  # the bias is what is left
    folder = tmp_path / "checkpoint_000000008"
    checkpoint.save(folder, config, state, 8, subject.train.fingerprint)
    subject.checkpoint, subject.config = Folder(str(folder)), config
    outcome = measure(subject, Health(images=IMAGES))
    assert outcome.details["verdict"] == "collapsed"
    assert by_name(outcome)["f, length of the mean"].value > 0.999
    assert said[-1].startswith("collapsed: f has an effective rank of 1.")


def test_res5_along_one_direction_has_collapsed() -> None:
    random = torch.Generator().manual_seed(0)
    line = torch.randn(100, 1, generator=random) * torch.ones(8) + 0.1 * torch.randn(100, 8, generator=random)
    assert verdict_on({"res5": [spread_of(line)]}, 0, 100)["verdict"] == "collapsed"
    assert verdict_on({"res5": [spread_of(torch.ones(100, 8))]}, 0, 100)["verdict"] == "collapsed"
    cloud = torch.randn(100, 8, generator=random)
    assert verdict_on({"res5": [spread_of(cloud)]}, 0, 100)["verdict"] == "healthy"
    # Of few images f tells nothing, and res5 of all is asked.
    few = {"res5": [spread_of(cloud)], "f": [spread_of(torch.ones(5, 8))]}
    assert verdict_on(few, 5, 100)["verdict"] == "healthy"
    assert verdict_on(few, 50, 100)["verdict"] == "collapsed"
    # Two rows always lie on one line.
    assert verdict_on({"res5": [spread_of(cloud[:2])]}, 0, 2)["verdict"] == "unknown"


def _subject(folder: Path) -> Subject:
    subject = subject_of(None, config_of({"model.norm": "batch"}), random=False)
    subject.config, subject.checkpoint = config_of({"model.norm": "batch"}), Folder(str(folder))
    return subject


def _measurements(folder: Path) -> list[Measurement]:
    return measure(_subject(folder), Health(images=150)).measurements


def test_the_same_on_all_ranks(run_ranks: GlooPool, tmp_path: Path) -> None:
    """Also the bank, whose rows other ranks have written."""
    folder = tmp_path / "checkpoint_000000007"
    subject_of(folder, config_of({"model.norm": "batch"}))
    alone = _measurements(folder)
    for found in run_ranks(3, _measurements, folder):
        for one, other in zip(found, alone, strict=True):
            assert one.name == other.name
            assert one.value == pytest.approx(other.value, rel=1e-9)  # the bank's sums, in float64


def test_a_checkpoint_of_another_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = subject_of(tmp_path / "checkpoint_000000007", config_of())
    monkeypatch.setattr(checkpoint, "VERSION", 99)
    with pytest.raises(ConfigError, match="version 3; this is version 99"):
        measure(subject, Health(images=IMAGES))


def test_one_image_is_refused() -> None:
    subject = subject_of(None, config_of())
    with pytest.raises(ConfigError, match=r"--health\.images 2 or more"):
        refuse(Health(images=1), subject.train, None)
    refuse(Health(images=2), subject.train, None)


def test_features_that_are_no_numbers_are_refused() -> None:
    subject = subject_of(None, config_of())
    with torch.no_grad():
        subject.trunk.layer1[0].bn1.running_var.fill_(-1)
    for protocol in ("health", "knn", "linear", "few", "retrieval"):
        with pytest.raises(ConfigError, match="no numbers"):
            PROTOCOLS[protocol].measure(subject, PROTOCOLS[protocol].settings())


def test_the_bank_of_a_checkpoint_is_read(tmp_path: Path) -> None:
    config = config_of()
    subject_of(tmp_path / "checkpoint_000000007", config)
    bank = first_state(config, open_dataset("digits"), CPU).bank
    other = first_state(config.model_copy(update={"seed": 5}), open_dataset("digits"), CPU).bank
    assert not torch.equal(bank.local, other.local)
    load_bank(Folder(str(tmp_path / "checkpoint_000000007")), bank)
    assert torch.equal(bank.local, other.local)
