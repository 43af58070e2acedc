"""Whether a folder can be written, found out before there is anything to lose."""

import re
import tempfile
import uuid

from pirl.errors import ConfigError, StorageError, StoreRefusedError
from pirl.storage.folder import Folder
from pirl.storage.secrets import refuse_secret_url

LOCAL = ("file://", "local://", "memory://")
ONE_SLASH = re.compile(r"(?!(?:file|local):)(\w+):/(?!/)")
"""How s3:/bucket begins, which fsspec takes for a local folder with a colon in its name."""


def check_place(what: str, uri: str, example: str) -> None:
    """Refuses what is no place at all: nothing, a URL without a bucket or with a password, or with one slash of two.

    Raises ConfigError with the word of the command line and what to type, and without the URL if that holds a secret.
    """
    if not uri:
        raise ConfigError(f"{what} is empty: name a folder or a URL")
    try:
        refuse_secret_url(what, uri)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    if one_slash := ONE_SLASH.match(uri):
        scheme, rest = one_slash[1], uri[one_slash.end() :]
        raise ConfigError(f"{what} {uri} has one slash behind its colon: type {scheme}://{rest}")
    scheme, is_url, rest = uri.partition("://")
    if is_url and not rest.strip("/") and not uri.startswith(LOCAL):
        raise ConfigError(f"{what} {uri} names no bucket: type {scheme}://bucket/{example}")


def refuse_web(what: str, uri: str) -> None:
    """Refuses a place to write on a web server, without asking that; raises ConfigError."""
    if uri.startswith(("http://", "https://")):
        raise ConfigError(f"{what} {uri} is on a web server, which is read alone: name a folder or a store")


def check_can_write(what: str, folder: Folder) -> None:
    """Refuses a folder in which this process cannot write, or which it cannot make; leaves nothing behind.

    Raises:
        ConfigError: And why.
        StorageError: The store gave no good answer in time.
    """
    refuse_web(what, folder.uri)
    try:
        if path := folder.path:
            nearest = next(above for above in (path, *path.parents) if above.exists())
            # Only a file without a name tells of read-only disks and of /proc, which os.access finds writable.
            with tempfile.TemporaryFile(dir=nearest):
                pass
        else:
            probe = f".probe-{uuid.uuid4().hex}"
            folder.write(probe, "")
            folder.remove(probe)
    except (OSError, NotImplementedError) as error:
        if isinstance(error, StorageError) and not isinstance(error, StoreRefusedError):
            raise
        raise ConfigError(f"{what} {folder} cannot be written: {error}") from None


def check_shared(storage: Folder, marker: str) -> None:
    """Refuses a storage in which a file that another process wrote does not exist; raises ConfigError."""
    if storage.find(marker) is None:
        raise ConfigError(
            f"--storage {storage} is not shared: a file that another process wrote there does not exist. Use a "
            "folder that all nodes mount, or an object store"
        )
