"""Sign with a command of the user's: the way to a TPM, a hardware module or a cloud's key service.

    --ci-key "command:sign-release --slot 3"

The words are split as a shell would split them, and no shell runs. The command is called with `NIXFLEET_SIGN` in its
environment, which says what it is to print on standard output:

    NIXFLEET_SIGN=public-key     the public key: PEM (SPKI), a line as in `id_ed25519.pub`, or base64 of the raw key
                                 (32 bytes are ed25519; 64, X||Y, are P-256)
    NIXFLEET_SIGN=signature      the signature over what it reads from standard input: 64 raw bytes or, for P-256, DER;
                                 either may be in base64. ed25519 signs the message, P-256 its SHA-256.

It must end with status 0 within the deadline. What it prints is held against the public key before anything is
written. Its arguments are in no error: people put PINs there. What it says on standard error is shown when it fails,
and, where a person sits at a terminal, as it comes.
"""

import base64
import binascii
import enum
import os
import selectors
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Final, cast

import attrs
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from evidence.signature import SIGNATURE_SIZE, Algorithm, PublicKey, decode_base64
from evidence.ssh_format import SshFormatError
from nixfleet.errors import ConfigurationError, StoppedError
from nixfleet.release.sign import proven
from nixfleet.release.ssh_keys import parse_public_line

PREFIX: Final = "command:"
VARIABLE: Final = "NIXFLEET_SIGN"
PATIENCE_S: Final = 120.0
"""A person may have to type a PIN or touch a token."""

ANSWER_MAX: Final = 64 * 1024
_SAID_LINES: Final = 10
_SAID_BYTES: Final = 4096
_CHUNK: Final = 65_536
_LINGER_S: Final = 0.5
_TICK_S: Final = 0.02


class Request(enum.StrEnum):
    """What the command is asked for."""

    PUBLIC_KEY = "public-key"
    SIGNATURE = "signature"


@attrs.frozen(kw_only=True)
class CommandWordsError(ConfigurationError):
    """What follows `command:` is no command line."""

    what: str
    problem: str

    def __str__(self) -> str:
        return f"the {self.what} is no command that can be run ({self.problem}): write {PREFIX}PROGRAM ARGUMENTS"


@attrs.frozen(kw_only=True)
class SigningCommandError(StoppedError):
    """The command did not do what it was asked for. `said` is the end of its standard error."""

    what: str
    program: str
    request: Request
    problem: str
    said: tuple[str, ...] = ()

    def __str__(self) -> str:
        line = (
            f"the command {self.program[:120]}, asked for the {self.request.value} of the {self.what}, {self.problem}"
        )
        return line if not self.said else "\n  ".join([f"{line}; it said:", *self.said])


@attrs.frozen(kw_only=True)
class CommandSigner:
    """Signs by running a command."""

    words: tuple[str, ...] = attrs.field(repr=False)
    what: str
    public_key: PublicKey
    within_s: float = PATIENCE_S

    def sign(self, message: bytes) -> bytes:
        """64 raw bytes over `message`, held against the public key.

        Raises:
            SigningCommandError: the command failed, hung, or printed too much.
            UnprovenSignatureError: what it printed is no signature by its key.
        """
        answer = _run(self.words, self.what, Request.SIGNATURE, message, self.within_s)
        return proven(self.public_key, message, _decoded(answer), source=f"the signing command {self.words[0]}")


def open_command(text: str, what: str = "release key", *, within_s: float = PATIENCE_S) -> CommandSigner:
    """The signer for what follows `command:`, once it has told its public key.

    Raises:
        CommandWordsError: the words cannot be taken apart, or the program cannot be started.
        SigningCommandError: it told no public key.
    """
    words = _words(text, what)
    try:
        printed = _run(words, what, Request.PUBLIC_KEY, b"", within_s)
    except OSError as error:
        problem = f"{words[0][:120]}: {error.strerror or error}"
        raise CommandWordsError(what=what, problem=problem) from error
    key = parse_public_key(printed)
    if key is None or not key.is_sound:
        raise SigningCommandError(
            what=what,
            program=words[0],
            request=Request.PUBLIC_KEY,
            problem="printed no ed25519 or P-256 key as PEM, as a line of OpenSSH or as base64 of the raw key",
        )
    return CommandSigner(words=words, what=what, public_key=key, within_s=within_s)


def parse_public_key(printed: bytes) -> PublicKey | None:
    """A public key in any form that the command may print; None for anything else."""
    text = printed.decode("utf-8", "replace").strip()
    if text.startswith("-----BEGIN"):
        return _from_pem(text.encode())
    if " " in text:
        try:
            return parse_public_line(text)[1]
        except SshFormatError:
            return None
    raw = decode_base64(text)
    sizes = {32: Algorithm.ED25519, 64: Algorithm.ECDSA_P256}
    return None if raw is None or len(raw) not in sizes else PublicKey(algorithm=sizes[len(raw)], raw=raw)


def _from_pem(pem: bytes) -> PublicKey | None:
    try:
        key = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        return None
    if isinstance(key, Ed25519PublicKey):
        return PublicKey(algorithm=Algorithm.ED25519, raw=key.public_bytes_raw())
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        point = key.public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
        return PublicKey(algorithm=Algorithm.ECDSA_P256, raw=point[1:])
    return None


