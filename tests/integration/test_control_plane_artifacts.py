"""Signed artifacts, hostile and otherwise: what a control plane brings into force, and what it keeps instead."""

import http.server
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from control_plane.clock import wall_now
from evidence.documents import encode
from evidence.host_key import generate_host_key
from state_machine.intent import Budget, Selector
from state_machine.values import HostName, WallMs
from tests.cplab import Lab, Running, eventually, manifest_of, public_key, slot

DAY_MS = 86_400_000


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    lab = Lab(tmp_path)
    lab.publish("c0ffee")
    return lab


@pytest.fixture
def cp(lab: Lab) -> Iterator[Running]:
    # It looks when it is told to, so that a test sees one look at a time.
    with lab.start(artifact_poll_secs=3600) as running:
        yield running


def served(cp: Running) -> bytes:
    return cp.client("web1").get("/v1/fleet.resolved").content


def test_an_altered_file_changes_nothing_in_force(cp: Running, lab: Lab) -> None:
    good = served(cp)
    path = lab.artifacts / "fleet.resolved.json"
    path.write_bytes(good.replace(b"web1-c0ffee", b"web1-c0ffef"))
    assert "signature" in cp.refresh()["fleet.resolved.json"]
    assert served(cp) == good
    assert "artifact fleet.resolved.json is not in force" in cp.log()


@pytest.mark.parametrize("signature", [b"", bytes(64), b"x" * 63, b"x" * 65])
def test_a_signature_of_any_other_shape_changes_nothing(cp: Running, lab: Lab, signature: bytes) -> None:
    good = served(cp)
    (lab.artifacts / "fleet.resolved.json.sig").write_bytes(signature)
    assert "signature" in cp.refresh()["fleet.resolved.json"]
    assert served(cp) == good


def test_a_fleet_signed_by_an_unknown_key_is_not_brought_into_force(cp: Running, lab: Lab) -> None:
    good = served(cp)
    lab.sign("fleet.resolved.json", encode(lab.fleet("dead01")), key=generate_host_key())
    assert "signature" in cp.refresh()["fleet.resolved.json"]
    assert served(cp) == good


def test_an_older_fleet_is_refused_after_a_restart_as_well(lab: Lab) -> None:
    newer = lab.publish("dead01")
    with lab.start(artifact_poll_secs=3600) as cp:
        lab.publish("c0ffee", signed_at=WallMs(newer.signed_at - 1000))
        assert cp.refresh()["fleet.resolved.json"].startswith("superseded")
        assert b"dead01" in served(cp)
    with lab.start(artifact_poll_secs=3600) as cp:
        assert cp.client("web1").get("/v1/whoami").status_code == 503
        lab.publish("dead01", signed_at=newer.signed_at)
        assert cp.refresh() == {}
        assert b"dead01" in served(cp)


def test_a_stale_or_future_fleet_is_refused(cp: Running, lab: Lab) -> None:
    lab.publish("dead01", signed_at=WallMs(wall_now() + 120_000))
    assert cp.refresh()["fleet.resolved.json"].startswith("future-dated")
    lab.publish("dead01")
    assert cp.refresh() == {}  # the mark was not poisoned


