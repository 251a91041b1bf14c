"""What a worker needs to do its work: somewhere to send events, a clock, the control plane, a look at the state."""

import random
from collections.abc import Awaitable, Callable, Mapping
from typing import ClassVar, Final

import attrs

from evidence.canonical import parse
from evidence.errors import EvidenceError
from evidence.host_key import HostKey
from nixfleet_agent.config import Config
from nixfleet_agent.telemetry import Telemetry
from nixfleet_agent.transport import REQUEST_TIMEOUT_S, RESPONSE_LIMIT, Answer, Connection, UnreachableError
from state_machine.events import Event
from state_machine.state import State
from state_machine.values import Moment, Reason
from wire.json_value import JsonValue

ANSWER_SHOWN: Final = 200
"""How much of a refusal's body goes into a log line."""


class Uplink:
    """The connection to the control plane in use now. Absent until there is a certificate to show."""

    def __init__(self, clock: Callable[[], Moment]) -> None:
        self._clock = clock
        self._connection: Connection | None = None

    @property
    def ready(self) -> bool:
        """There is an identity to talk with."""
        return self._connection is not None

    async def use(self, connection: Connection) -> None:
        """Use `connection` for every request from now on; those under way end on the old one."""
        before, self._connection = self._connection, connection
        if before is not None:
            await before.retire()

    async def close(self) -> None:
        """Close the connection once its requests are over."""
        if self._connection is not None:
            await self._connection.retire()

    async def ask(
        self,
        method: str,
        path: str,
        *,
        json: object = None,
        headers: Mapping[str, str] | None = None,
        timeout_s: float = REQUEST_TIMEOUT_S,
        limit: int = RESPONSE_LIMIT,
    ) -> Answer:
        """As `Connection.request`.

        Raises:
            UnreachableError: also while this host is not enrolled.
        """
        if self._connection is None:
            raise UnreachableError(url=path, cause="this host is not enrolled yet")
        return await self._connection.request(
            method,
            path,
            now=self._clock().wall_ms,
            json=json,
            headers=headers,
            timeout_s=timeout_s,
            limit=limit,
        )


@attrs.frozen(kw_only=True)
class Desk:
    """Handed to every worker. `tell` waits while the reducer's channel is full."""

    config: Config
    host_key: HostKey
    clock: Callable[[], Moment]
    tell: Callable[[Event], Awaitable[None]]
    state: Callable[[], State]
    uplink: Uplink
    telemetry: Telemetry
    jitter: Callable[[], float] = random.random


class AnswerError(Exception):
    """The control plane answered, but with nothing of use."""


@attrs.frozen(kw_only=True)
class RefusedError(AnswerError):
    """A status that is no success. `retry_after_ms` is what it asked for."""

    path: str
    status: int
    said: str
    retry_after_ms: int | None = None

    def __str__(self) -> str:
        return f"{self.path}: HTTP {self.status} {self.said}".rstrip()


@attrs.frozen(kw_only=True)
class NotJsonAnswerError(AnswerError):
    """The body is not what the protocol says, such as a captive portal's page."""

    reason: ClassVar[Reason] = Reason.PARSE
    path: str
    problem: str

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


def refused(path: str, answer: Answer) -> RefusedError:
    """The error that a status which is no success amounts to."""
    said = answer.body[:ANSWER_SHOWN].decode("utf-8", "replace").strip()
    return RefusedError(path=path, status=answer.status, said=said, retry_after_ms=answer.retry_after_ms)


def read_json(path: str, answer: Answer) -> JsonValue:
    """The body of a successful answer.

    Raises:
        RefusedError: the status is no success.
        NotJsonAnswerError: the body is not acceptable JSON.
    """
    if not answer.ok:
        raise refused(path, answer)
    try:
        return parse(answer.body, limit=RESPONSE_LIMIT)
    except EvidenceError as error:
        raise NotJsonAnswerError(path=path, problem=str(error)) from error
