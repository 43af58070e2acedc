"""Sends files to object stores whole: in parts where they are long, read back, and again if they differ.

S3 itself compares a checksum that the client sends along; not every store does.
"""

import os
from contextlib import suppress
from typing import Any, cast

from pirl.errors import StorageError
from pirl.storage.client import PIECE, Options, ask, limit_s, locate, once
from pirl.storage.retry import LONGEST_PAUSE, pause, persistently

SENDINGS = 10
"""A file that the store does not give back as it was sent is sent again."""


def send(file: str, uri: str, options: Options, deadline_s: float) -> None:
    """Copies a file of this machine to a store.

    Args:
        file: It must not change meanwhile.
        uri: Its name there.
        options: For fsspec.
        deadline_s: How long each piece is tried again, so a long file may take longer.

    Raises:
        StorageError: The store gave no good answer in time, or not what was sent.
    """
    for failures in range(SENDINGS):
        if failures:
            pause(failures, deadline_s * LONGEST_PAUSE)
        _put(file, uri, options, deadline_s)
        if _is_same(file, uri, options, deadline_s):
            return
    raise StorageError(f"writing {uri}: what the store holds is not what was sent, {SENDINGS} times")


def _put(file: str, uri: str, options: Options, deadline_s: float) -> None:
    """Sends a file: as one object, or where it is long and the store is S3 in parts."""
    fs, path = locate(uri, options)
    size = os.path.getsize(file)
    if size <= PIECE or not hasattr(fs, "call_s3"):
        ask(fs, f"writing {uri}", "put_file", file, path, deadline_s=deadline_s, size=size)
        return

    def call(what: str, method: str, size: int = 0, **arguments: Any) -> dict[str, Any]:
        where = {"Bucket": bucket, "Key": key} | arguments
        return cast(dict[str, Any], ask(fs, what, "call_s3", method, deadline_s=deadline_s, size=size, **where))

    bucket, key, _ = fs.split_path(path)
    upload = {"UploadId": call(f"writing {uri}", "create_multipart_upload")["UploadId"]}
    try:
        parts = []
        with open(file, "rb") as source:
            for number, part in enumerate(iter(lambda: source.read(PIECE), b""), 1):
                what = f"writing part {number} of {uri}"
                tag = call(what, "upload_part", len(part), PartNumber=number, Body=part, **upload)["ETag"]
                parts.append({"PartNumber": number, "ETag": tag})
        with suppress(FileNotFoundError):  # it is complete, and the answer to the try before was lost
            call(f"writing {uri}", "complete_multipart_upload", MultipartUpload={"Parts": parts}, **upload)
    except BaseException:
        with suppress(Exception):  # once: who waits has waited long enough
            limit = limit_s(deadline_s, 0)
            once(fs, "call_s3", "abort_multipart_upload", Bucket=bucket, Key=key, **upload, limit_s=limit)
        raise


def _is_same(file: str, uri: str, options: Options, deadline_s: float) -> bool:
    """Whether the store holds what a file of this machine holds."""
    start = 0
    with open(file, "rb") as source:
        while piece := source.read(PIECE):
            if piece != _read_back(uri, start, start + len(piece), options, deadline_s):
                return False
            start += len(piece)
    return True


def _read_back(uri: str, start: int, end: int, options: Options, deadline_s: float) -> Any:
    fs, path = locate(uri, options)

    def read() -> Any:
        try:
            return once(fs, "cat_file", path, limit_s=limit_s(deadline_s, end - start), start=start, end=end)
        except Exception as error:
            if type(error).__name__ == "FlexibleChecksumError":  # of botocore: it may be damaged there
                return b""
            raise

    return persistently(f"reading {uri} back", read, deadline_s)
