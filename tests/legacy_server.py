"""A first-generation control plane on loopback, written from protocol sections 9.1 and 9.2 alone.

    with LegacyServer(fleet) as server:
        server.want("web1", closure, cache_url=..., poll_hint=5)
        server.until("a deployment", lambda: "deployed" in server.messages("web1"))

It is a `Liar`: real TLS with client certificates in a thread of its own, honest until a test says otherwise, endpoint
by endpoint (`desired`, `report`). It shares no code with the agent.
"""

import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

import attrs
import h11
import trio

from control_plane.identity import CanonicalNames
from state_machine.values import Closure
from tests.cplab import Lab
from tests.liar import Exchange, Liar, Seen

STORE: Final = "/nix/store/"
ID_MAX: Final = 256
BODY: Final[Mapping[str, tuple[type, ...]]] = {
    "machine_id": (str,),
    "current_generation": (str,),
    "success": (bool,),
    "message": (str,),
    "timestamp": (str,),
    "tags": (list,),
    "health": (dict, type(None)),
    "agent_version": (str,),
    "uptime_seconds": (int,),
}


class LegacyServer(Liar):
    """The server. Everything public may be used from the test's thread."""

    def __init__(self, lab: Lab, *, https: bool = True, **options: Any) -> None:
        super().__init__(lab, https=https, **options)
        self.desired: dict[str, dict[str, Any]] = {}
        """What each machine is to run, as it is answered; a machine that is not here has nothing set."""
        self.reports: list[dict[str, Any]] = []
        """Every report that was taken, in order."""
        self.tags: dict[str, list[str]] = {}
        """Of machines, as they registered themselves by their first report."""

    def want(self, host: str, closure: Closure | None, **members: Any) -> None:
        """Set, or with None take away, what a machine is to run. `members`: `cache_url`, `poll_hint`, `hash`."""
        if closure is None:
            self.desired.pop(host, None)
        else:
            plain = {"hash": STORE + closure, "cache_url": None, "poll_hint": None}
            self.desired[host] = {**plain, **members}

    def reports_of(self, host: str) -> list[dict[str, Any]]:
        """What a machine has reported."""
        return [report for report in list(self.reports) if report["machine_id"] == host]

    def messages(self, host: str, *, without: tuple[str, ...] = ()) -> list[str]:
        """The same, the messages alone."""
        return [report["message"] for report in self.reports_of(host) if report["message"] not in without]

    def until_told(self, host: str, message: str) -> dict[str, Any]:
        """The first report of a machine whose message begins so."""

        def seen() -> dict[str, Any] | None:
            return next((r for r in self.reports_of(host) if r["message"].startswith(message)), None)

        found = self.until(f"a report {message!r} of {host}; told: {self.messages(host)}", seen)
        assert found is not None
        return found

    # The server

    async def _next(
        self, stream: trio.abc.Stream, connection: h11.Connection, client: Mapping[str, Any]
    ) -> Seen | None:
        seen = await super()._next(stream, connection, client)
        return None if seen is None else attrs.evolve(seen, name=_name(urlsplit(seen.target).path))

    async def honest(self, exchange: Exchange) -> None:
        """Answer as the tables of section 9.1 have it."""
        seen = exchange.seen
        machine = urlsplit(seen.target).path.split("/")[4] if seen.name in ("desired", "report") else ""
        if not machine:
            return await exchange.answer(404)
        if self._https and seen.client != machine:
            return await exchange.answer(403 if seen.client else 401, b"certificate CN does not match")
        if len(machine) > ID_MAX:
            return await exchange.answer(400, b"machine id too long")
        if seen.name == "desired":
            wanted = self.desired.get(machine)
            return await (exchange.answer(404) if wanted is None else exchange.answer(200, json.dumps(wanted).encode()))
        return await self._take(exchange, machine)

    async def _take(self, exchange: Exchange, machine: str) -> None:
        report = exchange.seen.json
        wrong = [name for name, types in BODY.items() if not isinstance(report.get(name), types)]
        if wrong or report["machine_id"] != machine:
            return await exchange.answer(422, json.dumps({"wrong": wrong}).encode())
        if len(report["current_generation"]) > 512 or len(report["message"]) > 4096:
            return await exchange.answer(400, b"too long")
        self.tags.setdefault(machine, report["tags"])
        self.reports.append(report)
        return await exchange.answer(200)


def _name(path: str) -> str:
    for name, end in (("desired", "/desired-generation"), ("report", "/report")):
        if path.startswith("/api/v1/machines/") and path.endswith(end):
            return name
    return path


def name_hosts_plainly(lab: Lab) -> None:
    """Certificates as this generation wants them: the common name is the machine's id and nothing more."""
    lab.names = CanonicalNames(suffix=None)
    for host in lab.hosts:
        lab.write_certificate(host)
