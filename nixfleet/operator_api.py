"""The control plane's operator endpoints (protocol section 3.9), over mutual TLS.

Every way a call can fail becomes one sentence with what to do about it. An answer is parsed strictly, cut at a size
no honest listing reaches, and given up after `TIMEOUT_S`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeVar
from urllib.parse import urlsplit

import httpx

from evidence.canonical import CanonicalError, parse
from nixfleet.operator_errors import (
    BadRolloutIdError,
    BadUrlError,
    RefusedError,
    StrangeAnswerError,
    UnreachableError,
)
from nixfleet.operator_tls import Endpoint, tls_of
from state_machine.values import Channel, Closure, HostName, RolloutId, is_rollout_id
from wire import endpoints
from wire.codec import decode
from wire.errors import WireError
from wire.json_value import JsonObject
from wire.listings import DeferralList, Health, HostList, RolloutEvents, RolloutHosts, RolloutLifecycle, RolloutList
from wire.messages import ErrorBody

ANSWER_LIMIT: Final = 32 * 1024 * 1024
"""Bytes; the log of a rollout over thousands of hosts is a few."""

TIMEOUT_S: Final = 30.0
CONNECT_TIMEOUT_S: Final = 10.0

Answer = TypeVar("Answer")


class OperatorApi:
    """Calls to one control plane. Make it with `connected`."""

    def __init__(self, client: httpx.Client, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._url, self._clock = client, url, clock

    def health(self) -> Health:
        """Whether it lives, and which version it is."""
        return self._read(Health, endpoints.HEALTHZ)

    def hosts(self) -> HostList:
        """Every host."""
        return self._read(HostList, endpoints.HOSTS)

    def rollouts(self) -> RolloutList:
        """Every rollout that is kept."""
        return self._read(RolloutList, endpoints.ROLLOUTS)

    def deferrals(self) -> DeferralList:
        """Rollouts that wait for another channel."""
        return self._read(DeferralList, endpoints.DEFERRALS)

    def lifecycle(self, rollout_id: RolloutId) -> RolloutLifecycle:
        """Where a rollout stands."""
        return self._read(RolloutLifecycle, endpoints.ROLLOUT_LIFECYCLE.format(rollout_id=rollout_id))

    def rollout_hosts(self, rollout_id: RolloutId) -> RolloutHosts:
        """A rollout's hosts."""
        return self._read(RolloutHosts, endpoints.ROLLOUT_HOSTS.format(rollout_id=rollout_id))

    def rollout_events(self, rollout_id: RolloutId, limit: int) -> RolloutEvents:
        """The newest `limit` entries of a rollout's log, oldest first."""
        path = endpoints.ROLLOUT_EVENTS.format(rollout_id=rollout_id)
        return self._read(RolloutEvents, path, {"limit": str(limit)})

    def rollback(self, rollout_id: RolloutId, hosts: tuple[HostName, ...], reason: str) -> JsonObject:
        """Ask hosts (none: every one that can) back to what they ran before."""
        return self._send(
            endpoints.ROLLOUT_ROLLBACK.format(rollout_id=rollout_id), {"reason": reason, "hosts": list(hosts)}
        )

    def quarantine(self) -> JsonObject:
        """Closures that are sent to nobody."""
        return self._object(endpoints.QUARANTINE, self._call("GET", endpoints.QUARANTINE))

    def clear_quarantine(
        self, channel: Channel | None, closure: Closure | None, hostname: HostName | None
    ) -> JsonObject:
        """Let closures be sent again; None means any."""
        wish = {"channel": channel, "closure": closure, "hostname": hostname}
        return self._send(
            endpoints.QUARANTINE_CLEAR, {name: value for name, value in wish.items() if value is not None}
        )

    def register(self, hostname: HostName, note: str, tags: tuple[str, ...] = ()) -> JsonObject:
        """Announce a machine; `tags` are what it is called until the fleet declares it."""
        return self._send(endpoints.MACHINES, {"hostname": hostname, "note": note, "tags": list(tags)})

    def _read(self, kind: type[Answer], path: str, query: Mapping[str, str] | None = None) -> Answer:
        try:
            return decode(kind, self._object(path, self._call("GET", path, query=query)))
        except WireError as error:
            raise StrangeAnswerError(path=path, problem=error.detail) from error

    def _send(self, path: str, body: JsonObject) -> JsonObject:
        return self._object(path, self._call("POST", path, body=body))

    def _object(self, path: str, content: bytes) -> JsonObject:
        try:
            value = parse(content, limit=ANSWER_LIMIT)
        except CanonicalError as error:
            raise StrangeAnswerError(path=path, problem=error.detail) from error
        if not isinstance(value, dict):
            raise StrangeAnswerError(path=path, problem="it is not an object")
        return value

    def _call(
        self, method: str, path: str, *, query: Mapping[str, str] | None = None, body: JsonObject | None = None
    ) -> bytes:
        try:
            with self._client.stream(method, path, params=query, json=body) as answer:
                content = _content(path, answer, self._clock)
        except httpx.TimeoutException as error:
            raise UnreachableError(url=self._url, problem=f"no answer within {TIMEOUT_S:.0f} s") from error
        except httpx.TransportError as error:
            raise UnreachableError(url=self._url, problem=_cause_of(error)) from error
        if not answer.is_success:
            raise _refusal(answer.status_code, content)
        return content


