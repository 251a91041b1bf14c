"""Evidence probes over real files, signed with a real host key."""

import base64
import os
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from evidence.canonical import canonicalize
from evidence.compliance import ControlRule, ControlSelection, FrameworkSelection, Selection
from evidence.host_key import HostKey, generate_host_key
from nixfleet_agent.probes.kinds import EvidenceProbe
from nixfleet_agent.probes.reading import ProbeReading
from nixfleet_agent.probes.runners import ProbeContext, run_probe
from state_machine.values import HostName, Moment, ProbeMode, ProbeStatus, SubResult, WallMs

KEY = generate_host_key()
ACTIVATED = Moment(wall_ms=WallMs(1_767_225_600_000), mono_ms=0)  # 2026-01-01T00:00:00Z
NOW = Moment(wall_ms=WallMs(1_767_225_700_000), mono_ms=100_000)

CIS = FrameworkSelection(framework="cis")
DOCUMENT: dict[str, Any] = {
    "schemaVersion": 1,
    "hostname": "node7",
    "collectedAt": "2026-01-01T00:01:00Z",
    "collector": "unknown members are signed too",
    "controls": [
        {"controlId": "A1", "passed": True, "frameworkArticles": {"cis": ["1.1", "1.2"]}},
        {"controlId": "A2", "passed": False, "frameworkArticles": {"cis": ["2.1"], "nis2": ["21"]}},
        {"controlId": "A3", "passed": True},
    ],
}


def context(key: HostKey | None = KEY) -> ProbeContext:
    return ProbeContext(
        clock=lambda: NOW,
        hostname=HostName("node7"),
        activated=ACTIVATED,
        host_public_key=None if key is None else key.public,
    )


def write(path: Path, document: dict[str, Any], key: HostKey = KEY) -> None:
    signed = canonicalize(document)
    path.write_bytes(signed)
    path.with_name(path.name + ".sig").write_bytes(base64.b64encode(key.sign(signed)) + b"\n")


async def judge(path: Path, selection: Selection = CIS, mode: ProbeMode = ProbeMode.ENFORCE) -> ProbeReading:
    probe = EvidenceProbe(name="cis", mode=mode, selection=selection, path=str(path), timeout_s=10)
    return await run_probe(probe, context())


def met(**changes: Any) -> dict[str, Any]:
    controls = [{**control, "passed": True} for control in DOCUMENT["controls"]]
    return {**DOCUMENT, "controls": controls, **changes}


async def test_evidence_of_every_control_passes_with_one_result_per_article(tmp_path: Path) -> None:
    write(tmp_path / "e.json", met())
    reading = await judge(tmp_path / "e.json")
    assert (reading.status, reading.reason) == (ProbeStatus.PASS, None)
    assert reading.sub_results == tuple(
        SubResult(control_id=control, status=ProbeStatus.PASS, framework="cis", article=article)
        for control, article in [("A1", "1.1"), ("A1", "1.2"), ("A2", "2.1")]
    )


async def test_a_control_that_is_not_met_fails_and_is_named(tmp_path: Path) -> None:
    write(tmp_path / "e.json", DOCUMENT)
    reading = await judge(tmp_path / "e.json")
    assert (reading.status, reading.reason) == (ProbeStatus.FAIL, "controls not met (1): A2")
    assert [result.status for result in reading.sub_results] == [ProbeStatus.PASS, ProbeStatus.PASS, ProbeStatus.FAIL]


async def test_an_override_lets_a_control_be_observed_only(tmp_path: Path) -> None:
    write(tmp_path / "e.json", DOCUMENT)
    rule = ControlRule(mode=ProbeMode.OBSERVE, reason="until the summer")
    reading = await judge(tmp_path / "e.json", FrameworkSelection(framework="cis", overrides={"A2": rule}))
    assert reading.status is ProbeStatus.PASS
    assert reading.sub_results[-1].override_reason == "until the summer"


async def test_an_observing_probe_says_what_it_sees(tmp_path: Path) -> None:
    write(tmp_path / "e.json", DOCUMENT)
    reading = await judge(tmp_path / "e.json", mode=ProbeMode.OBSERVE)
    assert (reading.status, reading.reason) == (ProbeStatus.FAIL, "controls not met (1): A2")


