"""What an error of a store means: whether the same request may go well later, and what a person can do about it.

The clients wrap what went wrong in errors of their own, and only the client of the store that is read is installed: so
kinds are told by name, and looked for among the causes too.
"""

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

_PASSING = {
    *(errno.EIO, errno.EBUSY, errno.EAGAIN, errno.EPIPE, errno.ESTALE, errno.ETIMEDOUT, errno.EREMOTEIO),
    *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED),
    *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTUNREACH),
}
_PASSING_STATUS = {408, 425, 429}
_PASSING_CODES = {"RequestTimeout", "BadDigest", "IncompleteBody", "XAmzContentSHA256Mismatch"}
"""What S3 answers with status 400 where the request arrived late or damaged."""
_PASSING_KINDS = {
    *("HTTPClientError", "IncompleteReadError", "FlexibleChecksumError", "ClientError", "HTTPException"),
    *("ConnectionError", "SSLError", "gaierror"),
    *("CredentialRetrievalError", "MetadataRetrievalError", "ResponseParserError"),
}
"""botocore's, aiohttp's, Python's own."""
_FINAL_KINDS = {"SSLCertVerificationError", "InvalidURL"}
"""Of these: another server than the one that was named, or none."""

S3_ADDRESS = "AWS_ENDPOINT_URL, or endpoint_url in data.storage_options, says where S3 is"
_CERTIFICATES = "AWS_CA_BUNDLE=FILE for s3:// or SSL_CERT_FILE=FILE for https:// names the certificates to trust"
_PROXY = "HTTP_PROXY and HTTPS_PROXY name the proxy, and NO_PROXY the hosts that are reached without"
_ANONYMOUS = (
    "a public bucket is read without any: type FSSPEC_S3_ANON=true before the command, or for training data alone "
    "--data.storage-options '{\"anon\": true}'"
)
_REGION = "the bucket lies in another region: type AWS_DEFAULT_REGION=REGION before the command"
_RENEW = "the credentials are no longer valid: get new ones (AWS_SESSION_TOKEN, or the files of AWS_PROFILE)"
_DENIED = (
    f"these credentials may not do that; {_ANONYMOUS}; where the reader pays, FSSPEC_S3_REQUESTER_PAYS=true or "
    '{"requester_pays": true}'
)

_WRONG_ADDRESS = {
    "ClientProxyConnectionError": f"the proxy does not answer: {_PROXY}",
    "ProxyConnectionError": f"the proxy does not answer: {_PROXY}",
    "gaierror": "no host of that name is known: check how it is spelled, and where a proxy is named that too",
    "ConnectionRefusedError": "nobody listens there: check host and port, and whether it runs",
    "ConnectTimeoutError": "nobody answers there: check host and port, and the firewall",
    "ConnectionTimeoutError": "nobody answers there: check host and port, and the firewall",
    "SSLCertVerificationError": f"its certificate is not trusted: {_CERTIFICATES}",
    "SSLError": f"no TLS could be agreed on: an address with http:// is one without. {_CERTIFICATES}",
    "ResponseParserError": "what answers there is no S3: check host, port, and http:// or https://",
}
"""By the kind of error, what is wrong where a store has never answered; later it may be a fault that passes."""
_BY_KIND = {
    "NoCredentialsError": f"{_ANONYMOUS}; else set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "PartialCredentialsError": "set both AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "ProfileNotFound": "check AWS_PROFILE, and which profiles ~/.aws/config has",
    "EndpointResolutionError": f"{S3_ADDRESS}: type it as http://host:port",
    "InvalidURL": "type it as https://host/name",
}
_BY_CODE = {
    "InvalidAccessKeyId": "the store does not know this key: check AWS_ACCESS_KEY_ID or AWS_PROFILE, and the store's "
    f"address. {S3_ADDRESS}",
    "SignatureDoesNotMatch": "the secret does not belong to the key: check AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
    **dict.fromkeys(("ExpiredToken", "InvalidToken", "TokenRefreshRequired"), _RENEW),
    "RequestTimeTooSkewed": "set the clock of this machine",
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "403", "Forbidden"), _DENIED),
    "NoSuchBucket": f"there is no such bucket: check how it is spelled. {S3_ADDRESS}",
    **dict.fromkeys(("PermanentRedirect", "TemporaryRedirect", "301", "307"), _REGION),
    **dict.fromkeys(("AuthorizationHeaderMalformed", "IllegalLocationConstraintException"), _REGION),
    "InvalidObjectState": "it lies in an archive (storage class GLACIER or the like): restore it first",
}


