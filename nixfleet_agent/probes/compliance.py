"""Run evidence probes: read what the collector left on this host, prove it, and say how each control stands.

Files are read in a thread, only if they are regular files and no longer than they may be, so neither a slow disk nor
a pipe put in their place holds anything up. What evidence must be to count is `evidence.compliance`'s to say.
"""

import os
import stat
from typing import Final

import attrs
import trio

from evidence.compliance import EvidenceSignatureError, aggregate, check_current, evaluate, read_evidence
from evidence.errors import EvidenceError
from nixfleet_agent.probes.kinds import EvidenceProbe
from nixfleet_agent.probes.reading import Outcome, cut, failed
from state_machine.values import CLOCK_SLACK_MS, HostName, Moment, ProbeMode, ProbeStatus, SubResult, WallMs

EVIDENCE_BYTES: Final = 8 * 1024 * 1024
SIGNATURE_BYTES: Final = 4096
SUB_RESULTS_MAX: Final = 512
SUB_RESULTS_CHARACTERS: Final = 64 * 1024
"""What a report lists at most; a journal entry holds the event and its fact and may have 1 MiB."""

_SETTLE_S: Final = 0.5
# The collector replaces the document and its signature one after the other. What does not verify is read once more
# after this, or every collection that meets a probe would count as a failure.


@attrs.frozen(kw_only=True)
class Witness:
    """Whose evidence counts: this host's, signed with its key, collected for the system now running.

    `public_key` is the host key's public half, 32 raw bytes; without one nothing can be proved. Evidence from up to a
    minute before `activated` still counts, as clocks and collectors go.
    """

    hostname: HostName
    public_key: bytes | None
    activated: Moment


async def run_evidence(probe: EvidenceProbe, witness: Witness, now: WallMs) -> Outcome:
    """Passes when every enforced control selected by the probe does (protocol section 6.4)."""
    try:
        try:
            return await _judge(probe, witness, now)
        except EvidenceSignatureError:
            await trio.sleep(_SETTLE_S)
            return await _judge(probe, witness, now)
    except EvidenceError as error:
        return failed(f"{probe.path}: {error}")
    except OSError as error:
        return failed(f"{error.filename or probe.path}: {error.strerror}")


async def _judge(probe: EvidenceProbe, witness: Witness, now: WallMs) -> Outcome:
    return await trio.to_thread.run_sync(_judge_files, probe, witness, now, abandon_on_cancel=True)


def _judge_files(probe: EvidenceProbe, witness: Witness, now: WallMs) -> Outcome:
    if witness.public_key is None:
        return failed("this host has no host key to check evidence with")
    document = _read(probe.path, EVIDENCE_BYTES)
    signature = _read(f"{probe.path}.sig", SIGNATURE_BYTES)
    evidence = read_evidence(document, signature, witness.public_key)
    oldest = WallMs(witness.activated.wall_ms - CLOCK_SLACK_MS)
    check_current(evidence, host=witness.hostname, not_before=oldest, now=now)
    results = evaluate(evidence, probe.selection, probe.mode)
    status = aggregate(results, probe.mode)
    reason = None if status is ProbeStatus.PASS else cut(_why(results, probe.mode))
    return Outcome(status=status, reason=reason, sub_results=_reportable(results))


def _reportable(results: tuple[SubResult, ...]) -> tuple[SubResult, ...]:
    """All of them, or none when they are too much for a journal entry: the verdict stands without the list."""
    size = sum(
        len(text)
        for result in results
        for text in (result.control_id, result.framework, result.article, result.override_reason)
        if text is not None
    )
    return results if len(results) <= SUB_RESULTS_MAX and size <= SUB_RESULTS_CHARACTERS else ()


def _why(results: tuple[SubResult, ...], mode: ProbeMode) -> str:
    if not results:
        return "the evidence has no control that this probe selects"
    # The same control counts once for each of its articles.
    names = sorted({result.control_id for result in results if _decides_against(result, mode)})
    return f"controls not met ({len(names)}): {', '.join(names)}"


def _decides_against(result: SubResult, mode: ProbeMode) -> bool:
    decisive = mode is not ProbeMode.ENFORCE or result.effective_mode is ProbeMode.ENFORCE
    return decisive and result.status is not ProbeStatus.PASS


def _read(path: str, limit: int) -> bytes:
    """The whole of a regular file, one byte beyond `limit` at most, which whoever parses it will then refuse."""
    # Without O_NONBLOCK the mere opening of a pipe waits for a writer that may never come.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(0, "is not a regular file", path)
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(limit + 1)
    finally:
        os.close(descriptor)
