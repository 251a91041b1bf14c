"""As much of a forge as the loop needs: it takes pull requests over Gitea's API and keeps them."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import attrs


@attrs.define(kw_only=True)
class Forge:
    """What was proposed, in order, and the labels there are."""

    url: str = ""
    requests: list[dict[str, Any]] = attrs.field(factory=list)
    labels: list[dict[str, Any]] = attrs.field(factory=list)

    def answer(self, method: str, path: str, body: Any) -> tuple[int, Any]:
        """To one call."""
        match (method, path.strip("/").split("/")[-1]):
            case ("GET", "pulls"):
                return 200, self.requests
            case ("POST", "pulls"):
                number = len(self.requests) + 1
                made = {
                    **body,
                    "number": number,
                    "head": {"ref": body["head"]},
                    "html_url": f"{self.url}/pulls/{number}",
                }
                self.requests.append(made)
                return 201, made
            case ("GET", "labels"):
                return 200, self.labels
            case ("POST", "labels"):
                self.labels.append({"id": len(self.labels) + 1, "name": body["name"]})
                return 201, self.labels[-1]
            case _:
                return 200, {}


@contextmanager
def serving() -> Iterator[Forge]:
    """A forge on this machine."""
    forge = Forge()

    class Handler(BaseHTTPRequestHandler):
        def _take(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            status, answer = forge.answer(self.command, self.path.partition("?")[0], json.loads(raw) if raw else None)
            text = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = do_PUT = do_PATCH = _take  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            """The demo is about the fleet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    forge.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield forge
    finally:
        server.shutdown()
        server.server_close()
