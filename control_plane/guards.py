"""What every request passes before its handler: the checks of protocol section 1.2, in that order.

1. Ready: until signed artifacts are in force, everything under /v1 answers 503. `/healthz` and `/metrics` do not wait.
2. Protocol header: another version is 426, no number 400, a missing one 400 only with `--strict`.
3. Certificate: 401 without one, 401 when it has run out since the connection was made or began before the host's
   revocation, 403 when its role is another.
4. The handler; one whose body names a host checks that name with `check_hostname` (403).

Every refusal leaves as `{"error", "reason", "want_seq"?}`.
"""

import json
import re
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import trio
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from control_plane.errors import RequestRefusedError, StoreUnavailableError
from control_plane.identity import CanonicalNames, Peer, Role, peer_of
from control_plane.metrics import Metrics
from control_plane.presence import Presence
from control_plane.shelf import Shelf
from evidence.canonical import CanonicalError, TooLargeError, parse
from state_machine.values import HostName, Reason, WallMs
from wire.codec import decode, encode
from wire.endpoints import PROTOCOL_HEADER, PROTOCOL_VERSION
from wire.errors import WireError
from wire.json_value import JsonObject
from wire.messages import ErrorBody

BODY_LIMIT: Final = 1024 * 1024
BODY_DEADLINE_S: Final = 15.0
_DRAIN_LIMIT: Final = 8 * BODY_LIMIT
"""A body beyond the limit is read on so far and dropped, so that its sender gets to see the answer."""

_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
TAGS_MAX: Final = 64
TAG_MAX: Final = 64

_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,32}")

Message = TypeVar("Message")
OpenHandler = Callable[[Request], Awaitable[Response]]
PeerHandler = Callable[[Request, Peer], Awaitable[Response]]
Endpoint = Callable[[Request], Awaitable[Response]]


class Guards:
    """Wraps handlers into endpoints that check first."""

    def __init__(
        self,
        *,
        shelf: Shelf,
        names: CanonicalNames,
        presence: Presence,
        metrics: Metrics,
        clock: Callable[[], WallMs],
        strict: bool,
    ) -> None:
        self._clock = clock
        self._shelf, self._names, self._presence = shelf, names, presence
        self._metrics, self._strict = metrics, strict
        self.in_flight = 0

    def ungated(self, route: str, handler: OpenHandler) -> Endpoint:
        """For what must answer at any time."""
        return self._endpoint(route, handler)

    def anonymous(self, route: str, handler: OpenHandler) -> Endpoint:
        """For callers that have no certificate yet."""

        async def guarded(request: Request) -> Response:
            self._check_ready()
            self._check_protocol(request)
            return await handler(request)

        return self._endpoint(route, guarded)

    def any_peer(self, route: str, handler: PeerHandler) -> Endpoint:
        """For every holder of a certificate; the handler shows each what concerns it."""
        return self._endpoint(route, self._for_roles(handler, frozenset(Role)))

    def agent(self, route: str, handler: PeerHandler) -> Endpoint:
        """For hosts only."""
        return self._endpoint(route, self._for_roles(handler, frozenset({Role.AGENT})))

    def legacy_agent(self, route: str, handler: PeerHandler) -> Endpoint:
        """For hosts only, whose protocol knows no header that could be checked."""

        async def guarded(request: Request) -> Response:
            self._check_ready()
            return await handler(request, self._authenticate(request, frozenset({Role.AGENT})))

        return self._endpoint(route, guarded)

    def operator(self, route: str, handler: PeerHandler) -> Endpoint:
        """For operators only."""
        return self._endpoint(route, self._for_roles(handler, frozenset({Role.OPERATOR})))

    def operator_ungated(self, route: str, handler: PeerHandler) -> Endpoint:
        """For operators, ready or not."""

        async def guarded(request: Request) -> Response:
            return await handler(request, self._authenticate(request, frozenset({Role.OPERATOR})))

        return self._endpoint(route, guarded)

    def _for_roles(self, handler: PeerHandler, roles: frozenset[Role]) -> OpenHandler:
        async def guarded(request: Request) -> Response:
            self._check_ready()
            self._check_protocol(request)
            return await handler(request, self._authenticate(request, roles))

        return guarded

    def _endpoint(self, route: str, guarded: OpenHandler) -> Endpoint:
        async def endpoint(request: Request) -> Response:
            began = trio.current_time()
            self.in_flight += 1
            try:
                response = await _answer(guarded, request)
            finally:
                self.in_flight -= 1
            self._metrics.observe_request(request.method, route, response.status_code, trio.current_time() - began)
            return response

        return endpoint

    def _check_ready(self) -> None:
        if not self._shelf.is_ready:
            raise RequestRefusedError(
                status=503,
                reason="awaiting first signed artifact",
                error="control plane not ready",
                headers={"Retry-After": "30"},
            )

    def _check_protocol(self, request: Request) -> None:
        text = request.headers.get(PROTOCOL_HEADER)
        if text is None:
            if self._strict:
                raise RequestRefusedError(status=400, reason="protocol", error=f"{PROTOCOL_HEADER} is missing")
            return
        if _INTEGER.fullmatch(text) is None:
            raise RequestRefusedError(status=400, reason="protocol", error=f"{PROTOCOL_HEADER} is not a number")
        if text != PROTOCOL_VERSION:
            raise RequestRefusedError(
                status=426,
                reason="protocol",
                error=f"protocol {text[:8]} is not spoken here, protocol {PROTOCOL_VERSION} is",
                headers={"Upgrade": f"nixfleet/{PROTOCOL_VERSION}"},
            )

    def _authenticate(self, request: Request, roles: frozenset[Role]) -> Peer:
        peer = peer_of(request.scope, self._names)
        if peer is None:
            raise RequestRefusedError(status=401, reason="no-certificate", error="a client certificate is needed")
        if peer.not_after < self._clock():
            # TLS looks at the end of a certificate only when a connection is made, and connections are kept for days.
            raise RequestRefusedError(
                status=401, reason="certificate-expired", error=f"the certificate of {peer.cn} has run out"
            )
        revoked = self._shelf.revoked_before(peer.machine_id)
        if revoked is not None and peer.not_before < revoked:
            raise RequestRefusedError(
                status=401, reason="revoked", error=f"the certificate of {peer.machine_id} is revoked: enrol again"
            )
        if peer.role not in roles:
            raise RequestRefusedError(
                status=403, reason="role", error=f"this is not for a certificate of the role {peer.role}"
            )
        if peer.role is Role.AGENT:
            self._presence.note(peer.machine_id, self._clock(), peer.not_before)
        return peer


