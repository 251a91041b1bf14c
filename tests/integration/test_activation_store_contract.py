"""What every store promises, asked of the directory store and of Nix alike."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from nixfleet_agent.activation.errors import ProfileError
from nixfleet_agent.activation.paths import closure_behind
from state_machine.values import Closure, Reason
from tests.nixlab import HAVE_NIX, NO_NIX, DirectoryPublisher, Host, NixPublisher, Publisher

UNKNOWN = Closure("0" * 32 + "-system")

KINDS: dict[str, Callable[[Path], Publisher]] = {"directory": DirectoryPublisher.at, "nix": NixPublisher.at}


@pytest.fixture(
    scope="module",
    params=["directory", pytest.param("nix", marks=[pytest.mark.nix, pytest.mark.skipif(not HAVE_NIX, reason=NO_NIX)])],
)
def publisher(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Publisher:
    return KINDS[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def host(publisher: Publisher, tmp_path: Path) -> Host:
    return publisher.host(tmp_path)


async def test_a_signed_closure_is_realised_whole(publisher: Publisher, host: Host) -> None:
    closure = publisher.publish("good", files={"sub/data": "42", "kernel": "-> ../elsewhere"})
    assert not await host.store.has(closure)
    outcome = await host.store.realise(closure, caches=[publisher.url], timeout_s=60)
    assert outcome.ok, outcome.detail
    assert outcome.reason is None
    assert await host.store.has(closure)
    files = Path(host.store.path(closure))
    assert (files / "sub" / "data").read_text() == "42"
    assert os.readlink(files / "kernel") == "../elsewhere"
    assert os.access(files / "bin" / "switch-to-configuration", os.X_OK)
    assert not os.access(files / "sub" / "data", os.X_OK)


async def test_realising_again_needs_no_cache(publisher: Publisher, host: Host) -> None:
    closure = publisher.publish("good")
    assert (await host.store.realise(closure, caches=[publisher.url], timeout_s=60)).ok
    assert (await host.store.realise(closure, caches=[], timeout_s=60)).ok


async def test_an_unsigned_closure_is_refused_for_its_signature(publisher: Publisher, host: Host) -> None:
    closure = publisher.publish("good", signed=False)
    outcome = await host.store.realise(closure, caches=[publisher.url], timeout_s=60)
    assert not outcome.ok
    assert outcome.reason is Reason.REALISE_FAILED
    assert outcome.signature, outcome.detail
    assert not await host.store.has(closure)


async def test_a_closure_signed_by_a_key_the_host_does_not_trust_is_refused(
    publisher: Publisher, tmp_path: Path
) -> None:
    host = publisher.host(tmp_path, trusting=False)
    closure = publisher.publish("good")
    outcome = await host.store.realise(closure, caches=[publisher.url], timeout_s=60)
    assert outcome.signature, outcome.detail
    assert not await host.store.has(closure)


async def test_altered_content_under_a_good_signature_is_refused(publisher: Publisher, host: Host) -> None:
    closure = publisher.publish("good")
    publisher.alter(closure)
    outcome = await host.store.realise(closure, caches=[publisher.url], timeout_s=60)
    assert outcome.signature, outcome.detail
    assert not await host.store.has(closure)


async def test_another_closure_served_in_this_ones_place_is_refused(publisher: Publisher, host: Host) -> None:
    closure, other = publisher.publish("good"), publisher.publish("good")
    publisher.impersonate(closure, other)
    outcome = await host.store.realise(closure, caches=[publisher.url], timeout_s=60)
    assert outcome.signature, outcome.detail
    assert not await host.store.has(closure)
    assert not await host.store.has(other)


async def test_a_closure_no_cache_has_is_missing_and_not_untrusted(publisher: Publisher, host: Host) -> None:
    outcome = await host.store.realise(UNKNOWN, caches=[publisher.url], timeout_s=60)
    assert outcome.reason is Reason.REALISE_FAILED
    assert not outcome.signature
    assert UNKNOWN in outcome.detail
    assert not (await host.store.realise(UNKNOWN, caches=[], timeout_s=60)).ok


async def test_a_good_cache_makes_up_for_a_bad_one(publisher: Publisher, host: Host, tmp_path: Path) -> None:
    closure = publisher.publish("good")
    caches = [f"file://{tmp_path}/no-cache-here", publisher.url]
    outcome = await host.store.realise(closure, caches=caches, timeout_s=60)
    assert outcome.ok, outcome.detail


@pytest.mark.parametrize(
    "name", ["", "../../etc/passwd", "-rf", "a" * 300, "0" * 32 + "-a/b", "0" * 32 + "-a\nb", "\0", "0" * 32 + "-.hid"]
)
async def test_a_name_that_is_no_closure_reaches_no_file_and_no_command(host: Host, name: str) -> None:
    closure = Closure(name)
    assert not await host.store.has(closure)
    outcome = await host.store.realise(closure, caches=[host.cache], timeout_s=60)
    assert not outcome.ok
    assert outcome.detail == "not the name of a store path"


@pytest.mark.parametrize("url", ["", "ftp://x/y", "local", "-x", "file:///x?trusted=1", "https://a b/"])
async def test_a_cache_address_that_would_weaken_the_check_is_not_used_and_said_so(
    publisher: Publisher, host: Host, url: str
) -> None:
    closure = publisher.publish("good", signed=False)
    outcome = await host.store.realise(closure, caches=[url], timeout_s=60)
    assert not outcome.ok
    assert "is not used" in outcome.detail


async def test_a_cache_cannot_ask_to_be_trusted(publisher: Publisher, host: Host) -> None:
    closure = publisher.publish("good", signed=False)
    outcome = await host.store.realise(closure, caches=[f"{publisher.url}?trusted=1"], timeout_s=60)
    assert not outcome.ok
    assert not await host.store.has(closure)


async def test_a_deadline_that_has_passed_ends_it(publisher: Publisher, host: Host) -> None:
    closure = publisher.publish("good")
    outcome = await host.store.realise(closure, caches=[publisher.url], timeout_s=0)
    assert not outcome.ok
    assert "deadline" in outcome.detail
    assert (await host.store.realise(closure, caches=[publisher.url], timeout_s=60)).ok, "nothing half-done is left"


async def test_cancelling_leaves_nothing_that_counts_as_the_closure(publisher: Publisher, host: Host) -> None:
    closure = publisher.publish("good", files={f"data-{n}": "x" * 100_000 for n in range(20)})
    with trio.move_on_after(0.005):
        await host.store.realise(closure, caches=[publisher.url], timeout_s=60)
    assert (await host.store.realise(closure, caches=[publisher.url], timeout_s=60)).ok
    assert (Path(host.store.path(closure)) / "data-19").stat().st_size == 100_000


async def test_detail_keeps_to_two_kibibytes(publisher: Publisher, host: Host) -> None:
    outcome = await host.store.realise(UNKNOWN, caches=[f"file:///{'x' * 100}/{n}" for n in range(10)], timeout_s=60)
    assert len(outcome.detail.encode()) <= 2048


async def test_the_profile_gets_one_generation_per_change(publisher: Publisher, host: Host) -> None:
    first, second = publisher.publish("good"), publisher.publish("good")
    for closure in (first, second):
        assert (await host.store.realise(closure, caches=[publisher.url], timeout_s=60)).ok
    profile = Path(host.paths.profile)
    for closure, generation in ((first, 1), (first, 1), (second, 2), (first, 3)):
        await host.store.set_profile(closure)
        assert closure_behind(str(profile), host.paths.store) == closure
        assert os.readlink(profile) == f"system-{generation}-link"
    assert os.readlink(profile.parent / "system-1-link") == host.paths.named(first)


async def test_a_profile_is_not_set_to_what_is_not_there(host: Host) -> None:
    with pytest.raises(ProfileError, match=UNKNOWN):
        await host.store.set_profile(UNKNOWN)
    assert not os.path.lexists(host.paths.profile)


async def test_a_profile_in_a_directory_that_cannot_be_made_is_a_profile_error(
    publisher: Publisher, host: Host
) -> None:
    closure = publisher.publish("good")
    assert (await host.store.realise(closure, caches=[publisher.url], timeout_s=60)).ok
    profiles = Path(host.paths.profile).parent
    profiles.rmdir()
    profiles.write_text("a file is in the way")
    with pytest.raises(ProfileError):
        await host.store.set_profile(closure)
