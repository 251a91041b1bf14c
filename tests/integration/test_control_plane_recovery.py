"""Kills, full disks, lost and restored databases: nothing that was answered for is lost, nothing is made up."""

import resource
import shutil
import sqlite3
import subprocess
from pathlib import Path
from typing import Any

import attrs
import pytest

from state_machine.facts import ActivationStarted
from state_machine.values import SwitchMethod
from tests.cplab import Lab, Puppet, Running, activated, closure, converged, eventually, reverted

ROLLOUT = "stable@c0ffee"
DERIVED = ("rollouts", "mirrors", "dispatches", "hosts", "certificates", "nonces", "quarantine", "artifacts")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(tmp_path)
    lab.publish("c0ffee", waves=(("web1",), ("web2", "web3")))
    return lab


def view(cp: Running) -> dict[str, Any]:
    rows = cp.operator.get(f"/v1/rollouts/{ROLLOUT}/hosts").json()["hosts"]
    return {row["host"]: (row["state"], row["targetClosureHash"], row["terminalState"]) for row in rows}


def dispatched(agent: Puppet) -> dict[str, Any]:
    dispatch = agent.dispatch(wait=15)
    assert dispatch is not None
    return dispatch


def started(seq: int, agent: Puppet) -> ActivationStarted:
    return ActivationStarted(seq=seq, started_at=agent.clock, switch_method=SwitchMethod.DETACHED)


def tables(path: Path, names: tuple[str, ...] = DERIVED) -> dict[str, list[Any]]:
    with sqlite3.connect(path) as connection:
        found = {name: sorted(connection.execute(f"SELECT * FROM {name}").fetchall()) for name in names}
    connection.close()
    return found


def test_what_was_answered_for_survives_a_kill(lab: Lab) -> None:
    with lab.start() as cp:
        agent = cp.agent("web1")
        agent.activate(dispatched(agent))
        before = view(cp)
        cp.kill()
    with lab.start() as cp:
        assert view(cp) == before
        again = cp.agent("web1")
        again.seqs = dict(agent.seqs)
        assert again.send(ROLLOUT, started(2, agent)).status_code == 204  # the very same fact is known
        again.tell(ROLLOUT, *converged(closure("web1-c0ffee"), again.clock))
        assert dispatched(cp.agent("web2"))["rollout_id"] == ROLLOUT


def test_a_queued_dispatch_survives_a_kill(lab: Lab) -> None:
    with lab.start() as cp:
        dispatch = dispatched(cp.agent("web1"))
        cp.kill()
    with lab.start() as cp:
        assert dispatched(cp.agent("web1")) == dispatch


def test_a_lost_database_comes_back_from_artifacts_and_hosts(lab: Lab) -> None:
    histories: dict[str, list[Any]] = {}
    with lab.start() as cp:
        first, second = cp.agent("web1"), cp.agent("web2")
        histories["web1"] = story(first, dispatched(first), good=True)
        histories["web2"] = story(second, dispatched(second), good=False)
        before, quarantine = view(cp), cp.operator.get("/v1/quarantine").json()
        cp.kill()
    for path in lab.root.glob("state.db*"):
        path.unlink()
    with lab.start() as cp:
        for host, facts in histories.items():
            agent = cp.agent(host)
            answer = agent.heartbeat(last_event_seq_by_rollout={ROLLOUT: len(facts)}, rollout_id=ROLLOUT)
            assert answer.json()["replay"] == [{"rollout_id": ROLLOUT, "from_seq": 1}]
            assert agent.send(ROLLOUT, facts[-1]).json()["want_seq"] == 1
            agent.tell(ROLLOUT, *facts)
        assert view(cp) == before
        without_time = [{**row, "since": None} for row in cp.operator.get("/v1/quarantine").json()["quarantine"]]
        assert without_time == [{**row, "since": None} for row in quarantine["quarantine"]]
        assert cp.agent("web3").dispatch() is None  # the rollout stays halted


def story(agent: Puppet, dispatch: dict[str, Any], *, good: bool) -> list[Any]:
    """Tell a whole rollout, and what was told."""
    from tests.cplab import OLD, acknowledged

    target = closure(f"{agent.host}-c0ffee")
    facts = [acknowledged(OLD, agent.clock)]
    facts += [*activated(target, agent.clock), *converged(target, agent.clock)] if good else reverted(agent.clock)
    agent.tell(dispatch["rollout_id"], *facts)
    return [attrs.evolve(fact, seq=number) for number, fact in enumerate(facts, start=1)]


