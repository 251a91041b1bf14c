"""Sign with a key that `ssh-agent` holds (draft-ietf-sshm-ssh-agent), so that no key file need lie on this machine.

    --ci-key agent:ci-release.pub        the key whose public half is in this file
    --ci-key agent:SHA256:6Iy7...        the key that `ssh-add -l` lists with this fingerprint

Plain ed25519 and P-256 keys are used. The exchange has one deadline, long enough for a person to confirm or to touch
a token, and every way in which an agent may fail is an error of its own. Nothing secret passes through here.
"""

import base64
import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs

from evidence.signature import PublicKey
from evidence.ssh_format import Reader, SshFormatError, string, uint32
from nixfleet.files import read_bytes
from nixfleet.release.sign import proven
from nixfleet.release.ssh_agent_errors import (
    MESSAGE_MAX,
    PREFIX,
    AgentAnswerError,
    AgentKeyNameError,
    AgentLacksKeyError,
    AgentRefusedError,
    AgentSilentError,
    NoAgentError,
    TooLongForAgentError,
)
from nixfleet.release.ssh_keys import kind_of, parse_public_line, public_key_of_blob, raw_signature

PATIENCE_S: Final = 120.0
"""A person may have to confirm the use of the key."""

_FINGERPRINT: Final = "SHA256:"

# Message numbers, draft-ietf-sshm-ssh-agent section 6.1.
_FAILURE: Final = 5
_LIST: Final = 11
_LISTED: Final = 12
_SIGN: Final = 13
_SIGNED: Final = 14


@attrs.frozen(kw_only=True)
class Identity:
    """A key as an agent lists it. `key` is None for a kind that cannot sign releases."""

    blob: bytes
    comment: str
    kind: str
    key: PublicKey | None

    @property
    def fingerprint(self) -> str:
        """As `ssh-add -l` shows it."""
        return _FINGERPRINT + base64.b64encode(hashlib.sha256(self.blob).digest()).decode().rstrip("=")

    def __str__(self) -> str:
        comment = "".join(letter for letter in self.comment[:80] if letter.isprintable())
        return f"{self.fingerprint} ({self.kind}{', ' if comment else ''}{comment})"


@attrs.frozen(kw_only=True)
class AgentSigner:
    """Signs with one key of the agent at `socket_path`. `wanted` is how the user named the key."""

    socket_path: str
    blob: bytes
    public_key: PublicKey
    wanted: str
    within_s: float = PATIENCE_S

    def sign(self, message: bytes) -> bytes:
        """64 raw bytes over `message`, held against the public key.

        Raises:
            TooLongForAgentError, NoAgentError, AgentRefusedError, AgentSilentError, AgentAnswerError: as they say.
            UnprovenSignatureError: the agent signed something else or with another key.
        """
        request = bytes([_SIGN]) + string(self.blob) + string(message) + uint32(0)
        if len(request) > MESSAGE_MAX:
            raise TooLongForAgentError(size=len(message))
        with _connected(self.socket_path, self.within_s) as ask:
            reader = ask(request)
        with _understood():
            kind = reader.take(1)[0]
            if kind == _FAILURE:
                raise AgentRefusedError(wanted=self.wanted)
            if kind != _SIGNED:
                raise AgentAnswerError(problem=f"message {kind} where a signature was due")
            answer = raw_signature(reader.string())
            reader.end()
        return proven(self.public_key, message, answer, source="ssh-agent")


def open_agent_key(
    name: str, what: str = "release key", *, socket_path: str | None = None, within_s: float = PATIENCE_S
) -> AgentSigner:
    """The signer for what follows `agent:`. `socket_path` None: the one in SSH_AUTH_SOCK.

    Raises:
        AgentKeyNameError: it names no key, or one of a kind that signs no releases.
        UnreadableFileError: the public key file cannot be read.
        NoAgentError, AgentLacksKeyError, AgentSilentError, AgentAnswerError: as they say.
    """
    matches = _matcher(name, what)
    path = os.environ.get("SSH_AUTH_SOCK", "") if socket_path is None else socket_path
    held = list_keys(path, within_s)
    for identity in held:
        if matches(identity):
            if identity.key is None:
                raise AgentKeyNameError(what=what, found=name, problem=f"it is of the kind {identity.kind}")
            return AgentSigner(
                socket_path=path,
                blob=identity.blob,
                public_key=identity.key,
                wanted=identity.fingerprint,
                within_s=within_s,
            )
    raise AgentLacksKeyError(wanted=f"the {what} {PREFIX}{name}", held=tuple(map(str, held)))


