"""What every job file understands in its command line: recipes, `--section.field VALUE`, `--cluster`, `--storage`."""

import argparse
import difflib
import json
import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

from clusters.profile import read_profile
from pirl.config import Config, leaves, override
from pirl.errors import ConfigError, CorruptImage, RunFailed, StoreRefusedError, TrainingDiverged
from pirl.recipes import RECIPES, photos
from pirl.sections import Data
from pirl.storage.checks import check_place
from pirl.storage.folder import Folder
from pirl.storage.secrets import refuse_user_in_environment


def pairs(rest: list[str]) -> tuple[str | None, dict[str, Any]]:
    """Reads `--section.field VALUE` and `--section.field=VALUE`; `null` and JSON objects are understood.

    Not by argparse, which takes the value of an option that it does not know for the recipe.

    Returns:
        The one word that belongs to no setting, which is the recipe, or None; and the settings.

    Raises:
        ConfigError: A setting without a value, or a second word that belongs to none.
    """
    recipe: str | None = None
    changes: dict[str, Any] = {}
    words = iter(rest)
    for word in words:
        name, equals, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            if recipe or word.startswith("-"):
                raise ConfigError(f"unexpected {word!r}: settings are typed as --section.field VALUE")
            recipe = word
            continue
        if word == "--":
            raise ConfigError("there is nothing to write behind --: settings are typed as --section.field VALUE")
        if not equals:
            value = next(words, "--")
            if value.startswith("--"):
                raise ConfigError(f"{word} needs a value: {word} VALUE")
        changes[name] = value_of(value, word)
    return recipe, changes


READING = ("on_error", "deadline_s", "read_ahead_mb", "cache_gb", "cache_folder", "storage_options")
"""Settings of data that mean something where a network is measured: how images are read."""

OWN_WORDS = {"data.uri": "--data", "data.image_size": "--image-size"}
"""Words of jobs that measure, for what is a setting where a network is trained."""


def refuse_training(names: Mapping[str, Any]) -> None:
    """Raises ConfigError for settings of data that change nothing where a network is measured."""
    known = {f"data.{name}" for name in READING}
    for name, value in names.items():
        if name.startswith("data.") and name not in known:
            typed = f"--{name.replace('_', '-')}"
            if name in OWN_WORDS:
                raise ConfigError(f"{typed} {value}: type {OWN_WORDS[name]} {value}")
            allowed = ", ".join(f"--data.{each.replace('_', '-')}" for each in READING)
            raise ConfigError(f"{typed} changes nothing here: of data there are {allowed}")


def recipe_name(word: str | None) -> str:
    """The recipe that a word names, `digits` where there is none; raises ConfigError if it names none."""
    name = (word or "digits").replace("-", "_")
    if name not in RECIPES:
        raise ConfigError(f"unknown recipe {word!r}: use one of {', '.join(RECIPES)}")
    return name


