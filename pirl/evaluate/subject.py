"""What protocols are given: a network, labelled images, and features that are made when one asks for them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pirl.config import Config
from pirl.data.dataset import Dataset
from pirl.errors import ConfigError
from pirl.evaluate.features import Features, extract_all
from pirl.evaluate.measurement import dealt
from pirl.evaluate.store import FeatureStore
from pirl.methods.models import Trunk
from pirl.storage.folder import Folder

MAX_IMAGES = 100_000
"""Images of each split that are used at most, by default: exact fits hold the features of one tap in memory."""

CHUNK = 65_536
"""Images whose features are looked at together."""

NO_NUMBERS = "the network makes features that are no numbers: its weights are damaged, or it diverged"

SplitName = Literal["train", "test"]


@dataclass(eq=False)
class Subject:
    """A network that is judged, beside one with random weights; the same on every rank.

    Attributes:
        trunk: On `device`, in evaluation mode or not.
        untrained: A trunk like it with the weights that training would begin with; None if it is not asked for.
        train: The images that vote and fit.
        test: Those that are counted; None where none are held out.
        image_size: Side of `crops.plain_view`, in pixels.
        device: Where features are computed.
        config: Of the run that made the weights, with `checkpoint`, which has heads and bank; None for a file alone.
        seed: Of all draws.
        limit: Images of each split that are used at most.
        skip: Whether an image that cannot be used is left out.
        say: Takes lines of progress, on rank 0.
        tell: Takes what goes on, for who watches.
        store: Keeps features; without it they are held in memory.
        scratch: Where a measurement that takes long saves how far it is; without it, nothing is saved.
        loader_processes: That read and decode images, for each rank; 0 does it in this process.
    """

    trunk: Trunk
    untrained: Trunk | None
    train: Dataset
    test: Dataset | None
    image_size: int
    device: torch.device
    config: Config | None = None
    checkpoint: Folder | None = None
    seed: int = 0
    limit: int | None = MAX_IMAGES
    skip: bool = False
    say: Callable[[str], None] = lambda line: None
    tell: Callable[[str], None] = lambda text: None
    store: FeatureStore | None = None
    scratch: Folder | None = None
    loader_processes: int = 0
    _held: dict[tuple[SplitName, bool], Features] = field(default_factory=dict, repr=False)

    def features(self, split: SplitName, *, trained: bool = True) -> Features:
        """Of all images of a split, in the order of their ids; a collective where it is asked for first.

        Those of both trunks are made then, so that each image is read and decoded once.

        Raises:
            ConfigError: There is no such split or network, or it makes features that are no numbers.
        """
        if (split, trained) not in self._held:
            dataset = self.train if split == "train" else self.test
            if dataset is None or not (trained or self.untrained is not None):
                raise ConfigError("there is no random network" if dataset else "there is no test split")
            trunks = [self.trunk] if self.untrained is None else [self.trunk, self.untrained]
            given = trunks, dataset, self.image_size, self.device, self.limit
            skip, processes = self.skip, self.loader_processes
            if self.store is None:
                found = extract_all(*given, skip=skip, processes=processes, tell=self.tell)
            else:
                found = self.store.features(*given, skip=skip, processes=processes, say=self.say)
            for of_trunk in found:
                if not all(bool(part.isfinite().all()) for part in torch.split(of_trunk.taps["res5"], CHUNK)):
                    raise ConfigError(NO_NUMBERS)  # what is no number in an earlier layer is none in res5
            self._held |= {(split, of): features for of, features in zip(self.trunks, found, strict=True)}
        return self._held[split, trained]

    def labelled(self, split: SplitName, *, trained: bool = True) -> Features:
        """The same, of the images that have a label."""
        features = self.features(split, trained=trained)
        with_label = features.labels >= 0
        if bool(with_label.all()):
            return features
        return Features({name: rows[with_label] for name, rows in features.taps.items()}, features.labels[with_label])

    def dealt(self, what: str, pieces: Sequence[Callable[[], Tensor]], length: int) -> Tensor:
        """As `measurement.dealt`, of the protocol `what`."""
        return dealt(pieces, length, self.device, lambda text: self.tell(f"evaluating: {what}, {text}"))

    @property
    def trunks(self) -> tuple[bool, ...]:
        """Values of `trained` that there are: the trained network first."""
        return (True,) if self.untrained is None else (True, False)
