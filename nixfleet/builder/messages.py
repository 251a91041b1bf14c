"""What an asker and a builder say to each other, and on which subjects. Pure.

A request names a repository that the builder knows, a host and a revision; nothing in it is a command, a path or an
address. Members that a reader does not know are passed over, so that the two need not be of one version. Whoever asks
for the same thing asks for the same job: a job is what is to be built, not who wants it.
"""

import enum
import hashlib
import json
import math
import re
from collections.abc import Mapping
from typing import Any, Final, TypeVar

import attrs
import cattrs

REQUEST_MAX: Final = 4096
"""Bytes of a request."""
TAIL_MAX: Final = 48 * 1024
"""Characters of a log's end in a message: a server takes messages of 1 MiB, many much less."""

_REPOSITORY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}", re.ASCII)
_HOST: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,252}", re.ASCII)
_REVISION: Final = re.compile(r"(?!.*(\.\.|//|@\{))[A-Za-z0-9_][A-Za-z0-9._/+-]{0,199}(?<![./])", re.ASCII)
_COMMIT: Final = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}", re.ASCII)
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,64}", re.ASCII)
_SAFE_TOKEN: Final = re.compile(r"[^A-Za-z0-9_-]")

_TYPES: Final[Mapping[Any, tuple[type, ...]]] = {str: (str,), int: (int,), float: (float, int)}

T = TypeVar("T")


class Phase(enum.StrEnum):
    """How far a job is."""

    QUEUED = "queued"
    EVALUATING = "evaluating"
    BUILDING = "building"
    COPYING = "copying"
    DONE = "done"
    FAILED = "failed"
    """It was tried and does not build."""
    CANCELLED = "cancelled"
    """Nobody wants it any more."""
    REFUSED = "refused"
    """The builder does not build this for anybody, and says why."""

    @property
    def is_last(self) -> bool:
        """Nothing comes after it."""
        return self in (Phase.DONE, Phase.FAILED, Phase.CANCELLED, Phase.REFUSED)


class MessageError(ValueError):
    """A message that is none of ours. Its text says what is wrong with it."""


@attrs.frozen(kw_only=True)
class Request:
    """Somebody asks for a host's system."""

    repository: str
    """By the name that the builder has for it."""
    host: str
    revision: str = ""
    """A commit, a branch or a tag; empty: the repository's default branch."""
    compare: str = ""
    """A commit: the answer is to say what changes on the host against the system of that commit."""
    asked_by: str
    """Names this one request, so that whoever made it can take it back. 1 to 64 of `A-Za-z0-9_-`."""
    asked_at: int
    """When, in UTC milliseconds: an answer from before is no answer to it."""

    @property
    def job(self) -> str:
        """Names what is to be built: 32 hex characters, the same for everybody who asks for it."""
        text = "\0".join((self.repository, self.host, self.revision, self.compare))
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def wants_a_commit(self) -> bool:
        """It names a commit in full, which never means anything else later."""
        return _COMMIT.fullmatch(self.revision) is not None


@attrs.frozen(kw_only=True)
class Progress:
    """What a builder says of a job, many times; the last one has what came of it."""

    job: str
    repository: str
    host: str
    phase: Phase
    builder: str
    at: int
    """UTC milliseconds by the builder's clock."""
    done: int = 0
    """Derivations built of `expected`, as far as nix knows by now."""
    expected: int = 0
    line: str = ""
    """What the build said last."""
    commit: str = ""
    path: str = ""
    """The store path, when done."""
    cache: str = ""
    """Where it was copied to."""
    seconds: float = 0.0
    changes: tuple[str, ...] = ()
    """What changes on the host, a line for each package."""
    tail: str = ""
    """The end of the log, when failed."""
    why: str = ""
    """Why it failed or was refused, in a sentence."""
    ended: int = 0
    """How many builders ended while they built it, before this one began."""


@attrs.frozen(kw_only=True)
class Cancel:
    """Somebody takes their request back."""

    job: str
    asked_by: str


@attrs.frozen(kw_only=True)
class HostsQuestion:
    """Somebody asks what can be built before they ask for it."""

    repository: str = ""
    """Empty: the only one the builder has."""
    revision: str = ""
    """As in a request."""
    names_only: bool = False
    """Only what the repository is called: nothing is fetched for it, and nothing evaluated."""


@attrs.frozen(kw_only=True)
class HostsAnswer:
    """What can be built."""

    repository: str = ""
    commit: str = ""
    """What the revision meant."""
    hosts: tuple[str, ...] = ()
    """Those of the flake that this builder builds."""
    why: str = ""
    """Why there is no answer, in a sentence; empty: there is one."""


_converter: Final = cattrs.Converter(omit_if_default=True)


