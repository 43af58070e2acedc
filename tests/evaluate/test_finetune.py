"""Whole networks that are fine-tuned, to all labels and to some: against a plain loop, over ranks, after a kill."""

import re
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import nn

from pirl.data.order import OrderReader
from pirl.errors import ConfigError
from pirl.evaluate.protocols import finetune
from pirl.evaluate.protocols.finetune import Finetune, Semi
from pirl.evaluate.sgd import fitting
from pirl.evaluate.sgd.fitting import Schedule, fit, order_of
from pirl.evaluate.sgd.norms import with_global_norms
from pirl.evaluate.sgd.subset import labels_of, stratified, written
from pirl.loading.color import color_and_normalize
from pirl.loading.decode import decode
from pirl.loading.views import Views, sample_rng
from pirl.methods.models import Trunk, export_state_dict
from pirl.pretext import PRETEXTS
from pirl.storage.folder import Folder
from tests.conftest import GlooPool
from tests.evaluate.sgd.small import StoppingFolder, subject_of, trunk_of

SCHEDULE = Schedule(epochs=2, lr=0.05, batch=64, weight_decay=1e-4, drops=(0.5,))


def _net() -> nn.Sequential:
    torch.manual_seed(5)
    return nn.Sequential(Trunk("resnet18", 8, "small"), nn.Linear(64, 10)).double()


def _fitted() -> dict[str, Any]:
    subject = subject_of()
    nets = with_global_norms(nn.ModuleList([_net()])).train()
    fit(subject, "finetune", nets, lambda views: finetune.scores(nets, views.double()), subject.train, SCHEDULE)
    return {name.removeprefix("0."): value for name, value in nets.state_dict().items()}


