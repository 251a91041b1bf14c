"""Ask a Gradient server: with the key of the moment, slowly enough, and with an id by which it finds the request again.

What comes back is a message of its API or one typed error. The key is in no error and no log line, even where the
server repeats it.
"""

import logging
import os
import stat
from pathlib import Path
from typing import Final, TypeVar

import attrs
import trio

from evidence.canonical import parse
from evidence.errors import EvidenceError
from nixfleet_agent.desk import ANSWER_SHOWN, AnswerError, Desk, NotJsonAnswerError, RefusedError
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.files import read_limited
from nixfleet_agent.transport import Answer
from wire.codec import decode
from wire.errors import WireError
from wire.gradient import BUILD, ENTRY_POINTS, REQUEST_ID_HEADER, Build, EntryPoint, Envelope
from wire.json_value import JsonValue

GAP_S: Final = 0.25
"""Between two requests: the server allows one in 200 ms, and others may share this host's address."""
TIMEOUT_S: Final = 20.0
ANSWER_LIMIT: Final = 4 * 1024 * 1024
"""Ten thousand entry points and more."""
KEY_LIMIT: Final = 4096
log = logging.getLogger(__name__)
T = TypeVar("T")


@attrs.frozen(kw_only=True)
class ServerSaysError(AnswerError):
    """The answer is an error of the server's own, under a status of success."""

    path: str
    said: str

    def __str__(self) -> str:
        return f"{self.path}: the server says: {self.said}"


def read_key(path: Path) -> str:
    """The API key in the file, which may end in a newline.

    Raises:
        ConfigurationError: it holds none.
        OSError: as `evidence.regular_files.open_regular`.
    """
    data = read_limited(path, KEY_LIMIT)
    if data is None:
        raise ConfigurationError(problems=(f"--gradient-api-key-file: {path} does not exist; put the API key there",))
    text = data.decode("ascii", "replace").strip()
    # Nothing else may reach a header, where it could end one and begin another.
    if not text or len(data) > KEY_LIMIT or not text.isascii() or not text.isprintable() or " " in text:
        raise ConfigurationError(problems=(f"--gradient-api-key-file: {path} does not hold one API key and no more",))
    return text


class GradientServer:
    """One server, asked by one task at a time."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._asked_at = float("-inf")
        self._warned = False

    async def entry_points(self) -> tuple[EntryPoint, ...]:
        """Those of the project's last evaluation.

        Raises:
            TransportError, AnswerError, ConfigurationError, OSError: they could not be had.
        """
        path = ENTRY_POINTS.format(project=self._desk.config.gradient_project)
        return _as(tuple[EntryPoint, ...], path, await self._message(path))

    async def build(self, build_id: str) -> Build | None:
        """One build; None: the server does not have it.

        Raises:
            ServerSaysError: it has something to say about it instead.
            TransportError, AnswerError, ConfigurationError, OSError: it could not be had.
        """
        path = BUILD.format(build_id=build_id)
        try:
            return _as(Build, path, await self._message(path))
        except RefusedError as error:
            if error.status != 404:
                raise
            return None

    async def _message(self, path: str) -> JsonValue:
        answer = await self._ask(path)
        if not answer.ok:
            raise RefusedError(
                path=path, status=answer.status, said=self._said(answer), retry_after_ms=answer.retry_after_ms
            )
        envelope = _envelope(path, answer)
        if envelope.error:
            raise ServerSaysError(path=path, said=str(envelope.message)[:ANSWER_SHOWN])
        return envelope.message

    async def _ask(self, path: str) -> Answer:
        key = self._key()
        await trio.sleep_until(self._asked_at + GAP_S)
        self._asked_at = trio.current_time()
        request_id = os.urandom(8).hex()
        headers = {"Authorization": f"Bearer {key}", REQUEST_ID_HEADER: request_id}
        answer = await self._desk.uplink.ask("GET", path, headers=headers, timeout_s=TIMEOUT_S, limit=ANSWER_LIMIT)
        fields = {
            "path": path,
            "status": answer.status,
            "request_id": answer.headers.get(REQUEST_ID_HEADER, request_id),
        }
        log.log(logging.DEBUG if answer.ok else logging.INFO, "the server answered", extra={"fields": fields})
        return attrs.evolve(answer, body=answer.body.replace(key.encode(), b"***"))

    def _key(self) -> str:
        path = self._desk.config.gradient_api_key_file
        assert path is not None  # the configuration sees to it
        key = read_key(path)
        if not self._warned and stat.S_IMODE(path.stat().st_mode) & (stat.S_IROTH | stat.S_IWOTH):
            self._warned = True
            log.warning("everybody on this host can read the API key", extra={"fields": {"path": str(path)}})
        return key

    def _said(self, answer: Answer) -> str:
        """What is wrong, in the server's words where it has any."""
        try:
            text = str(_envelope("", answer).message)
        except NotJsonAnswerError:
            text = answer.body[:ANSWER_SHOWN].decode("utf-8", "replace").strip()
        if answer.status in (401, 403):
            return f"the key in {self._desk.config.gradient_api_key_file} is not accepted: {text[:ANSWER_SHOWN]}"
        return text[:ANSWER_SHOWN]


def _envelope(path: str, answer: Answer) -> Envelope:
    try:
        return _as(Envelope, path, parse(answer.body, limit=ANSWER_LIMIT))
    except EvidenceError as error:
        raise NotJsonAnswerError(path=path, problem=str(error)) from error


def _as(target: type[T], path: str, value: JsonValue) -> T:
    try:
        return decode(target, value)
    except WireError as error:
        raise NotJsonAnswerError(path=path, problem=str(error)) from error
