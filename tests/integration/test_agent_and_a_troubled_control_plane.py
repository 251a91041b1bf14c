"""The control plane is restarted, wiped, slow, angry or gone: facts reach it in the end, the host is not disturbed."""

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Final

import attrs
import pytest

from control_plane.clock import wall_now
from state_machine.values import Closure, RolloutId
from tests.agentlab import Agent, AgentFleet, mirror, told
from tests.cplab import Lab, Running
from tests.liar import (
    ENDPOINTS,
    Behaviour,
    Exchange,
    Liar,
    Seen,
    dribble,
    dribble_head,
    flood,
    html,
    machine,
    says,
    silence,
    status,
)
from wire.codec import encode_fact
from wire.timestamps import format_rfc3339

CLEAN: Final = [
    "DispatchAck",
    "ActivationStarted",
    "ActivationCompleted",
    "ProbeTopologyDeclared",
    "ProbeObservedFirst",
    "ProbeResult",
    "Converged",
]
MIB: Final = 1024 * 1024


@pytest.fixture
def fleet(tmp_path: Path) -> AgentFleet:
    return AgentFleet(tmp_path, hosts=("web1", "web2", "web3", "web4"))


@pytest.fixture
def liar(fleet: AgentFleet) -> Iterator[Liar]:
    with Liar(fleet) as liar:
        yield liar


def let_go(agent: Agent) -> None:
    """A switch to a system that waits goes on."""
    agent.host.note(".go").touch()


def until_switching(agent: Agent) -> None:
    """A switch to a system that waits has begun, and everything before it has been told."""
    agent.until("the switch", lambda: agent.host.note(".waiting").exists())
    agent.until_status("an empty outbox", lambda said: not said["outbox"])


def set_health(agent: Agent, text: str) -> None:
    (agent.directory / "store" / agent.current() / "health").write_text(f"{text}\n")


def assert_probing(*agents: Agent) -> None:
    """The health checks go on: they notice that a system falls ill."""
    for agent in agents:
        set_health(agent, "sick")
    for agent in agents:
        agent.until_status("a probe that fails", lambda said: said["probes"][0]["status"] == "fail")


# A real one: killed, wiped, restored


@contextmanager
def again(cp: Running, agent: Agent) -> Iterator[Running]:
    """Another process on the same address, and an agent that knows that it is there."""
    with cp.lab.start(listen=cp.url.removeprefix("https://"), require_evidence=True) as running:
        assert running.refresh() == {}
        agent.poke()
        yield running


def forget_everything(lab: Lab) -> None:
    for path in lab.root.glob("state.db*"):
        path.unlink()


def assert_told_everything(cp: Running, agent: Agent, rollout: RolloutId, kinds: list[str]) -> None:
    """Every fact is there, in order, and makes up the record that the agent has."""

    def complete() -> bool:
        facts = [encode_fact(fact.fact) for fact in agent.facts(rollout)]
        return len(facts) == len(kinds) and told(cp, rollout, agent.name) == facts

    agent.until(f"all of {kinds} at the control plane", complete)
    assert agent.fact_kinds(rollout) == kinds
    record = attrs.evolve(agent.record(rollout), soak_due_at=None)
    assert mirror(cp.lab.database, rollout, agent.name).record == record


@pytest.mark.parametrize("moment", ["Activating", "Soaking"])
def test_a_host_converges_while_the_control_plane_is_gone_and_tells_it_afterwards(
    fleet: AgentFleet, moment: str
) -> None:
    target = fleet.system("waits")
    with fleet.start(require_evidence=True) as cp:
        agent = fleet.agent("web1", cp.url, running=fleet.system())
        rollout = fleet.release(cp, {"web1": target}, soak_secs=2)
        with agent.running():
            until_switching(agent)
            if moment == "Soaking":
                let_go(agent)
                agent.until_phase(rollout, "Soaking")
            cp.kill()
            let_go(agent)
            agent.until_phase(rollout, "Converged")
            with again(cp, agent) as after:
                assert_told_everything(after, agent, rollout, CLEAN)
        assert agent.switches() == [target]


