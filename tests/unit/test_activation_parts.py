"""The parts of activation that need no processes: links, keys, trees, cache addresses, Nix's words."""

import base64
import os
from pathlib import Path

import pytest
from nacl.signing import SigningKey

from nixfleet_agent.activation.cache_keys import CacheKey, TrustedKeys
from nixfleet_agent.activation.directory_store import publish
from nixfleet_agent.activation.errors import CacheKeyError, CacheUrlError, TreeError
from nixfleet_agent.activation.inhibitors import COMPONENTS, DEFAULT, chosen, differing_component
from nixfleet_agent.activation.links import link_atomically
from nixfleet_agent.activation.nix_store import checked_cache_url, refused_signature
from nixfleet_agent.activation.paths import Paths, closure_behind, read_boot_id
from nixfleet_agent.activation.trees import copy_tree, tree_digest
from state_machine.values import Closure, is_closure

NAME = "0" * 32 + "-nixos-system-a-25.11"

# --- links ----------------------------------------------------------------------------------------------------------


def test_a_link_through_a_profile_leads_to_its_closure(tmp_path: Path) -> None:
    store = f"{tmp_path}/store"
    link_atomically(f"{store}/{NAME}", f"{tmp_path}/profiles/system-7-link")
    link_atomically("system-7-link", f"{tmp_path}/profiles/system")
    link_atomically(f"{tmp_path}/profiles/system", f"{tmp_path}/run/current")
    assert closure_behind(f"{tmp_path}/run/current", store) == NAME, "and need not exist there"


@pytest.mark.parametrize(
    "target", ["/etc", "/nix/store", "/nix/store/short", f"/nix/store/{NAME}/bin", "current", "/nix/store/.links", ""]
)
def test_a_link_to_anything_but_a_closure_is_absent(tmp_path: Path, target: str) -> None:
    link = tmp_path / "current"
    if target:
        link.symlink_to(target)
    assert closure_behind(str(link), "/nix/store") is None


def test_a_link_is_replaced_without_a_trace(tmp_path: Path) -> None:
    link = f"{tmp_path}/sub/link"
    link_atomically("a", link)
    (tmp_path / "sub" / "link.new").symlink_to("left by a crash")
    link_atomically("b", link)
    assert os.readlink(link) == "b"
    assert os.listdir(tmp_path / "sub") == ["link"]


def test_a_chroot_store_has_its_files_below_its_root() -> None:
    paths = Paths.below("/host", store="/somewhere/store", store_root="/host/root")
    assert paths.named(Closure(NAME)) == f"/somewhere/store/{NAME}"
    assert paths.files(Closure(NAME)) == f"/host/root/nix/store/{NAME}"
    assert Paths().files(Closure(NAME)) == f"/nix/store/{NAME}"


def test_a_boot_id_is_read_without_its_line_end(tmp_path: Path) -> None:
    (tmp_path / "id").write_bytes(b"abc\n")
    assert read_boot_id(f"{tmp_path}/id") == "abc"
    assert read_boot_id(f"{tmp_path}/absent") == ""


# --- components -----------------------------------------------------------------------------------------------------


def test_components_are_compared_by_what_their_links_lead_to(tmp_path: Path) -> None:
    for system, kernel in (("a", "k1"), ("b", "k1"), ("c", "k2")):
        (tmp_path / system).mkdir()
        (tmp_path / system / "hop").symlink_to(tmp_path / kernel)
        (tmp_path / system / "kernel").symlink_to("hop")
    a, b, c = (f"{tmp_path}/{system}" for system in "abc")
    assert differing_component(a, b, COMPONENTS) is None
    assert differing_component(a, c, COMPONENTS) == "kernel"
    assert differing_component(a, c, chosen(["systemd", "dbus"])) is None
    assert differing_component(a, c, {}) is None


def test_another_initrd_alone_counts_only_where_it_was_asked_for(tmp_path: Path) -> None:
    for system in "ab":
        (tmp_path / system).mkdir()
        for name in COMPONENTS:
            place = tmp_path / system / COMPONENTS[name]
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(tmp_path / (system if name == "initrd" else "same") / name)
    a, b = (f"{tmp_path}/{system}" for system in "ab")
    assert differing_component(a, b, chosen(DEFAULT)) is None
    assert differing_component(a, b, chosen([*DEFAULT, "initrd"])) == "initrd"


