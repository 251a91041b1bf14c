"""Whoever keeps a target is trusted with nothing: what a hostile or broken one can make of a publisher."""

import gzip
import http.server
import itertools
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import attrs
import httpx
import pytest

from nixfleet.keys.tokens import revoke
from nixfleet.release.publish import publish_release, refresh_release
from nixfleet.release.published import NothingPublishedError
from nixfleet.release.staging import REVOCATIONS
from nixfleet.release.targets.directory import DirectoryTarget
from nixfleet.release.targets.objects import ObjectTarget, UnreachableError
from nixfleet.release.targets.remembered import PutBackError, RememberedTarget, remembered
from state_machine.intent import Revocation
from state_machine.values import HostName
from tests.releaselab import Desk, put_server
from tests.unit.nixfleet_samples import CI_KEY, NOW, closure, description, later

FLEET: Final = "fleet.resolved.json"


def put_back(root: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (root / name).write_bytes(content)


def files_of(root: Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def mirror(tmp_path: Path) -> RememberedTarget:
    """Somebody's place for files, of which this machine remembers what it published there."""
    told: list[str] = []
    made = remembered(DirectoryTarget(root=tmp_path / "mirror"), "x", tmp_path / "memory", told.append)
    assert isinstance(made, RememberedTarget)
    return made


def test_a_server_that_hands_out_an_older_release_gets_no_new_signature_for_it(tmp_path: Path) -> None:
    desk = Desk.at(tmp_path / "desk")
    with put_server() as server:
        assert desk.release(server.prefix, "abcd").status == 0
        before = dict(server.files)
        assert desk.release(server.prefix, "ef01").status == 0
        after = dict(server.files)
        server.files.clear()
        server.files.update(before)
        ran = desk.refresh(server.prefix)
        assert ran.status == 1
        assert "somebody put the place back" in ran.err
        assert server.files == before
        server.files.update(after)
        assert desk.refresh(server.prefix).status == 0


def test_a_list_of_revoked_hosts_that_was_put_back_is_neither_renewed_nor_extended(
    mirror: RememberedTarget, tmp_path: Path
) -> None:
    def revoked(name: str, hours: float) -> None:
        entry = Revocation(hostname=HostName(name), not_before=later(hours), reason=None, revoked_by=None)
        revoke(mirror, entry, CI_KEY, later(hours), None)

    publish_release(description(), CI_KEY, mirror, "abcd", NOW)
    revoked("node1", 1)
    old = {name: content for name, content in files_of(tmp_path / "mirror").items() if name.startswith(REVOCATIONS)}
    revoked("node2", 2)
    put_back(tmp_path / "mirror", old)
    with pytest.raises(PutBackError, match=r"revocations\.json is the one signed 2026-06-01T11:00:00Z"):
        refresh_release(CI_KEY, mirror, later(3))
    with pytest.raises(PutBackError):
        revoked("node3", 3)
    (tmp_path / "mirror" / REVOCATIONS).unlink()
    with pytest.raises(PutBackError, match=r"revocations\.json is gone"):
        revoked("node3", 3)
    mirror.memory.unlink()
    revoked("node3", 3)


def test_what_another_machine_published_later_is_no_rollback(mirror: RememberedTarget, tmp_path: Path) -> None:
    publish_release(description(), CI_KEY, mirror, "abcd", NOW)
    other = description().with_closures({"node1": closure("node1", 2)})
    publish_release(other, CI_KEY, tmp_path / "mirror", "ef01", later(1))
    assert refresh_release(CI_KEY, mirror, later(2)).commit == "ef01"


def test_without_a_place_to_remember_in_it_is_published_and_said(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "file").write_bytes(b"")
    mirror = remembered(DirectoryTarget(root=tmp_path / "mirror"), "x", tmp_path / "file" / "below", told.append)
    publish_release(description(), CI_KEY, mirror, "abcd", NOW)
    assert "nobody will notice if it is put back" in told[0]


@attrs.define(kw_only=True)
class _Changing:
    """A directory in which files are replaced behind the reader's back: after its first reading of one."""

    root: DirectoryTarget
    later: dict[str, bytes]
    read_once: set[str] = attrs.field(factory=set)

    @property
    def where(self) -> str:
        return self.root.where

    def held(self) -> AbstractContextManager[None]:
        return self.root.held()

    def names(self) -> tuple[str, ...]:
        return self.root.names()

    def publish(self, files: Mapping[str, bytes], *, remove: Sequence[str] = (), message: str) -> None:
        self.root.publish(files, remove=remove, message=message)

    def read(self, name: str) -> bytes | None:
        if name.removesuffix(".sig") in self.read_once and name in self.later:
            return self.later[name]
        self.read_once.add(name)
        return self.root.read(name)


def test_a_manifest_that_is_exchanged_while_it_is_read_is_not_signed_for_the_fleet(tmp_path: Path) -> None:
    """Genuine, of the same rollout, and anchored to an older fleet: it would send what was taken back."""
    stable = "rollouts/stable@abcd.json"
    publish_release(description(), CI_KEY, tmp_path, "abcd", NOW)
    old = {name: content for name, content in files_of(tmp_path).items() if name.startswith(stable)}
    refresh_release(CI_KEY, tmp_path, later(1))
    refreshed = refresh_release(CI_KEY, _Changing(root=DirectoryTarget(root=tmp_path), later=old), later(2))
    assert refreshed.rollout_ids == ("edge@abcd",)


def test_files_that_are_nobody_s_manifests_are_in_nobody_s_way(tmp_path: Path) -> None:
    publish_release(description(), CI_KEY, tmp_path, "abcd", NOW)
    (tmp_path / "rollouts" / "notes of ours.json").write_text('{"a": 1}')
    assert refresh_release(CI_KEY, tmp_path, later(1)).rollout_ids == ("edge@abcd", "stable@abcd")


@contextmanager
def answering(headers: dict[str, str], body: bytes) -> Iterator[str]:
    """A web server that says one thing."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody reads it."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def test_an_answer_that_was_packed_unasked_is_not_unpacked() -> None:
    """A few bytes, packed three times over, would be more than there is memory."""
    packed = gzip.compress(b"0" * 100_000)
    with answering({"Content-Encoding": "gzip"}, packed) as url, httpx.Client(trust_env=False) as client:
        assert ObjectTarget(url=url, where=url, client=client).read(FLEET) == packed


def test_a_server_that_never_comes_to_the_end_of_an_answer_is_given_up() -> None:
    with answering({}, b"0" * 100_000) as url, httpx.Client(trust_env=False) as client:
        clock = itertools.count(step=301)
        target = ObjectTarget(url=url, where=url, client=client, pause=lambda _: None, clock=clock.__next__)
        with pytest.raises(UnreachableError, match="no whole answer within 300 s"):
            target.read(FLEET)


def test_a_place_that_was_emptied_is_not_taken_for_a_new_one(mirror: RememberedTarget, tmp_path: Path) -> None:
    with pytest.raises(NothingPublishedError):
        refresh_release(CI_KEY, mirror, NOW)
    publish_release(description(), CI_KEY, mirror, "abcd", NOW)
    for path in (tmp_path / "mirror").rglob("*"):
        if path.is_file():
            path.unlink()
    with pytest.raises(PutBackError, match="is gone"):
        refresh_release(CI_KEY, mirror, later(1))
