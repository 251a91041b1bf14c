"""What the control plane has on record, against what its clients were told is kept: nothing lost, nothing twice."""

import json
import sqlite3
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from state_machine.values import HostName, RolloutId
from tests.load.orders import Tally

Place = tuple[HostName, RolloutId]


def on_record(database: Path) -> tuple[Mapping[Place, Tally], Sequence[str]]:
    """Every host's facts as the log has them, by rollout, and what is wrong with their numbers."""
    facts: Counter[Place] = Counter()
    checksums: Counter[Place] = Counter()
    wrong = []
    query = (
        "SELECT hostname, rollout_id, seq, body FROM log WHERE kind = 'FactAccepted' ORDER BY hostname, rollout_id, seq"
    )
    with closing(_open(database)) as db:
        for host, rollout_id, seq, body in db.execute(query):
            place = HostName(host), RolloutId(rollout_id)
            facts[place] += 1
            checksums[place] += zlib.crc32(json.loads(body)["event"].encode())
            if seq != facts[place]:
                wrong.append(f"{host} in {rollout_id}: number {seq} follows {facts[place] - 1}")
        wrong += [
            f"{host} in {rollout_id}: number {seq} was refused"
            for host, rollout_id, seq in db.execute(
                "SELECT hostname, rollout_id, seq FROM log WHERE kind = 'FactRefused'"
            )
        ]
    return {place: Tally(facts=count, checksum=checksums[place]) for place, count in facts.items()}, wrong


def differences(told: Mapping[Place, Tally], database: Path) -> Iterator[str]:
    """What hosts were told is kept and is not, or is there and should not be."""
    recorded, wrong = on_record(database)
    yield from wrong
    for place in sorted(told.keys() | recorded.keys()):
        theirs, ours = told.get(place), recorded.get(place)
        if theirs != ours:
            host, rollout_id = place
            yield f"{host} in {rollout_id}: {_shown(theirs)} were taken, {_shown(ours)} are on record"


def queued_at(database: Path, rollout_id: RolloutId) -> Mapping[HostName, float]:
    """When the planner let each host go ahead, in seconds since 1970."""
    query = "SELECT hostname, min(at_ms) FROM log WHERE kind = 'DispatchQueued' AND rollout_id = ? GROUP BY 1"
    with closing(_open(database)) as db:
        return {HostName(host): at_ms / 1000 for host, at_ms in db.execute(query, (rollout_id,))}


def _open(database: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)


def _shown(tally: Tally | None) -> str:
    return "no facts" if tally is None else f"{tally.facts} facts (checksum {tally.checksum})"