@pytest.mark.parametrize("moment", ["Activating", "Soaking", "Converged"])
def test_a_control_plane_that_lost_its_database_is_told_everything_again(fleet: AgentFleet, moment: str) -> None:
    target = fleet.system("waits")
    with fleet.start(require_evidence=True) as cp:
        agent = fleet.agent("web1", cp.url, running=fleet.system())
        rollout = fleet.release(cp, {"web1": target}, soak_secs=2)
        with agent.running():
            until_switching(agent)
            if moment != "Activating":
                let_go(agent)
                agent.until_settled(rollout, moment)
            cp.kill()
            forget_everything(fleet)
            with again(cp, agent) as after:
                let_go(agent)
                assert_told_everything(after, agent, rollout, CLEAN)
        assert agent.switches() == [target]


def test_a_control_plane_restored_from_an_older_copy_is_brought_up_to_date(fleet: AgentFleet) -> None:
    target, copy = fleet.system("waits"), fleet.path("older.db")
    with fleet.start(require_evidence=True) as cp:
        agent = fleet.agent("web1", cp.url, running=fleet.system())
        rollout = fleet.release(cp, {"web1": target})
        with agent.running():
            until_switching(agent)
            assert cp.stop() == 0
            shutil.copy(fleet.database, copy)
            with again(cp, agent) as middle:
                let_go(agent)
                assert_told_everything(middle, agent, rollout, CLEAN)
                middle.kill()
            forget_everything(fleet)
            shutil.copy(copy, fleet.database)
            with again(cp, agent) as after:
                assert_told_everything(after, agent, rollout, CLEAN)
        assert agent.switches() == [target]


# A lost state directory


def lose_state(agent: Agent) -> None:
    agent.kill()
    shutil.rmtree(agent.state_dir)


def assert_goes_on_after(cp: Running, agent: Agent, rollout: RolloutId, target: Closure, before: list[str]) -> None:
    """The host is where it should be, and its new facts follow those of the lost journal without a gap."""
    agent.until_settled(rollout, "Converged")
    facts = told(cp, rollout, agent.name)
    mine = [encode_fact(fact.fact) for fact in agent.facts(rollout)]
    assert [fact["kind"] for fact in facts[: len(before)]] == before
    assert facts[len(before) :] == mine
    assert [fact["seq"] for fact in facts] == list(range(1, len(facts) + 1))
    assert mirror(cp.lab.database, rollout, agent.name).record.phase == "Converged"
    assert agent.switches() == [target]
    assert agent.until_ready()["rollout"]["manifest"]


def test_a_host_that_lost_its_state_before_the_switch_goes_on_with_the_rollout(fleet: AgentFleet) -> None:
    target = fleet.system()
    away = fleet.systems.cache.rename(fleet.systems.cache.with_name("away"))
    away.rename(fleet.systems.cache)
    with fleet.start(require_evidence=True) as cp:
        agent = fleet.agent("web1", cp.url, running=fleet.system())
        rollout = fleet.release(cp, {"web1": target})
        fleet.systems.cache.rename(away)
        with agent.running():
            agent.until_status("a failure to fetch", lambda said: "tries failed" in (said["waiting_on"] or ""))
            agent.until_settled(rollout, "Activating")
            lose_state(agent)
            away.rename(fleet.systems.cache)
            agent.start()
            assert_goes_on_after(cp, agent, rollout, target, ["DispatchAck"])
        assert agent.fact_kinds(rollout) == CLEAN[1:]


def test_a_host_that_lost_its_state_while_soaking_soaks_and_probes_anew(fleet: AgentFleet) -> None:
    target = fleet.system(healthy=False)
    before = [*CLEAN[:5], "ProbeFailureFirst", "ProbeResult"]
    with fleet.start(require_evidence=True) as cp:
        agent = fleet.agent("web1", cp.url, running=fleet.system(), sustained_failure=600)
        rollout = fleet.release(cp, {"web1": target})
        with agent.running():
            agent.until("the sick probe at the control plane", lambda: len(told(cp, rollout, "web1")) == len(before))
            lose_state(agent)
            set_health(agent, "ok")
            agent.start()
            assert_goes_on_after(cp, agent, rollout, target, before)
        assert agent.fact_kinds(rollout) == CLEAN[3:]


