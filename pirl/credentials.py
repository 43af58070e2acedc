"""Keeps secrets out of configs, which are written into run folders, logged and sent to workers."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_SECRET = re.compile(r"secret|token|passw|passphrase|credential|connection_string|^sas$|key(_id)?$")
"""Names of options in which the filesystems of fsspec take secrets."""


def refuse_secrets(options: Mapping[str, Any], where: str = "data.storage_options") -> None:
    """Raises ValueError where options hold secrets; with their names alone, since this is printed."""
    if names := sorted(_secrets_in(options)):
        raise ValueError(
            f"{where} holds secrets ({', '.join(names)}), and what is typed there is written "
            "into files: leave them out, and give them to every worker by its environment or the usual files (for S3 "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials)"
        )


def _secrets_in(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets_in(value)
        elif _SECRET.search(name.lower()):
            yield name
