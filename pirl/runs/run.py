"""Run folders: whether a name is new, goes on, is done, or is refused; and what lies in one.

`<storage>/<name>/` holds `config.json`, `metrics.jsonl`, `train.log`, TensorBoard events, `checkpoint_*`,
`evaluation/` and, once the run is done, `result.json`.
"""

import json
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, cast

from pirl.config import Config, from_json, leaves, settle_streams
from pirl.errors import ConfigError, NameTakenError
from pirl.runs.checkpoint_folder import newest_checkpoint
from pirl.runs.run_files import RunFile
from pirl.storage.folder import Folder

Resume = Literal["auto", "never", "must"]

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}")
"""What a run may be called: the name is that of a folder, on whichever disk or store."""

FIXED = (
    *("data.uri", "data.image_size", "data.batch_size", "data.streams", "data.window_groups", "data.pseudo_labels"),
    *("method.", "model.", "pretext.name", "pretext.permutations", "seed"),
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
        config: The config to run with; its streams and windows are numbers, those of the run that has begun.
        checkpoint: Where to go on from; None at the start.
        result: What `result.json` holds, if the run is done.
    """

    folder: Folder
    config: Config
    checkpoint: Folder | None = None
    result: dict[str, Any] | None = None

    @property
    def name(self) -> str:
        """The run's name, which is its folder's."""
        return self.folder.name

    def write_config(self) -> None:
        """Writes `config.json`: from here on the name is taken."""
        self.folder.remove(RunFile.RESULT, RunFile.EVALUATION, RunFile.FAILURE)
        self.folder.write(RunFile.CONFIG, self.config.model_dump_json(indent=2) + "\n")


def storage_at(uri: str, config: Config) -> Folder:
    """The folder of `--storage`, reached as `folder_at` says, but not without a name: that allows to read alone.

    Raises:
        ConfigError: It is a file.
    """
    if "://" not in uri and Path(uri).is_file():
        raise ConfigError(f"--storage {uri} is a file: name a folder for runs")
    folder = folder_at(uri, config)
    return replace(folder, options={name: value for name, value in folder.options.items() if name != "anon"})


def folder_at(uri: str, config: Config) -> Folder:
    """A folder or file that is not the data; a store is reached as that of the data, where both are of one kind."""
    same_kind = uri.partition("://")[0].replace("s3a", "s3") == config.data.uri.partition("://")[0].replace("s3a", "s3")
    options = config.data.storage_options if "://" in uri and same_kind else {}
    return Folder(uri, options, config.data.deadline_s)


def check_name(option: str, name: str) -> None:
    """Refuses what cannot be the name of a folder on every disk and in every store; raises ConfigError."""
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"{option} {name!r} is not a name for a folder: use at most 100 of A-Z a-z 0-9 _ - . +, beginning with a "
            "letter or digit"
        )


def open_run(storage: Folder, name: str, config: Config, resume: Resume) -> Run:
    """Decides what a run name means; writes nothing.

    Raises:
        ConfigError: The name is taken by other settings, or there is nothing to resume; says what to type.
    """
    folder = storage / name
    check_name("--run", name)
    files = folder.sizes()
    if RunFile.CONFIG not in files:
        # Else it was killed while it wrote that, or has the targets that it is to learn.
        if not all(name.startswith(("config.json.", f"{RunFile.TARGETS}/")) for name in files):
            raise NameTakenError(f"{folder} exists and is not a run", "choose another --run or --storage")
        if resume == "must":
            raise ConfigError(f"--resume must, but there is no run {name!r} in {storage}. {_existing(storage)}")
        return Run(folder, settle_streams(config))

    if resume == "never":
        raise ConfigError(f"the run {name!r} exists in {storage}: choose another --run, or --resume auto to go on")
    saved = _config_of(folder)
    config = settle_streams(config, saved)
    changed = differences(saved, config)
    fixed = FIXED if saved.has_pretext == config.has_pretext else (*FIXED, "loss.pretext_weight")
    lasting = [c for c in changed if c.startswith(fixed)]
    blocking = lasting if resume == "must" else changed
    if blocking:
        other = "" if lasting else ", or --resume must to go on with the new settings"
        raise NameTakenError(
            "\n  ".join([f"the run {name!r} exists in {storage} with other settings:", *blocking]),
            f"choose another name (--run {name}-2){other}",
        )
    same = not changed and saved.evaluation == config.evaluation
    done = _result_of(folder) if RunFile.RESULT in files and same else None
    return Run(folder, config, newest_checkpoint(folder), done)


def differences(old: Config, new: Config) -> list[str]:
    """Lines `name: old -> new` for each setting that changes what is learned."""
    before, after = leaves(old), leaves(new)
    return [
        f"{name}: {before[name]} -> {after[name]}"
        for name in before
        if before[name] != after[name] and not name.startswith(FREE)
    ]


def reports_in(metrics: str) -> list[dict[str, Any]]:
    """The lines of a metrics.jsonl, up to one that was cut off."""
    reports = []
    for line in metrics.splitlines():
        try:
            reports.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return reports


def write_failure(folder: Folder, error: str, step: int | None) -> None:
    """Writes down why a run cannot go on, and after how many steps if their weights are to blame.

    Not for long where the folder cannot be written: the error is on its way to the user by itself.
    """
    with suppress(OSError):
        folder.hurried().write(RunFile.FAILURE, json.dumps({"error": error, "step": step}))


def last_failure(folder: Folder) -> dict[str, Any] | None:
    """What `write_failure` wrote in this attempt of the run: `error` and `step`."""
    text = folder.find(RunFile.FAILURE)
    return cast(dict[str, Any], json.loads(text)) if text else None


def _result_of(folder: Folder) -> dict[str, Any] | None:
    """What `result.json` holds; None if it was cut off: then the run goes on from its last step and writes it anew."""
    try:
        result = json.loads(folder.read(RunFile.RESULT))
    except ValueError:
        return None
    return result if isinstance(result, dict) else None


def _config_of(folder: Folder) -> Config:
    try:
        return settle_streams(from_json(folder.read(RunFile.CONFIG)))
    except ConfigError as error:
        raise NameTakenError(
            f"{folder / RunFile.CONFIG} cannot be read, so the run cannot go on:\n{error}", "choose another --run"
        ) from None


def _existing(storage: Folder) -> str:
    paths = (path.split("/") for path in storage.sizes())
    names = sorted(path[0] for path in paths if path[1:] == [RunFile.CONFIG])
    return f"Runs there: {', '.join(names)}" if names else "There are no runs there."