def _words(text: str, what: str) -> tuple[str, ...]:
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise CommandWordsError(what=what, problem=str(error).lower()) from error
    if not words or not words[0] or "\0" in text:
        raise CommandWordsError(what=what, problem="it names no program")
    if "=" in words[0]:
        raise CommandWordsError(what=what, problem="it begins with an assignment, which takes `env` before it")
    return (str(Path(words[0]).expanduser()) if words[0].startswith("~") else words[0], *words[1:])


def _decoded(answer: bytes) -> bytes:
    """Base64 taken off, if there is any: 64 raw bytes may look like text, but not like base64 of a signature."""
    if len(answer) == SIGNATURE_SIZE:
        return answer
    try:
        return base64.b64decode(b"".join(answer.split()), validate=True)
    except binascii.Error:
        return answer


def _run(words: tuple[str, ...], what: str, request: Request, message: bytes, within_s: float) -> bytes:
    """What the command prints.

    At a terminal it stays in this process's group, so that it can ask for a PIN and Ctrl-C reaches it; elsewhere it
    gets a group of its own, which is ended whole when it takes too long.

    Raises:
        OSError: it cannot be started.
        SigningCommandError: it failed.
    """
    attended = sys.stderr is not None and sys.stderr.isatty()
    process = subprocess.Popen(
        words,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, VARIABLE: request.value},
        start_new_session=not attended,
        bufsize=0,
    )
    exchange = _Exchange(process, message, time.monotonic() + within_s, attended)
    try:
        finished = exchange.carry_out()
    finally:
        _end(process, alone=not attended)
        exchange.close()
    if not finished:
        problem = f"did not end within {within_s:g} s"
    elif len(exchange.out) > ANSWER_MAX:
        problem = f"printed more than {ANSWER_MAX} bytes"
    elif process.returncode:
        status = process.returncode
        problem = f"ended with status {status}" if status > 0 else f"was ended by signal {-status}"
    else:
        return bytes(exchange.out)
    said = _lines(exchange.err)
    raise SigningCommandError(what=what, program=words[0], request=request, problem=problem, said=said)


class _Exchange:
    """Feeds the command and hears it, until it ends, says too much or is too late."""

    def __init__(self, process: "subprocess.Popen[bytes]", message: bytes, deadline: float, attended: bool) -> None:
        self.out, self.err = bytearray(), bytearray()
        self._process, self._left, self._deadline, self._attended = process, memoryview(message), deadline, attended
        self._selector = selectors.DefaultSelector()
        self._stdin, self._stdout, self._stderr = (
            cast(IO[bytes], pipe) for pipe in (process.stdin, process.stdout, process.stderr)
        )
        os.set_blocking(self._stdin.fileno(), False)
        self._selector.register(self._stdin, selectors.EVENT_WRITE)
        self._selector.register(self._stdout, selectors.EVENT_READ)
        self._selector.register(self._stderr, selectors.EVENT_READ)

    def carry_out(self) -> bool:
        """False when it took too long."""
        while self._selector.get_map() and len(self.out) <= ANSWER_MAX:
            # A child of the command may hold the pipes for longer than the command lives.
            if _has_ended(self._process):
                self._deadline = min(self._deadline, time.monotonic() + _LINGER_S)
            for key, _ in self._selector.select(min(_TICK_S, max(0.0, self._deadline - time.monotonic()))):
                self._serve(cast(IO[bytes], key.fileobj))
            if time.monotonic() >= self._deadline:
                return _has_ended(self._process)
        while len(self.out) <= ANSWER_MAX and not _has_ended(self._process):
            if time.monotonic() >= self._deadline:
                return False
            time.sleep(_TICK_S)
        return True

    def close(self) -> None:
        """Let go of the pipes."""
        self._selector.close()
        for pipe in (self._stdin, self._stdout, self._stderr):
            pipe.close()

    def _serve(self, pipe: IO[bytes]) -> None:
        if pipe is self._stdin:
            self._feed()
            return
        chunk = os.read(pipe.fileno(), _CHUNK)
        if not chunk:
            self._selector.unregister(pipe)
        elif pipe is self._stdout:
            self.out += chunk
        else:
            self.err = (self.err + chunk)[-_SAID_BYTES:]
            if self._attended:
                os.write(sys.stderr.fileno(), chunk)

    def _feed(self) -> None:
        try:
            self._left = self._left[os.write(self._stdin.fileno(), self._left[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:
            self._left = self._left[:0]  # it needs no more of it, and may be right
        if not self._left:
            self._selector.unregister(self._stdin)
            self._stdin.close()


def _has_ended(process: "subprocess.Popen[bytes]") -> bool:
    """Without reaping it: until then nobody else can have its number, which is its group's."""
    return os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _end(process: "subprocess.Popen[bytes]", *, alone: bool) -> None:
    if alone:
        os.killpg(process.pid, signal.SIGKILL)
    elif not _has_ended(process):
        process.kill()
    process.wait()


def _lines(said: bytes | bytearray) -> tuple[str, ...]:
    """The last lines, without what would steer a terminal."""
    text = bytes(said).decode("utf-8", "replace")
    lines = ["".join(letter for letter in line if letter.isprintable())[:200] for line in text.splitlines()]
    return tuple([line for line in lines if line.strip()][-_SAID_LINES:])
