"""Weights of a ResNet from anywhere: a run, a checkpoint, a file of torchvision's or of another trainer.

A file tells by the names and shapes of its tensors which network it holds; whatever does not fit is said.
"""

import hashlib
import io
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from pirl.config import Config, from_json
from pirl.errors import ConfigError
from pirl.methods.models import Arch, Stem, Trunk
from pirl.runs.checkpoint_folder import newest_checkpoint
from pirl.runs.run import folder_at
from pirl.runs.run_files import CheckpointFile, RunFile
from pirl.storage.folder import Folder

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".tar")
"""Of files with weights, as they are often called; what is in a file tells how it is read."""

BLOCKS: dict[tuple[str, tuple[int, ...]], Arch] = {
    ("BasicBlock", (2, 2, 2, 2)): "resnet18",
    ("BasicBlock", (3, 4, 6, 3)): "resnet34",
    ("Bottleneck", (3, 4, 6, 3)): "resnet50",
}
"""By kind and number of the blocks of the four stages."""


@dataclass(frozen=True)
class Weights:
    """The tensors of a trunk, and where they come from.

    Attributes:
        uri: The file.
        sha256: Of the file, in hexadecimal digits.
        tensors: By torchvision's names.
        arch: Which network they are of, with `width` and `stem` as in `config.Model`.
        unused: Names of tensors in the file that are no part of a trunk, such as its classifier.
        config: Of the run that made them; None for a file alone.
        checkpoint: The checkpoint that they are of, which has the heads too; None for a file alone.
    """

    uri: str
    sha256: str
    tensors: Mapping[str, Tensor]
    arch: Arch
    width: int
    stem: Stem
    unused: tuple[str, ...] = ()
    config: Config | None = None
    checkpoint: Folder | None = None

    def trunk(self) -> Trunk:
        """A trunk with these weights."""
        trunk = Trunk(self.arch, self.width, self.stem)
        trunk.load_state_dict(dict(self.tensors), strict=False)  # a file may not count batches
        return trunk

    def image_size(self, given: int | None = None) -> int:
        """Side of the views, in pixels: as given, as the run had them, or as such networks are trained."""
        if given is not None:
            return given
        return self.config.data.image_size if self.config else 224 if self.stem == "imagenet" else 32

    def in_words(self) -> str:
        """What they are, and what of the file is left out."""
        left = f"; not used: {', '.join(self.unused[:3])}" if self.unused else ""
        more = f" and {len(self.unused) - 3} more" if len(self.unused) > 3 else ""
        return f"{self.uri} ({self.arch}, width {self.width}, {self.stem} stem){left}{more}"

    def about(self) -> dict[str, Any]:
        """What is written down of them."""
        return {"uri": self.uri, "sha256": self.sha256, "not_used": list(self.unused)}


def read_weights(place: Folder) -> Weights:
    """Finds and reads weights.

    Args:
        place: A run folder, whose newest checkpoint is taken; a checkpoint; or a file.

    Raises:
        ConfigError: There are none, or not those of a ResNet that `model.arch` has; says what was found.
        StorageError: The store did not give them.
    """
    checkpoint = checkpoint_at(place)
    if checkpoint is None:
        return _from_file(place)
    config = from_json(checkpoint.read(CheckpointFile.CONFIG))
    found = _from_file(checkpoint / CheckpointFile.TRUNK)
    return Weights(
        found.uri, found.sha256, found.tensors, found.arch, found.width, found.stem, found.unused, config, checkpoint
    )


def checkpoint_at(place: Folder) -> Folder | None:
    """The checkpoint that a place is, or the newest one of the run that it is; None if it is neither.

    Raises:
        ConfigError: There is nothing there, or a run without a checkpoint, or a folder that is something else.
    """
    if place.exists(CheckpointFile.STATE):
        return place
    if place.exists(RunFile.CONFIG):
        if newest := newest_checkpoint(place):
            return newest
        raise ConfigError(f"the run {place} has no checkpoint yet")
    if place.is_folder():
        raise ConfigError(f"{place} is a folder, and neither a run nor a checkpoint: it has no {RunFile.CONFIG}")
    return None


def weights_of(config: Config) -> Weights:
    """Those that a run begins with; raises as `read_weights` and `check_fits` do."""
    assert config.model.weights is not None
    weights = read_weights(folder_at(config.model.weights, config))
    check_fits(weights, config)
    return weights


def check_fits(weights: Weights, config: Config) -> None:
    """Raises ConfigError where weights are of another network than the config has; says what to type."""
    model = config.model
    own, theirs = (model.arch, model.width, model.stem), (weights.arch, weights.width, weights.stem)
    if own != theirs:
        raise ConfigError(
            f"model.weights {weights.uri} is a {theirs[0]} of width {theirs[1]} with the {theirs[2]} stem, and the run "
            f"has a {own[0]} of width {own[1]} with the {own[2]} stem: add --model.arch {theirs[0]} --model.width "
            f"{theirs[1]} --model.stem {theirs[2]}"
        )


