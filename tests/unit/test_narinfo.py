"""What a cache says of a path: read as Nix wrote it, believed when signed or named by its content, else refused."""

import base64

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixfleet.release.narinfo import LIMIT, NarInfo, NarInfoError, base32, from_base32, parse_narinfo
from nixfleet_agent.activation.cache_keys import TrustedKeys
from state_machine.values import Closure
from tests.unit.narinfo_samples import DEP, FIXED, FLAT, KEY, SOURCE, STORE, SYSTEM, TEXT, TRUSTED, described

NOBODY = TrustedKeys()


def read(narinfo: bytes) -> NarInfo:
    return parse_narinfo(narinfo, described(narinfo), STORE)


def refused(narinfo: bytes, asked: bytes = DEP) -> str:
    with pytest.raises(NarInfoError) as caught:
        parse_narinfo(narinfo, described(asked), STORE)
    return str(caught.value)


def test_what_nix_wrote_is_read() -> None:
    info = read(DEP)
    assert info.url == "nar/0ga7z2lm0kccx7025f6lqq0yylg8lxb458li37wrm8lyca3ld4h0.nar"
    assert info.nar_size == 328
    assert [name[33:] for name in info.references] == ["flat", "dep", "t.txt", "src"]
    assert info.signers == ("cache.test-1",)
    assert read(SYSTEM).references == ()


@pytest.mark.parametrize("narinfo", [DEP, SYSTEM, FIXED])
def test_what_nix_signed_counts_for_those_who_trust_its_key(narinfo: bytes) -> None:
    assert read(narinfo).counts(TRUSTED)


@pytest.mark.parametrize("narinfo", [DEP, SYSTEM])
def test_what_nix_signed_counts_for_nobody_else(narinfo: bytes) -> None:
    assert not read(narinfo).counts(NOBODY)
    assert not read(narinfo).counts(TrustedKeys.parse([KEY.public.replace("cache.test-2", "cache.test-1")]))


@pytest.mark.parametrize("narinfo", [TEXT, SOURCE, FLAT, FIXED])
def test_what_is_named_by_its_content_needs_no_signature(narinfo: bytes) -> None:
    assert read(narinfo).counts(NOBODY)


@pytest.mark.parametrize(
    ("member", "value"),
    [
        ("NarHash", "sha256:0kwr979f5r1l45q7hw7vg67rhmhfy3ylg302jvyfqnabqw29zkgg"),
        ("NarSize", "329"),
        ("References", ""),
        ("References", "9i027yfjid6xg5hg2mgcpf0srxrdfp94-flat"),
        ("Sig", "cache.test-1:" + base64.b64encode(bytes(64)).decode()),
        ("Sig", "cache.test-1:nonsense"),
        ("Sig", "nonsense"),
        ("Sig", ""),
    ],
)
def test_what_is_signed_cannot_be_changed(member: str, value: str) -> None:
    changed = b"".join(
        f"{member}: {value}\n".encode() if line.startswith(member.encode() + b":") else line
        for line in DEP.splitlines(keepends=True)
    )
    assert changed != DEP
    assert not read(changed).counts(TRUSTED)


@pytest.mark.parametrize(
    "claim",
    [
        "",
        "text",
        "text:",
        "text:sha256:",
        "text:sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwid",
        "fixed:r:sha256:04zwf782yjwnh3q6hz5izfd6jyip8kgw6g6yj43fiqhbyhdd0dqw",
        "fixed:sha256:00xyyr3fi8l6hb839bv3f7yb86yjv7xi1cgh1xnhipym4asvb4aq",
        "fixed:md5:nonsense",
        "fixed:git:sha1:iwjz551fyw0cxcjgf4l6c879zabd6wpm",
        "blob:sha256:094qif9n4cq4fdg459qzbhg1c6wywawwaaivx0k0x8xhbyx4vwic",
    ],
)
def test_a_name_that_its_content_does_not_give_counts_for_nothing(claim: str) -> None:
    info = attrs.evolve(read(TEXT), content_address=claim)
    assert not info.names_its_content


