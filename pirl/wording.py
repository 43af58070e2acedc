"""Settings in words, for the person who types them: what is wrong with one, its value, its name in short."""

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any

OTHER_WORDS = {"lambda": "loss.pretext_weight", "tau": "loss.temperature", "learning_rate": "optim.lr"}


def counted(number: int, what: str) -> str:
    """A number of things: `1 image`, `2,000 images`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def unknown_name(given: str, name: str, names: Sequence[str]) -> str:
    """Says which of the names was meant, or lists those of its section, or all."""
    section, _, word = name.rpartition(".")
    by_word = [n for n in names if n == OTHER_WORDS.get(word) or n.rpartition(".")[2] == word]
    near = by_word or difflib.get_close_matches(name, names, n=1, cutoff=0.75)  # "seed" for "sead"
    listed = [n for n in names if n.startswith(f"{section or name}.")] or names
    hint = f"did you mean {near[0]}?" if near else "valid names: " + ", ".join(listed)
    return f"unknown setting {given!r}: {hint}"


def problem_with(error: Mapping[str, Any], names: Sequence[str]) -> str:
    """One error of pydantic as one sentence with the dotted name, what was given and what is allowed."""
    name = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        return unknown_name(name, name, names)
    message = str(error["msg"]).removeprefix("Value error, ")
    if not name:
        return message
    given = "" if name.startswith("data.storage_options") else f" {error['input']!r}"  # which may hold secrets
    return f"{name}{given}: {message}"


def short_names(names: Sequence[str]) -> dict[str, str]:
    """`loss.num_negatives` -> `num_negatives`, where no other name ends so."""
    lasts = [name.rpartition(".")[2] for name in names]
    return {name: last if lasts.count(last) == 1 else name for name, last in zip(names, lasts, strict=True)}


def text_of(value: Any) -> str:
    """A value of a setting as a person writes it."""
    if value is None:
        return "null"
    text = f"{value:g}".replace("e+", "e") if isinstance(value, float) else str(value)
    return text if not isinstance(value, float) or float(text) == value else str(value)


def typed(value: Any) -> str:
    """A value as it is typed in a command line."""
    return json.dumps(value) if value is None or isinstance(value, bool | dict) else str(value)
