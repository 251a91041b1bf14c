"""Serve metrics and /healthz to whoever scrapes them: small answers to small requests, one a connection."""

import json
import logging
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import h11
import trio

from nixfleet_agent.supervision import contain

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

REQUEST_TIMEOUT_S: Final = 10.0
CONNECTIONS: Final = 16
log = logging.getLogger(__name__)


async def serve(
    registry: "CollectorRegistry",
    trouble: Callable[[], str],
    listeners: list[trio.SocketListener],
    crashes: Counter[str],
) -> None:
    """Answer `GET /metrics` and `GET /healthz` for ever. `trouble` says what keeps this from being well, or nothing."""
    limit = trio.CapacityLimiter(CONNECTIONS)

    async def answer(stream: trio.SocketStream) -> None:
        async with limit, stream:
            with trio.move_on_after(REQUEST_TIMEOUT_S):
                await contain("metrics", lambda: _serve_one(stream, registry, trouble), crashes)

    await trio.serve_listeners(answer, listeners)


async def _serve_one(stream: trio.SocketStream, registry: "CollectorRegistry", trouble: Callable[[], str]) -> None:
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=16 * 1024)
    try:
        request = await _next_request(stream, connection)
        if request is None:
            return
        status, kind, body = _respond(request, registry, trouble)
        headers = [("Content-Type", kind), ("Content-Length", str(len(body))), ("Connection", "close")]
        parts = [connection.send(h11.Response(status_code=status, headers=headers))]
        if request.method != b"HEAD":
            parts.append(connection.send(h11.Data(data=body)))
        parts.append(connection.send(h11.EndOfMessage()))
        await stream.send_all(b"".join(part for part in parts if part))
    except (h11.ProtocolError, trio.BrokenResourceError) as error:
        log.debug("a scrape came to nothing: %s", error)


async def _next_request(stream: trio.SocketStream, connection: h11.Connection) -> h11.Request | None:
    while True:
        event = connection.next_event()
        if isinstance(event, h11.Request):
            return event
        if event is not h11.NEED_DATA:
            return None
        connection.receive_data(await stream.receive_some(16 * 1024))


def _respond(request: h11.Request, registry: "CollectorRegistry", trouble: Callable[[], str]) -> tuple[int, str, bytes]:
    from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

    path = request.target.partition(b"?")[0]
    if request.method not in (b"GET", b"HEAD"):
        return 405, "text/plain", b"only GET\n"
    if path == b"/metrics":
        return 200, CONTENT_TYPE_LATEST, generate_latest(registry)
    if path == b"/healthz":
        said = trouble()
        body = json.dumps({"ok": not said} | ({"reason": said} if said else {}))
        return 503 if said else 200, "application/json", body.encode() + b"\n"
    return 404, "text/plain", b"there are /metrics and /healthz\n"
