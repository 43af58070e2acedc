"""Keeps secrets out of configs, which are written into run folders, logged and sent to workers."""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

_SECRET = re.compile(
    r"secret|token|passw|passphrase|credential|connection_string|authorization|cookie|(key(_id)?|signature)$"
    r"|(^|[-_])(auth|pass|sas|sig)$"
)
"""Names of options in which the filesystems of fsspec take secrets."""
_USER = re.compile(r"://[^/?#]*@")
_SIGNED = re.compile(r"[?&]([\w-]*[-_])?(sig|signature|token|api_?key)=", re.IGNORECASE)
"""A URL that whoever has it may use: of Azure, S3, Google, and others."""
_NO_SECRETS = (None, "anon", "cloud", "google_default")
"""What gcsfs takes as `token`, beside tokens."""
_CONTAINER = re.compile(r"(abfss?|az)://[^/:@]+@[^/:@]+(/|$)")
"""How Azure's URLs begin: container@account, which is no secret."""
_REMEDY = (
    "leave them out, and give them to every worker by its environment or the usual files (for S3 AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or ~/.aws/credentials)"
)


def refuse_secrets(options: Mapping[str, Any], where: str = "data.storage_options") -> None:
    """Raises ValueError where options hold secrets; with their names alone, since this is printed."""
    if names := sorted(set(_secrets_in(options))):
        raise ValueError(
            f"{where} holds secrets ({', '.join(names)}), and what is typed there is written into files: {_REMEDY}"
        )


def refuse_secret_url(what: str, url: str) -> None:
    """Raises ValueError where a URL has a password or a signature in it; without the URL, since this is printed."""
    has_user = _USER.search(url) and not _CONTAINER.match(url)
    if has_user or ("://" in url and _SIGNED.search(url)):
        where = "a user name or a password before @" if has_user else "a signature"
        raise ValueError(f"{what} has {where}, and URLs are written into run folders and logs: {_REMEDY}")


def refuse_user_in_environment() -> None:
    """Raises ValueError where the address of a store, which goes to all workers, holds a secret."""
    for name, value in os.environ.items():
        if name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3") or name.startswith("FSSPEC_"):
            refuse_secret_url(name, value)


def _secrets_in(value: Any, name: str = "") -> Iterator[str]:
    """The names of secrets in options; `name` is that of the value."""
    if _SECRET.search(name.lower()):
        if value not in _NO_SECRETS:
            yield name
    elif isinstance(value, Mapping):
        for word, inner in value.items():
            yield from _secrets_in(inner, str(word))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _secrets_in(inner, name)
            if isinstance(inner, list | tuple) and len(inner) == 2 and isinstance(inner[0], str):  # a header
                yield from _secrets_in(inner[1], inner[0])
    elif isinstance(value, str) and (_USER.search(value) or _SIGNED.search(value)):
        yield name
