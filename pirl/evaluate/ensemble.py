"""Two networks as one: their features side by side, as PIRL-ens. (paper, section 4.1)."""

import torch
from torch import Tensor, nn

from pirl.methods.models import Trunk


class Ensemble(Trunk):
    """Trunks whose maps have the same sides, which is so for those of one stem."""

    def __init__(self, *trunks: Trunk) -> None:
        nn.Module.__init__(self)  # it has no layers of its own
        self.trunks = nn.ModuleList(trunks)
        self.out_channels = sum(trunk.out_channels for trunk in trunks)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, 3, H, W) to features (B, C): those of the first trunk, then those of the second."""
        return torch.cat([trunk(x) for trunk in self.trunks], 1)

    def taps(self, x: Tensor) -> dict[str, Tensor]:
        """As `Trunk.taps`, the channels of the trunks one behind the other."""
        maps = [trunk.taps(x) for trunk in self.trunks]  # type: ignore[operator]
        return {name: torch.cat([each[name] for each in maps], 1) for name in maps[0]}
