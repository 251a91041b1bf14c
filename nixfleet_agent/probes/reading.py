"""What one run of a probe found. Reasons are short, printable text, whatever a sick service said."""

import os
import socket
import ssl
from typing import Final

import attrs

from state_machine.events import ProbeObserved
from state_machine.values import Moment, ProbeStatus, SubResult

REASON_BYTES: Final = 512
TRUNCATED: Final = "...[truncated]"
"""What a longer reason ends in (protocol section 6.2)."""


@attrs.frozen(kw_only=True)
class Outcome:
    """The verdict of a runner, before anyone says when it was reached."""

    status: ProbeStatus
    reason: str | None = None
    sub_results: tuple[SubResult, ...] = ()


@attrs.frozen(kw_only=True)
class ProbeReading:
    """One run of one probe: it began at `began_mono_ms`, took `duration_ms` and was over `at` this moment."""

    name: str
    at: Moment
    began_mono_ms: int
    duration_ms: int
    status: ProbeStatus
    reason: str | None = None
    sub_results: tuple[SubResult, ...] = ()

    def event(self) -> ProbeObserved:
        """The reading as the reducer takes it."""
        return ProbeObserved(
            at=self.at,
            name=self.name,
            status=self.status,
            began_mono_ms=self.began_mono_ms,
            reason=self.reason,
            sub_results=self.sub_results,
        )


PASSED: Final = Outcome(status=ProbeStatus.PASS)


def failed(reason: str) -> Outcome:
    """A failure, its reason cut to 512 bytes."""
    return Outcome(status=ProbeStatus.FAIL, reason=cut(reason))


def cut(reason: str) -> str:
    """`reason` as valid Unicode of at most 512 UTF-8 bytes, and `...[truncated]` behind it when there was more."""
    # File names that are no UTF-8 arrive as lone surrogates, which could be neither signed nor sent.
    encoded = reason.encode("utf-8", "replace")
    if len(encoded) <= REASON_BYTES:
        return encoded.decode()
    return encoded[:REASON_BYTES].decode("utf-8", "ignore") + TRUNCATED


def cause_of(error: BaseException) -> str:
    """The innermost cause of a failed connection, in words: what connecting says first is only that it failed."""
    inner: BaseException | None = error
    while inner is not None:
        error = inner
        inner = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error.__cause__ or error.__context__
    if isinstance(error, OSError) and error.strerror:
        # The resolver and TLS count their errors on their own; Trio puts the address into the text of the others.
        if error.errno is None or isinstance(error, ssl.SSLError | socket.gaierror):
            return error.strerror
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
