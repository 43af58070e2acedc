"""What is asked of an evaluation and of an embedding, as it is sent to those who carry it out."""

import sys
from dataclasses import dataclass, field
from typing import Literal

from pirl.config import Config
from pirl.sections import Section
from pirl.storage.folder import Folder


@dataclass(frozen=True)
class EvaluationRequest:
    """What the command line asks for.

    Attributes:
        target: The run, checkpoint or file.
        ensemble: Another one, whose features stand beside those of the first.
        out: Where reports are written.
        data: Of the images that vote and fit, and `test` of those that are counted; "" for the split beside them.
        protocols: Their settings, by their names.
        cluster: Workers on Ray, as in `config.Cluster`; with how the store is reached, `config.Data`.
    """

    target: Folder
    out: Folder
    data: str
    test: str
    protocols: dict[str, Section]
    config: Config
    image_size: int | None
    max_images: int
    seed: int
    random: bool
    ensemble: Folder | None
    features: str
    use_ray: bool
    only_check: bool
    command: tuple[str, ...] = field(default_factory=lambda: tuple(sys.argv[1:]))


@dataclass(frozen=True)
class EmbeddingRequest:
    """What the command line asks for.

    Attributes:
        target: The run, checkpoint or file.
        out: DESTINATION.
        data: Of the images; "" for those of the run.
        split: Which of them: `test` is the split that was held out.
        tap: One of `models.TAPS`.
        config: Workers on Ray, as in `config.Cluster`; with how the store is reached, `config.Data`.
    """

    target: Folder
    out: Folder
    data: str
    split: Literal["train", "test"]
    tap: str
    dtype: Literal["float32", "float16"]
    config: Config
    image_size: int | None
    overwrite: bool
    use_ray: bool
    only_check: bool