async def test_a_chosen_control_without_evidence_fails(tmp_path: Path) -> None:
    write(tmp_path / "e.json", DOCUMENT)
    chosen = ControlSelection(controls={"A3": ControlRule(), "B9": ControlRule()})
    reading = await judge(tmp_path / "e.json", chosen)
    assert (reading.status, reading.reason) == (ProbeStatus.FAIL, "controls not met (1): B9")


async def test_nothing_selected_fails(tmp_path: Path) -> None:
    write(tmp_path / "e.json", DOCUMENT)
    reading = await judge(tmp_path / "e.json", FrameworkSelection(framework="iso"))
    assert (reading.status, reading.reason) == (
        ProbeStatus.FAIL,
        "the evidence has no control that this probe selects",
    )


@pytest.mark.parametrize(
    ("collected_at", "status"),
    [
        ("2025-12-31T23:59:00Z", ProbeStatus.PASS),
        ("2025-12-31T23:58:59.999Z", ProbeStatus.FAIL),
        ("2026-01-01T00:02:40Z", ProbeStatus.PASS),
        ("2026-01-01T00:02:40.001Z", ProbeStatus.FAIL),
    ],
)
async def test_evidence_counts_from_a_minute_before_the_activation_to_a_minute_from_now(
    tmp_path: Path, collected_at: str, status: ProbeStatus
) -> None:
    write(tmp_path / "e.json", met(collectedAt=collected_at))
    assert (await judge(tmp_path / "e.json")).status is status


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"hostname": "node8"}, "is about node8, this host is node7"), ({"schemaVersion": 2}, "schemaVersion 2")],
)
async def test_evidence_of_another_host_or_version_fails(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    write(tmp_path / "e.json", met(**changes))
    reading = await judge(tmp_path / "e.json")
    assert reading.status is ProbeStatus.FAIL
    assert words in (reading.reason or "")


async def test_evidence_signed_with_another_key_fails(tmp_path: Path) -> None:
    write(tmp_path / "e.json", met(), generate_host_key())
    reading = await judge(tmp_path / "e.json")
    assert reading.status is ProbeStatus.FAIL
    assert "signature does not count" in (reading.reason or "")


async def test_evidence_that_was_edited_afterwards_fails(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    write(path, DOCUMENT)
    path.write_bytes(path.read_bytes().replace(b"false", b"true"))
    assert (await judge(path)).status is ProbeStatus.FAIL


async def test_a_collection_in_progress_does_not_count_as_a_failure(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    write(path, DOCUMENT)
    signature = path.with_name("e.json.sig")
    old = signature.read_bytes()
    write(path, met())
    new = signature.read_bytes()
    signature.write_bytes(old)
    async with trio.open_nursery() as nursery:

        async def sign_a_little_later() -> None:
            await trio.sleep(0.05)
            signature.write_bytes(new)

        nursery.start_soon(sign_a_little_later)
        reading = await judge(path)
    assert reading.status is ProbeStatus.PASS


async def test_missing_files_fail_and_are_named(tmp_path: Path) -> None:
    path = tmp_path / "e.json"
    assert (await judge(path)).reason == f"{path}: No such file or directory"
    write(path, met())
    path.with_name("e.json.sig").unlink()
    assert (await judge(path)).reason == f"{path}.sig: No such file or directory"


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
async def test_what_is_no_file_fails_without_waiting_for_it(tmp_path: Path, make: Any) -> None:
    make(tmp_path / "e.json")
    before = len(os.listdir("/dev/fd"))
    for _ in range(3):
        assert (await judge(tmp_path / "e.json")).reason == f"{tmp_path}/e.json: is not a regular file"
    assert len(os.listdir("/dev/fd")) <= before + 1


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"\xff", b'{"schemaVersion": 1}', b" " * (8 * 1024 * 1024) + b"{}"]
)
async def test_what_is_no_evidence_fails_with_a_reason(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "e.json"
    write(path, met())
    path.write_bytes(data)
    reading = await judge(path)
    assert reading.status is ProbeStatus.FAIL
    assert (reading.reason or "").startswith(f"{path}: ")


async def test_without_a_host_key_nothing_is_proved(tmp_path: Path) -> None:
    write(tmp_path / "e.json", met())
    probe = EvidenceProbe(name="cis", selection=CIS, path=str(tmp_path / "e.json"))
    reading = await run_probe(probe, attrs.evolve(context(), host_public_key=None))
    assert (reading.status, reading.reason) == (
        ProbeStatus.FAIL,
        "this host has no host key to check evidence with",
    )