def _from_file(file: Folder) -> Weights:
    try:
        data = file.read_bytes()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise ConfigError(
            f"{file} is not there: name a run, a checkpoint, or a file with weights ({', '.join(SUFFIXES)})"
        ) from None
    tensors, unused = _trunk_of(_dictionaries(_content(file, data)), file)
    arch, width, stem = _network_of(tensors, file)
    _check(tensors, Trunk(arch, width, stem), file)
    return Weights(file.uri, hashlib.sha256(data).hexdigest(), tensors, arch, width, stem, unused)


def _content(file: Folder, data: bytes) -> Any:
    """What a file of safetensors, or of torch.save, holds; nothing in it is run."""
    try:
        if data[8:9] == b"{":  # behind the length of the header
            return safetensors.torch.load(data)
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        why = "it holds objects other than tensors, which could run code here, or is no file of torch.save"
    except Exception as error:  # whatever the bytes are
        first = str(error).strip().partition("\n")[0]
        why = f"it is damaged, or neither of the two ({first})" if data else "it is empty"
    raise ConfigError(
        f"{file} cannot be read as weights: {why}. Use a .safetensors file, or what torch.save(network.state_dict(), "
        "FILE) wrote"
    )


def _dictionaries(content: Any) -> dict[str, dict[str, Tensor]]:
    """The dictionaries of tensors in a file, however deep they lie in it ({"state_dict": ...}), by where they do."""
    found: dict[str, dict[str, Tensor]] = {}
    waiting = [("", content)]
    while waiting:
        place, each = waiting.pop(0)
        if isinstance(each, Mapping):
            found[place] = {str(name): value for name, value in each.items() if isinstance(value, Tensor)}
            waiting += [(f"{place}{name}.", value) for name, value in each.items() if isinstance(value, Mapping)]
    return {place: tensors for place, tensors in found.items() if tensors}


def _trunk_of(found: Mapping[str, Mapping[str, Tensor]], file: Folder) -> tuple[dict[str, Tensor], tuple[str, ...]]:
    """The tensors of the trunk by torchvision's names, and the names of what is not used.

    Other trainers put a prefix before the names (`module.`, `backbone.`); of several networks the first is taken, and
    of several dictionaries the one with the most tensors.
    """
    place = max(found, key=lambda each: len(found[each]), default="")
    tensors = found.get(place, {})
    first = next((name for name in tensors if name.endswith("conv1.weight") and ".layer" not in f".{name}"), None)
    if first is None:
        some = ", ".join(list(tensors)[:3]) or "nothing"
        raise ConfigError(f"{file} has no tensor conv1.weight, so it is not a ResNet of torchvision's; it has {some}")
    prefix = first.removesuffix("conv1.weight")
    stages = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "layer4.")
    known = {
        name.removeprefix(prefix): value
        for name, value in tensors.items()
        if name.startswith(prefix) and name.removeprefix(prefix).startswith(stages)
    }
    unused = [name for name in tensors if not name.startswith(tuple(prefix + stage for stage in stages))]
    networks = [each for each, inside in found.items() if each != place and any("conv1.weight" in n for n in inside)]
    return known, (*(f"all of {each.rstrip('.')}" for each in networks), *unused)


def _network_of(tensors: Mapping[str, Tensor], file: Folder) -> tuple[Arch, int, Stem]:
    """Which ResNet tensors of these names and shapes are."""
    counts = tuple(len({n.split(".")[1] for n in tensors if n.startswith(f"layer{s}.")}) for s in (1, 2, 3, 4))
    kind = "Bottleneck" if "layer1.0.conv3.weight" in tensors else "BasicBlock"
    if (kind, counts) not in BLOCKS:
        raise ConfigError(
            f"{file} is a ResNet of {kind}s {counts}; known are {', '.join(BLOCKS.values())}: use one of these"
        )
    width, channels, side, _ = tensors["conv1.weight"].shape
    if channels != 3 or side not in (3, 7):
        raise ConfigError(
            f"{file}: conv1.weight is {tuple(tensors['conv1.weight'].shape)}, and a stem has 3 colours and 7 x 7 or "
            "3 x 3 pixels"
        )
    return BLOCKS[kind, counts], width, "imagenet" if side == 7 else "small"


def _check(tensors: Mapping[str, Tensor], trunk: Trunk, file: Folder) -> None:
    """Raises ConfigError for tensors that are missing, of another shape, or no numbers."""
    expected = {name: value for name, value in trunk.state_dict().items() if not name.endswith("num_batches_tracked")}
    for name, value in expected.items():
        if name not in tensors:
            raise ConfigError(f"{file} has no tensor {name}, which a ResNet of its kind has")
        if tensors[name].shape != value.shape:
            raise ConfigError(
                f"{file}: {name} is {tuple(tensors[name].shape)}, and in a ResNet of its kind {tuple(value.shape)}; "
                "wide and grouped ones are not known"
            )
        if not tensors[name].is_floating_point():
            raise ConfigError(f"{file}: {name} holds {tensors[name].dtype}: use weights that are not quantized")
        if not bool(torch.isfinite(tensors[name]).all()):
            raise ConfigError(f"{file}: {name} holds values that are no numbers")
        if name.endswith("running_var") and bool((tensors[name] < 0).any()):
            raise ConfigError(f"{file}: {name} holds variances below 0")
    if strange := [n for n in tensors if n not in expected and not n.endswith("num_batches_tracked")]:
        raise ConfigError(f"{file} has tensors that a ResNet of its kind has not: {', '.join(strange[:3])}")