def test_a_fleet_beyond_the_window_is_refused(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.publish("c0ffee", signed_at=WallMs(wall_now() - 31 * DAY_MS))
    with lab.start() as cp:
        assert cp.client("web1").get("/v1/whoami").status_code == 503
        assert "stale" in cp.log()


def test_a_manifest_of_another_fleet_snapshot_is_never_planned(cp: Running, lab: Lab) -> None:
    fleet = lab.fleet("dead01")
    manifest = manifest_of(fleet, fleet.hosts[HostName("web1")].channel, "dead01", "0" * 64)
    lab.sign("rollouts/stable@dead01.json", encode(manifest))
    cp.refresh()
    assert cp.operator.get("/v1/rollouts/stable@dead01/lifecycle").status_code == 404
    assert cp.agent("web1").dispatch(wait=10) is not None  # what was in force goes on


def test_a_manifest_under_another_rollouts_name_is_refused(cp: Running, lab: Lab) -> None:
    genuine = lab.artifacts / "rollouts" / "stable@c0ffee.json"
    for suffix in ("", ".sig"):
        (lab.artifacts / "rollouts" / f"stable@beef.json{suffix}").write_bytes(Path(f"{genuine}{suffix}").read_bytes())
    assert "asked for rollout stable@beef" in cp.refresh()["rollouts/stable@beef.json"]
    assert cp.client("web1").get("/v1/rollouts/stable@beef").status_code == 404


def test_keys_are_rotated_without_a_gap_and_the_old_one_ends(cp: Running, lab: Lab) -> None:
    old, new = lab.ci, generate_host_key()
    lab.write_trust(ci=slot(new, previous=public_key(old)))
    assert cp.refresh() == {}
    lab.ci = new
    lab.publish("dead01")
    assert cp.refresh() == {}
    lab.write_trust(ci=slot(new))
    cp.refresh()
    assert b"dead01" in served(cp)
    lab.ci = old
    lab.publish("beef02")
    assert "signature" in cp.refresh()["fleet.resolved.json"]
    assert b"dead01" in served(cp)


def test_a_fleet_that_the_trust_file_no_longer_stands_behind_goes_out_of_force(cp: Running, lab: Lab) -> None:
    lab.write_trust(ci=slot(lab.ci, rejectBefore="2100-01-01T00:00:00Z"))
    assert "fleet.resolved.json" in cp.refresh()
    assert cp.client("web1").get("/v1/fleet.resolved").status_code == 503
    lab.write_trust()
    assert cp.refresh() == {}
    assert cp.client("web1").get("/v1/fleet.resolved").status_code == 200


def test_an_unreadable_trust_file_changes_nothing_in_force(cp: Running, lab: Lab) -> None:
    lab.path("trust.json").write_text("{}")
    assert "trust.json" in cp.refresh()
    assert cp.client("web1").get("/v1/fleet.resolved").status_code == 200


def test_a_half_published_release_is_waited_for(cp: Running, lab: Lab) -> None:
    lab.publish("dead01")
    manifest = lab.artifacts / "rollouts" / "stable@dead01.json"
    hidden = manifest.with_suffix(".hidden")
    os.replace(manifest, hidden)
    assert cp.refresh()["fleet.resolved.json"] == "not all of its manifests are published yet"
    assert b"c0ffee" in served(cp)
    os.replace(hidden, manifest)
    assert cp.refresh() == {}
    assert b"dead01" in served(cp)


def test_signatures_that_are_being_renewed_hold_nothing_up(cp: Running, lab: Lab) -> None:
    """The manifests keep their names and come first, their fleet perhaps much later: what is in force goes on."""
    path = lab.artifacts / "rollouts" / "stable@c0ffee.json"
    before, fleet = path.read_bytes(), lab.fleet("c0ffee")
    lab.sign(
        f"rollouts/{path.name}", encode(manifest_of(fleet, fleet.hosts[HostName("web1")].channel, "c0ffee", "0" * 64))
    )
    for _ in range(3):
        assert cp.refresh() == {}
    path.with_name(f"{path.name}.sig").write_bytes(bytes(64))
    for _ in range(3):
        assert list(cp.refresh()) == [f"rollouts/{path.name}"]
    assert cp.agent("web1").dispatch(wait=10) is not None
    assert cp.client("web1").get("/v1/rollouts/stable@c0ffee").content == before


def test_a_list_that_is_gone_stays_in_force(cp: Running, lab: Lab) -> None:
    lab.revoke("web1")
    assert cp.refresh() == {}
    (lab.artifacts / "revocations.json").unlink()
    (lab.artifacts / "revocations.json.sig").unlink()
    assert cp.refresh() == {}
    assert cp.client("web1").get("/v1/whoami").status_code == 401


def test_endless_and_hostile_files_are_cut_off_and_named(cp: Running, lab: Lab) -> None:
    with (lab.artifacts / "fleet.resolved.json").open("wb") as file:
        file.truncate(1 << 40)  # sparse
    assert "more than" in cp.refresh()["fleet.resolved.json"]
    for text in (b'{"a":1,"a":2}', b"[" * 100_000, b'{"a":1e400}', b"\xef\xbb\xbf{}", b""):
        (lab.artifacts / "fleet.resolved.json").write_bytes(text)
        assert "fleet.resolved.json" in cp.refresh()
    assert cp.client("web1").get("/v1/fleet.resolved").status_code == 200


def test_an_older_rollout_is_still_served_to_who_is_in_the_middle_of_it(cp: Running, lab: Lab) -> None:
    before = cp.client("web1").get("/v1/rollouts/stable@c0ffee").content
    lab.publish("dead01")
    cp.refresh()
    assert cp.client("web1").get("/v1/rollouts/stable@c0ffee").content == before


def test_releasing_an_older_commit_again_says_what_to_do_instead(cp: Running, lab: Lab) -> None:
    lab.publish("dead01")
    cp.refresh()
    lab.publish("c0ffee")
    assert "release the old closures as a new commit" in cp.refresh()["rollouts/stable@c0ffee.json"]


def test_a_budget_of_nobody_at_once_stops_everything_and_says_so(cp: Running, lab: Lab) -> None:
    fleet = attrs.evolve(
        lab.fleet("dead01"), disruption_budgets=(Budget(selector=Selector(all=True), max_in_flight=0),)
    )
    lab.publish("dead01", fleet=fleet)
    cp.refresh()
    assert cp.agent("web1").dispatch() is None
    [row, *_] = cp.operator.get("/v1/rollouts/stable@dead01/hosts").json()["hosts"]
    assert row["heldBy"] == "disruption-budget: the budget for every host allows 0 in flight and 0 are"


# Over https


@contextmanager
def web_server(lab: Lab, token: str) -> Iterator[str]:
    """The artifact directory behind https and a bearer token."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(lab.artifacts))

        def do_GET(self) -> None:
            if self.headers.get("Authorization") != f"Bearer {token}":
                self.send_error(403)
                return
            super().do_GET()

        def log_message(self, *_: Any) -> None:
            pass

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(lab.path("server.pem"), lab.path("server-key.pem"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"https://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def test_artifacts_come_from_an_https_url_with_a_token_that_may_rotate(lab: Lab) -> None:
    token_file = lab.path("token")
    token_file.write_text("wrong\n")
    lab.revoke("web3")
    with web_server(lab, "right") as url:
        flags = {"artifacts": url, "artifacts_token_file": token_file, "artifacts_ca_cert": lab.path("ca.pem")}
        with lab.start(**flags) as cp:
            assert cp.client("web1").get("/v1/whoami").status_code == 503
            assert "the server answered 403" in cp.refresh()["fleet.resolved.json"]
            token_file.write_text("right\n")
            eventually(lambda: cp.client("web1").get("/v1/whoami").status_code == 200, what="readiness")
            assert cp.agent("web1").dispatch(wait=10) is not None
            assert cp.client("web3").get("/v1/whoami").status_code == 401
            assert "right" not in cp.log()


def test_a_server_that_cannot_prove_itself_is_not_listened_to(lab: Lab) -> None:
    with web_server(lab, "x") as url, lab.start(artifacts=url) as cp:
        assert "CERTIFICATE_VERIFY_FAILED" in cp.refresh()["fleet.resolved.json"]
        assert cp.client("web1").get("/v1/whoami").status_code == 503
