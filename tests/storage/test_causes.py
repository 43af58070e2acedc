"""A store that is not where it was said to be is named soon, with what to type; one that has answered comes back."""

import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pirl.errors import ConfigError, StorageError, StoreRefusedError
from pirl.storage import client, retry
from pirl.storage.folder import Folder

ROOT = Path(__file__).parents[2]
ASK = {
    "s3": lambda address: Folder("s3://bucket/name", {"endpoint_url": address}),
    "web": lambda address: Folder(f"{address}/bucket/name"),
}


@contextmanager
def serving(handler: type, context: ssl.SSLContext | None = None) -> Iterator[int]:
    """A web server; gives its port."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        if context:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever).start()
        yield server.server_port
        server.shutdown()


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_) -> None:
        pass


@pytest.fixture
def hurry(monkeypatch):
    """The six seconds for a store that comes up are half a one here."""
    monkeypatch.setattr(retry, "FIRST_S", 0.5)


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


@pytest.fixture
def certificate(tmp_path) -> Path:
    """That of localhost with its key, which nobody has signed but itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    about = x509.CertificateBuilder(name, name, key.public_key(), 1, now - timedelta(1), now + timedelta(1))
    about = about.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    pem = about.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "server.pem").write_bytes(pem)
    return tmp_path / "server.pem"


@pytest.fixture
def tls_port(certificate) -> Iterator[int]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with serving(Quiet, context) as port:
        yield port


def refusal_of(kind: str, address: str) -> str:
    """What is said, soon, of a store at an address; it names what was asked for."""
    began = time.monotonic()
    with pytest.raises(StoreRefusedError) as refused:
        ASK[kind](address).read()
    assert time.monotonic() - began < 60  # half a second by the clock of `hurry`; the deadline is 300 s
    assert re.search("s3://bucket/name|http.*/bucket/name", str(refused.value))
    return str(refused.value)


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("kind", ASK)
def test_what_is_wrong_with_an_address_is_said_soon(kind, free_port, tls_port):
    said = refusal_of(kind, f"http://127.0.0.1:{free_port}")
    assert f"127.0.0.1:{free_port}" in said
    assert "Nobody listens there: check host and port" in said
    assert ("AWS_ENDPOINT_URL" in said) == (kind == "s3")
    # .invalid is no name anywhere (RFC 2606)
    said = refusal_of(kind, "http://no-such-host.invalid")
    assert "no-such-host.invalid" in said
    assert "No host of that name is known" in said
    assert "type https:// instead of http://" in refusal_of(kind, f"http://127.0.0.1:{tls_port}")
    said = refusal_of(kind, f"https://localhost:{tls_port}")
    assert "CERTIFICATE_VERIFY_FAILED" in said
    assert "AWS_CA_BUNDLE=FILE for s3://" in said
    with serving(Quiet) as port:
        assert "an address with http:// is one without" in refusal_of(kind, f"https://127.0.0.1:{port}")


@pytest.mark.parametrize("address", ["127.0.0.1:9000", "htp://127.0.0.1:9000", "http://127.0.0.1:99999"])
def test_an_endpoint_that_is_no_url_is_refused(address):
    said = refusal_of("s3", address)
    assert address in said
    assert "AWS_ENDPOINT_URL" in said


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_of_certificates_that_is_none_is_named_as_the_cause(tls_port, tmp_path, monkeypatch, content):
    if content:
        (tmp_path / "bundle.pem").write_text(content)
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tmp_path / "bundle.pem"))
    assert "The file with certificates is not there, or holds none" in refusal_of("s3", f"https://localhost:{tls_port}")


def test_a_certificate_that_is_named_is_trusted(tls_port, certificate, monkeypatch):
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    with pytest.raises(FileNotFoundError, match=r"no such object: 's3://bucket/name'"):
        ASK["s3"](f"https://localhost:{tls_port}").read()


@pytest.mark.usefixtures("hurry")
def test_a_proxy_that_is_not_there_is_named(free_port, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{free_port}")
    said = refusal_of("s3", "https://store.invalid")
    assert f"127.0.0.1:{free_port}" in said
    assert "The proxy does not answer: HTTP_PROXY and HTTPS_PROXY" in said


STATUS = {"PermanentRedirect": 301, "AuthorizationHeaderMalformed": 400}


class Answering(BaseHTTPRequestHandler):
    """Answers as S3 does that refuses: with the code that the bucket is called."""

    def do_GET(self) -> None:
        code = self.path.split("/")[1].split("?")[0]
        body = f"<Error><Code>{code}</Code><Message>{code}</Message><Region>eu-west-3</Region></Error>".encode()
        self.send_response(STATUS.get(code, 403))
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)

    do_HEAD = do_GET  # noqa: N815 - so http.server calls it

    def log_message(self, *_) -> None:
        pass


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("InvalidAccessKeyId", "check AWS_ACCESS_KEY_ID"),
        ("SignatureDoesNotMatch", "check AWS_SECRET_ACCESS_KEY"),
        ("ExpiredToken", "get new ones"),
        ("RequestTimeTooSkewed", "Set the clock"),
        ("AccessDenied", "type FSSPEC_S3_ANON=true before the command"),
        ("PermanentRedirect", "type AWS_DEFAULT_REGION=REGION"),
        ("AuthorizationHeaderMalformed", "type AWS_DEFAULT_REGION=REGION"),
    ],
)
def test_what_s3_refuses_says_what_to_type(code, hint):
    # Buckets have small letters; an address style with the bucket in the path takes these too.
    with serving(Answering) as port, pytest.raises(StoreRefusedError) as refused:
        Folder(f"s3://{code}/name", {"endpoint_url": f"http://127.0.0.1:{port}"}).read()
    assert f"s3://{code}/name: the store refused" in str(refused.value)
    assert hint in str(refused.value)


