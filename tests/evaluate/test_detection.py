"""A detector on a tiny set with bright shapes, and the precision of boxes against plain loops of COCO's rules."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pirl.errors import ConfigError, CorruptImage, TrainingDiverged
from pirl.evaluate.evaluate import PROTOCOLS
from pirl.evaluate.protocols import detection
from pirl.evaluate.subject import Subject
from pirl.evaluate.voc.box_precision import MOST, BoxPrecision, box_precision
from pirl.evaluate.voc.box_training import BoxSchedule, Kept, pixels, train_boxes
from pirl.evaluate.voc.detector import detector
from pirl.evaluate.voc.voc_folder import VocObject, VocSplit, open_voc
from pirl.loading.color import normalize
from pirl.methods.models import Trunk
from pirl.storage.folder import Folder
from tests.conftest import GlooPool
from tests.evaluate.voc_folder import CLASSES, write_year

CPU = torch.device("cpu")
TINY = detection.Detection(iterations=3, images_per_step=2, short_side=(32, 64), regions=16, checkpoint_every=2)


@pytest.fixture(scope="module")
def year(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("voc") / "VOC2007"
    write_year(folder, {"trainval": 60, "test": 30}, seed=0)
    return folder


def _split(year: Path) -> VocSplit:
    return open_voc(Folder(str(year)))


def _trunk(split: VocSplit) -> Trunk:
    """Random weights, with the statistics of the images: those of a fresh trunk would stand still as 0 and 1."""
    torch.manual_seed(0)
    trunk = Trunk("resnet18", 4)
    views = torch.stack([normalize(255 * pixels(split, id)) for id in range(30)])
    with torch.no_grad():
        for _ in range(30):
            trunk(views)
    return trunk


def _subject(year: Path, *, out: Path | None = None, say: Any = None) -> Subject:
    split = _split(year)
    torch.manual_seed(1)
    subject = Subject(
        _trunk(split), Trunk("resnet18", 4), split, split.held_out(), 64, CPU, say=say or (lambda _: None)
    )
    subject.scratch = Folder(str(out)) if out else None
    return subject


def test_bright_shapes_are_found(year: Path) -> None:
    subject = _subject(year)
    before = {name: value.clone() for name, value in subject.trunk.state_dict().items()}
    settings = detection.Detection(iterations=120, images_per_step=2, lr=0.16, short_side=(64,), regions=64)
    outcome = detection.measure(subject, settings)
    losses = [loss for _, loss in outcome.details["losses"]]
    assert np.mean(losses[-20:]) < 0.6 * np.mean(losses[:20])
    ap, ap50, ap75 = outcome.measurements
    assert [each.name for each in outcome.measurements] == ["AP", "AP50", "AP75"]
    assert ap50.value > 0.1  # 0.27 on one machine, and 0 to 0.01 after ten steps
    assert 0 < ap.value < ap50.value
    assert ap75.value <= ap50.value
    assert ap.random is None
    assert list(outcome.details["ap_of_classes"]) == list(CLASSES)
    assert np.mean(list(outcome.details["ap_of_classes"].values())) == pytest.approx(ap.value)
    assert all(torch.equal(value, before[name]) for name, value in subject.trunk.state_dict().items())


def test_the_random_network_is_fine_tuned_where_it_is_asked_for(year: Path) -> None:
    settings = TINY.model_copy(update={"random": True, "iterations": 1})
    assert all(each.random is not None for each in detection.measure(_subject(year), settings).measurements)
    without = _subject(year)
    without.untrained = None
    assert all(each.random is None for each in detection.measure(without, settings).measurements)


def _state(subject: Subject, settings: detection.Detection, kept: Kept) -> tuple[dict[str, Tensor], Any]:
    split = subject.train
    assert isinstance(split, VocSplit)
    torch.manual_seed(0)
    network = detector(subject.trunk, 2, settings.short_side, settings.regions)
    schedule = BoxSchedule(settings.iterations, settings.images_per_step, 0.01, 1, 3)
    losses = train_boxes(network, split, split.objects(), schedule, 0, CPU, kept, subject.say)
    return network.state_dict(), losses


def _nowhere() -> Kept:
    return Kept(None, "detector.pt", "a", 2)


def test_a_training_that_was_killed_goes_on(year: Path, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    said: list[str] = []
    subject = _subject(year, say=said.append)
    five = TINY.model_copy(update={"iterations": 5})
    whole, losses = _state(subject, five, _nowhere())
    kept = Kept(Folder(str(tmp_path)), "detector.pt", "a", 2)

    class DyingFolder:
        """The store in front of the same disk, which dies at the third write."""

        left = 2

        def read_bytes(self, name: str) -> bytes:
            return kept.folder.read_bytes(name)

        def write(self, name: str, content: bytes) -> None:
            self.left -= 1
            if self.left < 0:
                raise KilledError
            kept.folder.write(name, content)

    with pytest.raises(KilledError):
        _state(subject, five, replace(kept, folder=DyingFolder()))
    again, losses_again = _state(subject, five, kept)
    assert "the detector goes on after step 4" in said
    # All draws are functions of the step: the same numbers, without a tolerance.
    assert losses_again == losses
    assert all(torch.equal(value, whole[name]) for name, value in again.items())
    # What is done is not done again, and what is of something else is not gone on with.
    said.clear()
    assert _state(subject, five, kept)[1] == losses
    assert said == ["the detector goes on after step 5"]
    other, _ = _state(subject, five, replace(kept, key="b"))
    assert "is of other settings, weights or images, so the detector begins anew" in said[-1]
    assert all(torch.equal(value, whole[name]) for name, value in other.items())
    (tmp_path / "detector.pt").write_bytes(b"damaged")
    _state(subject, TINY, kept)
    assert "cannot be read" in said[-1]


def test_the_same_command_goes_on_and_leaves_nothing(year: Path, tmp_path: Path) -> None:
    said: list[str] = []
    plain = detection.measure(_subject(year), TINY)
    subject = _subject(year, out=tmp_path, say=said.append)
    (subject.test.folder / "JPEGImages").path.joinpath(f"{subject.test.images[0][1]}.jpg").rename(tmp_path / "gone")
    with pytest.raises(FileNotFoundError):
        detection.measure(subject, TINY)
    (tmp_path / "gone").rename((subject.test.folder / "JPEGImages").path / f"{subject.test.images[0][1]}.jpg")
    assert [file.name for file in tmp_path.iterdir()] == ["detector-trained.pt"]
    again = detection.measure(subject, TINY)
    assert "the detector goes on after step 3" in said
    assert again.measurements == plain.measurements
    assert list(tmp_path.iterdir()) == []


def _on_ranks(year: Path) -> list[Any]:
    subject = _subject(year)
    found = [_state(subject, TINY.model_copy(update={"images_per_step": n}), _nowhere()) for n in (3, 1)]
    return [*found, detection.measure(subject, TINY).measurements]


def test_ranks_share_the_images_of_a_step(run_ranks: GlooPool, year: Path) -> None:
    """Two images and one; then one, and a rank that has none."""
    *alone, _ = _on_ranks(year)
    first, second = run_ranks(2, _on_ranks, year, limit_s=150)  # each imports torchvision's detectors
    assert first[-1] == second[-1]
    for one, other, (state, losses) in zip(first, second, alone, strict=False):
        # float32 sums in another order, over three steps.
        np.testing.assert_allclose(one[1], losses, rtol=1e-4)
        for name, value in one[0].items():
            torch.testing.assert_close(value, state[name], rtol=1e-3, atol=1e-5)
            assert torch.equal(value, other[0][name])


def test_what_is_frozen_stays_and_what_is_not_learns(year: Path) -> None:
    subject = _subject(year)
    start = detector(subject.trunk, 2, (64,)).state_dict()
    end, _ = _state(subject, TINY, _nowhere())
    changed = {name for name, value in end.items() if not torch.equal(value, start[name])}
    assert not any(name.startswith(("backbone.stem", "backbone.layer1")) or "bn" in name for name in changed)
    for part in ("backbone.layer2", "backbone.layer3", "roi_heads.box_head.layer4", "rpn", "roi_heads.box_predictor"):
        assert any(name.startswith(part) for name in changed), part


def test_the_detector_sees_what_the_trunk_sees(year: Path) -> None:
    split = _split(year)
    trunk = _trunk(split).eval()
    network = detector(trunk, 2, (64,)).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        taps = trunk.taps(x)
        c4 = network.backbone(x)
        # float32: frozen norms multiply and add where others divide.
        torch.testing.assert_close(c4, taps["res4"], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(network.roi_heads.box_head(c4), taps["res5"].mean((2, 3)), rtol=1e-4, atol=1e-4)


def test_the_schedule_is_the_papers() -> None:
    paper = detection.Detection(iterations=25_000, images_per_step=16, drop=0.68)
    schedule = BoxSchedule(25_000, 16, paper.lr, *detection._at(paper))
    assert (schedule.warmup, schedule.drop) == (1000, 17_000)
    assert [schedule.lr_at(step) for step in (0, 500, 1000, 16_999, 17_000, 24_999)] == pytest.approx(
        [0.001, 0.002, 0.003, 0.003, 0.0003, 0.0003]
    )
    assert detection._at(detection.Detection()) == (500, 9500)


def test_a_loss_that_is_no_number_ends_it(year: Path) -> None:
    with pytest.raises(TrainingDiverged, match=r"use a smaller --detection\.lr"):
        detection.measure(_subject(year), TINY.model_copy(update={"lr": 1e30}))


def test_what_cannot_be_used_is_refused(year: Path, tmp_path: Path) -> None:
    write_year(tmp_path / "VOC2007", {"trainval": 12, "test": 10}, seed=1)
    split = _split(tmp_path)
    refuse = PROTOCOLS["detection"].refuse
    refuse(TINY, split, split.held_out())
    (tmp_path / "VOC2007/Annotations/000020.xml").write_text("<annotation>")
    with pytest.raises(ConfigError, match=r"000020\.xml is not XML"):
        refuse(TINY, split, split.held_out())
    (tmp_path / "VOC2007/JPEGImages/000004.jpg").write_bytes(b"no image")
    with pytest.raises(CorruptImage, match=r"JPEGImages/000004\.jpg"):
        pixels(split, [id for _, id in split.images].index("000004"))


class _Mirrored(nn.Module):
    """Takes what a detector is given, and checks that boxes lie on what is bright."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: set[tuple[float, ...]] = set()

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        (image,), (target,) = images, targets
        assert len(target["boxes"]) == len(target["labels"])
        for box, label in zip(target["boxes"].int().tolist(), target["labels"].tolist(), strict=True):
            inside = image[:, box[1] : box[3], box[0] : box[2]].mean((1, 2))
            assert (inside[0] > inside[2]) == (CLASSES[label - 1] == "square")  # yellow, not blue
            assert inside[1] > 0.8
            self.seen.add(tuple(map(float, box)))
        return {"loss": self.weight * 0}


