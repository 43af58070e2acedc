"""What counts as a secret in storage_options; tests/test_config.py shows that a config refuses it."""

import pytest

from pirl.storage.secrets import refuse_secret_url, refuse_secrets


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"client_kwargs": {"headers": {"Authorization": "Bearer hidden"}}}, "Authorization"),
        ({"client_kwargs": {"headers": {"Cookie": "session=hidden"}}}, "Cookie"),
        ({"client_kwargs": {"headers": [["X-Any", "1"], {"X-Auth-Token": "hidden"}]}}, "X-Auth-Token"),
        ({"client_kwargs": {"headers": [["Authorization", "Bearer hidden"]]}}, "Authorization"),
        ({"client_kwargs": {"headers": (("X-Any", "1"), ("x-auth-token", "hidden"))}}, "x-auth-token"),
        ({"client_kwargs": {"auth": ["user", "hidden"]}}, "auth"),
        ({"proxy_auth": "hidden"}, "proxy_auth"),
        ({"pass": "hidden"}, "pass"),
        ({"token": {"refresh": "hidden"}}, "token"),
        ({"fo": ["http://here/a", "https://user:hidden@here/b"]}, "fo"),
        ({"fo": "https://account.blob.core.windows.net/box/a?sv=2024&sig=hidden"}, "fo"),
        ({"fo": "https://bucket.s3.amazonaws.com/a?X-Amz-Expires=60&X-Amz-Signature=hidden"}, "fo"),
        ({"fo": ["https://here/a?Expires=1&Signature=hidden"]}, "fo"),
    ],
)
def test_secrets_are_found_by_their_names_and_in_urls_however_deep(options, name):
    with pytest.raises(ValueError, match=rf"holds secrets \({name}\)") as refused:
        refuse_secrets(options)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    "options",
    [
        {"anon": True, "requester_pays": True, "token": "anon", "secret": None},
        {"buckets": ["secrets", "photos"]},
        {"config_kwargs": {"signature_version": "s3v4", "proxies": {"https": "http://proxy:3128"}}},
        {"client_kwargs": {"headers": {"Accept": "*/*"}, "trust_env": True}, "block_size": 5},
        {"hosts": ["a", "b"], "fo": "https://here/a?design=1"},
    ],
)
def test_other_options_are_no_secrets(options):
    refuse_secrets(options)


@pytest.mark.parametrize(
    "url",
    [
        "https://user:hidden@here/b",
        "s3://hidden@bucket/key",
        "https://account.blob.core.windows.net/box/a.tar?sv=2024&sig=hidden",
        "https://bucket.s3.amazonaws.com/a.tar?X-Amz-Expires=60&X-Amz-Signature=hidden",
        "https://here/a.tar?access_token=hidden",
    ],
)
def test_urls_that_open_a_store_by_themselves_are_refused(url):
    with pytest.raises(ValueError, match=r"SOURCE has a (user name|signature).*AWS_ACCESS_KEY_ID") as refused:
        refuse_secret_url("SOURCE", url)
    assert "hidden" not in str(refused.value)


@pytest.mark.parametrize(
    "url",
    [
        "s3://bucket/a@b?versionId=1",
        "https://here/a?design=1",
        "abfss://box@account/a",
        "az://box@account/a",
        "/photos/a?sig=b",
    ],
)
def test_other_urls_are_not(url):
    refuse_secret_url("SOURCE", url)
