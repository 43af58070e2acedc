"""Keeps secrets out of configs, which are written into run folders, logged and sent to workers."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

_SECRET = re.compile(r"secret|token|passw|passphrase|credential|connection_string|^sas$|key(_id)?$")
"""Names of options in which the filesystems of fsspec take secrets."""


def refuse_secrets(storage_options: Mapping[str, Any]) -> None:
    """Raises ValueError where options hold secrets; with their names alone, since this is printed."""
    if names := sorted(_secrets_in(storage_options)):
        raise ValueError(
            f"data.storage_options holds secrets ({', '.join(names)}), and all settings are written into the run "
            "folder: leave them out, and give them to every worker by its environment or the usual files (for S3 "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials)"
        )


def _secrets_in(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets_in(value)
        elif _SECRET.search(name.lower()):
            yield name