# --- cache addresses ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "https://cache.nixos.org",
        "http://10.0.0.1:5000/x?priority=10",
        "file:///var/cache?compression=none",
        "s3://bucket?region=eu-west-1&endpoint=e.example",
        "ssh-ng://builder",
    ],
)
def test_ordinary_cache_addresses_are_used(url: str) -> None:
    assert checked_cache_url(url) == url


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("file:///c?trusted=1", "may not set 'trusted'"),
        ("https://c/?a=b&trusted=true", "may not set 'trusted'"),
        ("https://c/?%74rusted=1", "may not set 'trusted'"),
        ("ssh://h?remote-program=evil", "may not set 'remote-program'"),
        ("file:///c?root=/", "may not set 'root'"),
        ("daemon", "its scheme is none of"),
        ("/nix", "its scheme is none of"),
        ("auto", "its scheme is none of"),
        ("unix:///run/x", "its scheme is none of"),
        ("--option", "its scheme is none of"),
        ("https://a b", "not a plain address"),
        ("https://a\nb", "not a plain address"),
        ("https://a\u00e9", "not a plain address"),
        ("ssh://-oProxyCommand=evil", "not a plain address"),
    ],
)
def test_a_cache_address_that_could_change_what_nix_does_is_refused(url: str, why: str) -> None:
    with pytest.raises(CacheUrlError, match=why):
        checked_cache_url(url)


# --- Nix's words ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words",
    [
        # Nix 2.8.0
        "error: cannot add path '/nix/store/x' because it lacks a valid signature",
        "warning: the substitute for '/nix/store/x' from 'file:///c' is not signed by any of the keys in "
        "'trusted-public-keys'",
        "error: hash mismatch importing path '/nix/store/x';\n  specified: sha256:1\n  got: sha256:2",
        "asked 'file:///c' for '/nix/store/x' but got '/nix/store/y'\nerror: build of '/nix/store/x' failed",
        # Nix 2.26.3
        "error: cannot add path '/nix/store/x' because it lacks a signature by a trusted key",
        "warning: ignoring substitute for '/nix/store/x' from 'file:///c', as it's not signed by any of the keys in "
        "'trusted-public-keys'",
    ],
)
def test_what_nix_says_of_an_untrusted_path_is_recognised(words: str) -> None:
    assert refused_signature(f"copying 1 paths...\n{words}\n")


@pytest.mark.parametrize(
    "words",
    [
        "error: path '/nix/store/x' is required, but there is no substituter that can build it",
        "error: writing to file: No space left on device",
        "error: unable to download 'http://c/nix-cache-info': Couldn't connect to server (7)",
        "copying path '/nix/store/x-asked-for' from 'file:///c'...",
        "",
    ],
)
def test_other_failures_of_nix_are_not_taken_for_one_of_trust(words: str) -> None:
    assert not refused_signature(words)


# --- cache keys -----------------------------------------------------------------------------------------------------


def test_a_key_survives_being_written_and_read() -> None:
    key = CacheKey.generate("cache.example-1")
    assert CacheKey.parse(key.secret) == key
    assert len(base64.b64decode(key.secret.split(":")[1])) == 64, "seed and public key, as Nix writes them"
    assert repr(key.seed) not in repr(key)
    assert TrustedKeys.parse([key.public]).any_signed(b"m", [key.sign(b"m")])


def test_a_signature_counts_only_for_its_message_key_and_name() -> None:
    key, other = CacheKey.generate("a"), CacheKey.generate("b")
    trusted = TrustedKeys.parse([key.public])
    assert not trusted.any_signed(b"m2", [key.sign(b"m")])
    assert not trusted.any_signed(b"m", [other.sign(b"m")])
    assert not trusted.any_signed(b"m", [other.sign(b"m").replace("b:", "a:")])
    assert not trusted.any_signed(b"m", ["", "a", "a:", "a:!!", "a:AAAA", ":x", key.sign(b"m")[:-8]])
    assert trusted.any_signed(b"m", ["garbage", other.sign(b"m"), key.sign(b"m")])
    assert not TrustedKeys().any_signed(b"m", [key.sign(b"m")])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no-colon", "no colon"),
        (":AAAA", "no colon after a name"),
        ("a:***", "only base64|Only base64|Invalid|Non-base64"),
        ("a:" + base64.b64encode(bytes(31)).decode(), "not 31"),
    ],
)
def test_a_key_that_is_none_says_what_is_wrong(text: str, why: str) -> None:
    with pytest.raises(CacheKeyError, match=why):
        TrustedKeys.parse([text])
    with pytest.raises(CacheKeyError):
        CacheKey.parse(text)


