"""A batch in pieces: what is learned is as in one, and so are negatives and bank."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pirl.config import override
from pirl.data.dataset import open_data
from pirl.errors import ConfigError
from pirl.train import train
from tests.test_train import bank_of, run, small

METHODS: dict[str, dict[str, Any]] = {
    "jigsaw, npid": {"loss.kind": "npid"},
    "covariant": {"method.name": "covariant", "pretext.permutations": 20},
}


def config_of(name: str, pieces: int) -> Any:
    return override(small({"optim.epochs": 1}), METHODS[name] | {"optim.accumulate": pieces})


@pytest.mark.parametrize("name", METHODS)
def test_pieces_learn_what_the_whole_does(run_ranks: Any, tmp_path: Path, name: str) -> None:
    """Also on several ranks: 3 pieces do not divide their shares."""
    whole = run(config_of(name, 1), tmp_path / "whole")
    pieces = run_ranks(2, run, config_of(name, 3), tmp_path / "pieces")
    for rank in pieces:
        # Float32 sums in another order, carried through twelve steps.
        torch.testing.assert_close(torch.tensor(rank["losses"]), torch.tensor(whole["losses"]), rtol=1e-5, atol=0)
        for one, other in zip(rank["weights"].values(), whole["weights"].values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-5)
    if name == "jigsaw, npid":
        torch.testing.assert_close(bank_of(tmp_path / "pieces", 12), bank_of(tmp_path / "whole", 12), rtol=0, atol=1e-4)


def test_pieces_of_less_than_batch_norm_needs_are_refused(tmp_path: Path) -> None:
    config = small({"model.norm": "batch", "optim.accumulate": 60})
    with pytest.raises(ConfigError, match=r"optim\.accumulate 60 cuts the 118 images .* use --optim\.accumulate 59 "):
        train(config, open_data(config.data), report=lambda *_: None, scratch=tmp_path)
