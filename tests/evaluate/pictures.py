"""Digits and tiny networks for the tests of protocols."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pirl.config import Config, override
from pirl.data.dataset import Dataset, open_dataset
from pirl.evaluate.subject import Subject
from pirl.methods.models import Trunk
from pirl.recipes import digits
from pirl.runs import checkpoint
from pirl.storage.folder import Folder
from pirl.train import first_state

CPU = torch.device("cpu")


def config_of(changes: Mapping[str, Any] | None = None) -> Config:
    """A network of 16 pixels and width 2, without any statistics of a batch, so that images can be taken one by one."""
    return override(digits(), {"model.width": 2, "model.norm": "frozen", **(changes or {})})


def subject_of(
    folder: Path | None, config: Config, *, test: bool = True, limit: int = 128, random: bool = True, **more: Any
) -> Subject:
    """A network with random weights, in a checkpoint where there is a folder, and another one beside it."""
    train = open_dataset("digits")
    state = first_state(override(config, {"seed": 5}), train, CPU)
    place = None
    if folder:
        checkpoint.save(folder, config, state, 7, train.fingerprint)
        place = Folder(str(folder))
    torch.manual_seed(config.seed)
    untrained = Trunk(config.model.arch, config.model.width, config.model.stem, config.model.norm)
    return Subject(
        state.network.trunk,
        untrained if random else None,
        train,
        train.held_out() if test else None,
        config.data.image_size,
        CPU,
        config=config if folder else None,
        checkpoint=place,
        limit=limit,
        **more,
    )


def pixels_of(png: bytes) -> np.ndarray[Any, Any]:
    """(height, width, 3) of a picture."""
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def labels_of(dataset: Dataset, rows: int) -> list[int]:
    """Of the first images."""
    found: list[int] = []
    for number in range(len(dataset.starts) - 1):
        labels = dataset.read_group(number).labels
        assert labels is not None
        found += labels.tolist()
    return found[:rows]