def test_a_signing_key_of_nix_is_read_as_the_key_it_is() -> None:
    signing = SigningKey(bytes(range(32)))
    text = "k:" + base64.b64encode(bytes(signing) + bytes(signing.verify_key)).decode()
    assert CacheKey.parse(text).public == "k:" + base64.b64encode(bytes(signing.verify_key)).decode()


# --- trees ----------------------------------------------------------------------------------------------------------


def tree(at: Path) -> Path:
    (at / "bin").mkdir(parents=True)
    (at / "bin" / "run").write_text("#!/bin/sh\n")
    (at / "bin" / "run").chmod(0o755)
    (at / "data").write_text("1")
    (at / "link").symlink_to("data")
    (at / "empty").mkdir()
    return at


def test_a_copy_has_the_digest_of_its_original(tmp_path: Path) -> None:
    original = tree(tmp_path / "a")
    (original / "data").chmod(0o600)
    copy_tree(str(original), f"{tmp_path}/b")
    assert tree_digest(f"{tmp_path}/b") == tree_digest(str(original))
    assert (tmp_path / "b" / "data").stat().st_mode & 0o777 == 0o444


@pytest.mark.parametrize(
    "change",
    [
        lambda top: (top / "data").write_text("2"),
        lambda top: (top / "data").chmod(0o755),
        lambda top: (top / "data").rename(top / "date"),
        lambda top: (top / "bin" / "run").rename(top / "run"),
        lambda top: (top / "empty").rmdir(),
        lambda top: (top / "more").write_text(""),
        lambda top: ((top / "link").unlink(), (top / "link").symlink_to("bin")),
        lambda top: ((top / "link").unlink(), (top / "link").write_text("data")),
        lambda top: ((top / "empty").rmdir(), (top / "empty").write_text("")),
    ],
)
def test_every_change_of_a_tree_changes_its_digest(tmp_path: Path, change: object) -> None:
    top = tree(tmp_path / "a")
    before = tree_digest(str(top))
    assert callable(change)
    change(top)
    assert tree_digest(str(top)) != before


def test_names_that_are_no_text_are_part_of_a_tree(tmp_path: Path) -> None:
    top = tree(tmp_path / "a")
    with open(os.path.join(os.fsencode(top), b"\xff\n"), "w") as file:
        file.write("x")
    copy_tree(str(top), f"{tmp_path}/b")
    assert tree_digest(f"{tmp_path}/b") == tree_digest(str(top))


def test_a_tree_with_a_pipe_in_it_is_refused_and_not_read(tmp_path: Path) -> None:
    top = tree(tmp_path / "a")
    os.mkfifo(top / "bin" / "pipe")
    for act in (tree_digest, lambda path: copy_tree(path, f"{tmp_path}/b")):
        with pytest.raises(TreeError, match="bin/pipe: neither file, directory nor link"):
            act(str(top))


def test_a_tree_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(TreeError, match="absent"):
        tree_digest(f"{tmp_path}/absent")


def test_the_same_tree_and_name_are_published_as_the_same_closure(tmp_path: Path) -> None:
    key = CacheKey.generate("a")
    first = publish(str(tree(tmp_path / "a")), f"{tmp_path}/cache", name="sys-1", key=key)
    again = publish(str(tree(tmp_path / "b")), f"{tmp_path}/cache", name="sys-1", key=key)
    other = publish(str(tree(tmp_path / "c")), f"{tmp_path}/cache", name="sys-2", key=key)
    assert first == again != other
    assert is_closure(first)
    assert first.endswith("-sys-1")
    assert sorted(os.listdir(tmp_path / "cache")) == sorted([first, f"{first}.sig", other, f"{other}.sig"])
    with pytest.raises(ValueError, match="cannot be part"):
        publish(str(tmp_path / "a"), f"{tmp_path}/cache", name="a/b", key=key)