@pytest.mark.parametrize("lie", ["no such rollout", "another closure"])
def test_a_host_without_history_does_not_take_the_control_planes_word_for_one(
    fleet: AgentFleet, liar: Liar, lie: str
) -> None:
    first, named, other = fleet.system(), fleet.system(), fleet.system()
    rollout = fleet.release(None, {"web1": named})
    snapshot = {
        "rolloutId": "stable@0badc0ffee" if lie == "no such rollout" else rollout,
        "hostname": "web1",
        "channel": "stable",
        "state": "Activating",
        "targetClosure": other,
        "dispatchedAt": format_rfc3339(wall_now()),
        "lastEventSeq": 2,
    }
    liar.replies["bootstrap_rollouts"] = [snapshot]
    agent = fleet.agent("web1", liar.url, running=first)
    with agent.running():
        agent.until_logged("refused", rollout=snapshot["rolloutId"])
        liar.until_asked("heartbeat", 2)
        said = agent.until_ready()
    assert said["rollout"] is None
    assert agent.switches() == []
    assert liar.count("events") == 0


# Answers that are refusals


def requests(liar: Liar, name: str, host: str) -> list[Seen]:
    """What a host asked of an endpoint."""
    return [seen for seen in liar.requests(name) if machine(seen.client) == host]


def until_asked_by(liar: Liar, agent: Agent, name: str, times: int = 1) -> None:
    """So many requests, of all that there ever were."""
    agent.until(f"{times} x {name}", lambda: len(requests(liar, name, agent.name)) >= times)


@contextmanager
def all_running(agents: Sequence[Agent]) -> Iterator[None]:
    with ExitStack() as stack:
        for agent in agents:
            stack.enter_context(agent.running())
        yield


RETRY_AFTER_S: Final = {"heartbeat": 3, "fleet": 3, "events": 3, "dispatch": 5}
"""Dispatches begin with a fetch of the fleet out of turn, so they must come after its own pause."""
ANGRY: Final = {"web1": 500, "web2": 502, "web3": 429, "web4": 503}


def angry_once() -> Behaviour:
    """Each host gets its own refusal for the first request to each endpoint, with a time to stay away."""
    met: Counter[tuple[str, str]] = Counter()

    async def behave(exchange: Exchange) -> None:
        host, name = machine(exchange.seen.client), exchange.seen.name
        met[host, name] += 1
        if met[host, name] == 1:
            return await exchange.answer(ANGRY[host], b"go away", {"Retry-After": str(RETRY_AFTER_S[name])})
        return await exchange.honestly()

    return behave


def test_nobody_is_asked_again_before_the_time_it_named(fleet: AgentFleet, liar: Liar) -> None:
    targets = {host: fleet.system() for host in ANGRY}
    rollout = fleet.release(None, targets)
    liar.says = dict.fromkeys(RETRY_AFTER_S, angry_once())
    agents = [fleet.agent(host, liar.url, running=fleet.system()) for host in targets]
    for agent in agents:
        liar.dispatch(agent.name, rollout, targets[agent.name])
    with all_running(agents):
        for agent in agents:
            agent.until_settled(rollout, "Converged")
    for host in targets:
        for name, pause_s in RETRY_AFTER_S.items():
            first, second = requests(liar, name, host)[:2]
            assert second.at - first.at >= pause_s, f"{host} asked {name} again too soon"


def seqs(liar: Liar) -> list[int]:
    """The numbers of the facts that were sent, as often as they were."""
    return [seen.json["event"]["seq"] for seen in liar.requests("events")]


def test_a_gap_is_filled_in_order_from_where_it_begins_with_the_very_same_bytes(fleet: AgentFleet, liar: Liar) -> None:
    target = fleet.system("waits")
    rollout = fleet.release(None, {"web1": target})
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    liar.dispatch("web1", rollout, target)
    with agent.running():
        until_switching(agent)
        liar.forget()
        let_go(agent)
        agent.until_settled(rollout, "Converged")
    assert liar.told(rollout) == CLEAN
    assert seqs(liar) == [1, 2, 3, 1, 2, 3, 4, 5, 6, 7]
    bodies = {seen.json["event"]["seq"]: seen.body for seen in liar.requests("events")}
    assert all(seen.body == bodies[seen.json["event"]["seq"]] for seen in liar.requests("events"))


