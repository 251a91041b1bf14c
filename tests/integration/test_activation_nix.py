"""What only Nix does: substitution over HTTP, its own words, garbage collection, broken installations."""

import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest
import trio

from nixfleet_agent.activation.interface import RealiseOutcome
from nixfleet_agent.activation.nix_store import NixStore
from state_machine.system import SwitchOutcome
from state_machine.values import Closure, Reason
from tests.nixlab import HAVE_NIX, NO_NIX, Host, NixPublisher, served

pytestmark = [pytest.mark.nix, pytest.mark.skipif(not HAVE_NIX, reason=NO_NIX)]

UNKNOWN = Closure("0" * 32 + "-system")


@pytest.fixture(scope="module")
def publisher(tmp_path_factory: pytest.TempPathFactory) -> NixPublisher:
    return NixPublisher.at(tmp_path_factory.mktemp("publisher"))


@pytest.fixture
def host(publisher: NixPublisher, tmp_path: Path) -> Host:
    return publisher.host(tmp_path)


async def test_a_host_is_switched_from_a_cache_over_http_and_back(host: Host, publisher: NixPublisher) -> None:
    old, new = publisher.publish("good"), publisher.publish("good")
    with served(publisher.cache) as url:
        await attrs.evolve(host, cache=url).starts_on(old)
        outcome = await host.platform().realise(new, caches=[url])
    assert outcome == RealiseOutcome(ok=True)
    report = await host.platform().switch("op-1", new)
    assert (report.outcome, report.exit_code, report.observed) == (SwitchOutcome.SWITCHED, 0, new)
    assert (await host.platform().rollback("op-2", old)).outcome is SwitchOutcome.SWITCHED
    assert host.runs() == [f"switch {new}", f"switch {old}"]
    assert host.platform().observe().profile == old


async def test_a_path_pushed_after_the_first_look_is_found_at_the_second(host: Host, publisher: NixPublisher) -> None:
    closure = publisher.publish("good")
    narinfo = publisher.cache / f"{closure[:32]}.narinfo"
    with served(publisher.cache) as url:
        narinfo.rename(narinfo.with_suffix(".later"))
        missing = await host.store.realise(closure, caches=[url], timeout_s=60)
        assert not missing.ok
        assert not missing.signature
        narinfo.with_suffix(".later").rename(narinfo)
        assert (await host.store.realise(closure, caches=[url], timeout_s=60)).ok


@pytest.mark.parametrize("how", ["unsigned", "altered", "impersonated"])
async def test_over_http_too_an_untrusted_path_is_refused(host: Host, publisher: NixPublisher, how: str) -> None:
    closure = publisher.publish("good", signed=how != "unsigned")
    if how == "altered":
        publisher.alter(closure)
    if how == "impersonated":
        publisher.impersonate(closure, publisher.publish("good"))
    with served(publisher.cache) as url:
        outcome = await host.platform().realise(closure, caches=[url])
    assert (outcome.ok, outcome.reason, outcome.signature) == (False, Reason.REALISE_FAILED, True), outcome.detail
    report = await host.platform().switch("op-1", closure)
    assert report.outcome is SwitchOutcome.FAILED
    assert host.runs() == []


async def test_an_unsigned_dependency_of_a_signed_closure_is_refused(host: Host, publisher: NixPublisher) -> None:
    dependency = publisher.publish("good", signed=False, name="dependency")
    script = f"echo {publisher.store_name}/{dependency} > $out"
    derivation = (
        'derivation { name = "top"; system = builtins.currentSystem; builder = "/bin/sh"; args = [ "-c" %s ]; %s }'
    )
    path = f'dep = builtins.storePath "{publisher.store_name}/{dependency}";'
    top = publisher.build(derivation % (f'"{script}"', path))
    outcome = await host.platform().realise(top, caches=[publisher.url])
    assert not outcome.ok
    assert outcome.signature, outcome.detail


async def test_a_host_that_turned_signatures_off_for_itself_checks_them_here(
    publisher: NixPublisher, tmp_path: Path
) -> None:
    host = publisher.host(tmp_path)
    with open(tmp_path / "etc" / "nix.conf", "a") as settings:
        settings.write("require-sigs = false\n")
    outcome = await host.store.realise(publisher.publish("good", signed=False), caches=[publisher.url], timeout_s=60)
    assert outcome.signature, outcome.detail


async def test_untrusted_is_recognised_by_exit_status_when_the_words_are_new(
    publisher: NixPublisher, tmp_path: Path
) -> None:
    host = publisher.host(tmp_path)
    closure = publisher.publish("good", signed=False)
    reworded = tmp_path / "bin"
    reworded.mkdir()
    for name in ("nix", "nix-store"):
        real = shutil.which(name)
        script = f'{real} "$@" 2> {tmp_path}/said; code=$?; echo "something was not right" >&2; exit $code'
        (reworded / name).write_text(f"#!/bin/sh\n{script}\n")
        (reworded / name).chmod(0o755)
    assert isinstance(host.store, NixStore)
    path = {**host.store.environment, "PATH": f"{reworded}:{os.environ['PATH']}"}
    outcome = await attrs.evolve(host.store, environment=path).realise(closure, caches=[publisher.url], timeout_s=60)
    assert outcome.signature, outcome.detail


