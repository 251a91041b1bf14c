"""What the disks must say when a run is over: whole chains, proved switches, and one history on both sides."""

import contextlib
import sqlite3
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Final

import trio

from control_plane.entries import CertificateIssued, FactAccepted, FactRefused
from control_plane.records import decode_entry
from evidence.canonical import canonicalize
from evidence.trust import parse_trust
from nixfleet.audit.export import open_export
from nixfleet.audit.proof import prove
from nixfleet_agent.journal import export, reader
from state_machine.values import HostName
from tests.simulation.full_agent import Agent
from tests.simulation.full_control_plane import Peer, Publisher
from tests.simulation.full_world import CONTROL_PLANE, World
from wire.codec import encode_fact

EVIDENCE: Final = "evidence"
Facts = Mapping[tuple[str, int], str]
"""The canonical text of each fact, by rollout and number."""


async def check_evidence(world: World, peer: Peer, publisher: Publisher, agents: list[Agent]) -> None:
    """Judge all journals and the control plane's log, and prove one host's switches as an auditor would."""
    if peer.parts is not None:
        await peer.parts.ledger.flushed()
    for problem in () if peer.lost else _spent_twice(peer):
        world.find(CONTROL_PLANE, EVIDENCE, problem)
    audited = world.scenario.stream("audit").randrange(world.scenario.hosts)
    for agent in agents:
        await trio.lowlevel.checkpoint()
        for problem in _problems_of(agent, peer):
            world.find(agent.name, EVIDENCE, problem)
        if agent.host == audited:
            for problem in _audit(world, publisher, agent):
                world.find(agent.name, EVIDENCE, problem)


def _problems_of(agent: Agent, peer: Peer) -> Iterator[str]:
    if not agent.journal.exists():
        return
    report = reader.verify(agent.journal, agent.key.public, host=agent.name)
    if report.fault is not None:
        yield f"the journal does not verify: {report.fault}"
    if agent.lost_state:
        return  # it has forgotten what the control plane remembers
    mine, accepted, refused = _facts_of(agent), *_facts_at(peer, agent.name)
    for place, text in accepted.items():
        if mine.get(place) != text:
            yield f"the control plane has as fact {place}: {text}; the journal: {mine.get(place)}"
    for place in refused:
        yield f"the control plane refused fact {place} for good: {mine.get(place)}"
    if not peer.lost:
        yield from _undelivered(agent, mine, accepted)


def _undelivered(agent: Agent, mine: Facts, accepted: Facts) -> Iterator[str]:
    known = agent.known if agent.life is None else agent.life.known
    for rollout_id, seq in mine:
        tracked = known.rollouts.get(rollout_id)  # type: ignore[call-overload]
        if tracked is not None and seq <= tracked.delivered_seq and (rollout_id, seq) not in accepted:
            yield f"fact {seq} of {rollout_id} counts as delivered, and is not there"


def _spent_twice(peer: Peer) -> Iterator[str]:
    """Tokens that were good more than once."""
    with contextlib.closing(sqlite3.connect(peer.database)) as db:
        issued = [decode_entry(kind, body) for kind, body in db.execute("SELECT kind, body FROM log WHERE seq IS NULL")]
    spent = Counter(entry.nonce for entry in issued if isinstance(entry, CertificateIssued) and entry.nonce)
    return (f"{times} certificates were issued for one token" for times in spent.values() if times > 1)


def _facts_of(agent: Agent) -> Facts:
    with reader.JournalReader(agent.journal, agent.key.public) as journal:
        return {
            (born.rollout_id, born.fact.seq): canonicalize(encode_fact(born.fact)).decode()
            for record in journal.records()
            for born in record.facts
        }


def _facts_at(peer: Peer, host: HostName) -> tuple[Facts, list[tuple[str, int]]]:
    accepted: dict[tuple[str, int], str] = {}
    refused: list[tuple[str, int]] = []
    with contextlib.closing(sqlite3.connect(peer.database)) as db:
        query = "SELECT kind, body FROM log WHERE hostname = ? AND seq IS NOT NULL ORDER BY id"
        for kind, body in db.execute(query, (host,)):
            match decode_entry(kind, body):
                case FactAccepted() as fact:
                    accepted[fact.rollout_id, fact.seq] = fact.event
                case FactRefused() as fact:
                    refused.append((fact.rollout_id, fact.seq))
                case _:
                    pass
    return accepted, refused


def _audit(world: World, publisher: Publisher, agent: Agent) -> Iterator[str]:
    directory = world.root / "audit" / agent.name
    directory.parent.mkdir()
    export.export(agent.journal, directory, host_key=agent.key, artifacts=agent.state_dir / "artifacts")
    trusts = [parse_trust(publisher.trust(generation)) for generation in range(len(publisher.keys))]
    proof = prove(open_export(directory), host_key=agent.key.public, trusts=trusts)
    if proof.broken is not None:
        yield f"the audit says: {proof.broken}"