def encode(message: Request | Progress | Cancel | HostsQuestion | HostsAnswer) -> bytes:
    """A message as it goes over the wire: JSON. Half a character, which no encoding has, becomes `?`."""
    text = json.dumps(_converter.unstructure(message), ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace")


def decode_request(data: bytes) -> Request:
    """Read a request.

    Raises:
        MessageError: it is too long, is none, or a name in it is none.
    """
    if len(data) > REQUEST_MAX:
        raise MessageError(f"a request of {len(data)} bytes; at most {REQUEST_MAX}")
    request = _decode(data, Request)
    wrong = [
        f"{text[:80]!r} is no {what}"
        for text, what, form in (
            (request.repository, "name of a repository", _REPOSITORY),
            (request.host, "name of a host", _HOST),
            (request.revision or "HEAD", "revision", _REVISION),
            (request.compare or "0" * 40, "commit to compare with", _COMMIT),
            (request.asked_by, "name of a request", _TOKEN),
        )
        if not form.fullmatch(text)
    ]
    if wrong:
        raise MessageError("; ".join(wrong))
    return request


def decode_progress(data: bytes) -> Progress:
    """Read what a builder says.

    Raises:
        MessageError: it is none.
    """
    return _decode(data, Progress)


def decode_cancel(data: bytes) -> Cancel:
    """Read a cancellation.

    Raises:
        MessageError: it is none.
    """
    if len(data) > REQUEST_MAX:
        raise MessageError(f"a cancellation of {len(data)} bytes; at most {REQUEST_MAX}")
    return _decode(data, Cancel)


def decode_hosts_question(data: bytes) -> HostsQuestion:
    """Read a question for hosts.

    Raises:
        MessageError: it is too long, is none, or a name in it is none.
    """
    if len(data) > REQUEST_MAX:
        raise MessageError(f"a question of {len(data)} bytes; at most {REQUEST_MAX}")
    question = _decode(data, HostsQuestion)
    if not _REPOSITORY.fullmatch(question.repository or "any"):
        raise MessageError(f"{question.repository[:80]!r} is no name of a repository")
    if not _REVISION.fullmatch(question.revision or "HEAD"):
        raise MessageError(f"{question.revision[:80]!r} is no revision")
    return question


def decode_hosts_answer(data: bytes) -> HostsAnswer:
    """Read which hosts there are.

    Raises:
        MessageError: it does not say.
    """
    return _decode(data, HostsAnswer)


def _decode(data: bytes, of: type[T]) -> T:
    try:
        given: Any = json.loads(data)
        if not isinstance(given, dict):
            raise MessageError("not a JSON object")
        for field in attrs.fields(of):  # type: ignore[arg-type]  # the three classes above
            _check(field, given)
        return _converter.structure(given, of)
    except (cattrs.BaseValidationError, UnicodeDecodeError, RecursionError, ValueError, TypeError, KeyError) as error:
        raise error if isinstance(error, MessageError) else MessageError(f"not a {of.__name__}: {error}") from error


def _check(field: "attrs.Attribute[Any]", given: dict[str, Any]) -> None:
    """Take no number and no null for a text: a converter would make one of the other without a word."""
    if field.name not in given:
        if field.default is attrs.NOTHING:
            raise MessageError(f"`{field.name}` is missing")
        return
    value, wanted = given[field.name], _TYPES.get(field.type)
    if wanted is not None and (not isinstance(value, wanted) or isinstance(value, bool)):
        raise MessageError(f"`{field.name}` must be of type {wanted[0].__name__}")
    if field.type == tuple[str, ...] and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
        raise MessageError(f"`{field.name}` must be a list of texts")
    if isinstance(value, float) and not math.isfinite(value):
        raise MessageError(f"`{field.name}` must be a number")
    for text in value if isinstance(value, list) else [value]:
        if isinstance(text, str):
            text.encode()  # JSON can spell half a character, which nobody could print or send on


@attrs.frozen(kw_only=True)
class Subjects:
    """The subjects of one set of builders."""

    prefix: str = "build"

    @property
    def all_jobs(self) -> str:
        """Every request."""
        return f"{self.prefix}.jobs.>"

    def job(self, request: Request) -> str:
        """Where a request goes. Servers can say by it who may ask for what."""
        return f"{self.prefix}.jobs.{token(request.repository)}.{token(request.host)}"

    def progress(self, job: str) -> str:
        """Where builders say how a job goes."""
        return f"{self.prefix}.progress.{job}"

    def cancel(self, job: str) -> str:
        """Where a request is taken back."""
        return f"{self.prefix}.cancel.{job}"

    def whose(self, job: str) -> str:
        """Where the builder that has a job answers: how two that ask at once meet on a server without JetStream."""
        return f"{self.prefix}.whose.{job}"

    @property
    def all_whose(self) -> str:
        """Every such question."""
        return f"{self.prefix}.whose.*"

    @property
    def all_cancels(self) -> str:
        """Every cancellation."""
        return f"{self.prefix}.cancel.*"

    @property
    def hosts(self) -> str:
        """Where it is asked what can be built."""
        return f"{self.prefix}.hosts"

    @property
    def stream(self) -> str:
        """The name of the work queue's stream, which has no dots."""
        return f"{_SAFE_TOKEN.sub('_', self.prefix).upper()}_JOBS"

    @property
    def bucket(self) -> str:
        """The name of the bucket with the state of jobs. Clients take letters, digits, `_` and `-` for one only."""
        return f"{_SAFE_TOKEN.sub('_', self.prefix)}-jobs"


def is_repository(text: str) -> bool:
    """A repository may be called so."""
    return _REPOSITORY.fullmatch(text) is not None


def token(text: str) -> str:
    """A text as one token of a subject: what has a meaning there is written `=2E`."""
    return _SAFE_TOKEN.sub(lambda found: "".join(f"={byte:02X}" for byte in found[0].encode()), text)