def test_a_path_named_by_its_content_is_named_by_its_references_too() -> None:
    other = described(SYSTEM)
    for narinfo in (TEXT, SOURCE, FLAT, FIXED):
        info = read(narinfo)
        assert not attrs.evolve(info, references=(other,)).names_its_content
        assert not attrs.evolve(info, references=(info.path,)).names_its_content
        assert not attrs.evolve(info, store_dir="/nix/store").names_its_content


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (b"", "no member"),
        (b"\xff", "not plain text"),
        ("StorePath: /srv/lab/störe".encode(), "not plain text"),
        (b"<html>not found</html>", "no member"),
        (DEP + b"\n", "no member"),
        (DEP.replace(b"\n", b"\r\n"), "no member"),
        (DEP.replace(b"NarSize: 328", b"NarSize: 328\x00"), "no member"),
        (DEP.replace(b"NarSize: 328", b"NarSize: 328\x1b[2J"), "no member"),
        (DEP + b"NarSize: 1\n", "more than one NarSize"),
        (DEP + b"StorePath: /srv/lab/store/x\n", "more than one StorePath"),
        (DEP + b"x" * LIMIT, "more than"),
        (DEP + b"Sig: cache.test-1:AAAA\n" * 64, "more than 64 signatures"),
        (SYSTEM, "it describes"),
        (DEP.replace(b"/srv/lab/store", b"/nix/store"), "it describes"),
        (DEP.replace(b"/srv/lab/store/", b""), "it describes"),
        (DEP.replace(b"NarSize: 328\n", b""), "no NarSize"),
        (DEP.replace(b"NarSize: 328", b"NarSize: -1"), "its size"),
        (DEP.replace(b"NarSize: 328", b"NarSize: " + b"9" * 30), "its size"),
        (DEP.replace(b"NarHash: sha256:", b"NarHash: md5:"), "its hash"),
        (DEP.replace(b"NarHash: sha256:", b"NarHash: sha256:z"), "its hash"),
        (DEP.replace(b"NarHash: sha256:0", b"NarHash: sha256:z"), "its hash"),
        (DEP.replace(b"References: ", b"References: ../../etc/passwd "), "not the name of a store path"),
        (DEP.replace(b"References: ", b"References: /srv/lab/store/"), "not the name of a store path"),
    ],
)
def test_what_describes_nothing_or_something_else_is_refused(text: bytes, what: str) -> None:
    assert what in refused(text)
    assert len(refused(text)) < 500


@pytest.mark.parametrize(
    "url",
    ["https://elsewhere/x.nar", "//elsewhere/x", "/etc/passwd", "../x", "nar/../../x", "nar/%2e%2e/x", "a b", "", "?x"],
)
def test_a_content_that_is_not_below_the_cache_is_refused(url: str) -> None:
    line = next(line for line in DEP.splitlines() if line.startswith(b"URL"))
    assert "its URL" in refused(DEP.replace(line, f"URL: {url}".encode()))


def test_a_content_may_have_a_query_as_some_servers_give_it() -> None:
    assert read(DEP.replace(b".nar\n", b".nar?hash=mvgm\n")).url.endswith("?hash=mvgm")


def test_a_hash_is_the_same_in_every_spelling() -> None:
    words = read(DEP).nar_hash.removeprefix("sha256:")
    raw = from_base32(words, 32)
    assert raw is not None
    encoded = base64.b64encode(raw).decode()
    for spelling in (f"sha256:{raw.hex()}", f"sha256:{encoded}", f"sha256-{encoded}"):
        assert read(DEP.replace(b"NarHash: sha256:" + words.encode(), b"NarHash: " + spelling.encode())) == read(DEP)


def test_members_that_nobody_asked_for_are_ignored() -> None:
    assert read(DEP + b"Deriver2: x\nX-Cache_hit: yes\nEmpty:\n") == read(DEP)


def test_one_signature_that_counts_is_enough() -> None:
    info = attrs.evolve(read(TEXT), content_address=None)
    signed = attrs.evolve(info, signatures=("nonsense", KEY.sign(info.fingerprint)))
    assert not signed.counts(TRUSTED)
    assert signed.counts(TrustedKeys.parse([KEY.public]))


def test_the_order_and_the_number_of_references_do_not_matter() -> None:
    info = read(DEP)
    assert attrs.evolve(info, references=info.references[::-1] * 2).counts(TRUSTED)


@given(data=st.binary(min_size=1, max_size=64))
def test_base32_is_read_back(data: bytes) -> None:
    assert from_base32(base32(data), len(data)) == data


@given(text=st.text(alphabet="0123456789abcdfghijklmnpqrsvwxyzeout", min_size=32, max_size=32))
def test_base32_has_one_spelling(text: str) -> None:
    raw = from_base32(text, 20)
    assert raw is None or base32(raw) == text


def test_the_name_that_is_asked_for_is_the_one_that_counts() -> None:
    other = Closure(described(DEP)[:33] + "other")
    with pytest.raises(NarInfoError, match="it describes"):
        parse_narinfo(DEP, other, STORE)
