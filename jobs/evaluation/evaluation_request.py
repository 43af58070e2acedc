"""What is asked of an evaluation and of an embedding, as it is sent to those who carry it out."""

import sys
from dataclasses import dataclass, field
from typing import Literal

from jobs.settings import READING
from pirl.config import Config
from pirl.data.dataset import Dataset, open_data
from pirl.errors import ConfigError
from pirl.sections import Data, Section
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


def open_images(typed: Data, uri: str, own: Data | None) -> Dataset:
    """The data set at `uri`, or, where that is "", that of the run, read as was typed; raises as `open_data`."""
    if uri or own is None:
        return open_data(typed.model_copy(update={"uri": uri}))
    usual = Data()
    changed = {
        name: getattr(typed, name)
        for name in READING
        # Options of a store are those of TARGET's then.
        if name != "storage_options" and getattr(typed, name) != getattr(usual, name)
    }
    try:
        return open_data(own.model_copy(update=changed))
    except ConfigError as error:
        raise ConfigError(
            f"{error}\nThe run was trained on {own.uri}: if that lies elsewhere now, add --data URI"
        ) from None
