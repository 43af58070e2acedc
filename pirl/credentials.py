"""Keeps secrets out of configs, which are written into run folders, logged and sent to workers."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

_SECRET = re.compile(r"secret|token|passw|passphrase|credential|connection_string|^sas$|key(_id)?$")
"""Names of options in which the filesystems of fsspec take secrets."""

_USER = re.compile(r"://[^/?#]*@")
_CONTAINER = re.compile(r"abfss?://[^/:@]+@[^/:@]+(/|$)")
"""How Azure's URLs begin: container@account, which is no secret."""

_ENDPOINTS = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3")

_REMEDY = (
    "leave them out, and give them to every worker by its environment or the usual files (for S3 AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials)"
)


def refuse_secrets(options: Mapping[str, Any], where: str = "data.storage_options") -> None:
    """Raises ValueError where options hold secrets; with their names alone, since this is printed."""
    if names := sorted(_secrets_in(options)):
        raise ValueError(
            f"{where} holds secrets ({', '.join(names)}), and what is typed there is written into files: {_REMEDY}"
        )


def refuse_user(what: str, url: str) -> None:
    """Raises ValueError where a URL has a user name or a password in it; without the URL, since this is printed."""
    if _USER.search(url) and not _CONTAINER.match(url):
        raise ValueError(
            f"{what} has a user name or a password before @, and URLs are written into run folders and logs: {_REMEDY}"
        )


def refuse_user_in_environment() -> None:
    """Raises ValueError where the address of a store, which goes to all workers, holds a secret."""
    for name in _ENDPOINTS:
        refuse_user(name, os.environ.get(name, ""))


def _secrets_in(options: Mapping[str, Any]) -> Iterator[str]:
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from _secrets_in(value)
        elif _SECRET.search(name.lower()) or (isinstance(value, str) and _USER.search(value)):
            yield name
