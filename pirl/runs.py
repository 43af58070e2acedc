"""Run folders: whether a name is new, goes on, is done, or is refused; and what lies in one.

`<storage>/<name>/` holds `config.json`, `metrics.jsonl`, `train.log`, TensorBoard events, `checkpoint_*`,
`evaluation/` and, once the run is done, `result.json`.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from pirl.config import Config, ConfigError, from_json, leaves
from pirl.storage import write_text

Resume = Literal["auto", "never", "must"]

EVALUATION = "evaluation/pretrain.json"
"""In the run folder: what was measured after training."""

FAILURE = "failure.json"
"""In the run folder: why the run ended where trying again would not help."""

FIXED = (
    *("data.uri", "data.image_size", "data.batch_size", "data.streams", "data.window_groups"),
    *("model.", "pretext.name", "seed"),
)
"""Settings that a checkpoint, or what its number of steps means, depends on: not even `--resume must` changes them."""

FREE = (
    *("cluster.", "checkpoint.", "evaluation."),
    *("data.storage_options", "data.deadline_s", "data.read_ahead_mb", "data.cache_", "data.max_skipped"),
)
"""Settings that do not change what is learned: `--resume auto` takes the new ones."""


@dataclass(frozen=True)
class Run:
    """A run that may start or go on.

    Attributes:
        folder: `<storage>/<name>`.
        config: The config to run with.
        checkpoint: Where to go on from; None at the start.
        result: What `result.json` holds, if the run is done.
    """

    folder: Path
    config: Config
    checkpoint: Path | None = None
    result: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The run's name, which is its folder's."""
        return self.folder.name

    def write_config(self) -> None:
        """Makes the folder, and writes `config.json`: from here on the name is taken."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for outcome in ("result.json", EVALUATION, FAILURE):
            (self.folder / outcome).unlink(missing_ok=True)
        write_text(str(self.folder / "config.json"), self.config.model_dump_json(indent=2) + "\n")


def open_run(storage: Path, name: str, config: Config, resume: Resume) -> Run:
    """Decides what a run name means; writes nothing.

    Raises:
        ConfigError: The name is taken by other settings, or there is nothing to resume; says what to type.
    """
    folder = storage / name
    if storage.exists() and not storage.is_dir():
        raise ConfigError(f"--storage {storage} is a file: name a folder for runs")
    if not name or name.startswith(".") or "/" in name:
        raise ConfigError(f"--run {name!r} is not a name for a folder: use letters, digits, - and _")
    if not (folder / "config.json").exists():
        if folder.exists() and any(folder.iterdir()):
            raise ConfigError(f"{folder} exists and is not a run: choose another --run or --storage")
        if resume == "must":
            raise ConfigError(f"--resume must, but there is no run {name!r} in {storage}. {_existing(storage)}")
        return Run(folder, config)

    if resume == "never":
        raise ConfigError(f"the run {name!r} exists in {storage}: choose another --run, or --resume auto to go on")
    saved = _config_of(folder)
    changed = differences(saved, config)
    fixed = FIXED if saved.has_pretext == config.has_pretext else (*FIXED, "loss.pretext_weight")
    blocking = [c for c in changed if c.startswith(fixed)] if resume == "must" else changed
    if blocking:
        other = "" if resume == "must" else ", or --resume must to go on with the new settings"
        raise ConfigError(
            f"the run {name!r} exists in {storage} with other settings:\n  "
            + "\n  ".join(blocking)
            + f"\nchoose another name (--run {name}-2){other}"
        )
    result = folder / "result.json"
    same = not changed and saved.evaluation == config.evaluation
    done = json.loads(result.read_text()) if result.exists() and same else None
    return Run(folder, config, newest_checkpoint(folder), done)


def differences(old: Config, new: Config) -> list[str]:
    """Lines `name: old -> new` for each setting that changes what is learned."""
    before, after = leaves(old), leaves(new)
    return [
        f"{name}: {before[name]} -> {after[name]}"
        for name in before
        if before[name] != after[name] and not name.startswith(FREE)
    ]


def newest_checkpoint(folder: Path) -> Path | None:
    """The last complete checkpoint of a run folder."""
    return max(filter(is_complete, folder.glob("checkpoint_[0-9]*")), default=None)


def write_failure(folder: Path, error: str, step: int | None) -> None:
    """Writes down why a run cannot go on, and after how many steps if their weights are to blame."""
    write_text(str(folder / FAILURE), json.dumps({"error": error, "step": step}))


def last_failure(folder: Path) -> dict[str, Any] | None:
    """What `write_failure` wrote in this attempt of the run: `error` and `step`."""
    path = folder / FAILURE
    return cast(dict[str, Any], json.loads(path.read_text())) if path.exists() else None


def prune_checkpoints(folder: Path, keep: int) -> None:
    """Removes all checkpoints but the newest `keep` complete ones."""
    found = sorted(folder.glob("checkpoint_[0-9]*"))
    for old in set(found) - set([path for path in found if is_complete(path)][-keep:]):
        shutil.rmtree(old)


def steps_done(folder: Path | None) -> int:
    """Steps of training in a checkpoint; 0 without one."""
    return int(json.loads((folder / "state.json").read_text())["step"]) if folder else 0


def data_of(folder: Path) -> int:
    """The fingerprint of the data set that a checkpoint belongs to."""
    return int(json.loads((folder / "state.json").read_text())["data"])


def is_complete(folder: Path) -> bool:
    """Whether all files of all ranks are there in full: an upload may have been cut off."""
    if not (folder / "state.json").exists() or not (folder / ".metadata").exists():
        return False
    try:
        sizes = json.loads((folder / "state.json").read_text())["bytes"]
    except json.JSONDecodeError:
        return False
    return all((folder / name).exists() and (folder / name).stat().st_size == size for name, size in sizes.items())


def _config_of(folder: Path) -> Config:
    try:
        return from_json((folder / "config.json").read_text())
    except ConfigError as error:
        raise ConfigError(
            f"{folder / 'config.json'} cannot be read, so the run cannot go on: choose another --run\n{error}"
        ) from None


def _existing(storage: Path) -> str:
    names = sorted(path.parent.name for path in storage.glob("*/config.json"))
    return f"Runs there: {', '.join(names)}" if names else "There are no runs there."
