"""Run one probe once: whatever the world does, the answer is a reading.

Everything a service, a program or a file can do wrong is a failed reading with a reason; only cancellation passes
through. Each run is over by its deadline (a program's by its deadline and the few seconds that killing it may take).
"""

from collections.abc import Callable, Sequence
from typing import Protocol, assert_never

import attrs
import trio

from nixfleet_agent.probes import programs
from nixfleet_agent.probes.kinds import (
    CommandProbe,
    ConfigurationProbe,
    EvidenceProbe,
    ExecProbe,
    FailedUnitsProbe,
    HttpProbe,
    LaunchdProbe,
    Probe,
    SystemdProbe,
    TcpProbe,
)
from nixfleet_agent.probes.network import HttpProber, run_tcp
from nixfleet_agent.probes.reading import Outcome, ProbeReading, failed
from nixfleet_agent.probes.systemd import SystemBus, run_failed_units, run_systemd
from state_machine.values import HostName, Moment


class HttpRunner(Protocol):
    """Whoever runs http probes."""

    async def run(self, probe: HttpProbe) -> Outcome:
        """One GET; the caller's deadline covers it."""
        ...


@attrs.frozen(kw_only=True)
class ProbeContext:
    """What running probes takes besides the probe: the clock, and how to reach the host's services.

    `activated` is when the running system was activated; evidence collected well before it does not count.
    `host_public_key` is the host key's public half, 32 raw bytes: the signer of evidence.
    """

    clock: Callable[[], Moment]
    hostname: HostName
    activated: Moment
    host_public_key: bytes | None = None
    http: HttpRunner = attrs.field(factory=HttpProber)
    bus: SystemBus = attrs.field(factory=SystemBus)
    launchctl: Sequence[str] = programs.LAUNCHCTL


async def run_probe(probe: Probe, context: ProbeContext) -> ProbeReading:
    """Measure once. Never raises for anything the measured thing does."""
    began = context.clock()
    outcome = await _measure(probe, context)
    ended = context.clock()
    return ProbeReading(
        name=probe.name,
        at=ended,
        began_mono_ms=began.mono_ms,
        duration_ms=ended.mono_ms - began.mono_ms,
        status=outcome.status,
        reason=outcome.reason,
        sub_results=outcome.sub_results,
    )


async def _measure(probe: Probe, context: ProbeContext) -> Outcome:
    match probe:
        # Programs keep their own deadline: what they had printed by then is part of the reason.
        case ExecProbe():
            return await programs.run_exec(probe)
        case CommandProbe():
            return await programs.run_command(probe)
        case ConfigurationProbe(problem=problem):
            return failed(problem)
        case _:
            with trio.move_on_after(probe.timeout_s):
                return await _ask(probe, context)
            return failed(f"no full answer within {probe.timeout_s:g} s")


async def _ask(
    probe: HttpProbe | TcpProbe | SystemdProbe | LaunchdProbe | EvidenceProbe | FailedUnitsProbe, context: ProbeContext
) -> Outcome:
    match probe:
        case HttpProbe():
            return await context.http.run(probe)
        case TcpProbe():
            return await run_tcp(probe)
        case SystemdProbe():
            return await run_systemd(probe, context.bus)
        case FailedUnitsProbe():
            return await run_failed_units(probe, context.bus)
        case LaunchdProbe():
            return await programs.run_launchd(probe, context.launchctl)
        case EvidenceProbe():
            # Most hosts declare none, and what proves evidence takes 0.3 MB and 4 ms to import.
            from nixfleet_agent.probes.compliance import Witness, run_evidence

            witness = Witness(
                hostname=context.hostname, public_key=context.host_public_key, activated=context.activated
            )
            return await run_evidence(probe, witness, context.clock().wall_ms)
        case _:
            assert_never(probe)