def list_keys(socket_path: str, within_s: float = PATIENCE_S) -> Sequence[Identity]:
    """The keys the agent lists; a locked one lists none.

    Raises:
        NoAgentError, AgentSilentError, AgentAnswerError: as they say.
    """
    with _connected(socket_path, within_s) as ask:
        reader = ask(bytes([_LIST]))
    with _understood():
        kind = reader.take(1)[0]
        if kind != _LISTED:
            raise AgentAnswerError(problem=f"message {kind} where a list of keys was due")
        # Each takes eight bytes at least, so a number that lies is found out by the end of the data.
        found = [_identity(reader.string(), reader.string()) for _ in range(reader.uint32())]
        reader.end()
    return found


def _matcher(name: str, what: str) -> Callable[[Identity], bool]:
    if name.startswith(_FINGERPRINT):
        try:
            size = len(base64.b64decode(name.removeprefix(_FINGERPRINT) + "=", validate=True))
        except ValueError:
            size = 0
        if size != hashlib.sha256().digest_size:
            raise AgentKeyNameError(what=what, found=name, problem="a fingerprint has 43 letters of base64")
        return lambda identity: identity.fingerprint == name
    if not name:
        raise AgentKeyNameError(what=what, found=name, problem="nothing follows the colon")
    content = read_bytes(Path(name).expanduser(), f"public half of the {what}").decode("utf-8", "replace")
    try:
        blob, _ = parse_public_line(content)
    except SshFormatError as error:
        raise AgentKeyNameError(what=what, found=name, problem=error.detail) from error
    return lambda identity: identity.blob == blob


def _identity(blob: bytes, comment: bytes) -> Identity:
    try:
        key = public_key_of_blob(blob)
    except SshFormatError:
        key = None  # somebody else's key of a kind this software reads differently is no reason to stop
    return Identity(blob=blob, comment=comment.decode("utf-8", "replace"), kind=kind_of(blob), key=key)


@contextmanager
def _understood() -> Iterator[None]:
    try:
        yield
    except SshFormatError as error:
        raise AgentAnswerError(problem=error.detail) from error


class _Connection:
    """Questions and answers over a socket; all of them within one deadline."""

    def __init__(self, connection: socket.socket, within_s: float) -> None:
        self._connection, self._deadline = connection, time.monotonic() + within_s

    def connect(self, path: str) -> None:
        """Begin."""
        self._wait().connect(path)

    def ask(self, request: bytes) -> Reader:
        """The answer to a request, from its message number on."""
        self._wait().sendall(string(request))
        size = int.from_bytes(self._receive(4), "big")
        if not 0 < size <= MESSAGE_MAX:
            raise AgentAnswerError(problem=f"an answer of {size} bytes is announced")
        return Reader(self._receive(size))

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            chunk = self._wait().recv(size - len(data))
            if not chunk:
                raise AgentAnswerError(problem="it closed the connection")
            data += chunk
        return bytes(data)

    def _wait(self) -> socket.socket:
        """The socket, which from now on waits for no longer than is left."""
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        return self._connection


@contextmanager
def _connected(path: str, within_s: float) -> Iterator[Callable[[bytes], Reader]]:
    if not path:
        raise NoAgentError(cause="SSH_AUTH_SOCK is not set")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as opened:
        connection = _Connection(opened, within_s)
        try:
            connection.connect(path)
            yield connection.ask
        except TimeoutError as error:
            raise AgentSilentError(within_s=within_s) from error
        except (ConnectionResetError, BrokenPipeError) as error:
            raise AgentAnswerError(problem="it closed the connection") from error
        except OSError as error:
            raise NoAgentError(cause=f"{path}: {error.strerror or error}") from error
