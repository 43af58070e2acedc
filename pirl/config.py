"""What a run is: sections that fit together, checked once, and `override` for everything that changes one.

A config that exists is valid. Nothing rewrites it later; derived numbers are properties.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import reduce
from operator import getitem
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, ValidationError, model_validator

from pirl.errors import ConfigError
from pirl.permutations import ALL
from pirl.pretext import PRETEXTS, PretextTask
from pirl.sections import (
    Augment,
    Checkpoint,
    Cluster,
    Data,
    Evaluation,
    Loss,
    Memory,
    Method,
    MethodName,
    Model,
    Optim,
    Pretext,
    Section,
)
from pirl.storage.secrets import refuse_secret_url, refuse_secrets
from pirl.wording import problem_with, unknown_name

UNUSED: dict[MethodName, tuple[str, ...]] = {
    "pirl": (),
    "covariant": ("augment.crop_min", "model.head", "loss.", "memory."),
    **dict.fromkeys(("supervised", "clusterfit", "distillation"), ("pretext.", "model.head", "loss.", "memory.")),
}
"""Settings that mean nothing to a method, as it has no memory bank or a view less: typed, they are refused."""


class Config(Section):
    """A whole run, enough to repeat it."""

    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: Data = Data()
    augment: Augment = Augment()
    model: Model = Model()
    method: Method = Method()
    pretext: Pretext = Pretext()
    loss: Loss = Loss()
    memory: Memory = Memory()
    optim: Optim = Optim()
    cluster: Cluster = Cluster()
    checkpoint: Checkpoint = Checkpoint()
    evaluation: Evaluation = Evaluation()

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Self:
        data, optim, streams = self.data, self.optim, self.streams
        refuse_secrets(data.storage_options)
        if not data.uri:
            raise ValueError("data.uri is empty: name the folder or URL of a data set")
        refuse_secret_url("data.uri", data.uri)
        for name, uri in self.places.items():
            refuse_secret_url(name, uri or "")
        if data.batch_size % streams or (data.streams and data.batch_size < 2 * streams):
            raise ValueError(
                f"data.batch_size {data.batch_size} does not give each of data.streams {streams} the same number of "
                f"at least 2 images: leave --data.streams away, or use a multiple of {streams} from {2 * streams} on"
            )
        if problem := self.too_many(self.cluster.workers, "cluster.workers"):
            raise ValueError(problem)
        if problem := self._problem_of_method():
            raise ValueError(problem)
        if optim.final_lr > optim.lr:
            raise ValueError(
                f"optim.final_lr {optim.final_lr} is above optim.lr {optim.lr}: type --optim.final-lr as well"
            )
        if optim.warmup_epochs >= optim.epochs:
            raise ValueError(f"optim.warmup_epochs {optim.warmup_epochs} leaves nothing of optim.epochs {optim.epochs}")
        if optim.cuda_graphs and not (optim.compile and self.cluster.gpus_per_worker):
            raise ValueError(
                "optim.cuda_graphs is of compiled networks on GPUs: add --optim.compile true and "
                "--cluster.gpus-per-worker 1, or leave it away"
            )
        # oneDNN leaves parts of the weights' gradient unset there (seen with torch 2.14.1).
        if optim.bf16 and not self.cluster.gpus_per_worker and self._smallest_map < 2:
            raise ValueError(
                f"data.image_size {data.image_size} with model.stem {self.model.stem} gives res5 maps of one pixel, "
                "of which bf16 makes wrong gradients on CPUs: use larger images or --optim.bf16 false"
            )
        return self

    def _problem_of_method(self) -> str | None:
        """What of the settings of method and pretext task does not fit together, and what to type."""
        name, permutations = self.pretext.name, self.pretext.permutations
        if self.has_bank and self.loss.pretext_weight > 0 and not self.has_pretext:
            return f"pretext.name {name} has no second view to weigh: add --loss.pretext_weight 0 (NPID)"
        if permutations is not None and permutations > ALL:
            return f"pretext.permutations {permutations} is more than the {ALL} orders of nine patches: use fewer"
        if permutations is not None and self.has_pretext and not self.second_view.shuffles:
            return (
                f"pretext.permutations {permutations} is of jigsaws, and pretext.name {name} cuts none: leave it away, "
                "or add --pretext.name jigsaw"
            )
        if self.method.name == "covariant" and not self.has_pretext:
            return f"method.name covariant has nothing to learn from pretext.name {name}: add --pretext.name jigsaw"
        if self.method.name == "covariant" and self.second_view.shuffles and (permutations or 0) < 2:
            return (
                f"method.name covariant with pretext.name {name} says which of some permutations was applied, and "
                f"pretext.permutations is {permutations}: use 2 or more, such as --pretext.permutations 100"
            )
        if self.data.label_noise > 0 and self.method.name != "supervised":
            return (
                f"data.label_noise {self.data.label_noise} changes labels, which method.name {self.method.name} does "
                "not look at: add --method.name supervised"
            )
        return self._problem_of_targets()

    def _problem_of_targets(self) -> str | None:
        """What of the settings does not go with a method that learns what another network says."""
        for name, value, method, option in (
            ("data.pseudo_labels", self.data.pseudo_labels, "clusterfit", "--clusters 50"),
            ("method.teacher", self.method.teacher, "distillation", "--distill"),
        ):
            if self.method.name == method and not value:
                return f"method.name {method} needs {name}: python jobs/clusterfit.py RUN {option} makes it, and trains"
            if self.method.name != method and value is not None:
                return (
                    f"{name} {value} means nothing to method.name {self.method.name}: leave it away, or add "
                    f"--method.name {method}"
                )
        return None

    @property
    def places(self) -> dict[str, str | None]:
        """By their names the settings, but for data.uri, that are a folder, a file or a URL."""
        return {
            "data.pseudo_labels": self.data.pseudo_labels,
            "method.teacher": self.method.teacher,
            "model.weights": self.model.weights,
        }

    @property
    def learns_labels(self) -> bool:
        """Whether each image has a class that is learned: its label, or its cluster."""
        return self.method.name in ("supervised", "clusterfit")

    @property
    def learns_from_a_network(self) -> bool:
        """Whether another network says what is learned: clusters of its features, or its scores."""
        return self.method.name in ("clusterfit", "distillation")

    @property
    def streams(self) -> int:
        """Parts that an epoch is dealt into: data.streams, or as many as may be, whatever the number of workers.

        They are equal parts of the batch, of two images or more; at most 64 of them, or a fourth of the batch where
        that is more.
        """
        batch = self.data.batch_size
        most = max(min(batch // 2, 64), batch // 4, 1)
        return self.data.streams or max(n for n in range(1, most + 1) if batch % n == 0)

    @property
    def window_groups(self) -> int:
        """Row groups of a stream that are shuffled together: data.window_groups, or of all streams together 64."""
        return self.data.window_groups or max(1, 64 // self.streams)

    def too_many(self, workers: int, option: str) -> str | None:
        """What is wrong with so many workers, and what to type; None if each has a stream to read."""
        if workers <= self.streams:
            return None
        batch = self.data.batch_size
        enough = [n for n in range(workers, batch // 2 + 1) if batch % n == 0]
        other = f"--data.streams {enough[0]}" if enough else f"a --data.batch-size that is a multiple of {2 * workers}"
        return (
            f"{option} {workers} is more than the {self.streams} streams that data.batch_size {batch} is dealt into, "
            f"and a stream has one reader: use at most {self.streams}, or {other}"
        )

    @property
    def _smallest_map(self) -> int:
        """Pixels of a side of what res5 gets, of the smallest view."""
        view = min(self.data.image_size, self.second_view.part(self.data.image_size))
        return -(-view // (16 if self.model.stem == "imagenet" else 4))

    @property
    def has_bank(self) -> bool:
        """Whether there is a memory bank."""
        return self.method.name == "pirl"

    @property
    def has_image_view(self) -> bool:
        """Whether the network sees the image as it is."""
        return self.method.name != "covariant"

    @property
    def second_view(self) -> PretextTask:
        """What makes it: nothing for labels, and where λ = 0 gives it no weight, which is NPID."""
        used = self.method.name == "covariant" or (self.has_bank and self.loss.pretext_weight > 0)
        return PRETEXTS[self.pretext.name if used else "none"]

    @property
    def permutations(self) -> int | None:
        """Orders that the patches of a second view may have; None for all, and where there are no patches."""
        return self.pretext.permutations if self.second_view.shuffles else None

    @property
    def has_pretext(self) -> bool:
        """Whether a second view is made."""
        return self.second_view.parts > 0


def override(config: Config, changes: Mapping[str, Any]) -> Config:
    """Returns `config` with some fields changed, checked as a whole again.

    Args:
        changes: Values by dotted name, e.g. `{"loss.num_negatives": 4096}`. Hyphens count as underscores.

    Raises:
        ConfigError: A name that does not exist (with the nearest that does), values that are not allowed, or a setting
            that means nothing to the method.
    """
    tree = config.model_dump()
    names = list(_leaf_names(type(config)))
    for given, value in changes.items():
        name = given.replace("-", "_")
        if name not in names:
            raise ConfigError(unknown_name(given, name, names))
        *sections, leaf = name.split(".")
        reduce(getitem, sections, tree)[leaf] = value
    changed = from_dict(tree)
    method = changed.method.name
    if typed := [given for given in changes if given.replace("-", "_").startswith(UNUSED[method])]:
        raise ConfigError(
            f"{', '.join(typed)} means nothing to method.name {method}: leave it away. It has no use for "
            + " ".join(f"{name}*" if name.endswith(".") else name for name in UNUSED[method])
        )
    return changed


def without_meaning(config: Config, names: Iterable[str]) -> list[str]:
    """Those of some dotted names that are of settings which mean nothing to the method of a config."""
    method, only = config.method.name, {"pseudo_labels": "clusterfit", "teacher": "distillation"}
    only["label_noise"] = "supervised"
    plain = {given: given.replace("-", "_") for given in names}
    return [
        given
        for given, name in plain.items()
        if name.startswith(UNUSED[method]) or only.get(name.rpartition(".")[2], method) != method
    ]


def settle_streams(config: Config, begun: Config | None = None) -> Config:
    """Gives a run its streams and windows as numbers: those of the run that has begun, or by the rules.

    Raises:
        ConfigError: The streams of that run do not go with these settings.
    """
    rule = begun or config
    missing = {"data.streams": rule.streams, "data.window_groups": rule.window_groups}
    held = leaves(config)
    return override(config, {name: value for name, value in missing.items() if held[name] is None})


def leaves(config: Config) -> dict[str, Any]:
    """All settings by dotted name."""
    return {name: reduce(getattr, name.split("."), config) for name in _leaf_names(Config)}


def from_dict(tree: Mapping[str, Any]) -> Config:
    """Builds a config from nested dicts (`config.json`).

    Raises:
        ConfigError: A name or a value that is not allowed, one line for each.
    """
    try:
        return Config.model_validate(tree)
    except ValidationError as error:
        names = list(_leaf_names(Config))
        raise ConfigError("\n".join(problem_with(each, names) for each in error.errors())) from None


def from_json(text: str) -> Config:
    """Reads a config back from `config.json`; raises ConfigError as `from_dict` does."""
    try:
        return from_dict(json.loads(text))
    except json.JSONDecodeError as error:
        raise ConfigError(f"not a config in JSON: {error}") from None


def _leaf_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            yield from _leaf_names(field.annotation, f"{prefix}{name}.")
        else:
            yield prefix + name
