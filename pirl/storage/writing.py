"""Writes files whole: on a disk under another name first, to a store read back, and sent again if it differs.

S3 itself compares a checksum that the client sends along; not every store does. What is long goes in parts.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, cast

from pirl.errors import StorageError
from pirl.storage.client import PIECE, Address
from pirl.storage.retry import LONGEST_PAUSE
from pirl.storage.sealed import TRIES, until_whole
from pirl.storage.temporary import temporary_folder

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What a disk says that has no room."""


@contextmanager
def writing(at: Address) -> Iterator[IO[bytes]]:
    """Opens a new file, with the folders above it.

    It appears under its name when it is complete, and not at all after an exception. What goes to an object
    store is put together in the temporary folder first, so that the whole can be sent.
    """
    if not at.is_local:
        with tempfile.NamedTemporaryFile(dir=temporary_folder()) as whole:
            yield cast(IO[bytes], whole)
            whole.flush()
            send(whole.name, at)
        return
    os.makedirs(os.path.dirname(at.path), exist_ok=True)
    temporary = f"{at.path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file, named_if_full(at.path):
            yield file
            file.flush()
            os.fsync(file.fileno())  # else the name may outlive a power loss and the bytes not
        os.replace(temporary, at.path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


@contextmanager
def named_if_full(path: str) -> Iterator[None]:
    """Names the file in what is raised where a disk has no room: who writes to an open file does not say to which."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL and error.filename is None:
            error.filename = path
        raise


def send(file: str, at: Address) -> None:
    """Copies a file of this machine, which must not change meanwhile, to a store; each piece has its own deadline.

    Raises:
        StorageError: The store gave no good answer in time, or not what was sent.
    """
    _, whole = until_whole(lambda: _put(file, at), lambda _: _is_same(file, at), at.deadline_s * LONGEST_PAUSE)
    if not whole:
        raise StorageError(f"writing {at.uri}: what the store holds is not what was sent, {TRIES} times")


def _put(file: str, at: Address) -> None:
    """Sends a file: as one object, or where it is long and the store is S3 in parts."""
    size = os.path.getsize(file)
    if size <= PIECE or not hasattr(at.fs, "call_s3"):
        at.ask("writing", "put_file", file, at.path, size=size)
        return
    bucket, key, _ = at.fs.split_path(at.path)
    where = {"Bucket": bucket, "Key": key}
    where["UploadId"] = at.ask("writing", "call_s3", "create_multipart_upload", **where)["UploadId"]
    try:
        parts = []
        with open(file, "rb") as source:
            for number, part in enumerate(iter(lambda: source.read(PIECE), b""), 1):
                what, about = f"writing part {number} of", {"PartNumber": number, "Body": part, **where}
                tag = at.ask(what, "call_s3", "upload_part", size=len(part), **about)["ETag"]
                parts.append({"PartNumber": number, "ETag": tag})
        with suppress(FileNotFoundError):  # it is complete, and the answer to the try before was lost
            at.ask("writing", "call_s3", "complete_multipart_upload", MultipartUpload={"Parts": parts}, **where)
    except BaseException:
        with suppress(Exception):  # once: who waits has waited long enough
            at.once("call_s3", "abort_multipart_upload", **where)
        raise


def _is_same(file: str, at: Address) -> bool:
    """Whether the store holds what a file of this machine holds."""
    start = 0
    with open(file, "rb") as source:
        while piece := source.read(PIECE):
            if piece != _read_back(at, start, start + len(piece)):
                return False
            start += len(piece)
    return True


def _read_back(at: Address, start: int, end: int) -> Any:
    def read() -> Any:
        try:
            return at.once("cat_file", at.path, size=end - start, start=start, end=end)
        except Exception as error:
            if type(error).__name__ == "FlexibleChecksumError":  # of botocore: it may be damaged there
                return b""
            raise

    return at.persistently("reading back", read)
