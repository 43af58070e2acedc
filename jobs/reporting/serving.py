"""The page as a server on this machine shows it: of all runs below a folder, as they go on. Nothing is written.

Whoever has the address has the page: the token in it is random, and new each time. Others on this machine do not guess
it, and pages of the web cannot ask for it, as they do not know it and a name that leads to 127.0.0.1 is refused.
"""

import hashlib
import hmac
import secrets
import threading
import time
from dataclasses import replace
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, urlsplit

from jobs.reporting.overview_page import overview_page
from jobs.reporting.parts import Page, html_of, in_date
from jobs.reporting.record import Collection, RunRecord
from jobs.reporting.run_page import run_page
from jobs.reporting.standing import standing_of
from pirl.storage.folder import Folder

EVERY_S = 5.0
"""Between two questions of a page that is open."""
SHARE = 0.1
"""Of the time that looks take at the most: a long list of a slow store is asked for less often."""


class Watch:
    """The runs below a folder; looked at when a page asks, so that nothing goes on while nobody looks.

    Args:
        every_s: Between two questions of a page, and at least between two looks at the folder.
    """

    def __init__(self, storage: Folder, every_s: float = EVERY_S) -> None:
        self.storage, self.every_s = storage, every_s
        self.known = Collection([storage])
        self._lock = threading.Lock()
        self._looked = self._next = 0.0
        self._version = 0
        self._problem = ""
        self._shown: dict[str, tuple[str, bytes]] = {}

    def answer(self, path: str) -> tuple[str, bytes] | None:
        """The page of a run, by the path of its folder below the storage, or of all (""): its tag and its text.

        The tag changes with the page. None where there is no such run.
        """
        with self._lock:
            self._look()
            now = time.time()
            run = self.known.runs.get((self.storage / path).uri) if path else None
            if path and run is None:
                return None
            runs = [run] if run else [*self.known.runs.values()]
            standings = [(each.folder.uri, standing_of(each, now)) for each in runs]
            tag = hashlib.sha256(repr((self._version, self._problem, standings)).encode()).hexdigest()[:32]
            if self._shown.get(path, ("", b""))[0] != tag:
                page = self._page_of(run, now) if run else self._page_of_all(now)
                self._shown[path] = tag, html_of(page, now, every_s=self.every_s).encode()
            return self._shown[path]

    def path_of(self, run: RunRecord) -> str:
        """Of the folder of a run, below the storage."""
        return run.folder.uri.removeprefix(f"{self.storage.uri.rstrip('/')}/")

    def _look(self) -> None:
        began = time.monotonic()
        if self._version and began < self._next:
            return
        try:
            changed, self._problem = self.known.look(), ""
            self._looked = time.time()
        except OSError as error:  # StorageError is one
            changed = False
            since = f"; this is as of {in_date(self._looked)}" if self._looked else ""
            self._problem = f"{self.storage} cannot be looked at now: {error}{since}"
        self._version += changed or not self._version
        took = time.monotonic() - began
        self._next = time.monotonic() + max(0.9 * self.every_s, took / SHARE)

    def _page_of_all(self, now: float) -> Page:
        page = overview_page(
            self.known, now, str(self.storage), lambda run: f"?run={quote(self.path_of(run), safe='')}"
        )
        return self._with_problem(page)

    def _page_of(self, run: RunRecord, now: float) -> Page:
        return self._with_problem(run_page(run, now, [(str(self.storage), "?")]))

    def _with_problem(self, page: Page) -> Page:
        footer = f"{page.footer} It changes here when something changes there."
        return replace(page, warnings=[*([self._problem] if self._problem else []), *page.warnings], footer=footer)


class PageServer(ThreadingHTTPServer):
    """Serves a watch on the loopback; `address` is the one at which it answers."""

    daemon_threads = True

    def __init__(self, watch: Watch, port: int) -> None:
        super().__init__(("127.0.0.1", port), PageRequest)
        self.watch = watch
        self.token = secrets.token_urlsafe(24)

    @property
    def address(self) -> str:
        """With the token."""
        return f"http://127.0.0.1:{self.server_port}/{self.token}/"

    def is_for(self, host: str, path: str) -> bool:
        """Whether a request names this machine as people reach it, and has the token."""
        known = host in (f"127.0.0.1:{self.server_port}", f"localhost:{self.server_port}")
        return hmac.compare_digest(path.encode(), f"/{self.token}/".encode()) and known


class PageRequest(BaseHTTPRequestHandler):
    """One request: the page, or nothing at all."""

    server: PageServer
    timeout = 30

    def do_GET(self) -> None:
        """Answers with a page; 404 to whoever has no token, or comes by another name."""
        asked = urlsplit(self.path)
        given = [*parse_qs(asked.query).get("run", []), ""][0]
        found = None
        if self.server.is_for(self.headers.get("Host", ""), asked.path):
            found = self.server.watch.answer(given)
        if found is None:
            self._send(HTTPStatus.NOT_FOUND, b"", "")
        elif hmac.compare_digest(self.headers.get("If-None-Match", "").encode(), found[0].encode()):
            self._send(HTTPStatus.NOT_MODIFIED, b"", found[0])
        else:
            self._send(HTTPStatus.OK, found[1], found[0])

    def _send(self, status: HTTPStatus, body: bytes, tag: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("Referrer-Policy", "no-referrer")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("X-Frame-Options", "DENY")
        if tag:
            self.send_header("ETag", tag)
        self.end_headers()
        self.wfile.write(body)

    def version_string(self) -> str:
        """Nothing of Python's version."""
        return "PIRL"

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing: the token would be in it."""
