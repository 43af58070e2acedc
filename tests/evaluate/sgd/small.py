"""A small network, and some of the digits, on which fits take a second; and a folder that stops a fit."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pirl.data.dataset import open_dataset
from pirl.evaluate.subject import Subject
from pirl.methods.models import Trunk
from pirl.storage.folder import Folder

CPU = torch.device("cpu")
IMAGES = 128
"""Of each split: two row groups."""


def trunk_of(seed: int, width: int = 8) -> Trunk:
    torch.manual_seed(seed)
    return Trunk("resnet18", width, "small")


def subject_of(**changes: Any) -> Subject:
    """Views of 16 px, with a random network beside the other one."""
    train = open_dataset("digits")
    given = {"trunk": trunk_of(0), "untrained": trunk_of(1), "image_size": 16, "limit": IMAGES, "seed": 3, **changes}
    return Subject(train=train, test=train.held_out(), device=CPU, **given)


@dataclass(frozen=True)
class StoppingFolder(Folder):
    """It raises in place of writing the third file: as a kill at the end of the third epoch does."""

    def write(self, name: str, content: str | bytes) -> None:
        count = Path(self.uri) / "count"
        writes = int(count.read_text()) if count.exists() else 0
        if writes == 2:
            raise KeyboardInterrupt
        count.write_text(str(writes + 1))
        super().write(name, content)
