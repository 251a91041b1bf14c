"""Places that releases are published to: a web server that takes PUT, one that speaks S3, git remotes; and a reader.

The server keeps files in memory, gives each version a tag and minds conditions, all of which can be switched off. It
can fail, answer late, and end whoever is talking to it. The reader is the control plane's own: what it holds is what a
fleet would be told.
"""

import contextlib
import hashlib
import hmac
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

import attrs
import httpx

from control_plane.adoption import Adopter
from control_plane.artifact_source import ArtifactSource, HttpsSource
from control_plane.ledger import Ledger
from control_plane.shelf import Shelf
from tests.unit.nixfleet_samples import CI_KEY, document, write_key, write_trust

ACCESS_KEY: Final = "EXAMPLEKEYOFATEST"
SECRET_KEY: Final = "not+a/secret"
REGION: Final = "eu-lab-1"
TOKEN: Final = "s3cret-of-a-test"


@attrs.define(kw_only=True)
class Fault:
    """What happens to the next `times` requests that have this method and whose path ends so."""

    verb: str
    path: str
    status: int
    times: int = 1
    keeps: bool = False
    """The request is carried out, and only its answer is lost."""


@attrs.define(kw_only=True)
class PutServer:
    """Files by path. `url` is its own address, `prefix` where the tests publish."""

    files: dict[str, bytes] = attrs.field(factory=dict)
    asked: list[tuple[str, str]] = attrs.field(factory=list)
    faults: list[Fault] = attrs.field(factory=list)
    token: str | None = None
    s3: bool = False
    tags: bool = True
    minds: bool = True
    """Conditions are minded."""
    knows: bool = True
    """Conditions are known at all; else a PUT with one is not implemented."""
    before: Callable[[str, str], object] = attrs.field(default=lambda verb, path: None)
    """Called before a request is looked at, in the thread that answers it."""
    victim: Callable[[], int | None] = attrs.field(default=lambda: None)
    dies_at: int | None = None
    """The number of the PUT at which the victim is killed; it is carried out."""
    url: str = ""
    lock: threading.Lock = attrs.field(factory=threading.Lock)
    puts: int = 0

    @property
    def prefix(self) -> str:
        return f"{self.url}/dav/releases"

    @property
    def bucket(self) -> str:
        return f"s3://fleet/releases?endpoint={self.url}&region={REGION}"

    def published(self) -> dict[str, bytes]:
        """The files below the prefix, by their names there."""
        begins = "/fleet/releases/" if self.s3 else "/dav/releases/"
        return {path.removeprefix(begins): content for path, content in self.files.items() if path.startswith(begins)}

    def names(self) -> list[str]:
        """What a reader may ask for: promises and indexes are the publisher's own."""
        return sorted(name for name in self.published() if name not in ("publishing.json", "rollouts/index.json"))

    def answer(
        self, verb: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        """What a request is answered with, and what it does."""
        with self.lock:
            self.asked.append((verb, path))
            fault = next(
                (each for each in self.faults if each.times and each.verb == verb and path.endswith(each.path)), None
            )
            if fault is not None:
                fault.times -= 1
                if not fault.keeps:
                    return fault.status, {}, b"no\n"
            answered = self._answer(verb, path, headers, body)
            return (fault.status, {}, b"no\n") if fault is not None else answered

    def _answer(
        self, verb: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        if self.token is not None and headers.get("authorization") != f"Bearer {self.token}":
            return 401, {}, b"who are you?\n"
        if not self.knows and verb == "PUT" and {"if-match", "if-none-match"} & set(headers):
            return 501, {}, b"<Error><Code>NotImplemented</Code></Error>"
        there = self.files.get(path)
        if self.minds and not self._holds(there, headers):
            return 412, {}, b"something else is there\n"
        match verb:
            case "GET" if there is not None:
                return 200, self._tag(there), there
            case "PUT":
                self.files[path] = body
                self.puts += 1
                if self.puts == self.dies_at and (pid := self.victim()) is not None:
                    os.kill(pid, signal.SIGKILL)
                return 201 if there is None else 204, self._tag(body), b""
            case "DELETE" if there is not None:
                del self.files[path]
                return 204, {}, b""
            case _:
                return 404, {}, b"nothing here\n"

    def _tag(self, content: bytes) -> dict[str, str]:
        return {"ETag": f'"{hashlib.md5(content).hexdigest()}"'} if self.tags else {}

    def _holds(self, there: bytes | None, headers: Mapping[str, str]) -> bool:
        if "if-match" in headers:
            return there is not None and headers["if-match"] == self._tag(there).get("ETag")
        return not ("if-none-match" in headers and there is not None)


@contextmanager
def put_server(**settings: Any) -> Iterator[PutServer]:
    """A server on this machine."""
    state = PutServer(**settings)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _take(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name.lower(): value for name, value in self.headers.items()}
            state.before(self.command, self.path)
            if state.s3 and (problem := s3_problem(self.command, self.path, headers, body)):
                status, more, text = 403, dict[str, str](), f"<Error><Code>{problem}</Code></Error>".encode()
            else:
                status, more, text = state.answer(self.command, unquote(urlsplit(self.path).path), headers, body)
            self.send_response(status)
            for name, value in more.items():
                self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            if status != 204:
                self.wfile.write(text)

        do_GET = do_PUT = do_DELETE = _take  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

        def handle(self) -> None:
            with contextlib.suppress(ConnectionError):  # whoever asked was killed
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def s3_problem(verb: str, target: str, headers: Mapping[str, str], body: bytes) -> str | None:
    """What S3 would say to a request that is not signed as it should be: all of it worked out here once more."""
    parts = urlsplit(target)
    said = headers.get("authorization", "")
    if not said.startswith("AWS4-HMAC-SHA256 "):
        return "AccessDenied"
    fields = dict(each.strip().split("=", 1) for each in said.removeprefix("AWS4-HMAC-SHA256 ").split(","))
    key, day, region, service, end = fields["Credential"].split("/")
    if (key, region, service, end) != (ACCESS_KEY, REGION, "s3", "aws4_request"):
        return "InvalidAccessKeyId"
    if headers["x-amz-content-sha256"] != hashlib.sha256(body).hexdigest():
        return "XAmzContentSHA256Mismatch"
    names = fields["SignedHeaders"].split(";")
    required = {
        "host",
        *(name for name in headers if name.startswith("x-amz-") or name in ("if-match", "if-none-match")),
    }
    if not required <= set(names) or names != sorted(names) or not headers["x-amz-date"].startswith(day):
        return "SignatureDoesNotMatch"
    path = quote(unquote(parts.path), safe="/-_.~")
    lines = [verb, path, parts.query, *(f"{name}:{headers[name].strip()}" for name in names), "", ";".join(names)]
    request = "\n".join([*lines, headers["x-amz-content-sha256"]])
    scope = f"{day}/{region}/{service}/{end}"
    text = f"AWS4-HMAC-SHA256\n{headers['x-amz-date']}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    secret = b"AWS4" + SECRET_KEY.encode()
    for part in (day, region, service, end):
        secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
    expected = hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
    return None if hmac.compare_digest(expected, fields["Signature"]) else "SignatureDoesNotMatch"


@attrs.frozen(kw_only=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@attrs.frozen(kw_only=True)
class Desk:
    """A publisher: a key, a trust file and a description, in a home of its own below `root`."""

    root: Path

    @classmethod
    def at(cls, root: Path) -> "Desk":
        root.mkdir(parents=True, exist_ok=True)
        write_key(root / "ci.pem", CI_KEY.key)
        write_trust(root / "trust.json", CI_KEY)
        desk = cls(root=root)
        desk.describe()
        (root / "token").write_text(f"{TOKEN}\n")
        return desk

    def describe(self, **changes: Any) -> None:
        """Write the description, with other top-level members."""
        (self.root / "fleet.json").write_text(json.dumps({**document(), **changes}))

    def environment(self) -> dict[str, str]:
        dropped = ("GIT_", "AWS_", "NIXFLEET", "XDG_", "CACHE_DIRECTORY")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
        return {
            **kept,
            "HOME": str(self.root),
            "GIT_CONFIG_NOSYSTEM": "1",
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "NIXFLEET_CI_KEY": str(self.root / "ci.pem"),
            "NIXFLEET_TRUST_FILE": str(self.root / "trust.json"),
        }

    def begin(self, *words: str, **more: str) -> "subprocess.Popen[str]":
        """Start the command; `more` are further variables."""
        return subprocess.Popen(
            [sys.executable, "-m", "nixfleet", *words], cwd=self.root, env={**self.environment(), **more}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, *words: str, **more: str) -> Ran:
        with self.begin(*words, **more) as process:
            try:
                out, err = process.communicate(timeout=120)
            finally:
                process.kill()
        return Ran(status=process.returncode, out=out, err=err)

    def releasing(self, to: str, commit: str) -> tuple[str, ...]:
        """The words of a release that opens new rollouts."""
        return "release", "fleet.json", "--to", to, "--commit", commit, "--new-rollout"

    def release(self, to: str, commit: str, *more: str, **variables: str) -> Ran:
        return self.run(*self.releasing(to, commit), *more, **variables)

    def refresh(self, to: str, *more: str, **variables: str) -> Ran:
        return self.run("release", "--refresh", "--to", to, *more, **variables)


@attrs.frozen(kw_only=True)
class Reader:
    """A control plane's view of a target."""

    adopter: Adopter
    shelf: Shelf

    async def look(self) -> str | None:
        """The commit of the release in force after one more look; all of its manifests must be in force with it."""
        await self.adopter.look()
        if self.shelf.fleet is None:
            return None
        fleet = self.shelf.fleet
        assert set(self.shelf.manifests) == set(fleet.value.channels)
        for held in self.shelf.manifests.values():
            assert held.value.fleet_resolved_hash == fleet.proven.digest
        return fleet.value.meta.ci_commit


@asynccontextmanager
async def reader(source: ArtifactSource, desk: Desk, database: Path) -> AsyncIterator[Reader]:
    """A reader that remembers what it saw."""
    async with Ledger(database) as ledger:
        shelf = Shelf()
        adopter = Adopter(
            source=source,
            trust_file=desk.root / "trust.json",
            freshness_window_s=86_400,
            ledger=ledger,
            shelf=shelf,
            on_change=lambda: None,
        )
        yield Reader(adopter=adopter, shelf=shelf)


@asynccontextmanager
async def reader_of(server: PutServer, desk: Desk, database: Path) -> AsyncIterator[Reader]:
    """A reader of what is below the server's prefix."""
    async with httpx.AsyncClient(trust_env=False) as client:
        source = HttpsSource(base_url=server.prefix, client=client, token_file=None)
        async with reader(source, desk, database) as made:
            yield made