def test_boxes_are_mirrored_with_the_image(year: Path) -> None:
    split, network = _split(year), _Mirrored()
    train_boxes(network, split, split.objects(), BoxSchedule(15, 8, 0.1, 1, 15), 0, CPU, _nowhere(), print)
    plain = {each.box for objects in split.objects() for each in objects}
    mirrored = {(80 - right, top, 80 - left, bottom) for left, top, right, bottom in plain}
    assert network.seen <= plain | mirrored
    # Of 120 images seen, half of them mirrored, each of the 60 about twice.
    for of_kind in (network.seen & plain - mirrored, network.seen & mirrored - plain):
        assert 0.5 < len(of_kind) / len(plain) < 1


def _overlap(a: tuple[float, ...], b: tuple[float, ...], crowd: bool) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    of_a, of_b = ((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return width * height / (of_a if crowd else of_a + of_b - width * height)


def _plain(found: dict[int, Any], objects: list[list[VocObject]], classes: list[str]) -> BoxPrecision:
    """COCO's rules in loops: greedy matches from the best score, difficult objects last and as often as wanted."""
    table = np.full((10, len(classes)), np.nan)
    for row, limit in enumerate(np.arange(50, 100, 5) / 100):
        for number, name in enumerate(classes):
            hits, total = [], 0
            for image, inside in enumerate(objects):
                mine = [each for each in inside if each.name == name]
                total += sum(not each.difficult for each in mine)
                taken: set[int] = set()
                boxes = sorted((b for b in found.get(image, []) if b[5] == number), key=lambda b: -b[4])[:MOST]
                for box in boxes:
                    best = None
                    for wanted in (False, True):
                        fits = [
                            (_overlap(tuple(box[:4]), each.box, each.difficult), at)
                            for at, each in enumerate(mine)
                            if each.difficult == wanted and (wanted or at not in taken)
                        ]
                        fits = [fit for fit in fits if fit[0] >= limit]
                        if fits and best is None:
                            best = max(fits)[1]
                    if best is None:
                        hits.append((box[4], False))
                    elif not mine[best].difficult:
                        taken.add(best)
                        hits.append((box[4], True))
            if not total:
                continue
            right = np.array([hit for _, hit in sorted(hits, key=lambda pair: -pair[0])], bool)
            precision = np.cumsum(right) / np.arange(1, len(right) + 1)
            recall = np.cumsum(right) / total
            at_recalls = [precision[recall >= r].max(initial=0) for r in np.linspace(0, 1, 101)]
            table[row, number] = np.mean(at_recalls)
    of_classes = {name: float(table[:, number].mean()) for number, name in enumerate(classes)}
    return BoxPrecision(float(np.nanmean(table)), float(np.nanmean(table[0])), float(np.nanmean(table[5])), of_classes)


@pytest.mark.parametrize("seed", range(8))
def test_box_precision_against_plain_loops(seed: int) -> None:
    random = np.random.default_rng(seed)
    classes = ["a", "b", "c"]
    objects, found = [], {}
    for image in range(12):
        corner = random.uniform(0, 60, (int(random.integers(0, 5)), 2))
        boxes = np.concatenate([corner, corner + random.uniform(8, 40, corner.shape)], 1)
        names = random.choice(classes, len(boxes))
        hard = random.random(len(boxes)) < 0.2
        objects.append(
            [VocObject(*each) for each in zip(names, map(tuple, boxes.tolist()), hard.tolist(), strict=True)]
        )
        near = np.repeat(boxes, 3, 0) + random.normal(0, 3, (3 * len(boxes), 4))
        near = near[(near[:, 0] < near[:, 2]) & (near[:, 1] < near[:, 3])]
        scores = random.random((len(near), 1))
        numbers = random.integers(0, 3, (len(near), 1))
        found[image] = np.concatenate([near, scores, numbers], 1)
    expected, got = _plain(found, objects, classes), box_precision(found, objects, classes)
    # float64, with recalls of COCO that are 0 to 1 in hundredths as here.
    assert (got.ap, got.ap50, got.ap75) == pytest.approx((expected.ap, expected.ap50, expected.ap75), abs=1e-9)
    assert got.of_classes == pytest.approx(expected.of_classes, abs=1e-9)


def test_box_precision_of_what_is_known() -> None:
    box = (10.0, 10.0, 30.0, 30.0)
    objects = [[VocObject("a", box, False)], [VocObject("b", box, False), VocObject("b", (0, 0, 9, 9), True)]]
    exact = {0: np.array([[*box, 0.9, 0]]), 1: np.array([[*box, 0.8, 1], [0, 0, 9, 9, 0.99, 1]])}
    found = box_precision(exact, objects, ["a", "b"])
    assert [found.ap, found.ap50, found.ap75, *found.of_classes.values()] == pytest.approx([1] * 5)
    # Two thirds of the overlap: right at 0.50 to 0.65.
    wide = {0: np.array([[10, 10, 30, 40, 0.9, 0]])}
    found = box_precision(wide, objects, ["a", "b"])
    assert (found.ap, found.ap50, found.ap75) == pytest.approx((0.4 / 2, 0.5, 0))
    assert box_precision({0: np.empty((0, 6))}, objects, ["a", "b"]).ap == 0
