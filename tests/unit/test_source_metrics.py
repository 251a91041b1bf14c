"""Dashboards of the first generation find the states and samples they know."""

from typing import Any

import attrs
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from nixfleet_agent.metrics import Collector
from nixfleet_agent.metrics import Source as Meters
from nixfleet_agent.older_metrics import STATES, state_of
from nixfleet_agent.telemetry import Telemetry
from state_machine.events import Duty, Settings
from state_machine.lifecycle import opened
from state_machine.state import (
    Consulting,
    Known,
    Operation,
    Realising,
    Rebooting,
    RollingBack,
    Session,
    State,
    Switching,
    Tracked,
)
from state_machine.system import SystemView
from state_machine.values import HostName, Moment, OpId, Phase, RolloutId, Source, SteadyMs, WallMs
from tests.cplab import closure

RUNNING = closure("running")
R1 = RolloutId("legacy@00000001")
ORDER: Any = {"op": OpId(1), "rollout_id": R1, "closure": RUNNING, "due": SteadyMs(1)}
STARTED = SteadyMs(0)


def following(source: Source = Source.LEGACY, **session: Any) -> State:
    known = Known(
        settings=Settings(machine_id=HostName("web1"), source=source),
        system=SystemView(boot_id="boot", running=RUNNING),
    )
    return State(known=known, session=Session(**session))


def served(state: State, telemetry: Telemetry) -> list[str]:
    """The samples as a scrape sees them."""
    at = Moment(wall_ms=WallMs(1_780_000_000_000), mono_ms=0)
    registry = CollectorRegistry()
    registry.register(Collector(Meters(state=lambda: state, clock=lambda: at, telemetry=telemetry)))
    return [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]


@pytest.mark.parametrize(
    ("operation", "name"),
    [
        (Realising(**ORDER), "fetching"),
        (Consulting(**ORDER), "applying"),
        (Switching(**ORDER, boot_id="boot"), "applying"),
        (Rebooting(**ORDER), "applying"),
        (RollingBack(**ORDER, boot_id="boot"), "rolling_back"),
    ],
)
def test_what_the_host_does_comes_before_what_it_says(operation: Operation, name: str) -> None:
    state = following(started={Duty.INTENT: STARTED, Duty.DELIVERY: STARTED})
    assert state_of(attrs.evolve(state, known=attrs.evolve(state.known, operation=operation))) == name


@pytest.mark.parametrize(
    ("started", "name"),
    [([], "idle"), ([Duty.INTENT], "checking"), ([Duty.INTENT, Duty.HEARTBEAT], "reporting"),
     ([Duty.DELIVERY], "reporting")],
)  # fmt: skip
def test_without_an_operation_it_is_the_exchange_under_way(started: list[Duty], name: str) -> None:
    assert state_of(following(started=dict.fromkeys(started, STARTED))) == name


def test_a_target_on_trial_is_being_verified() -> None:
    state = following()
    record = attrs.evolve(opened(R1, HostName("web1"), RUNNING), phase=Phase.SOAKING)
    known = attrs.evolve(state.known, rollouts={R1: Tracked(number=1, record=record)}, active=R1)
    assert state_of(attrs.evolve(state, known=known)) == "verifying"


def test_the_older_samples_stand_beside_ours_where_that_generation_is_followed() -> None:
    state = following(last_success={Duty.INTENT: WallMs(1_780_000_000_000)})
    lines = served(state, Telemetry(exchange_seconds={"intent": 0.25}))
    assert 'nixfleet_agent_state{state="Idle"} 1.0' in lines
    assert 'nixfleet_agent_state{state="idle"} 1.0' in lines
    assert "nixfleet_agent_last_poll_timestamp_seconds 1.78e+09" in lines
    assert 'nixfleet_agent_last_poll_timestamp_seconds{duty="intent"} 1.78e+09' in lines
    assert "nixfleet_agent_poll_duration_seconds 0.25" in lines
    assert [line for line in lines if line.startswith("nixfleet_agent_generation_info")] == [
        f'nixfleet_agent_generation_info{{generation="/nix/store/{RUNNING}"}} 1.0'
    ]
    assert all(f'nixfleet_agent_state{{state="{name}"}} 0.0' in lines for name in STATES if name != "idle")


def test_before_the_first_poll_there_is_no_sample_of_one() -> None:
    lines = served(following(), Telemetry())
    assert not [line for line in lines if line.startswith("nixfleet_agent_last_poll_timestamp_seconds")]


@pytest.mark.parametrize("source", [Source.FLEET, Source.GRADIENT])
def test_other_hosts_serve_none_of_it(source: Source) -> None:
    lines = served(following(source), Telemetry(exchange_seconds={"intent": 0.25}))
    assert not [line for line in lines if 'state="idle"' in line]
    assert f'nixfleet_agent_generation_info{{generation="{RUNNING}"}} 1.0' in lines