def test_a_database_from_last_week_is_brought_up_to_date_by_the_hosts(lab: Lab) -> None:
    backup = lab.path("backup.db")
    with lab.start() as cp:
        agent = cp.agent("web1")
        agent.ack(dispatched(agent))
        assert cp.stop() == 0
    shutil.copy(lab.database, backup)
    with lab.start() as cp:
        again = cp.agent("web1")
        again.seqs = dict(agent.seqs)
        again.tell(ROLLOUT, *activated(closure("web1-c0ffee"), again.clock))
        assert cp.stop() == 0
    shutil.copy(backup, lab.database)
    with lab.start() as cp:
        last = cp.agent("web1")
        answer = last.send(ROLLOUT, started(4, last))
        assert (answer.status_code, answer.json()["want_seq"]) == (409, 2)


def test_every_table_is_derived_again_from_the_log(lab: Lab) -> None:
    with lab.start() as cp:
        lab.publish_nonces()
        lab.revoke("web3")
        token = lab.token("web2")
        cp.refresh()
        assert cp.client().post("/v1/enroll", json={"token": token, "csrPem": lab.csr("web2")}).status_code == 200
        first, second = cp.agent("web1"), cp.agent("web2")
        first.heartbeat(boot_id="b1", health={"pass": 3})
        first.converge(dispatched(first))
        second.revert(dispatched(second))
        cp.operator.post("/v1/machines", json={"hostname": "db9"})
        cp.operator.post(f"/v1/rollouts/{ROLLOUT}/rollback", json={"reason": "why not"})
        first.send("stable@0123", started(1, first))  # refused for good
        lab.publish("dead01")
        cp.refresh()
        dispatched(first)
        assert cp.stop() == 0
    before = tables(lab.database)
    assert all(before.values()), {name: len(rows) for name, rows in before.items()}
    with sqlite3.connect(lab.database) as connection:
        for name in DERIVED:
            connection.execute(f"DELETE FROM {name}")
    connection.close()
    run = subprocess.run([*lab.arguments(), "rebuild"], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "rebuilt from" in run.stdout
    assert tables(lab.database) == before
    with lab.start() as cp:
        assert view(cp)["web1"][0] == "Converged"


def test_the_log_cannot_be_changed_or_cut(lab: Lab) -> None:
    with lab.start() as cp:
        assert cp.stop() == 0
    with sqlite3.connect(lab.database) as connection:
        for statement in ("UPDATE log SET body = '{}'", "DELETE FROM log"):
            with pytest.raises(sqlite3.IntegrityError, match="append-only"):
                connection.execute(statement)
    connection.close()


def test_a_full_disk_costs_answers_but_no_facts(lab: Lab) -> None:
    with lab.start() as cp:
        agent = cp.agent("web1")
        agent.ack(dispatched(agent))
        wal = Path(f"{lab.database}-wal")
        resource.prlimit(cp.process.pid, resource.RLIMIT_FSIZE, (wal.stat().st_size, resource.RLIM_INFINITY))
        fact = started(2, agent)
        answer = agent.send(ROLLOUT, fact)
        assert (answer.status_code, answer.json()["reason"]) == (503, "database")
        assert answer.headers["Retry-After"]
        assert cp.client().get("/healthz").status_code == 503
        assert cp.operator.get("/v1/hosts").status_code == 200  # who only asks is still answered
        resource.prlimit(cp.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        eventually(lambda: agent.send(ROLLOUT, fact).status_code == 204, timeout_s=30, what="recovery")
        assert agent.send(ROLLOUT, started(9, agent)).json()["want_seq"] == 3
        assert cp.client().get("/healthz").status_code == 200


def test_a_database_of_a_later_version_is_refused_untouched(lab: Lab) -> None:
    with sqlite3.connect(lab.database) as connection:
        connection.execute("CREATE TABLE future (x)")
        connection.execute("PRAGMA user_version = 99")
    connection.close()
    before = lab.database.read_bytes()
    run = subprocess.run(lab.arguments(), capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "has schema 99, this program knows" in run.stderr
    assert len(run.stderr.strip().splitlines()[-1:]) == 1
    assert lab.database.read_bytes() == before


def test_what_is_no_database_is_refused_in_one_line(lab: Lab) -> None:
    lab.database.write_bytes(b"not a database at all, but long enough to look at" * 100)
    run = subprocess.run(lab.arguments(), capture_output=True, text=True, check=False)
    assert run.returncode == 1
    assert "cannot open the database" in run.stderr.strip().splitlines()[-1]
