"""A Gradient server on loopback, written from the table of facts about its API alone.

    with GradientServer(fleet) as server:
        build = server.builds_for("web1", closure)     # the last evaluation has built this
        server.evaluation = []                         # or nothing

It is a `Liar`: real TLS in a thread of its own, honest until a test says otherwise, endpoint by endpoint (`health`,
`entry-points`, `build`, `public-key`). It counts requests as the real one does, and shares no code with the agent.
"""

import json
import os
import re
import uuid
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import h11
import trio

from state_machine.values import Closure
from tests.cplab import Lab
from tests.liar import Exchange, Liar, Seen

PROJECT: Final = "acme/hosts"
KEY: Final = "GRADa1b2c3d4e5f6"
PATHS: Final = {
    "health": re.compile(r"/api/v1/health"),
    "entry-points": re.compile(r"/api/v1/projects/([^/]+/[^/]+)/entry-points"),
    "build": re.compile(r"/api/v1/builds/([^/]+)"),
    "public-key": re.compile(r"/api/v1/caches/([^/]+)/public-key"),
}
HERE: Final = f"{os.uname().machine}-linux"
EVERY_S: Final = 0.2
BURST: Final = 150


class GradientServer(Liar):
    """The server. Everything public may be used from the test's thread."""

    def __init__(self, lab: Lab, *, project: str = PROJECT, key: str = KEY, burst: int = BURST, **options: Any) -> None:
        super().__init__(lab, **options)
        self.project, self.keys = project, {key}
        self.evaluation: list[dict[str, Any]] = []
        """The entry points of the last evaluation."""
        self.builds: dict[str, dict[str, Any]] = {}
        self.denied = 0
        """Requests answered 429."""
        self._burst = self._allowed = float(burst)
        self._counted_at: float | None = None

    def builds_for(self, host: str, closure: Closure, **changes: Any) -> str:
        """The last evaluation has nothing but a finished build of this system; its id. See `add`."""
        self.evaluation = []
        return self.add(closure, derivation=f"nixos-system-{host}", **changes)

    def add(self, out: str, *, listed_as: str | None = None, derivation: str = "thing", **changes: Any) -> str:
        """One more build in the last evaluation. `listed_as`: another status in its list than of the build itself."""
        build = {
            "id": str(uuid.uuid4()),
            "status": "Completed",
            "derivation_path": f"{'0' * 32}-{derivation}.drv",
            "architecture": HERE,
            "output": {"out": out},
            "created_at": "2025-06-01T04:00:00",
            "updated_at": "2025-06-01T04:10:00",
            **changes,
        }
        self.builds[build["id"]] = build
        entry = {"id": str(uuid.uuid4()), "build_id": build["id"], "build_status": listed_as or build["status"]}
        self.evaluation = [*self.evaluation, entry]
        return str(build["id"])

    # The server

    async def _next(
        self, stream: trio.abc.Stream, connection: h11.Connection, client: Mapping[str, Any]
    ) -> Seen | None:
        seen = await super()._next(stream, connection, client)
        return None if seen is None else attrs.evolve(seen, name=_name(urlsplit(seen.target).path))

    async def honest(self, exchange: Exchange) -> None:
        """Answer as the table has it."""
        seen = exchange.seen
        if self._is_over_limit():
            self.denied += 1
            return await exchange.answer(429, b"", {**_traced(seen), "Retry-After": "1"})
        if seen.name == "health":
            return await _say(exchange, "alive")
        if seen.headers.get("authorization", "").removeprefix("Bearer ") not in self.keys:
            return await _say(exchange, "Invalid API key", status=401)
        name = PATHS[seen.name].fullmatch(urlsplit(seen.target).path) if seen.name in PATHS else None
        match seen.name, None if name is None else name[1]:
            case "entry-points", self.project:
                return await _say(exchange, self.evaluation)
            case "build", str(build_id) if build_id in self.builds:
                return await _say(exchange, self.builds[build_id])
            case "public-key", str(cache):
                return await _say(exchange, f"{cache}-1:AAAA")
            case _:
                return await _say(exchange, "Not found", status=404)

    def _is_over_limit(self) -> bool:
        """One request in 200 ms, and a burst."""
        now = trio.current_time()
        since = 0.0 if self._counted_at is None else now - self._counted_at
        self._allowed, self._counted_at = min(self._burst, self._allowed + since / EVERY_S), now
        if self._allowed < 1:
            return True
        self._allowed -= 1
        return False


def _name(path: str) -> str:
    return next((name for name, pattern in PATHS.items() if pattern.fullmatch(path)), path)


def _traced(seen: Seen) -> dict[str, str]:
    return {"x-request-id": seen.headers.get("x-request-id") or str(uuid.uuid4())}


async def _say(exchange: Exchange, message: Any, *, status: int = 200) -> None:
    body = json.dumps({"error": status != 200, "message": message}).encode()
    await exchange.answer(status, body, _traced(exchange.seen))