@contextlib.contextmanager
def connected(endpoint: Endpoint) -> Iterator[OperatorApi]:
    """An API client that is closed again.

    Raises:
        BadUrlError, BadIdentityError: before anything is sent.
    """
    if not _is_plain_https(endpoint.url):
        raise BadUrlError(url=endpoint.url)
    headers = {endpoints.PROTOCOL_HEADER: endpoints.PROTOCOL_VERSION, "Accept-Encoding": "identity"}
    timeout = httpx.Timeout(TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
    with httpx.Client(
        base_url=endpoint.url, verify=tls_of(endpoint), headers=headers, timeout=timeout, follow_redirects=False
    ) as client:
        yield OperatorApi(client, endpoint.url)


def _is_plain_https(url: str) -> bool:
    """No password, no query, no blanks: nothing but where the control plane is."""
    try:
        parts = urlsplit(url)
        named = parts.scheme == "https" and parts.hostname and parts.port != 0
    except ValueError:
        return False
    more = parts.username is not None or parts.query or parts.fragment
    return bool(named) and not more and url.isprintable() and " " not in url


def rollout_id_of(text: str) -> RolloutId:
    """A rollout id as an argument; nothing else becomes part of a URL.

    Raises:
        BadRolloutIdError: it is none.
    """
    if not is_rollout_id(text):
        raise BadRolloutIdError(found=text)
    return RolloutId(text)


def _content(path: str, answer: httpx.Response, clock: Callable[[], float]) -> bytes:
    content = bytearray()
    until = clock() + TIMEOUT_S
    # As it comes: unpacked, a few bytes may be gigabytes, and no packing was asked for.
    for chunk in answer.iter_raw():
        content += chunk
        if clock() > until:
            raise httpx.ReadTimeout("it comes too slowly", request=answer.request)
        if len(content) > ANSWER_LIMIT:
            raise StrangeAnswerError(path=path, problem=f"it has more than {ANSWER_LIMIT} bytes")
    return bytes(content)


def _cause_of(error: httpx.TransportError) -> str:
    text = str(error) or type(error).__name__
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return (
            f"its certificate does not verify under --ca-cert ({text.rpartition('failed: ')[2].partition(' (_ssl')[0]})"
        )
    if "Connection refused" in text:
        return "connection refused; is it running there?"
    return text


def _refusal(status: int, content: bytes) -> RefusedError:
    try:
        body = decode(ErrorBody, parse(content, limit=ANSWER_LIMIT))
    except (CanonicalError, WireError):
        # A proxy's page, not our control plane's answer: its status says all there is.
        return RefusedError(status=status, problem=httpx.codes.get_reason_phrase(status).lower() or "no reason given")
    return RefusedError(status=status, problem=body.error, reason=body.reason)