def test_a_bucket_that_is_not_there_is_told_from_an_object(store):
    with pytest.raises(FileNotFoundError, match=r"no such bucket .*'s3://no-such-bucket-at-all/name'"):
        Folder("s3://no-such-bucket-at-all/name", store.direct).read()
    with pytest.raises(FileNotFoundError, match=rf"no such object: '{store.uri('a%20b')}'"):
        store.past("a%20b").read()


def test_without_credentials_it_says_how_to_read_without(store):
    """In a process of its own: this one has some."""
    command = "import sys; from pirl.storage.folder import Folder; Folder(sys.argv[1]).read()"
    env = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    env |= {"AWS_EC2_METADATA_DISABLED": "true", "AWS_SHARED_CREDENTIALS_FILE": os.devnull}
    env |= {"AWS_ENDPOINT_URL": store.direct["endpoint_url"], "AWS_DEFAULT_REGION": "us-east-1"}
    said = subprocess.run(
        [sys.executable, "-c", command, store.uri("name")], env=env, cwd=ROOT, capture_output=True, text=True
    ).stderr
    assert "Unable to locate credentials. A public bucket is read without any: type FSSPEC_S3_ANON=true" in said


def test_a_store_that_comes_up_within_seconds_is_waited_for(free_port, monkeypatch, tmp_path):
    (tmp_path / "name").write_text("here")

    def come_up() -> None:
        time.sleep(0.5)
        with ThreadingHTTPServer(("127.0.0.1", free_port), partial(Quiet, directory=str(tmp_path))) as server:
            server.handle_request()

    monkeypatch.setattr(retry, "FIRST_S", 60)  # it must not hang on how busy the machine is
    threading.Thread(target=come_up).start()
    assert Folder(f"http://127.0.0.1:{free_port}/name").read() == "here"


@pytest.mark.usefixtures("hurry")
@pytest.mark.parametrize("known", ["it has answered", "another process knows it"])
def test_a_store_that_is_known_is_asked_until_the_deadline(tmp_path, monkeypatch, capfd, known):
    (tmp_path / "name").write_text("here")
    with serving(partial(Quiet, directory=str(tmp_path))) as port:
        folder = Folder(f"http://127.0.0.1:{port}/name", {}, deadline_s=1.5)
        if known == "it has answered":
            assert folder.read() == "here"
        else:
            monkeypatch.setattr(client, "_is_trusting", True)
    monkeypatch.setattr(retry, "SAID_AFTER_S", 0.3)
    with pytest.raises(StorageError, match=r"gave up after ([2-9]|\d\d+) tries in [12] s") as failed:
        folder.read()
    assert not isinstance(failed.value, StoreRefusedError)
    (said,) = capfd.readouterr().err.splitlines()
    assert re.fullmatch(
        rf"waiting for the store, reading bytes 0 to 65536 of {folder}: Client.*{port}.* \(\d s\)", said
    )


def test_a_long_silence_is_told_once_and_told_again_after_an_answer(monkeypatch, capfd, tmp_path):
    (tmp_path / "name").write_text("here")
    silent = threading.Event()

    class Slow(Quiet):
        def do_GET(self) -> None:
            silent.wait(0.5)
            super().do_GET()

    monkeypatch.setattr(client, "SAID_AFTER_S", 0.1)
    monkeypatch.setattr(client, "SLOWEST", 2**30)  # so that the size asked for adds nothing to that
    with serving(partial(Slow, directory=str(tmp_path))) as port:
        folder = Folder(f"http://127.0.0.1:{port}/name")
        assert [folder.read(), folder.read()] == ["here", "here"]
    assert (
        capfd.readouterr().err.splitlines() == [f"waiting for the store, asking for {folder}: no answer yet (0 s)"] * 2
    )


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gs://bucket/name", "needs a package that is not installed: type pip install gcsfs"),
        ("abfs://box@account/name", "type pip install adlfs"),
        ("hf://datasets/a/b", "type pip install huggingface_hub"),
        ("sftp://host/name", "type pip install paramiko"),
        ("s4://bucket/name", r"Protocol not known: s4. Name a folder, or s3://bucket/name, https://host/name"),
    ],
)
def test_what_no_package_reads_says_what_to_type(uri, message):
    with pytest.raises(ConfigError, match=re.escape(uri) + ".*" + message):
        Folder(uri).exists()


def test_a_store_that_connects_before_it_is_asked_is_named(free_port):
    """As ftp://, whose client says no more than that the connection was refused."""
    uri = f"ftp://127.0.0.1:{free_port}/name"
    with pytest.raises(StoreRefusedError, match=rf"ftp://127.0.0.1:{free_port} cannot be reached: .*nobody listens"):
        Folder(uri).exists()
