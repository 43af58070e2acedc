import errno
import socket
import ssl

import aiohttp
import botocore.exceptions
import pytest
from aiohttp.client_reqrep import ConnectionKey

from pirl.errors import StorageError
from pirl.storage import retry
from pirl.storage.causes import is_passing
from pirl.storage.retry import persistently

HTTPS = ConnectionKey("here", 443, True, True, None, None, None)


class Failing:
    """Raises the errors that it is given, one a call, then returns."""

    def __init__(self, *errors):
        self.errors, self.calls = list(errors), 0

    def __call__(self):
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def answered(status, code="Some"):
    """What s3fs raises for an answer of S3: the translated error, with botocore's behind it."""
    behind = Exception(code)
    behind.response = {"ResponseMetadata": {"HTTPStatusCode": status}, "Error": {"Code": code}}
    error = OSError(errno.EIO, code)
    error.__cause__ = behind
    return error


@pytest.mark.parametrize(
    "error",
    [
        answered(503, "SlowDown"),
        answered(500),
        answered(429),
        answered(400, "RequestTimeout"),
        answered(400, "BadDigest"),
        ConnectionResetError(),
        TimeoutError(),
        OSError(errno.ETIMEDOUT, "late"),
        aiohttp.ClientPayloadError(),
        # Subclasses of OSError whose number is none of the kernel's.
        socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        aiohttp.ClientConnectorDNSError(HTTPS, socket.gaierror(socket.EAI_AGAIN, "Temporary failure")),
        aiohttp.ClientOSError(1, "[SSL: DECRYPTION_FAILED_OR_BAD_RECORD_MAC]"),
        aiohttp.ClientConnectorSSLError(HTTPS, ssl.SSLError(1, "[SSL: WRONG_VERSION_NUMBER]")),
        botocore.exceptions.ConnectionError(error="away"),
        botocore.exceptions.SSLError(endpoint_url="https://here", error="reset"),
        botocore.exceptions.MetadataRetrievalError(error_msg="no answer"),
    ],
    ids=repr,
)
def test_what_may_pass_is_tried_again(error):
    attempt = Failing(error, error)
    retry.take_count()
    assert persistently("reading", attempt) == "done"
    assert attempt.calls == 3
    assert retry.take_count() == 2
    assert retry.take_count() == 0


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("a"),
        PermissionError(errno.EACCES, "local"),
        OSError(errno.ENOSPC, "full"),
        IsADirectoryError("a"),
        ValueError("wrong"),
    ],
    ids=repr,
)
def test_what_stays_as_it_is_is_raised_at_once(error):
    attempt = Failing(error)
    with pytest.raises(type(error)) as raised:
        persistently("reading", attempt)
    assert raised.value is error
    assert attempt.calls == 1


@pytest.mark.parametrize("status", [400, 403, 412])
def test_a_refusal_names_the_object_and_is_not_tried_again(status):
    attempt = Failing(answered(status, "ExpiredToken"))
    with pytest.raises(StorageError, match=r"reading b/k: the store refused: OSError: .*ExpiredToken"):
        persistently("reading b/k", attempt)
    assert attempt.calls == 1


def test_after_the_deadline_the_error_says_what_was_tried():
    attempt = Failing(*[ConnectionResetError("bye")] * 1000)
    with pytest.raises(
        StorageError, match=r"reading b/k: gave up after \d+ tries .*deadline_s 0\.3.*ConnectionResetError: bye"
    ):
        persistently("reading b/k", attempt, deadline_s=0.3)
    # Pauses grow to a thirtieth of the deadline: some 60 tries, on a busy machine fewer.
    assert 5 < attempt.calls < 1000


def test_pauses_are_random_and_grow(monkeypatch):
    pauses = []
    monkeypatch.setattr(retry.time, "sleep", pauses.append)
    for _ in range(200):
        for failures in (0, 3, 30):
            retry.pause(failures, 2.0)
    retry.take_count()
    for first, longest in ((0, 0.05), (1, 0.4), (2, 2.0)):
        drawn = pauses[first::3]
        # From zero to the longest, uniform: the mean of 200 lies within 4 standard errors of its middle.
        assert 0 <= min(drawn) < 0.2 * longest
        assert 0.8 * longest < max(drawn) <= longest
        assert abs(sum(drawn) / 200 - longest / 2) < 4 * longest * (1 / 12) ** 0.5 / 200**0.5


def test_passing_is_told_from_the_rest_by_the_status():
    assert not is_passing(answered(404))
    assert is_passing(answered(599))