def test_the_network_is_that_of_a_plain_loop_on_any_number_of_ranks(run_ranks: GlooPool) -> None:
    subject, net = subject_of(), _net().train()
    decayed = [p for p in net[0].parameters() if p.ndim > 1] + list(net[1].parameters())
    norms = [p for p in net[0].parameters() if p.ndim == 1]
    search = torch.optim.SGD(
        [{"params": decayed, "weight_decay": 1e-4}, {"params": norms}], lr=0.05, momentum=0.9, nesterov=True
    )
    order, make = order_of(subject, subject.train, 64, ""), Views(16, fitting.AUGMENT, PRETEXTS["none"], 1.0)
    groups = [subject.train.read_group(number) for number in range(2)]
    for step in range(4):
        ids = OrderReader(order).batch_ids(step).tolist()
        images = [decode(groups[id // 64].images[id % 64]) for id in ids]
        samples = [make(image, sample_rng(3, step // 2, id)) for image, id in zip(images, ids, strict=True)]
        colors = torch.stack([sample.image_color for sample in samples])
        views = color_and_normalize(torch.stack([sample.image for sample in samples]), colors).double()
        labels = torch.tensor([int(groups[id // 64].labels[id % 64]) for id in ids])
        for group in search.param_groups:
            group["lr"] = 0.05 / 4 * (1 if step < 2 else 0.1)
        search.zero_grad()
        F.cross_entropy(net(views), labels).backward()
        search.step()
    for found in [_fitted(), *run_ranks(2, _fitted)]:
        for name, value in net.state_dict().items():
            # In double precision: 20 batch norms and four steps make float32's rounding 10,000 times as large.
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)


def test_the_labels_are_stratified_drawn_by_the_seed_and_nested() -> None:
    labels = torch.tensor([0] * 100 + [1] * 30 + [2] * 2 + [-1] * 40)[torch.randperm(172)]
    counts = {share: Counter(labels[stratified(labels, share, 0)].tolist()) for share in (0.01, 0.1, 1)}
    assert counts == {0.01: {0: 1, 1: 1, 2: 1}, 0.1: {0: 10, 1: 3, 2: 1}, 1: {0: 100, 1: 30, 2: 2}}
    few, many = (stratified(labels, share, 0) for share in (0.1, 0.5))
    assert set(few) < set(many)
    assert few == sorted(few)
    assert few == stratified(labels, 0.1, 0) != stratified(labels, 0.1, 1)


def _subset() -> list[Any]:
    subject = subject_of()
    labels = labels_of(subject)
    with written(subject, [3, 64, 70, 127], "some") as subset:
        group = subset.read_group(0)
        folder = subset.folder.path
        found = [labels.tolist(), [bytes(image) for image in group.images], group.labels.tolist(), subset.labels]
    return [*found, subset.fingerprint, folder is not None and folder.exists()]


def test_the_subset_has_the_images_on_all_ranks_and_is_removed(run_ranks: GlooPool) -> None:
    train = subject_of().train
    groups = [train.read_group(number) for number in range(2)]
    expected = [bytes(groups[id // 64].images[id % 64]) for id in (3, 64, 70, 127)]
    alone = _subset()
    assert alone[0] == [*groups[0].labels.tolist(), *groups[1].labels.tolist()]
    assert alone[1:4] == [expected, [alone[0][id] for id in (3, 64, 70, 127)], train.labels]
    assert not alone[5]
    assert [found[:5] for found in run_ranks(2, _subset)] == [alone[:5]] * 2


def test_semi_measures_each_share_and_goes_on_after_a_kill(tmp_path: Path) -> None:
    settings = Semi(shares=(0.1, 0.5), epochs=2, lr=0.1, batch=32)
    alone = finetune.measure_semi(subject_of(), settings)
    names = [each.name for each in alone.measurements]
    assert names == [f"{share} % of the labels{top}" for share in (10, 50) for top in ("", ", top-5")]
    images = {share: done["images"] for share, done in alone.details["fits"].items()}
    assert images == {share: len(stratified(labels_of(subject_of()), float(share), 3)) for share in ("0.1", "0.5")}
    with pytest.raises(KeyboardInterrupt):  # in the first epoch of the second share
        finetune.measure_semi(subject_of(scratch=StoppingFolder(str(tmp_path))), settings)
    said: list[str] = []
    again = finetune.measure_semi(subject_of(scratch=Folder(str(tmp_path)), say=said.append), settings)
    assert "semi-0.1: goes on after epoch 2" in said
    assert (again.measurements, again.details) == (alone.measurements, alone.details)
    assert [path.name for path in tmp_path.iterdir()] == ["count"]


def test_finetune_learns_and_leaves_the_networks_as_they_are() -> None:
    subject = subject_of(limit=384, untrained=None)
    before = {name: value.clone() for name, value in subject.trunk.state_dict().items()}
    outcome = finetune.measure(subject, Finetune(epochs=10, lr=0.4, batch=32))
    top, five = outcome.measurements
    assert (top.name, five.name) == ("fine-tuned", "fine-tuned, top-5")
    assert top.value > 0.3  # chance is 0.1
    assert five.value > 0.75  # and 0.5
    assert top.random is None
    assert outcome.details["fit"] == {"images": 384, "epochs": 10, "steps": 120, "batch": 32, "lr": 0.4 / 8}
    assert all(torch.equal(value, before[name]) for name, value in subject.trunk.state_dict().items())


def test_a_run_with_frozen_norms_is_compared_in_the_same_kind_of_network() -> None:
    torch.manual_seed(0)
    frozen = Trunk("resnet18", 8, "small", norm="frozen")
    outcome = finetune.measure(subject_of(untrained=frozen), Finetune(epochs=1, batch=64))
    assert outcome.measurements[0].random is not None


@pytest.mark.parametrize("share", ["0", "1.5", "-0.1", "nan", "half"])
def test_shares_that_are_none_are_refused(share: str) -> None:
    from jobs.evaluate import parse

    with pytest.raises(ConfigError, match=r"--semi\.shares"):
        parse(["digits", "--protocol", "semi", "--semi.shares", "0.1", share])


def test_settings_are_typed_as_words() -> None:
    from jobs.evaluate import parse

    words = "digits --protocol semi linear_sgd --semi.shares 0.02 0.2 --linear_sgd.ten-crops true --linear_sgd.lr 0.1"
    request = parse([*words.split(), "--cluster.loader-processes", "2"])
    assert request.protocols["semi"].shares == (0.02, 0.2)
    assert request.protocols["linear_sgd"].ten_crops is True
    assert request.config.cluster.loader_processes == 2
    assert parse(["digits"]).config.cluster.loader_processes == 0


def test_a_fit_that_diverges_is_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is exit code 1, since work had begun."""
    from jobs import evaluate

    (tmp_path / "w.safetensors").write_bytes(safetensors.torch.save(export_state_dict(trunk_of(0))))
    words = "--no-random --data digits --image-size 16 --max-images 128 --protocol finetune --finetune.batch 32"
    out = tmp_path / "out"
    given = [str(tmp_path / "w.safetensors"), *words.split(), "--finetune.lr", "1e30", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *given])
    monkeypatch.setattr(evaluate.signal, "signal", lambda *_: None)  # this process keeps its own
    assert evaluate.main() == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.fullmatch(
        r"failed: finetune: weights are no numbers after epoch 1: use --finetune.lr below 1e\+30", error
    )
    assert not list(out.glob("*"))
