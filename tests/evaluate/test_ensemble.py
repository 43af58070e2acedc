"""Two networks side by side against each of them alone."""

import torch

from pirl.evaluate.ensemble import Ensemble
from pirl.methods.models import TAPS, Trunk, pool


def test_features_of_both_networks_stand_side_by_side() -> None:
    torch.manual_seed(0)
    first, second = Trunk("resnet18", 4, "small").eval(), Trunk("resnet50", 2, "small").eval()
    both, x = Ensemble(first, second).eval(), torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(both(x), torch.cat([first(x), second(x)], 1))
        assert both.out_channels == both(x).shape[1]
        alone = first.taps(x), second.taps(x)
        for tap in TAPS:
            assert torch.equal(both.taps(x)[tap], torch.cat([maps[tap] for maps in alone], 1))
        # What a linear classifier gets of res5, which is its mean over space.
        torch.testing.assert_close(pool(both.taps(x))["res5"], both(x))
