"""The samples that dashboards of the first generation look for (protocol section 9.2), added to ours.

The names are the same; that generation knew other states, polled in one way only, and named generations by full path.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Final

from nixfleet_agent.telemetry import Telemetry
from state_machine.events import Duty
from state_machine.state import Consulting, Realising, Rebooting, RollingBack, State, Switching
from state_machine.values import Phase
from wire.legacy import store_path

if TYPE_CHECKING:
    from prometheus_client.core import Metric

STATES: Final = ("idle", "checking", "fetching", "applying", "verifying", "reporting", "rolling_back")


def add_older_samples(families: Mapping[str, "Metric"], state: State, telemetry: Telemetry) -> None:
    """Add them; the running generation is named in their way instead of ours, so that there is one."""
    doing = state_of(state)
    for name in STATES:
        _add(families["nixfleet_agent_state"], float(name == doing), state=name)
    polled = state.session.last_success.get(Duty.INTENT)
    if polled is not None:
        _add(families["nixfleet_agent_last_poll_timestamp_seconds"], polled / 1000)
    took_s = telemetry.exchange_seconds.get(Duty.INTENT.value)
    if took_s is not None:
        _add(families["nixfleet_agent_poll_duration_seconds"], took_s)
    running, generation = state.known.system.running, families["nixfleet_agent_generation_info"]
    generation.samples.clear()
    _add(generation, 1.0, generation=store_path(running) if running else "")


def _add(family: "Metric", value: float, **labels: str) -> None:
    family.add_sample(family.name, labels, value)


def state_of(state: State) -> str:
    """Which of that generation's states this host is in."""
    known, started = state.known, state.session.started
    match known.operation:
        case Realising():
            return "fetching"
        case Consulting() | Switching() | Rebooting():
            return "applying"
        case RollingBack():
            return "rolling_back"
        case None:
            pass
    if known.current is not None and known.current.record.phase is Phase.SOAKING:
        return "verifying"
    if Duty.DELIVERY in started or Duty.HEARTBEAT in started:
        return "reporting"
    return "checking" if Duty.INTENT in started else "idle"