@pytest.mark.parametrize("how", ["member", "header"])
def test_facts_that_a_heartbeat_asks_for_are_sent_again(fleet: AgentFleet, liar: Liar, how: str) -> None:
    target = fleet.system()
    rollout = fleet.release(None, {"web1": target})
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    liar.dispatch("web1", rollout, target)
    with agent.running():
        agent.until_settled(rollout, "Converged")
        sent = len(seqs(liar))
        liar.says["heartbeat"] = asks_for_replay_once(rollout, 4, how)
        liar.until("facts sent again", lambda: len(seqs(liar)) == sent + 4)
        agent.until_status("an empty outbox", lambda said: not said["outbox"])
    assert seqs(liar)[sent:] == [4, 5, 6, 7]
    assert liar.told(rollout) == CLEAN


def asks_for_replay_once(rollout: str, from_seq: int, how: str) -> Behaviour:
    left = [1]

    async def behave(exchange: Exchange) -> None:
        if not left:
            return await exchange.honestly()
        left.clear()
        reply: dict[str, Any] = {"received_at": exchange.seen.json["at"]}
        headers = {"X-Nixfleet-Replay-From": str(from_seq)} if how == "header" else {}
        if how == "member":
            reply["replay"] = [{"rollout_id": rollout, "from_seq": from_seq}]
        return await exchange.answer(200, json.dumps(reply).encode(), headers)

    return behave


FOR_GOOD: Final = {
    "422 unknown kind": says({"error": "no such kind", "reason": "unknown-kind"}, 422),
    "409 illegal": says({"error": "not now", "reason": "illegal"}, 409),
    "400 with a page": status(400, b"<html>bad request</html>", Content_Type="text/html"),
    "413 with nothing": status(413),
}


@pytest.mark.parametrize("refusal", FOR_GOOD.values(), ids=FOR_GOOD.keys())
def test_a_fact_that_is_refused_for_good_does_not_hold_up_those_behind_it(
    fleet: AgentFleet, liar: Liar, refusal: Behaviour
) -> None:
    async def refuse_the_second(exchange: Exchange) -> None:
        await (refusal(exchange) if exchange.seen.json["event"]["seq"] == 2 else exchange.answer(204))

    liar.says["events"] = refuse_the_second
    target = fleet.system()
    rollout = fleet.release(None, {"web1": target})
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    liar.dispatch("web1", rollout, target)
    with agent.running():
        said = agent.until_settled(rollout, "Converged")
    assert seqs(liar) == [1, 2, 3, 4, 5, 6, 7]
    assert said["facts_refused"] == 1
    assert agent.kinds().count("FactRefused") == 1
    assert agent.fact_kinds(rollout) == CLEAN


# Answers that are none


def test_a_captive_portal_changes_nothing_on_the_host(fleet: AgentFleet, liar: Liar) -> None:
    target = fleet.system()
    rollout = fleet.release(None, {"web1": target})
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    liar.says = {name: html() for name in ENDPOINTS}
    liar.dispatch("web1", rollout, target)
    with agent.running():
        for duty in ("heartbeat", "dispatch"):
            agent.until_failed(duty, times=2)
        agent.until("the fleet to be asked for", lambda: liar.count("fleet"))
        assert_probing(agent)
        assert agent.until_ready()["rollout"] is None
        assert agent.switches() == []
        assert set(agent.kinds()) <= {"Booted", "ProbeObserved", "SystemObserved", "IntentRefused"}
        liar.says = {}
        agent.poke()
        agent.until_settled(rollout, "Converged")
    assert liar.told(rollout) == CLEAN


SLOW: Final[Mapping[str, Callable[[], Behaviour]]] = {"web1": dribble, "web2": dribble_head, "web3": silence}


def slow() -> Behaviour:
    """Each host has to do with another kind of slowness."""
    behaviours = {host: make() for host, make in SLOW.items()}

    async def behave(exchange: Exchange) -> None:
        await behaviours[machine(exchange.seen.client)](exchange)

    return behave


