import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from pirl.config import Config, override
from pirl.loading.collate import collate
from pirl.loading.loader import Batch
from pirl.loading.views import Views, sample_rng
from pirl.methods.memory import MemoryBank
from pirl.methods.pirl import PIRL, PIRLStep, head_weights, parameter_groups

TINY = {"model.width": 4, "model.norm": "frozen"}
B = 3


def config_of(**changes):
    return override(Config(), TINY | {name.replace("__", "."): value for name, value in changes.items()})


def network_of(**changes):
    torch.manual_seed(0)
    return PIRL(config_of(**changes))


def pictures(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


PARTS = {"jigsaw": (9, 9), "rotation": (1, 32), "both": (9, 9)}
"""Patches of a sample and their side at 32 px."""


@pytest.mark.parametrize("pretext", PARTS)
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_both_views_become_unit_rows(pretext, head):
    parts, side = PARTS[pretext]
    network = network_of(pretext__name=pretext, model__head=head)
    queries = network(pictures(B, 3, 32, 32), pictures(B * parts, 3, side, side))
    assert queries.shape == (2, B, 128)
    # Normalised in float32: a few units in the last place.
    torch.testing.assert_close(queries.norm(dim=-1), torch.ones(2, B), rtol=0, atol=1e-6)


def test_rows_are_float32_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        queries = network_of()(pictures(B, 3, 32, 32), pictures(B * 9, 3, 9, 9))
    assert queries.dtype == torch.float32
    torch.testing.assert_close(queries.norm(dim=-1), torch.ones(2, B), rtol=0, atol=1e-6)


def test_the_first_row_is_f_and_the_second_is_g():
    network = network_of()
    image, pretext = pictures(B, 3, 32, 32), pictures(B * 9, 3, 9, 9)
    queries = network(image, pretext)
    # The same operations once more: no tolerance.
    assert torch.equal(queries[0], F.normalize(network.f(network.trunk(image)), dim=-1))
    assert torch.equal(queries[1], F.normalize(network.g(network.trunk(pretext)), dim=-1))


def test_running_statistics_are_those_of_the_images():
    """Patches have other ones, and a mixture costs accuracy on images."""
    image, pretext = pictures(B, 3, 32, 32), pictures(B * 9, 3, 9, 9) * 5
    both, alone = network_of(model__norm="batch"), network_of(model__norm="batch")
    both(image, pretext)
    alone(image)
    for (name, one), (_, other) in zip(both.named_buffers(), alone.named_buffers(), strict=True):
        assert torch.equal(one, other), name
    assert all(m.track_running_stats for m in both.modules() if isinstance(m, nn.BatchNorm2d))
    assert int(both.trunk.bn1.num_batches_tracked) == 1


@pytest.mark.parametrize("pretext", PARTS)
def test_the_parts_of_a_sample_stay_with_it(pretext):
    parts, side = PARTS[pretext]
    network = network_of(pretext__name=pretext)
    image, patches = pictures(B, 3, 32, 32), pictures(B, parts, 3, side, side)
    before = network(image, patches.flatten(end_dim=1))
    patches[1, -1] += 1
    after = network(image, patches.flatten(end_dim=1))
    moved = (before - after).norm(dim=-1) > 1e-3
    assert moved.tolist() == [[False] * 3, [False, True, False]]


@pytest.mark.parametrize("changes", [{"loss.pretext_weight": 0}, {"loss.pretext_weight": 0, "pretext.name": "none"}])
def test_lambda_zero_is_npid_without_g(changes):
    config = override(config_of(), changes)
    torch.manual_seed(0)
    network = PIRL(config)
    assert network.g is None
    assert not [name for name, _ in network.named_parameters() if name.startswith("g.")]
    image = pictures(B, 3, 32, 32)
    queries = network(image)
    assert queries.shape == (1, B, 128)
    # Seeded alike, it is PIRL without its second half.
    assert torch.equal(queries[0], network_of()(image, pictures(B * 9, 3, 9, 9))[0])
    assert head_weights(config, torch.device("cpu")).tolist() == [1.0]


@pytest.mark.parametrize(("weight", "expected"), [(0.5, [0.5, 0.5]), (0.25, [0.75, 0.25]), (1, [0, 1])])
def test_lambda_weighs_the_pretext_view(weight, expected):
    assert head_weights(config_of(loss__pretext_weight=weight), torch.device("cpu")).tolist() == expected


def by_name(network):
    groups = parameter_groups(network, 1e-4)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    listed = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(listed) == sorted(names.values())  # each once
    return {names[id(p)]: group["weight_decay"] for group in groups for p in group["params"]}


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_weight_decay_is_not_for_norms_and_biases(head):
    network = network_of(model__head=head, model__norm="batch")
    decay = by_name(network)
    kinds = {f"{name}.{leaf}": module for name, module in network.named_modules() for leaf in ("weight", "bias")}
    assert any(isinstance(kinds[name], _BatchNorm) for name in decay)
    for name, value in decay.items():
        matrix = isinstance(kinds[name], nn.Linear | nn.Conv2d) and name.endswith(".weight")
        assert value == (1e-4 if matrix else 0), name


def test_frozen_norms_are_not_decayed_either():
    decay = by_name(network_of())
    norms = [name for name in decay if ".bn" in name or ".downsample.1" in name]
    assert norms
    assert {decay[name] for name in norms} == {0}


def step_of(rows=100, **changes):
    """The step of a small network, and a batch of the images 7, 8 and 9."""
    # Not four channels: with several threads oneDNN writes past the end of their gradients (seen with torch 2.14.1).
    config = override(config_of(**changes), {"optim.bf16": False, "model.width": 16})
    torch.manual_seed(0)
    network = PIRL(config).to(memory_format=torch.channels_last)  # as in training
    bank = MemoryBank(rows, seed=3, keep=0.5)
    views = Views(32, config.augment, config.second_view, 0.6)
    images = torch.randint(256, (B, 3, 40, 50), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    part = collate([views(image, sample_rng(0, 0, id)) for id, image in enumerate(images)], [7, 8, 9], 0, [-1] * 3)
    ids, colors = torch.tensor([7, 8, 9]), [torch.from_numpy(color) for color in part.colors]
    none = -torch.ones(B)
    batch = Batch(0, ids, [B], slice(0, B), [part], colors, ids, none, 0, 0.0, none)
    return PIRLStep(config, network, network, bank, torch.full((), math.nan)), batch


@pytest.mark.parametrize("weight", [0.5, 0])
def test_losses_compare_each_view_with_the_image_s_own_row(weight):
    """With all other rows as negatives, so that each image is among those of the others and not among its own."""
    step, batch = step_of(
        rows=100,
        loss__kind="infonce",
        loss__temperature=0.2,
        loss__num_negatives=99,
        loss__pretext_weight=weight,
    )
    negatives = step.bank.sample(0, 99)
    assert {7, 8, 9} & set(negatives.ids.tolist())
    queries, losses = step.losses(batch, batch.ids)
    assert losses.shape == (2 if weight else 1, B)
    assert torch.equal(queries, step.network(*batch.views(torch.device("cpu"))))
    queries = queries.detach()
    for head in range(len(losses)):
        for sample, id in enumerate((7, 8, 9)):
            scores = [float(queries[head, sample] @ step.bank.local[id]) / 0.2]
            scores += [
                float(queries[head, sample] @ step.bank.local[k]) / 0.2 for k in negatives.ids.tolist() if k != id
            ]
            expected = math.log(sum(map(math.exp, scores))) - scores[0]
            # float32 scores of some units.
            assert losses[head, sample].item() == pytest.approx(expected, rel=1e-5)


def test_z_is_estimated_by_the_first_batch_and_then_kept():
    step, batch = step_of(loss__kind="npid", loss__num_negatives=50)
    step.losses(batch, batch.ids)
    first = step.log_z.clone()
    assert first.isfinite()
    with torch.no_grad():
        step.bank.local.copy_(step.bank.local.flip(0))
    step.losses(batch, batch.ids)
    assert torch.equal(step.log_z, first)


def test_rows_of_the_bank_follow_f_and_those_of_skipped_images_stay():
    step, batch = step_of(loss__num_negatives=50)
    before = step.bank.local.clone()
    queries, _ = step.losses(batch, batch.ids)
    step.update(batch, torch.tensor([7, 20, 9]), queries)  # 20 came in the place of 8
    expected = F.normalize((before[[7, 9]] + queries[0, [0, 2]].detach()) / 2)
    torch.testing.assert_close(step.bank.local[[7, 9]], expected)
    others = [id for id in range(100) if id not in (7, 9)]
    assert torch.equal(step.bank.local[others], before[others])
    step.fill(batch, torch.tensor([7, 20, 9]))
    torch.testing.assert_close(step.bank.local[[7, 9]], queries[0, [0, 2]].detach())
    assert torch.equal(step.bank.local[others], before[others])


def test_both_terms_train_the_trunk_and_each_its_head_alone():
    step, batch = step_of(loss__num_negatives=5)
    network = step.network
    _, losses = step.losses(batch, batch.ids)

    def trained(loss):
        network.zero_grad(set_to_none=False)
        loss.backward(retain_graph=True)
        return {name.split(".")[0] for name, p in network.named_parameters() if p.grad.abs().max() > 0}

    losses.sum().backward(retain_graph=True)  # makes the gradients
    assert trained(losses[0].sum()) == {"trunk", "f"}
    assert trained(losses[1].sum()) == {"trunk", "g"}
