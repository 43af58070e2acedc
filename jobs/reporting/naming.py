"""What runs are called on a page: what one is, what tells several apart, and the command that repeats one."""

import re
import shlex
from collections.abc import Sequence
from typing import Any

from jobs.reporting.record import RunRecord
from jobs.settings import recipe_for
from pirl.config import UNUSED, Config, leaves, override, settle_streams
from pirl.recipes import RECIPES
from pirl.storage.folder import Folder
from pirl.wording import short_names, text_of, typed

UNTOLD = ("cluster.", "checkpoint.", "data.storage_options", "data.deadline_s", "data.cache_", "data.read_ahead_mb")
"""Settings that do not change what is learned: they do not tell runs apart."""
RULED = ("data.streams", "data.window_groups")
"""Settings that follow from others by rules, and stand in a config.json as numbers."""
SIGNS = {"loss.pretext_weight": "λ", "loss.temperature": "τ", "loss.num_negatives": "negatives"}
LONGEST_NAME = 100


def method_of(settings: dict[str, Any]) -> str:
    """What a run learns by: `PIRL jigsaw`, `NPID`, `covariant rotation`, `supervised`."""
    method, pretext = str(settings.get("method.name", "pirl")), str(settings.get("pretext.name", "jigsaw"))
    pretext = "jigsaw and rotation" if pretext == "both" else pretext
    if method == "pirl":
        has_pretext = pretext != "none" and settings.get("loss.pretext_weight", 1) != 0
        return f"PIRL {pretext}" if has_pretext else "NPID"
    return f"{method} {pretext}" if method == "covariant" else method


def network_of(settings: dict[str, Any]) -> str:
    """`ResNet-18 of width 16`."""
    arch = re.sub(r"^resnet", "ResNet-", str(settings.get("model.arch", "a network")))
    width = settings.get("model.width", 64)
    return arch if width == 64 else f"{arch} of width {width}"


def data_name(settings: dict[str, Any]) -> str:
    """The last part of where the images are."""
    uri = str(settings.get("data.uri", "")).rstrip("/")
    return uri.rpartition("/")[2] or uri or "unknown images"


def labels_of(runs: Sequence[RunRecord]) -> dict[str, str]:
    """A name for each run by its URL: that of its folder, with as many folders above it as tell it from others.

    Names of a sweep's trials are long: where its settings alone tell a trial from all others, they are its name.
    """
    apart = differing(runs)
    words = {run.folder.uri: in_words(run.settings, apart) for run in runs if run.trial and run.settings}
    parts = {run.folder.uri: run.folder.uri.rstrip("/").split("/") for run in runs}
    labels = {}
    for uri, own in parts.items():
        told = words.get(uri)
        if told and len(told) < len(own[-1]) and list(words.values()).count(told) == 1:
            labels[uri] = told
            continue
        others = [each for other, each in parts.items() if other != uri]
        length = 1
        while length < len(own) and any(each[-length:] == own[-length:] for each in others):
            length += 1
        labels[uri] = "/".join(own[-length:]) or uri
    return labels


def differing(runs: Sequence[RunRecord]) -> list[str]:
    """The settings that tell runs apart, by dotted name, in the order of the config."""
    known = [run.settings for run in runs if run.settings]
    names = dict.fromkeys(name for settings in known for name in settings)
    told = [name for name in names if not name.startswith((*UNTOLD, *RULED))]
    return [name for name in told if len({text_of(settings.get(name, "")) for settings in known}) > 1]


def short_settings(names: Sequence[str]) -> dict[str, str]:
    """Settings as columns are called: by the paper's sign, or in short."""
    return {name: SIGNS.get(name, short.replace("_", " ")) for name, short in short_names(names).items()}


def in_words(settings: dict[str, Any], names: Sequence[str]) -> str:
    """`λ 0.5, negatives 512`."""
    short = short_settings(names)
    return ", ".join(f"{short[name]} {text_of(settings[name])}" for name in names if name in settings)


def command_of(run: RunRecord, *, again: bool) -> str | None:
    """What trains a run: from anew beside it (`again`), or what goes on with it; None without a config."""
    if run.config is None or not run.folder.parent.uri:
        return None
    recipe, changes = _recipe_and_changes(run.config)
    words = [word for name, value in changes.items() for word in (f"--{name.replace('_', '-')}", typed(value))]
    name = f"{run.name[: LONGEST_NAME - 6]}-again" if again else run.name
    place = ["--run", name, "--storage", run.folder.parent.uri]
    return shlex.join(["python", "jobs/pretrain.py", recipe, *words, *place])


def evaluate_command(folder: Folder, protocols: Sequence[str] = ()) -> str:
    """What measures a run."""
    words = ["--protocol", *protocols] if protocols else []
    return shlex.join(["python", "jobs/evaluate.py", folder.uri, *words])


def _recipe_and_changes(config: Config) -> tuple[str, dict[str, Any]]:
    """The recipe that a config is nearest to, and what is typed behind it."""
    found = []
    for name in (name for name in RECIPES if name != "photos"):  # whose settings follow from the images
        usual = recipe_for(name, {})
        held, before = leaves(config), leaves(usual)
        changes = {key: value for key, value in held.items() if value != before[key] and not _is_implied(config, key)}
        found.append((name, changes | _streams_beside_rule(config, override(usual, changes))))
    return min(found, key=lambda each: len(each[1]))


def _is_implied(config: Config, name: str) -> bool:
    return name in RULED or name.startswith(UNUSED[config.method.name])


def _streams_beside_rule(config: Config, again: Config) -> dict[str, Any]:
    """The streams and windows of a config, where the rules would give others."""
    held, ruled = leaves(config), leaves(settle_streams(again))
    return {name: held[name] for name in RULED if held[name] is not None and held[name] != ruled[name]}