def settings_and_storage(given: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """What the profile of `--cluster` sets, if there is one, and where runs lie; as `read_profile`, `storage_uri`."""
    if given.cluster is None:
        return {}, storage_uri(given.storage)
    profile = read_profile(given.cluster)
    return profile.settings(), storage_uri(profile.storage if given.storage is None else given.storage)


def value_of(text: str, word: str) -> Any:
    """Understands `null`, `None` and JSON objects (or raises ConfigError); the rest stays text, for the config."""
    if text in ("null", "None"):
        return None
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{word}: not a JSON object: {error}") from None  # without it: it may hold secrets


def recipe_for(name: str, given: Mapping[str, Any]) -> Config:
    """A recipe by itself, without the given settings, in which `photos` finds its data set and whether it has GPUs.

    Raises:
        ConfigError: There is no data set for `photos`.
        StorageError: The store did not give the manifest.
    """
    if RECIPES[name] is not photos:
        return RECIPES[name]()
    known = {key.replace("-", "_"): value for key, value in given.items()}
    if "data.uri" not in known:
        raise ConfigError(
            "photos needs your images: python jobs/prepare.py SOURCE data/photos, then --data.uri data/photos"
        )
    told = ("data.uri", "data.storage_options", "data.deadline_s", "cluster.gpus_per_worker")
    config = absolute(override(Config(), {key: known[key] for key in told if key in known}))
    return _photos_of(config.data.model_dump_json(), config.cluster.gpus_per_worker > 0)


@cache
def _photos_of(data: str, gpus: bool) -> Config:
    from pirl.data.dataset import open_data

    dataset = open_data(Data.model_validate_json(data))
    return photos(dataset.rows, min(dataset.largest or (224,)), gpus=gpus)


def storage_uri(given: str | None) -> str:
    """What `--storage` means: an absolute path or a URL.

    Raises:
        ConfigError: Nothing in quotes, a URL without a bucket, or with a user or a password.
    """
    try:
        refuse_user_in_environment()
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if given is not None:
        check_place("--storage", given, "runs")
    if given and "://" in given and not given.startswith("file://"):
        return given.rstrip("/")
    return str((Path(given.removeprefix("file://")) if given else default_storage()).expanduser().resolve())


def default_storage() -> Path:
    """`runs` in the current folder, or, in a Ray job, whose folder is temporary, in the home folder."""
    return Path.home() / "pirl-runs" if "RAY_JOB_CONFIG_JSON" in os.environ else Path("runs")


def spread(argv: list[str]) -> list[str]:
    """Joins the values of `--PROTOCOL.SETTING A B C` with commas: argparse does not know these options."""
    joined: list[str] = []
    for word in argv:
        inside = joined and joined[-1].startswith("--") and "." in joined[-1].partition("=")[0] and "=" in joined[-1]
        if word.startswith("--"):
            joined.append(word)
        elif joined and joined[-1].startswith("--") and "." in joined[-1] and "=" not in joined[-1]:
            joined[-1] += f"={word}"
        elif inside and not joined[-1].startswith(("--data.", "--cluster.")):
            joined[-1] += f",{word}"
        else:
            joined.append(word)
    return joined


def target_at(word: str, storage: str, config: Config) -> Folder:
    """The run, checkpoint or file that TARGET names: a path, a URL, or the name of a run in the storage."""
    target = place_at("TARGET", word, config)
    if "/" not in word.rstrip("/") and not target.exists():
        named = place_at("--storage", storage, config) / word
        return named if named.exists() else target
    return target


def place_at(what: str, uri: str, config: Config) -> Folder:
    """A folder or file that a word of the command line names; raises ConfigError where it is no place at all."""
    from pirl.runs.run import folder_at

    check_place(what, uri, "runs/digits")
    place = local(uri)
    if "://" not in config.data.uri:  # then the options that are typed for a store are meant for this one
        config = config.model_copy(update={"data": config.data.model_copy(update={"uri": place})})
    return folder_at(place, config)


def destination_at(uri: str, config: Config) -> Folder:
    """What DESTINATION names; raises ConfigError where nothing can be written."""
    if uri.startswith(("http://", "https://")):
        raise ConfigError(f"DESTINATION {uri} is on a web server, which is read alone: name a folder or a store")
    return place_at("DESTINATION", uri, config)


def local(uri: str) -> str:
    """A local path made absolute, since workers run in other folders; URLs and `digits` as they are."""
    return uri if uri in ("", "digits") or "://" in uri else str(Path(uri).expanduser().resolve())


def absolute(config: Config) -> Config:
    """Makes local places absolute, of data, weights and targets: the workers run in other folders."""
    places = {"data.uri": config.data.uri, **config.places}
    local = {name: uri for name, uri in places.items() if uri and uri != "digits" and "://" not in uri}
    return override(config, {name: str(Path(uri).expanduser().resolve()) for name, uri in local.items()})


def nearest(word: str, options: Iterable[str], settings: Collection[str]) -> str:
    """The option that a word may have been meant for, such as `--num-negatives` for `--negatives`, or "".

    Args:
        settings: Words of settings, of which others know what was meant.
    """
    typed = word.replace("_", "-")
    if typed in options:
        return typed if typed != word else ""
    if word.removeprefix("--").replace("-", "_") in settings:
        return ""
    inside = [option for option in options if option.endswith(f"-{typed.removeprefix('--')}")]
    return next(iter([*inside, *difflib.get_close_matches(typed, list(options), n=1, cutoff=0.8)]), "")


SUBMIT = "python jobs/slurm.py"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and which option was meant where one is nearly right."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does; raises ConfigError for a word that is no setting and nearly an option."""
        known, rest = super().parse_known_args(args, namespace)
        options = [option for option in self._option_string_actions if option.startswith("--")]
        settings = {"seed", *(name.rpartition(".")[2] for name in leaves(Config()))}
        for word in rest[: rest.index("--")] if "--" in rest else rest:
            name = word.partition("=")[0]
            if name.startswith("--") and "." not in name and (meant := nearest(name, options, settings)):
                raise ConfigError(f"unknown option {name}: did you mean {meant}?")
        return known, rest

    def error(self, message: str) -> NoReturn:
        """Raises ConfigError."""
        if message.startswith("unrecognized arguments") and self.prog == SUBMIT:
            message += "; write the job file and its arguments behind --, e.g. -- jobs/pretrain.py digits"
        raise ConfigError(message)


def exit_code(job: Callable[[], int], interrupted: str = "") -> int:
    """What a job returns, or that of what ended it, which is said: 1 if it failed, 2 if the request is wrong.

    Args:
        interrupted: What is said more where Ctrl-C ended it.
    """
    try:
        return job()
    except (ConfigError, StoreRefusedError, PermissionError, NotADirectoryError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (CorruptImage, RunFailed, TrainingDiverged, OSError) as error:  # StorageError is one of these
        print(f"failed: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"interrupted{interrupted}", file=sys.stderr)
        return 1


def places_and_settings(parser: Parser, argv: list[str]) -> tuple[argparse.Namespace, str, str, dict[str, Any]]:
    """Reads a command line with TARGET and DESTINATION, wherever they stand between its options.

    Returns:
        What the parser knows, which takes options alone; TARGET and DESTINATION, both "" where help is asked for; and
        the settings, with underscores in their names.

    Raises:
        ConfigError: As `pairs`, or for more or fewer words.
    """
    known, rest = parser.parse_known_args(spread(argv))
    words = [word for word in rest if not word.startswith("-")]
    _, changes = pairs([word for word in rest if word.startswith("-")])
    if known.help:
        words = ["", ""]
    if len(words) != 2:
        given = f"{len(words)} are given: {' '.join(words)}" if words else "none is given"
        raise ConfigError(f"two words are needed, TARGET and DESTINATION, and {given}. See {parser.prog} --help")
    return known, words[0], words[1], {name.replace("-", "_"): value for name, value in changes.items()}
