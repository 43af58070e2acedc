"""Each fault of the proxy, seen by a plain HTTP client that tries once."""

import http.client
import time
import urllib.error
import urllib.request

import pytest

BODY = bytes(range(256)) * 100


@pytest.fixture
def url(store):
    """An object in the bucket, through the proxy; written past it."""
    path = f"/{store.bucket}/folder/object"
    # urllib's own type is that of a form, which the server parses; and this client signs nothing.
    headers = {"Content-Type": "application/octet-stream", "x-amz-acl": "public-read"}
    request = urllib.request.Request(store.direct["endpoint_url"] + path, BODY, headers, method="PUT")
    urllib.request.urlopen(request, timeout=30).close()
    return store.options["endpoint_url"] + path


def get(url, timeout=30, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=timeout) as answer:
        return answer.read()


def test_without_rules_it_passes_all_on_and_keeps_a_log(store, url):
    assert get(url) == BODY
    assert get(url, Range="bytes=10-19") == BODY[10:20]
    path = f"/{store.bucket}/folder/object"
    assert store.log() == [
        {"method": "GET", "path": path, "range": "", "status": 200, "fault": "", "signed": False, "payer": ""},
        {
            "method": "GET",
            "path": path,
            "range": "bytes=10-19",
            "status": 206,
            "fault": "",
            "signed": False,
            "payer": "",
        },
    ]
    store.reset()
    assert store.log() == []


@pytest.mark.parametrize(
    ("fault", "status"), [("slowdown", 503), ("unavailable", 503), ("error", 500), ("refused", 403)]
)
def test_answers_with_an_error_as_often_as_told(store, url, fault, status):
    store.fail(fault, 2)
    for _ in range(2):
        with pytest.raises(urllib.error.HTTPError) as failure:
            get(url)
        failure.value.close()
        assert failure.value.code == status
    assert get(url) == BODY


def test_a_reset_ends_the_connection_without_an_answer(store, url):
    store.fail("reset")
    with pytest.raises((ConnectionError, http.client.RemoteDisconnected)):
        get(url)
    assert get(url) == BODY


def test_a_truncated_body_is_shorter_than_its_head_says(store, url):
    store.fail("truncate")
    with pytest.raises(http.client.IncompleteRead) as failure:
        get(url)
    assert failure.value.partial == BODY[: len(BODY) // 2]


def test_a_stall_never_ends(store, url):
    store.fail("stall")
    with pytest.raises(TimeoutError):
        get(url, timeout=0.5)


def test_a_flip_changes_one_bit_and_nothing_tells(store, url):
    store.fail("flip")
    changed = [(a, b) for a, b in zip(get(url), BODY, strict=True) if a != b]
    assert [(a ^ b).bit_count() for a, b in changed] == [1]


def test_latency_comes_before_a_good_answer(store, url):
    store.fail("latency", seconds=0.3)
    began = time.monotonic()
    assert get(url) == BODY
    assert time.monotonic() - began > 0.3


def test_a_rule_is_for_its_method_and_path_alone(store, url):
    store.fail("error", 9, method="PUT")
    store.fail("error", 9, pattern="other$")
    assert get(url) == BODY
