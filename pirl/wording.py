"""What is wrong with a setting, in words for the person who typed it."""

import difflib
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