def test_answers_without_an_end_hold_up_neither_heartbeats_nor_probes(fleet: AgentFleet, liar: Liar) -> None:
    liar.says = {name: slow() for name in ENDPOINTS if name != "heartbeat"}
    agents = [fleet.agent(host, liar.url, running=fleet.system()) for host in SLOW]
    with all_running(agents):
        for agent in agents:
            until_asked_by(liar, agent, "dispatch")
            until_asked_by(liar, agent, "fleet")
        assert_probing(*agents)
        for agent in agents:
            until_asked_by(liar, agent, "heartbeat", len(requests(liar, "heartbeat", agent.name)) + 2)
            assert agent.until_ready()["contact"]["last_by_duty"].keys() == {"heartbeat"}
            assert agent.switches() == []


def test_a_heartbeat_whose_answer_has_no_end_is_given_up_and_followed_by_another(fleet: AgentFleet, liar: Liar) -> None:
    liar.says = dict.fromkeys(ENDPOINTS, slow())
    agents = [fleet.agent(host, liar.url, running=fleet.system()) for host in SLOW]
    with all_running(agents):
        for agent in agents:
            until_asked_by(liar, agent, "heartbeat", 2)


def test_slow_answers_to_facts_hold_up_nothing_else(fleet: AgentFleet, liar: Liar) -> None:
    target = fleet.system()
    rollout = fleet.release(None, {"web1": target})
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    liar.says["events"] = dribble()
    liar.dispatch("web1", rollout, target)
    with agent.running():
        agent.until_phase(rollout, "Converged")
        liar.until_asked("heartbeat", 2)
        assert_probing(agent)
        assert agent.until_ready()["outbox"] == {rollout: len(CLEAN)}


def memory(agent: Agent, member: str) -> int:
    """A figure of `/proc/<pid>/status` in bytes."""
    lines = Path(f"/proc/{agent.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{member}:"))


@contextmanager
def within_memory(agent: Agent, limit: int = 32 * MIB) -> Iterator[None]:
    """The agent's resident memory never rises by more than `limit` in the block."""
    Path(f"/proc/{agent.pid}/clear_refs").write_text("5")
    idle = memory(agent, "VmRSS")
    yield
    most = memory(agent, "VmHWM")
    assert most <= idle + limit, f"{most // MIB} MiB at most, {idle // MIB} MiB when idle"


NOTHING_NEW: Final = {"dispatch": status(204)}
"""At once, so that the next request to be lied to is never far."""


def test_answers_without_an_end_cost_no_memory(fleet: AgentFleet, liar: Liar) -> None:
    target = fleet.system()
    rollout = fleet.release(None, {"web1": target})
    agent = fleet.agent("web1", liar.url, running=fleet.system())
    liar.says = NOTHING_NEW
    with agent.running():
        agent.until_status("an idle agent", lambda said: len(said["contact"]["last_by_duty"]) >= 3)
        liar.until_asked("heartbeat", 2)
        with within_memory(agent):
            for name, duty in (("heartbeat", "heartbeat"), ("fleet", "intent"), ("dispatch", "dispatch")):
                liar.says = {**NOTHING_NEW, name: flood()}
                agent.poke()
                agent.until_failed(duty, because="longer than")
            for name in ("fleet-sig", "rollout", "rollout-sig"):
                liar.says = {**NOTHING_NEW, name: flood()}
                agent.poke()
                agent.until_failed("intent", because="longer than")
            liar.says = {"events": flood()}
            liar.dispatch("web1", rollout, target)
            agent.poke()
            agent.until_failed("delivery", because="longer than")
        liar.says = {}
        agent.poke()
        agent.until_settled(rollout, "Converged")
    assert liar.told(rollout) == CLEAN


def test_an_enrolment_without_an_end_costs_no_memory(fleet: AgentFleet, liar: Liar) -> None:
    agent = fleet.agent("web1", liar.url, enrolled=False)
    agent.give_token(fleet.token("web1"))
    liar.says = {"enroll": says({"error": "no", "reason": "missing"}, 503)}
    with agent.running():
        agent.until_failed("renewal", because="503")
        with within_memory(agent):
            liar.says = {"enroll": flood()}
            agent.poke()
            agent.until_failed("renewal", because="longer than")
            liar.says = {"enroll": says({"error": "no", "reason": "missing"}, 401), "report": flood()}
            agent.poke()
            agent.until("a report", lambda: liar.count("report"))
            agent.until_failed("renewal", times=3)
        liar.says = {}
        agent.poke()
        agent.until_enrolled()