async def _answer(guarded: OpenHandler, request: Request) -> Response:
    try:
        return await guarded(request)
    except RequestRefusedError as refusal:
        return refusal_response(refusal)
    except StoreUnavailableError as error:
        headers = {"Retry-After": "10"}
        return refusal_response(RequestRefusedError(status=503, reason="database", error=str(error), headers=headers))
    except ClientDisconnect:
        return Response(status_code=400)  # nobody reads it


def json_response(message: object, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A message of `wire` as the answer."""
    return document_response(encode(message), status=status, headers=headers)


def document_response(document: JsonObject, *, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON document as the answer."""
    body = _ENCODER.encode(document).encode()
    return Response(body, status_code=status, headers=headers, media_type="application/json")


def refusal_response(refusal: RequestRefusedError) -> Response:
    """A refusal as the answer."""
    body = ErrorBody(error=refusal.error, reason=refusal.reason, want_seq=refusal.want_seq)
    return json_response(body, status=refusal.status, headers=dict(refusal.headers))


async def read_document(request: Request, *, malformed: int = 400, limit: int = BODY_LIMIT) -> JsonObject:
    """The JSON object in the request's body of at most `limit` bytes.

    Raises:
        RequestRefusedError: 413 too long, 408 too slow, `malformed` for what is no JSON object.
    """
    body = await _read_body(request, limit)
    try:
        value = parse(body, limit=limit)
    except TooLargeError as error:
        raise RequestRefusedError(status=413, reason=Reason.TOO_LARGE, error=str(error)) from error
    except CanonicalError as error:
        raise RequestRefusedError(status=malformed, reason=Reason.PARSE, error=error.detail) from error
    if not isinstance(value, dict):
        raise RequestRefusedError(status=malformed, reason=Reason.PARSE, error="the body is not a JSON object")
    return value


async def read_message(request: Request, target: type[Message], *, limit: int = BODY_LIMIT) -> Message:
    """The request's body of at most `limit` bytes as a message of `wire`.

    Raises:
        RequestRefusedError: as `read_document`; 422 for a JSON object of another shape.
    """
    document = await read_document(request, limit=limit)
    try:
        return decode(target, document)
    except WireError as error:
        raise RequestRefusedError(status=422, reason=Reason.PARSE, error=error.detail) from error


async def _read_body(request: Request, limit: int) -> bytes:
    kept, size = bytearray(), 0
    with trio.move_on_after(BODY_DEADLINE_S) as patience:
        async for chunk in request.stream():
            size += len(chunk)
            if size <= limit:
                kept += chunk
            elif size > _DRAIN_LIMIT:
                break
    if patience.cancelled_caught:
        raise RequestRefusedError(
            status=408, reason="slow", error=f"the body did not arrive within {BODY_DEADLINE_S:.0f} s"
        )
    if size > limit:
        raise RequestRefusedError(
            status=413, reason=Reason.TOO_LARGE, error=f"a body may have {limit} bytes at most here"
        )
    return bytes(kept)


def check_tags(tags: tuple[str, ...]) -> None:
    """What a machine is called.

    Raises:
        RequestRefusedError: 400, they are more or longer than tags are.
    """
    if len(tags) > TAGS_MAX or any(not (0 < len(tag) <= TAG_MAX and tag.isprintable()) for tag in tags):
        problem = f"at most {TAGS_MAX} tags of 1 to {TAG_MAX} printable characters"
        raise RequestRefusedError(status=400, reason="tags", error=problem)


def check_hostname(claimed: object, peer: Peer) -> HostName:
    """The host a body speaks for, which must be the caller.

    Raises:
        RequestRefusedError: 403, it is another.
    """
    if claimed != peer.machine_id:
        raise RequestRefusedError(
            status=403, reason="hostname", error=f"the certificate is for {peer.machine_id}, the body for another host"
        )
    return peer.machine_id
