"""Features against one image at a time, kNN against a plain loop, the linear probe against scikit-learn."""

import io
import json
import math
import multiprocessing
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from pirl.config import Config, override
from pirl.data.dataset import Dataset, RowGroup, open_dataset
from pirl.data.writer import ShardWriter
from pirl.errors import ConfigError, CorruptImage
from pirl.evaluate.evaluate import evaluate, table
from pirl.evaluate.features import Features, extract, extract_all
from pirl.evaluate.protocols import knn, linear
from pirl.evaluate.splits import unknown_to, why_not
from pirl.evaluate.store import FeatureStore
from pirl.evaluate.subject import Subject
from pirl.loading import group_views
from pirl.loading.color import normalize
from pirl.loading.crops import plain_view
from pirl.loading.decode import decode
from pirl.methods.models import TAPS, Trunk, pool
from pirl.storage.folder import Folder
from tests.conftest import GlooPool

CPU = torch.device("cpu")
CONFIG = override(Config(), {"data.image_size": 16, "evaluation.knn_k": 5})


def _trunk(seed: int) -> Trunk:
    torch.manual_seed(seed)
    return Trunk("resnet18", 4, "small")


def _clouds(rows: int, features: int = 8, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Three overlapping classes, in correlated features of very different sizes."""
    random = torch.Generator().manual_seed(seed)
    fixed = torch.Generator().manual_seed(99)
    centres = torch.randn(3, features, generator=fixed)
    mix = torch.randn(features, features, generator=fixed) + 2
    y = torch.randint(3, (rows,), generator=random)
    x = (centres[y] + 1.5 * torch.randn(rows, features, generator=random)) @ mix
    return x * torch.logspace(-2, 2, features), y


def _write(folder: Path, rows: int, seed: int, labelled: bool = True) -> Dataset:
    """Images of two classes, dark and bright, of several sizes; every tenth has no label."""
    random = np.random.default_rng(seed)
    with ShardWriter(
        Folder(str(folder)), classes=["dark", "bright"] if labelled else None, seed=seed, source="a test"
    ) as writer:
        for row in range(rows):
            label = int(random.integers(2))
            sides = (20 + row % 3, 18 + row % 5, 3)
            image = random.integers(0, 160, sides, dtype=np.uint8) + np.uint8(60 * label)
            file = io.BytesIO()
            Image.fromarray(image).save(file, "PNG")
            writer.add(file.getvalue(), label if labelled and row % 10 else None)
    return open_dataset(str(folder))


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """330 images are 6 row groups, which are 2 blocks; 70 are 1 block."""
    folder = tmp_path_factory.mktemp("data")
    return _write(folder, 330, seed=1), _write(folder / "test", 70, seed=2)


def _knn_loop(train_x: Tensor, train_y: Tensor, test_x: Tensor, test_y: Tensor, k: int, temperature: float) -> float:
    hits = 0
    for query, label in zip(test_x.double(), test_y.tolist(), strict=True):
        scored = []
        for key, key_label in zip(train_x.double(), train_y.tolist(), strict=True):
            scored.append((float(query @ key / (query.norm() * key.norm())), key_label))
        votes: dict[int, float] = defaultdict(float)
        for similarity, key_label in sorted(scored, reverse=True)[:k]:
            votes[key_label] += math.exp(similarity / temperature)
        hits += max(votes, key=lambda c: votes[c]) == label
    return hits / len(test_y)


@pytest.mark.parametrize(("k", "temperature"), [(1, 0.07), (7, 0.07), (7, 1.0), (500, 0.5)])
def test_knn_equals_a_loop(k: int, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knn, "CHUNK", 7)  # several chunks, the last one short
    rows = *_clouds(60), *_clouds(30, seed=1)
    assert knn.accuracy(*rows, k, temperature) == _knn_loop(*rows, k, temperature)


def test_knn_weighs_votes_by_similarity() -> None:
    train_x = torch.tensor([[1.0, 0.1], [1.0, 0.9], [1.0, 0.8]])
    train_y, query, one = torch.tensor([0, 1, 1]), torch.tensor([[1.0, 0.0]]), torch.tensor([1])
    assert knn.accuracy(train_x, train_y, query, one, 3, temperature=10.0) == 1.0  # two votes against one
    assert knn.accuracy(train_x, train_y, query, one, 3, temperature=0.01) == 0.0  # the nearest alone counts
    assert knn.accuracy(train_x, train_y, query, one, 3, temperature=1e-4) == 0.0  # and nothing overflows


@pytest.mark.parametrize("penalty", linear.PENALTIES)
def test_linear_fit_is_the_optimum_that_scikit_learn_finds(penalty: float) -> None:
    # Imported here because it takes a second, and every rank of the pool imports this file.
    from sklearn.linear_model import LogisticRegression

    x, y = _clouds(400)
    x = (x - x.mean(0)) / x.std(0)
    weight, bias = linear.fit(x, y, penalty)
    # scikit-learn sums the losses and has its constant before them.
    reference = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-8, max_iter=10_000)
    reference.fit(x.double().numpy(), y.numpy())
    its_weight, its_bias = torch.from_numpy(reference.coef_.T), torch.from_numpy(reference.intercept_)

    def loss(weight: Tensor, bias: Tensor) -> float:
        value = F.cross_entropy(x.double() @ weight.double() + bias.double(), y)
        return float(value + penalty / 2 * weight.double().square().sum())

    # The search ends at a gradient of 1e-4, and near the optimum a loss is off by about its square, so what
    # is left is float32 rounding, 6e-8; no solution can be below the optimum.
    assert loss(weight, bias) == pytest.approx(loss(its_weight, its_bias), rel=1e-6)
    mine = linear.share_right((weight, bias), x, y)
    # Rows on the border of two classes may change sides with the last digits of the weights.
    assert mine == pytest.approx(reference.score(x.numpy(), y.numpy()), abs=2 / len(x))


@pytest.mark.parametrize("penalty", [1e-3, 1e-5])
def test_linear_fit_of_rows_that_can_be_told_apart_is_at_the_optimum_too(penalty: float) -> None:
    """A weak penalty leaves a loss of some thousandths, of which an absolute tolerance would miss a tenth."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression

    pixels, labels = load_digits(return_X_y=True)
    x, y = torch.from_numpy(pixels).float(), torch.from_numpy(labels)
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    reference = LogisticRegression(C=1 / (penalty * len(x)), tol=1e-6, max_iter=10_000)
    reference.fit(x.double().numpy(), labels)

    def loss(weight: Tensor, bias: Tensor) -> float:
        value = F.cross_entropy(x.double() @ weight.double() + bias.double(), y)
        return float(value + penalty / 2 * weight.double().square().sum())

    best = loss(torch.from_numpy(reference.coef_.T), torch.from_numpy(reference.intercept_))
    # What the search promises; and none is better than the best but by what scikit-learn's own tolerance leaves.
    assert -1e-5 < loss(*linear.fit(x, y, penalty)) / best - 1 < 1e-3


def test_linear_probes_of_digits_are_scikit_learns() -> None:
    """The whole protocol on features of a network, at the penalty that is chosen: within half a point."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    train = open_dataset("digits")
    test = train.held_out()
    assert test is not None
    subject = Subject(_trunk(0), None, train, test, 16, CPU, limit=512)
    known, asked = subject.labelled("train"), subject.labelled("test")
    for found in linear.measure(subject, linear.Linear(taps=("conv1", "res4"))).measurements:
        scaler = StandardScaler().fit(known.taps[found.name].numpy())
        x, test_x = (scaler.transform(each.taps[found.name].numpy()) for each in (known, asked))
        penalty = linear.choose_penalty(torch.from_numpy(x), known.labels)
        reference = LogisticRegression(C=1 / (penalty * len(x)), max_iter=2000).fit(x, known.labels.numpy())
        assert found.value == pytest.approx(reference.score(test_x, asked.labels.numpy()), abs=0.005)


def test_features_are_computed_without_tf32() -> None:
    """Which a GPU uses in convolutions of float32 unless told otherwise; training has what it had, afterwards."""
    trunk = _trunk(0)
    seen: list[tuple[int, bool]] = []

    def see(_: object, images: tuple[Tensor], __: object) -> None:
        seen.append((len(images[0]), torch.backends.cudnn.allow_tf32))

    trunk.conv1.register_forward_hook(see)
    before = torch.backends.cudnn.allow_tf32
    extract(trunk, open_dataset("digits"), 16, CPU, limit=64)
    assert (64, False) in seen
    assert (64, True) not in seen
    assert torch.backends.cudnn.allow_tf32 == before


def test_linear_fit_starts_where_it_is_told() -> None:
    x, y = _clouds(200)
    x = (x - x.mean(0)) / x.std(0)
    optimum = linear.fit(x, y, 1e-3)
    again = linear.fit(x, y, 1e-3, start=optimum)
    # At the optimum there is nowhere to go, but for float32 rounding of the change of variables.
    torch.testing.assert_close(again[0], optimum[0], rtol=1e-3, atol=1e-3)


def test_linear_accuracy_does_not_depend_on_the_features_scale_and_repeats() -> None:
    train, test = _clouds(300), _clouds(200, seed=1)
    accuracy = linear.accuracy(*train, *test)
    assert 0.6 < accuracy < 0.99
    assert linear.accuracy(*train, *test) == accuracy
    # A power of two scales floats without rounding.
    assert linear.accuracy(1024 * train[0], train[1], 1024 * test[0], test[1]) == accuracy


def test_a_feature_that_never_changes_is_harmless() -> None:
    train, test = _clouds(300), _clouds(200, seed=1)
    with_constant = [torch.cat([x, torch.full((len(x), 3), 7.0)], 1) for x in (train[0], test[0])]
    accuracy = linear.accuracy(with_constant[0], train[1], with_constant[1], test[1])
    assert accuracy == pytest.approx(linear.accuracy(*train, *test), abs=1 / 200)  # at most a row on a border


def test_a_strong_penalty_is_chosen_where_features_are_noise() -> None:
    """300 rows with 250 features of which one tells the class: what is fitted freely does not carry over."""
    random = torch.Generator().manual_seed(0)
    y = torch.randint(2, (300,), generator=random)
    x = torch.randn(300, 250, generator=random)
    x[:, 0] += 3 * y
    assert linear.choose_penalty(x, y) >= 1e-2


def test_pool_keeps_each_tap_at_most_as_wide_as_res5() -> None:
    maps = Trunk("resnet50", 16).eval().taps(torch.randn(2, 3, 64, 64))
    pooled = pool(maps)
    # 512 channels in res5: conv1's 16 take a 5x5 grid, res2's 64 and res3's 128 take 2x2, and so on.
    assert {name: rows.shape[1] for name, rows in pooled.items()} == {
        "conv1": 16 * 25,
        "res2": 64 * 4,
        "res3": 128 * 4,
        "res4": 256,
        "res5": 512,
    }
    corner = maps["res2"][:, :, :8, :8].mean((2, 3))
    # float32: two ways to add 64 values.
    torch.testing.assert_close(pooled["res2"].view(2, 64, 2, 2)[:, :, 0, 0], corner, rtol=1e-5, atol=1e-6)


def test_extract_equals_one_image_at_a_time(splits: tuple[Dataset, Dataset]) -> None:
    dataset, trunk = splits[1], _trunk(0).train()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    features = extract(trunk, dataset, 16, CPU)
    assert trunk.training
    assert all(torch.equal(value, before[name]) for name, value in trunk.state_dict().items())
    trunk.eval()
    row = 0
    for number in range(len(dataset.starts) - 1):
        group = dataset.read_group(number)
        assert group.labels is not None
        for data, label in zip(group.images, group.labels, strict=True):
            with torch.no_grad():
                one = pool(trunk.taps(normalize(plain_view(decode(data), 16)[None])))
            for name in TAPS:
                # float32: a convolution may add in another order for another batch size.
                torch.testing.assert_close(features.taps[name][row], one[name][0], rtol=1e-4, atol=1e-5)
            assert features.labels[row] == label
            row += 1
    assert row == len(features.labels) == 70
    assert (features.labels == -1).sum() == 7


def test_a_damaged_image_has_no_label_where_it_may_be_skipped(tmp_path: Path) -> None:
    dataset, trunk = _write(tmp_path, 70, seed=3), _trunk(0)
    whole = extract(trunk, dataset, 16, CPU)
    (shard,) = tmp_path.glob("*.parquet")
    damaged = bytes(dataset.read_group(0).images[11])
    shard.write_bytes(shard.read_bytes().replace(damaged, damaged[:-1] + b"!"))
    with pytest.raises(CorruptImage, match=r"row 11 \(id 11\)"):
        extract(trunk, dataset, 16, CPU)
    features = extract(trunk, dataset, 16, CPU, skip=True)
    changed = (features.labels != whole.labels).nonzero().flatten()
    assert changed.tolist() == [11]
    assert features.labels[11] == -1


def _extract(dataset: Dataset) -> Features:
    return extract(_trunk(0), dataset, 16, CPU)


@pytest.mark.parametrize("world", [2, 3])
def test_features_do_not_depend_on_the_ranks(run_ranks: GlooPool, splits: tuple[Dataset, Dataset], world: int) -> None:
    """Two blocks: the third rank has nothing to read."""
    alone = _extract(splits[0])
    for features in run_ranks(world, _extract, splits[0]):
        # The same batches with the same number of threads: no tolerance.
        assert torch.equal(features.labels, alone.labels)
        assert all(torch.equal(features.taps[name], alone.taps[name]) for name in TAPS)


def _extract_with_processes(dataset: Dataset) -> list[Features]:
    """Of two trunks, by one loader process of each rank."""
    group_views.WORTH_IMAGES = 1
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]  # of the pool: may have none
    return extract_all([_trunk(0), _trunk(1)], dataset, 16, CPU, processes=1)


def test_two_trunks_by_loader_processes_have_the_features_of_each_alone(
    run_ranks: GlooPool, splits: tuple[Dataset, Dataset]
) -> None:
    alone = [extract(_trunk(seed), splits[0], 16, CPU) for seed in (0, 1)]
    for found in run_ranks(2, _extract_with_processes, splits[0]):
        for one, features in zip(alone, found, strict=True):
            # The same batches with the same number of threads: no tolerance.
            assert torch.equal(features.labels, one.labels)
            assert all(torch.equal(features.taps[name], one.taps[name]) for name in TAPS)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The row groups that are read in this process."""
    asked: list[int] = []
    load = Dataset.load_group

    def counted(self: Dataset, number: int) -> RowGroup:
        asked.append(number)
        return load(self, number)

    monkeypatch.setattr(Dataset, "load_group", counted)
    return asked


def test_images_are_read_once_for_both_trunks(splits: tuple[Dataset, Dataset], read: list[int], tmp_path: Path) -> None:
    _evaluate(splits)
    assert sorted(read) == sorted([*range(6), *range(2)])
    read.clear()

    # With a store: what is kept of one trunk is not made again, also where it is more than may stay.
    def features(*seeds: int) -> list[Features]:
        trunks = [_trunk(seed) for seed in seeds]
        return FeatureStore(tmp_path, limit_bytes=0).features(trunks, splits[1], 16, CPU)

    (first,) = features(0)
    assert sorted(read) == [0, 1]
    both = features(0, 1, 1)
    assert sorted(read) == [0, 0, 1, 1]
    for seed, found in zip((0, 1, 1), both, strict=True):
        expected = extract(_trunk(seed), splits[1], 16, CPU)
        assert all(torch.equal(found.taps[name], expected.taps[name]) for name in TAPS)
        assert torch.equal(found.labels, expected.labels)
    assert torch.equal(first.taps["res5"], both[0].taps["res5"])


def test_extract_stops_at_the_limit(splits: tuple[Dataset, Dataset]) -> None:
    whole = extract(_trunk(0), splits[0], 16, CPU)
    for limit, rows in ((64, 64), (65, 128), (256, 256), (1000, 330)):
        part = extract(_trunk(0), splits[0], 16, CPU, limit)
        assert len(part.labels) == rows
        # float32: the last batch may be a smaller one.
        torch.testing.assert_close(part.taps["res5"], whole.taps["res5"][:rows], rtol=1e-4, atol=1e-5)


def _evaluate(splits: tuple[Dataset, Dataset]) -> dict[str, Any]:
    return evaluate(Subject(_trunk(0), _trunk(1), *splits, 16, CPU), CONFIG)


def test_evaluate_reports_both_trunks_the_same_on_all_ranks(
    run_ranks: GlooPool, splits: tuple[Dataset, Dataset]
) -> None:
    report = _evaluate(splits)
    assert json.loads(json.dumps(report)) == report
    assert (report["train_images"], report["test_images"]) == (297, 63)  # those with a label
    assert (report["knn"]["k"], report["knn"]["temperature"]) == (5, 0.07)
    for part in (report, report["random"]):
        assert tuple(part["linear"]) == TAPS
    # Brightness is easily seen, also by a random network.
    assert report["linear"]["conv1"] > 0.9
    swapped = evaluate(Subject(_trunk(1), _trunk(0), *splits, 16, CPU), CONFIG)
    del report["few"]["deviation"], swapped["few"]["deviation"]
    assert swapped["random"] == {name: report[name] for name in ("linear", "knn", "few")}
    assert {name: swapped[name] for name in ("linear", "knn", "few")} == report["random"]
    report = _evaluate(splits)
    for other in run_ranks(3, _evaluate, splits):
        assert other == report


def test_evaluate_tells_how_far_it_is(splits: tuple[Dataset, Dataset]) -> None:
    """330 images are two blocks, and 70 are one."""
    told: list[str] = []
    evaluate(Subject(_trunk(0), _trunk(1), *splits, 16, CPU, tell=told.append), CONFIG)
    train, test = (
        [f"evaluating: features of {n} images, {share}%" for share in of] for n, of in ((330, (78, 100)), (70, (100,)))
    )
    pieces = {"linear": 10, "knn": 2, "few": 10}
    assert told == train + test + [
        f"evaluating: {name}, {k} of {n}" for name, n in pieces.items() for k in range(1, n + 1)
    ]


def test_table_has_a_line_for_each_probe() -> None:
    taps = dict.fromkeys(TAPS, 0.25)
    few = {"per_class": 10, "draws": 5, "accuracy": 0.125}
    random = {"linear": taps, "knn": {"accuracy": 0.125, "k": 20, "temperature": 0.07}, "few": few}
    report = {
        "train_images": 50_000,
        "test_images": 10_000,
        "linear": taps | {"res5": 0.5},
        "knn": {"accuracy": 0.1, "k": 20, "temperature": 0.07},
        "few": few | {"accuracy": 0.375, "deviation": 0.02},
        "random": random,
    }
    about, head, *lines = table(report).splitlines()
    assert "50,000" in about
    assert "10,000" in about
    assert head.split() == ["random", "trained", "change"]
    assert [line.split()[:2] for line in lines[:5]] == [[tap, "linear"] for tap in TAPS]
    assert lines[4].split()[2:] == ["25.0", "50.0", "+25.0"]
    assert lines[5].split() == [
        "res5",
        "linear,",
        "10",
        "a",
        "class",
        "12.5",
        "37.5",
        "+25.0",
        *["±", "2.0", "over", "5", "draws"],
    ]
    assert lines[6].split() == ["res5", "kNN,", "k", "20,", "τ", "0.07", "12.5", "10.0", "-2.5"]
    assert len({len(line.partition("  ±")[0]) for line in [head, *lines]}) == 1


def test_why_not_names_what_is_missing(splits: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    train, test = splits
    assert why_not(train, test) is None
    assert "no test split" in (why_not(train, None) or "")
    bare = _write(tmp_path / "bare", 3, seed=0, labelled=False)
    for pair in ((bare, test), (train, bare)):
        reason = why_not(*pair)
        assert reason is not None
        assert bare.uri in reason
        assert "labels" in reason


@pytest.mark.parametrize(("classes", "label"), [(["dark", "bright"], 1), (["gray", "dark"], 0), (["dark"], None)])
def test_why_not_says_that_no_held_out_class_occurs_in_training(
    tmp_path: Path, classes: list[str], label: int | None
) -> None:
    """All measures would be 0 %; what is numbered otherwise is another class, and none is one as well."""
    for folder, label_there, names in ((tmp_path, 0, ["dark", "bright"]), (tmp_path / "test", label, classes)):
        with ShardWriter(Folder(str(folder)), classes=names, seed=0, source="a test") as writer:
            for _ in range(3):
                writer.add(b"", label_there)
    train, test = open_dataset(str(tmp_path)), open_dataset(str(tmp_path / "test"))
    assert f"no class of the images of {test.uri} is one of {train.uri}" in (why_not(train, test) or "")
    assert "of one class" in (why_not(train, train) or "")


def test_classes_that_are_numbered_otherwise_are_not_taken_for_others(tmp_path: Path) -> None:
    for folder, names in ((tmp_path, ["dark", "bright"]), (tmp_path / "test", ["gray", "bright", "dark"])):
        with ShardWriter(Folder(str(folder)), classes=names, seed=0, source="a test") as writer:
            for label in range(len(names)):
                writer.add(b"", label)
    train, test = open_dataset(str(tmp_path)), open_dataset(str(tmp_path / "test"))
    assert f"dark has another number among the classes of {test.uri}" in (why_not(train, test) or "")
    assert unknown_to(train, test) == ["gray"]
    assert unknown_to(train, train) == []


def test_knn_leaves_out_neighbours_that_there_are_not_and_says_it(splits: tuple[Dataset, Dataset]) -> None:
    said: list[str] = []
    subject = Subject(_trunk(0), None, splits[1], splits[1], 16, CPU, say=said.append)  # 63 have a label
    found = knn.measure(subject, knn.KNN()).measurements
    assert [each.name for each in found] == ["res5, k 1", "res5, k 20"]
    assert said == ["knn: k 200 is left out, as 63 images can vote"]
    with pytest.raises(ConfigError, match=r"--knn\.k 64 is more than the 63 labelled images"):
        knn.measure(subject, knn.KNN(k=(64,)))
    with pytest.raises(ConfigError, match=r"--knn\.k 64 is more than the 63 labelled images"):
        knn.refuse(knn.KNN(k=(64,)), splits[1], splits[1])
    more = override(CONFIG, {"evaluation.knn_k": 400})
    assert evaluate(Subject(_trunk(0), _trunk(1), splits[1], splits[1], 16, CPU), more)["knn"]["k"] == 63


def test_why_not_says_that_there_is_one_class_alone(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "test"):
        with ShardWriter(Folder(str(folder)), classes=["dark"], seed=0, source="a test") as writer:
            for _ in range(3):
                writer.add(b"", 0)
    train, test = open_dataset(str(tmp_path)), open_dataset(str(tmp_path / "test"))
    assert f"all images of {train.uri} are of one class" in (why_not(train, test) or "")
