"""The heads of all layers against a plain loop for one of them, over ranks, and after a kill."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pirl.data.dataset import open_dataset
from pirl.data.order import OrderReader
from pirl.data.writer import ShardWriter
from pirl.errors import ConfigError, TrainingDiverged
from pirl.evaluate.protocols import linear, linear_sgd
from pirl.evaluate.protocols.linear_sgd import MEAN, LinearSGD, grid_of, heads_of
from pirl.evaluate.sgd import fitting
from pirl.evaluate.sgd.counting import both, right
from pirl.evaluate.sgd.fitting import Schedule, fit, for_images, order_of
from pirl.evaluate.sgd.norms import with_global_norms
from pirl.evaluate.subject import Subject
from pirl.loading.color import normalize
from pirl.loading.crops import ten_views
from pirl.loading.decode import decode
from pirl.loading.views import Views, sample_rng
from pirl.methods.models import TAPS
from pirl.pretext import PRETEXTS
from pirl.sections import Augment
from pirl.storage.folder import Folder
from tests.conftest import GlooPool
from tests.evaluate.sgd.small import CPU, IMAGES, StoppingFolder, subject_of, trunk_of

SCHEDULE = Schedule(epochs=4, lr=0.1, batch=48, weight_decay=5e-4, drops=(0.5, 0.9))
SETTINGS = LinearSGD(epochs=4, lr=0.1, batch=48)


@pytest.mark.parametrize(
    ("channels", "side", "grid"),
    [
        *[(64, 112, 12), (256, 56, 6), (512, 28, 4), (1024, 14, 3), (2048, 7, 2)],  # ResNet-50, as in the paper
        *[(64, 32, 12), (64, 8, 8), (9216, 7, 1), (9217, 7, 1), (20_000, 7, 1), (4, 16, 16), (1, 1, 1)],
    ],
)
def test_grids_are_the_paper_s_and_follow_the_width(channels: int, side: int, grid: int) -> None:
    assert grid_of(channels, side) == grid


def test_a_schedule_drops_and_follows_the_batch() -> None:
    schedule = Schedule(28, 0.01, 512, 0, linear_sgd.DROPS)
    lrs = [schedule.lr_at(epoch / 28) for epoch in range(28)]
    expected = [0.02] * 8 + [0.002] * 8 + [0.0002] * 8 + [0.00002] * 4
    assert lrs == pytest.approx(expected)
    assert [for_images(schedule, rows).batch for rows in (512, 511, 17, 8, 7)] == [512, 504, 16, 8, 7]


def _fitted(settings: Schedule = SCHEDULE) -> dict[str, Tensor]:
    """The heads of all layers of both networks."""
    subject = subject_of()
    trunks = [subject.trunk.eval(), subject.untrained.eval()]
    nets = nn.ModuleList(heads_of(trunk, 16, 10, subject.seed, CPU) for trunk in trunks)
    nets = with_global_norms(nets).train()
    fit(subject, "linear_sgd", nets, partial(linear_sgd.scores, trunks, nets), subject.train, settings)
    return {name: value.clone() for name, value in nets.state_dict().items()}


def _alone(name: str, subject: Subject) -> nn.Sequential:
    """One head of the trained network, by a loop that reads image by image."""
    trunk, random = subject.trunk.eval(), torch.Generator().manual_seed(subject.seed)
    one = trunk.taps(torch.zeros(1, 3, 16, 16))[linear_sgd.tap_of(name)]
    channels, side = one.shape[1:3]
    grid = 1 if name == MEAN else next(g for g in range(side, 0, -1) if channels * g * g <= 9216)
    norm, classifier = nn.BatchNorm2d(channels), nn.Linear(channels * grid * grid, 10)
    nn.init.normal_(classifier.weight, std=0.01, generator=random)
    nn.init.zeros_(classifier.bias)
    search = torch.optim.SGD(
        [{"params": classifier.parameters(), "weight_decay": 5e-4}, {"params": norm.parameters()}],
        lr=0.1,
        momentum=0.9,
        nesterov=True,
    )
    order = order_of(subject, subject.train, 48, "--linear_sgd.batch")
    make = Views(16, fitting.AUGMENT, PRETEXTS["none"], 1.0)
    groups = [subject.train.read_group(number) for number in range(2)]
    assert order.steps_per_epoch == 3
    for step in range(12):
        views, labels = [], []
        for id in OrderReader(order).batch_ids(step).tolist():
            group, row = divmod(id, 64)
            image = decode(groups[group].images[row])
            views.append(make(image, sample_rng(subject.seed, step // 3, id)).image)
            labels.append(int(groups[group].labels[row]))
        with torch.no_grad():
            maps = trunk.taps(normalize(torch.stack(views)))[linear_sgd.tap_of(name)]
        search.param_groups[0]["lr"] = search.param_groups[1]["lr"] = (
            0.1 * 48 / 256 * (1 if step < 6 else 0.1 if step < 10.8 else 0.01)
        )
        loss = F.cross_entropy(classifier(norm(F.adaptive_avg_pool2d(maps, grid)).flatten(1)), torch.tensor(labels))
        search.zero_grad()
        loss.backward()
        search.step()
    return nn.Sequential(nn.Identity(), norm, nn.Identity(), classifier)


@pytest.fixture(scope="module")
def fitted() -> dict[str, Tensor]:
    return _fitted()


@pytest.mark.parametrize("name", ["conv1", "res4", MEAN])
def test_a_head_is_that_of_a_plain_loop_for_its_layer_alone(name: str, fitted: dict[str, Tensor]) -> None:
    for key, value in _alone(name, subject_of()).state_dict().items():
        # float32: products of bmm for colours, and sums in another order, over 12 steps.
        torch.testing.assert_close(fitted[f"0.{name}.{key}"], value, rtol=1e-3, atol=1e-4)


def test_images_without_a_label_do_not_count(tmp_path: Path, fitted: dict[str, Tensor]) -> None:
    """The loss is the mean over those that have one: with a batch for all, it is as if the others were not there."""
    digits = open_dataset("digits")
    group = digits.read_group(0)
    with ShardWriter(Folder(str(tmp_path)), classes=digits.labels, seed=0, source="test") as writer:
        for row in range(64):
            writer.add(bytes(group.images[row]), int(group.labels[row]) if row % 2 else None)
    subject, half = subject_of(), open_dataset(str(tmp_path))

    def gradient(scores: Any) -> Tensor:
        net = nn.ModuleList([nn.Linear(3 * 16 * 16, 10, bias=False)])
        nn.init.zeros_(net[0].weight)
        fit(subject, "t", net, partial(scores, net), half, Schedule(1, 256 / 64, 64, 0, ()))
        return net[0].weight.detach()

    seen: list[Tensor] = []

    def scores(net: nn.ModuleList, views: Tensor) -> Tensor:
        seen.append(views)
        return net[0](views.flatten(1))[None]

    moved = gradient(scores)
    ids = OrderReader(order_of(subject, half, 64, "")).batch_ids(0)
    kept = torch.tensor([bool(id % 2) for id in ids.tolist()])
    labels = torch.tensor([int(group.labels[id]) for id in ids.tolist()])[kept]
    # From zero weights all probabilities are a tenth; the first step of Nesterov is 1.9 gradients.
    wrong = (torch.full((32, 10), 0.1) - F.one_hot(labels, 10)) / 32
    torch.testing.assert_close(moved, -1.9 * wrong.T @ seen[0].flatten(1)[kept], rtol=1e-4, atol=1e-5)


def test_two_ranks_fit_what_one_does(run_ranks: GlooPool, fitted: dict[str, Tensor]) -> None:
    for found in run_ranks(2, _fitted):
        for name, value in fitted.items():
            # float32: sums over the batch in two parts.
            torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-4)


def _measured(scratch: Folder | None = None) -> list[Any]:
    said: list[str] = []
    outcome = linear_sgd.measure(subject_of(scratch=scratch, say=said.append), SETTINGS)
    return [outcome.measurements, outcome.details, said]


def test_after_a_kill_the_same_request_goes_on_with_the_same_result(tmp_path: Path) -> None:
    measurements, details, said = _measured()
    with pytest.raises(KeyboardInterrupt):
        _measured(StoppingFolder(str(tmp_path)))
    (state,) = tmp_path.glob("*.pt")
    kept = state.read_bytes()
    assert "linear_sgd: 4 epochs of 128 images, 12 steps of up to 48" in said
    again = _measured(Folder(str(tmp_path)))
    assert "linear_sgd: goes on after epoch 2" in again[2]
    assert again[:2] == [measurements, details]
    assert not list(tmp_path.glob("*.pt"))

    for content, told in ((kept[:1000], "cannot be read"), (kept, "another request")):
        state.write_bytes(content)
        subject, said = subject_of(scratch=Folder(str(tmp_path)), seed=4), []
        subject.say = said.append
        linear_sgd.measure(subject, SETTINGS)
        assert any("begins anew" in line and told in line for line in said)


def test_it_reports_each_layer_and_names_the_best() -> None:
    subject = subject_of()
    subject.trunk.train()
    outcome = linear_sgd.measure(subject, SETTINGS)
    names = [*TAPS, MEAN]
    assert [each.name for each in outcome.measurements] == names + [f"{name}, top-5" for name in names]
    tops = {each.name: each.value for each in outcome.measurements}
    assert outcome.details["best"] == max(names, key=lambda name: tops[name])
    assert outcome.details["fit"] == {"images": IMAGES, "epochs": 4, "steps": 12, "batch": 48, "lr": 0.1 * 48 / 256}
    assert all(each.random is not None and each.interval for each in outcome.measurements)
    assert all(tops[f"{name}, top-5"] >= tops[name] for name in names)
    assert subject.trunk.training
    assert all(parameter.grad is None for parameter in subject.trunk.parameters())


def test_top_five_is_left_out_where_there_are_no_more_classes() -> None:
    found = torch.zeros(2, 4, 10)
    found[0, 1] = 1  # the trained network's second layer
    found[0, 2, :5] = 1  # the random network's first one
    found[1] = 1
    five, six = (both(["a", "b"], found, classes, 0) for classes in (5, 6))
    assert [(each.name, each.value, each.random) for each in five] == [("a", 0, 0.5), ("b", 1, 0)]
    assert [(each.name, each.value) for each in six[2:]] == [("a, top-5", 1), ("b, top-5", 1)]


def test_ten_crops_decide_by_their_mean_probability() -> None:
    """Against a loop over images and crops; the classifier has random weights, so that crops disagree."""
    subject = subject_of()
    assert subject.test is not None
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
    found = right(subject, "t", lambda views: net(views)[None], 1, ten_crops=True)
    for number in range(2):
        group = subject.test.read_group(number)
        for row in range(64):
            with torch.no_grad():
                each = net(normalize(ten_views(decode(group.images[row]), 16))).softmax(1)
            best = each.mean(0).argsort(descending=True).tolist()
            label = int(group.labels[row])
            assert found[:, 0, 64 * number + row].tolist() == [best[0] == label, label in best[:5]]
    assert 0 < float(found[0].mean()) < 0.5 < float(found[1].mean()) + 0.3 < 1.2


def test_without_random_changes_it_comes_close_to_the_exact_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "AUGMENT", Augment(**dict(fitting.AUGMENT.model_dump(), crop_min=1, flip=0)))
    subject = subject_of(trunk=trunk_of(0, 4), untrained=None, limit=512)
    fitted = linear_sgd.measure(subject, LinearSGD(epochs=12, lr=0.1, batch=64)).measurements[0]
    exact = linear.measure(subject, linear.Linear(taps=("conv1",))).measurements[0]
    # Other pixels (the whole image, and not its centre), pooling and penalty; chance is 10 %.
    assert fitted.value == pytest.approx(exact.value, abs=0.06)
    assert fitted.value > 0.85


def test_a_loss_that_is_no_number_ends_it_with_what_to_type() -> None:
    with pytest.raises(TrainingDiverged, match=r"after epoch 1: use --linear_sgd.lr below 1e\+30"):
        linear_sgd.measure(subject_of(untrained=None), LinearSGD(epochs=2, lr=1e30, batch=32))


def test_images_of_one_class_are_refused(tmp_path: Path) -> None:
    with ShardWriter(Folder(str(tmp_path)), classes=["cat", "dog"], seed=0, source="test") as writer:
        writer.add(b"", 1)
    with pytest.raises(ConfigError, match="images of one class, dog"):
        linear_sgd.refuse(SETTINGS, open_dataset(str(tmp_path)), None)


def test_a_step_of_one_image_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"--linear_sgd.batch 1 leaves a step a single one of 128 images"):
        linear_sgd.measure(subject_of(), LinearSGD(batch=1))


def test_it_says_that_it_takes_only_some_images() -> None:
    *_, said = _measured()
    assert any(line.startswith("linear_sgd: the first 128 of the 1,438 images of ") for line in said)


def _with_a_small_batch() -> None:
    subject = subject_of()
    order_of(subject, subject.train, 7, "--linear_sgd.batch")


def test_more_ranks_than_can_share_a_batch_are_refused(run_ranks: GlooPool) -> None:
    with pytest.raises(AssertionError, match="2 workers are more than the 1 that can share a batch of 7 images"):
        run_ranks(2, _with_a_small_batch)