async def test_a_cache_that_dribbles_leaves_time_for_the_next_one(host: Host, publisher: NixPublisher) -> None:
    closure = publisher.publish("good")
    with dribbling() as slow, trio.fail_after(60):
        outcome = await host.store.realise(closure, caches=[slow, publisher.url], timeout_s=6)
    assert outcome.ok, outcome.detail


async def test_an_answer_that_names_another_path_is_no_success(
    host: Host, publisher: NixPublisher, tmp_path: Path
) -> None:
    liar = tmp_path / "bin"
    liar.mkdir()
    (liar / "nix").write_text("#!/bin/sh\nexit 0\n")
    (liar / "nix-store").write_text('#!/bin/sh\n[ "$1" = --realise ] && echo /somewhere/else\n')
    for name in ("nix", "nix-store"):
        (liar / name).chmod(0o755)
    assert isinstance(host.store, NixStore)
    store = attrs.evolve(host.store, environment={"PATH": f"{liar}:{os.environ['PATH']}"})
    outcome = await store.realise(UNKNOWN, caches=[], timeout_s=60)
    assert not outcome.ok
    assert "/somewhere/else" in outcome.detail


async def test_a_host_without_nix_says_so(host: Host) -> None:
    assert isinstance(host.store, NixStore)
    store = attrs.evolve(host.store, environment={"PATH": "/nowhere"})
    outcome = await store.realise(UNKNOWN, caches=[host.cache], timeout_s=60)
    assert not outcome.ok
    assert "cannot run nix" in outcome.detail
    assert "PATH" in outcome.detail


async def test_a_full_disk_is_named(publisher: NixPublisher, tmp_path: Path) -> None:
    closure = publisher.publish("good", files={"big": "x" * 4_000_000})
    with small_disk(tmp_path / "small") as directory:
        outcome = await publisher.host(directory).platform().realise(closure, caches=[publisher.url])
    assert (outcome.ok, outcome.signature) == (False, False)
    assert "No space left on device" in outcome.detail


async def test_a_collection_between_realise_and_switch_takes_nothing(host: Host, publisher: NixPublisher) -> None:
    old, new, stray = (publisher.publish("good") for _ in range(3))
    await host.starts_on(old)
    assert (await host.store.realise(stray, caches=[host.cache], timeout_s=60)).ok
    assert (await host.platform().realise(new, caches=[host.cache])).ok
    collect_garbage(host)
    assert not await host.store.has(stray), "the collection did collect"
    assert await host.store.has(new)
    assert (await host.platform().switch("op-1", new)).outcome is SwitchOutcome.SWITCHED


async def test_the_system_to_go_back_to_survives_the_deletion_of_old_generations(
    host: Host, publisher: NixPublisher
) -> None:
    old, new = publisher.publish("good"), publisher.publish("good")
    await host.starts_on(old)
    assert (await host.platform().realise(new, caches=[host.cache])).ok
    assert (await host.platform().switch("op-1", new)).outcome is SwitchOutcome.SWITCHED
    os.unlink(Path(host.paths.profile).parent / "system-1-link")
    collect_garbage(host)
    assert (await host.platform().rollback("op-2", old)).outcome is SwitchOutcome.SWITCHED


async def test_a_path_on_the_disk_that_nix_does_not_know_is_not_switched_to(
    host: Host, publisher: NixPublisher
) -> None:
    old, new = publisher.publish("good"), publisher.publish("good")
    await host.starts_on(old)
    shutil.copytree(host.store.path(old), host.store.path(new))
    report = await host.platform().switch("op-1", new)
    assert (report.outcome, report.observed) == (SwitchOutcome.FAILED, old)
    assert "could not be set" in report.detail
    assert host.runs() == []


async def test_cancelling_ends_nix_and_the_next_try_succeeds(host: Host, publisher: NixPublisher) -> None:
    closure = publisher.publish("good")
    with dribbling() as slow:
        with trio.move_on_after(1):
            await host.store.realise(closure, caches=[slow], timeout_s=60)
        with trio.fail_after(30):
            assert (await host.store.realise(closure, caches=[publisher.url], timeout_s=60)).ok


@contextmanager
def small_disk(at: Path) -> Iterator[Path]:
    """A file system of one MiB."""
    at.mkdir()
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", at], check=False).returncode != 0:
        pytest.skip("this root may not mount")
    try:
        yield at
    finally:
        subprocess.run(["umount", "-l", at], check=True)


def collect_garbage(host: Host) -> None:
    assert isinstance(host.store, NixStore)
    environment = {**os.environ, **host.store.environment, "NIX_STORE_DIR": host.paths.store}
    words = ["nix-store", "--store", str(host.paths.store_root), "--gc"]
    subprocess.run(words, env=environment, check=True, capture_output=True)


class _Dribble(http.server.BaseHTTPRequestHandler):
    stop: threading.Event

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000000")
        self.end_headers()
        try:
            while not self.stop.wait(0.2):
                self.wfile.write(b"x")
        except OSError:
            return

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def dribbling() -> Iterator[str]:
    """A cache that sends five bytes a second for ever."""
    stop = threading.Event()
    handler = type("Handler", (_Dribble,), {"stop": stop})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        stop.set()
        server.shutdown()
        thread.join()