def is_passing(error: BaseException) -> bool:
    """Whether the same request may go well later: not where it is wrong, refused, or asks for what is not there."""
    if status := http_status(error):
        return status >= 500 or status in _PASSING_STATUS or code(error) in _PASSING_CODES
    if is_any_of(error, _PASSING_KINDS):  # first, for the numbers in some of them are not the kernel's
        return not any(is_any_of(one, _FINAL_KINDS) for one in _with_causes(error)) and not _is_about_files(error)
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _PASSING
    return isinstance(error, TimeoutError)


def is_wrong_address(error: BaseException) -> bool:
    """Whether it says, of a store that has never answered, that there is none at this address, or another one."""
    return any(is_any_of(one, {*_WRONG_ADDRESS, "ClientHttpProxyError"}) for one in _with_causes(error))


def advice(error: BaseException) -> str:
    """What is wrong and what to type or check; empty where nobody knows."""
    if found := _BY_CODE.get(code(error)):
        return found
    causes = list(_with_causes(error))
    if _is_about_files(error):
        return f"the file with certificates is not there, or holds none: {_CERTIFICATES}"
    if any(is_any_of(one, {"ClientHttpProxyError"}) for one in causes):
        return f"the proxy refuses: {_PROXY}"
    kinds = {**_BY_KIND, **_WRONG_ADDRESS}
    found = next((kind for kind in kinds if any(is_any_of(one, {kind}) for one in causes)), "")
    where = f". {S3_ADDRESS}" if found in _WRONG_ADDRESS and is_any_of(error, {"BotoCoreError"}) else ""
    return kinds.get(found, "") + where


def speaks_tls(error: BaseException, uri: str) -> bool:
    """Whether what was asked without TLS and gave no answer would give one with it.

    Args:
        error: What came instead; botocore's says at which address.
        uri: The address where the error does not tell.
    """
    url = urlsplit(str(getattr(error, "kwargs", {}).get("endpoint_url", uri)))
    if url.scheme != "http" or http_status(error) not in (0, 400):
        return False
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent to it
    with suppress(OSError, ValueError), socket.create_connection((url.hostname or "", url.port or 80), 2) as plain:
        context.wrap_socket(plain, server_hostname=url.hostname).close()
        return True
    return False


def http_status(error: BaseException) -> int:
    """The status of the HTTP answer behind an error, where its client tells; else 0."""
    for one in (error, error.__cause__):
        answer = getattr(one, "response", None)
        if isinstance(answer, dict):  # botocore, which s3fs translates
            return int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    for name in ("status", "status_code", "code"):  # aiohttp, azure, gcsfs
        if isinstance(status := getattr(error, name, None), int):
            return status
    return 0


def code(error: BaseException) -> str:
    """The word that S3 answers with, as `AccessDenied`; else empty."""
    answers = [getattr(one, "response", None) for one in (error, error.__cause__)]
    return next((str(answer.get("Error", {}).get("Code")) for answer in answers if isinstance(answer, dict)), "")


def is_any_of(error: BaseException, kinds: set[str]) -> bool:
    """Whether it is an error of one of these kinds, by their names."""
    return any(kind.__name__ in kinds for kind in type(error).__mro__)


def _is_about_files(error: BaseException) -> bool:
    """Whether botocore could not read the certificates that it was to trust."""
    texts = [str(one) for one in _with_causes(error) if isinstance(one, FileNotFoundError | ssl.SSLError)]
    return is_any_of(error, {"HTTPClientError"}) and any("No such file" in text or "[X509" in text for text in texts)


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: list[BaseException] = []  # an error may be the cause of the one that it was raised in place of
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__
