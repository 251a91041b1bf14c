"""Run every declared probe, each in a task of its own, for as long as the agent lives.

`ProbeSet` only observes: it has no threshold, no memory of earlier results and no opinion on what a failure means.
Once `restart` has returned, no reading is sent that began before it.
"""

import math
import random
from collections.abc import Awaitable, Callable
from typing import Final, Never

import attrs
import trio

from nixfleet_agent.probes.kinds import Probe
from nixfleet_agent.probes.reading import ProbeReading
from nixfleet_agent.probes.runners import ProbeContext, run_probe
from state_machine.values import Moment, ProbeMode

JITTER: Final = 0.1
"""The part of its interval by which a probe's second run may come early. It keeps that lead from then on."""


class ProbeSet:
    """The probes of one host. `send` takes each reading; while it waits (a full channel), that probe waits too.

    Nothing runs before the first `restart`.
    """

    def __init__(
        self,
        declared: tuple[Probe, ...] = (),
        *,
        context: ProbeContext,
        send: Callable[[ProbeReading], Awaitable[None]],
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self._declared = declared
        self._context = context
        self._send = send
        self._jitter = jitter
        self._probes: tuple[Probe, ...] = ()
        self._current = trio.CancelScope()

    @property
    def probes(self) -> tuple[Probe, ...]:
        """The probes since the last `restart`, disabled ones included."""
        return self._probes

    def declare(self, declared: tuple[Probe, ...]) -> None:
        """Replace the declared probes, from the next restart on."""
        self._declared = declared

    def restart(self, activated: Moment, extra: tuple[Probe, ...] = ()) -> None:
        """Begin anew, every probe at once: the system was activated at that moment.

        `extra` joins the declared probes until the next restart. Runs under way are cancelled and their readings lost.
        Probes declared `run_once` run once more.
        """
        self._probes = self._declared + extra
        self._context = attrs.evolve(self._context, activated=activated)
        self._current.cancel()

    async def run(self) -> Never:
        """Run the probes until cancelled. Started again after a crash, it goes on with the last `restart`."""
        while True:
            self._current = trio.CancelScope()
            with self._current:
                async with trio.open_nursery() as nursery:
                    for probe in self._probes:
                        if probe.mode is not ProbeMode.DISABLED:
                            nursery.start_soon(self._keep_running, probe, self._context)
                    await trio.sleep_forever()

    async def _keep_running(self, probe: Probe, context: ProbeContext) -> None:
        # Probes that all begin with the activation spread out, rather than meet again every interval.
        tick = trio.current_time() - self._jitter() * JITTER * probe.interval_s
        while True:
            await self._send(await run_probe(probe, context))
            if probe.run_once:
                return
            tick = next_tick(tick, probe.interval_s, trio.current_time())
            await trio.sleep_until(tick)


def next_tick(last: float, interval_s: float, now: float) -> float:
    """The first of the instants `last + n * interval_s` (n > 0) that is still to come: missed ones are skipped."""
    return last + max(1, math.floor((now - last) / interval_s) + 1) * interval_s
