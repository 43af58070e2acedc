"""The networks against torchvision's, and the heads against plain loops."""

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from pirl.methods.models import TAPS, Arch, FrozenNorm, HeadF, HeadG, Trunk, export_state_dict


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _rms(x: Tensor) -> float:
    return x.detach().square().mean().sqrt().item()


def test_resnet50_has_torchvisions_parameter_count() -> None:
    assert _count(Trunk("resnet50")) + _count(nn.Linear(2048, 1000)) == 25_557_032


def test_c2x_has_98_million_parameters() -> None:
    """Paper, section 4.2 (PIRL-c2x); torchvision's wide_resnet50_2 has 69 million."""
    trunk = Trunk("resnet50", width=128)
    assert trunk.out_channels == 4096
    assert round((_count(trunk) + _count(nn.Linear(4096, 1000))) / 1e6) == 98


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_loads_torchvisions_weights_and_computes_the_same(arch: Arch) -> None:
    reference = torchvision.models.get_model(arch, weights=None)
    reference.fc = nn.Identity()
    trunk = Trunk(arch)
    trunk.load_state_dict(reference.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    for mode in (True, False):  # training moves the running statistics, so evaluation compares those too
        reference.train(mode)
        trunk.train(mode)
        # The same operations in the same order: no tolerance.
        assert torch.equal(trunk(x), reference(x))


def test_export_loads_into_torchvision_and_is_contiguous() -> None:
    trunk = Trunk("resnet18").to(memory_format=torch.channels_last)
    exported = export_state_dict(trunk)
    assert all(value.is_contiguous() and not value.requires_grad for value in exported.values())
    result = torchvision.models.resnet18(weights=None).load_state_dict(exported, strict=False)
    assert (result.missing_keys, result.unexpected_keys) == (["fc.weight", "fc.bias"], [])


@pytest.mark.parametrize(
    ("arch", "stem", "size", "sides", "channels"),
    [
        ("resnet18", "imagenet", 224, (112, 56, 28, 14, 7), (16, 16, 32, 64, 128)),
        ("resnet50", "imagenet", 64, (32, 16, 8, 4, 2), (16, 64, 128, 256, 512)),
        ("resnet18", "small", 32, (32, 32, 16, 8, 4), (16, 16, 32, 64, 128)),
    ],
)
def test_taps_have_the_sizes_of_their_layers(
    arch: Arch, stem: str, size: int, sides: tuple[int, ...], channels: tuple[int, ...]
) -> None:
    trunk = Trunk(arch, 16, stem).eval()  # type: ignore[arg-type]
    x = torch.randn(2, 3, size, size)
    maps = trunk.taps(x)
    assert tuple(maps) == TAPS
    assert [tuple(m.shape) for m in maps.values()] == [(2, c, s, s) for c, s in zip(channels, sides, strict=True)]
    assert all(m.min() >= 0 for m in maps.values())  # each is taken after its ReLU
    assert torch.equal(trunk(x), F.adaptive_avg_pool2d(maps["res5"], 1).flatten(1))


def test_head_f_is_one_layer_or_two() -> None:
    x = torch.randn(5, 24)
    linear, mlp = HeadF(24), HeadF(24, "mlp")
    assert linear(x).shape == mlp(x).shape == (5, 128)
    assert _count(linear) == 24 * 128 + 128
    assert _count(mlp) == 24 * 24 + 24 + 24 * 128 + 128


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_head_g_equals_a_loop_over_samples_and_patches(kind: str) -> None:
    head = HeadG(24, kind, patches=9)  # type: ignore[arg-type]
    x = torch.randn(4 * 9, 24)
    rows = []
    for sample in range(4):
        parts = []
        for patch in range(9):
            part = head.embed(x[sample * 9 + patch])
            parts.append(part.relu() if kind == "mlp" else part)
        rows.append(head.merge(torch.cat(parts)))
    # float32: a matrix product and nine vector products add in another order.
    torch.testing.assert_close(head(x), torch.stack(rows), rtol=1e-5, atol=1e-6)
    assert head.merge.weight.shape == (128, 9 * 128)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_head_g_of_one_patch_is_a_projection(kind: str) -> None:
    head = HeadG(24, kind, patches=1)  # type: ignore[arg-type]
    x = torch.randn(5, 24)
    assert torch.equal(head(x), head.embed(x))
    assert _count(head) == _count(HeadF(24, kind))  # type: ignore[arg-type]
    assert head(x).min() < 0  # no ReLU at the end


def test_f_and_g_share_nothing() -> None:
    f, g = HeadF(24), HeadG(24)
    assert {p.data_ptr() for p in f.parameters()}.isdisjoint(p.data_ptr() for p in g.parameters())
    g(torch.randn(9, 24)).sum().backward()
    assert all(p.grad is None for p in f.parameters())
    assert all(p.grad is not None for p in g.parameters())


def test_frozen_norm_does_not_see_the_rest_of_the_batch() -> None:
    x = torch.randn(8, 3, 32, 32)
    for norm, same in (("frozen", True), ("batch", False)):
        trunk = Trunk("resnet18", 8, "small", norm).train()  # type: ignore[arg-type]
        # float32 rounding: a convolution may add in another order for another batch size.
        assert torch.allclose(trunk(x)[:2], trunk(x[:2]), rtol=1e-4, atol=1e-5) == same


def test_frozen_norm_learns_scale_and_shift_and_keeps_its_statistics() -> None:
    norm = FrozenNorm(4).train()
    norm.running_mean.copy_(torch.randn(4))  # type: ignore[union-attr]
    norm.running_var.copy_(torch.rand(4) + 0.5)  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in norm.named_buffers()}
    x = torch.randn(3, 4, 5, 5)
    mean, var = (before[name].view(4, 1, 1) for name in ("running_mean", "running_var"))
    torch.testing.assert_close(norm(x), (x - mean) / (var + norm.eps).sqrt())
    norm(x).square().sum().backward()
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    assert all(torch.equal(value, before[name]) for name, value in norm.named_buffers())


@pytest.mark.parametrize("arch", ["resnet18", "resnet34", "resnet50"])
def test_fresh_frozen_trunk_keeps_the_scale_of_its_activations(arch: Arch) -> None:
    """Unscaled residual branches would make ResNet-50's res5 60 times as large as its conv1."""
    torch.manual_seed(0)
    maps = Trunk(arch, 16, "small", "frozen").taps(torch.randn(8, 3, 32, 32))
    scales = [_rms(m) for m in maps.values()]
    assert max(scales) < 10 * min(scales)


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_fresh_frozen_trunk_survives_sgd(arch: Arch) -> None:
    torch.manual_seed(0)
    trunk = Trunk(arch, 8, "small", "frozen")
    network = nn.Sequential(trunk, HeadF(trunk.out_channels))
    images, targets = torch.randn(32, 3, 16, 16), F.normalize(torch.randn(32, 128))
    search = torch.optim.SGD(network.parameters(), lr=0.03, momentum=0.9)
    for _ in range(25):
        scores = F.normalize(network(images)) @ targets.T / 0.07
        search.zero_grad()
        F.cross_entropy(scores, torch.arange(32)).backward()
        search.step()
        features = trunk(images)
        assert features.isfinite().all()
        assert features.std(0).max() > 1e-4 * _rms(features)  # not the same for all images
