"""Where a release goes: what addresses mean, who may be removed, when it is due, and AWS's signature to the letter."""

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import attrs
import httpx
import pytest

from nixfleet.errors import UnreadableFileError
from nixfleet.release.due import due_at
from nixfleet.release.pruning import Pruning, prunable
from nixfleet.release.publish import publish_release, refresh_release
from nixfleet.release.published import NothingPublishedError, UnprovenError
from nixfleet.release.target import AddressError, in_order
from nixfleet.release.targets.choice import Access, BadCredentialsError, open_target
from nixfleet.release.targets.directory import DirectoryTarget
from nixfleet.release.targets.git import GitTarget
from nixfleet.release.targets.objects import ObjectTarget
from nixfleet.release.targets.signature_v4 import (
    Credentials,
    SignatureV4,
    authorization,
    canonical_request,
    encoded,
)
from state_machine.values import WallMs
from tests.unit.nixfleet_samples import CI_KEY, HOUR_MS, NOW, OTHER_KEY, closure, description, later, slot

# What an address means

BRANCHES: Final[Mapping[str, tuple[str, str]]] = {
    "git+https://git.example.org/us/releases.git#main": ("https://git.example.org/us/releases.git", "main"),
    "git+ssh://git@example.org:2222/releases#fleet/x": ("ssh://git@example.org:2222/releases", "fleet/x"),
    "git+git@git.example.org:us/releases.git#r": ("git@git.example.org:us/releases.git", "r"),
    "git+file:///srv/releases.git#r": ("file:///srv/releases.git", "r"),
    "git+/srv/releases.git#r": ("/srv/releases.git", "r"),
    "git+/srv/a#b.git#r": ("/srv/a#b.git", "r"),
}  # fmt: skip


@pytest.mark.parametrize("address", BRANCHES)
def test_a_branch_is_named_behind_whatever_git_takes_for_a_remote(address: str, tmp_path: Path) -> None:
    target = open_target(address, Access(environment={"XDG_CACHE_HOME": str(tmp_path)}))
    assert isinstance(target, GitTarget)
    assert (target.remote, target.branch) == BRANCHES[address]
    assert target.repository.is_relative_to(tmp_path / "nixfleet" / "releases")


def test_the_copy_of_a_branch_is_below_the_directory_that_a_service_was_given(tmp_path: Path) -> None:
    given = {"CACHE_DIRECTORY": f"{tmp_path}/a:{tmp_path}/b", "XDG_CACHE_HOME": "/nowhere"}
    target = open_target("git+/srv/x#main", Access(environment=given))
    assert isinstance(target, GitTarget)
    assert target.repository.parent == tmp_path / "a" / "releases"


def test_anything_without_a_scheme_is_a_directory() -> None:
    assert open_target("some/where", Access(environment={})) == DirectoryTarget(root=Path("some/where"))


KEYS: Final = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}


@pytest.mark.parametrize(
    ("address", "url", "where"),
    [
        ("https://cache.example.org:8443/a/releases/", "https://cache.example.org:8443/a/releases", None),
        ("http://127.0.0.1:8080/x", "http://127.0.0.1:8080/x", None),
        ("s3://fleet?region=eu-1", "https://s3.eu-1.amazonaws.com/fleet", "s3://fleet"),
        ("s3://fleet/a/b/?endpoint=http://10.0.0.1:9000", "http://10.0.0.1:9000/fleet/a/b", "s3://fleet/a/b"),
        ("s3://fleet/a@b", "https://s3.us-east-1.amazonaws.com/fleet/a%40b", "s3://fleet/a@b"),
    ],
)
def test_files_are_put_below_a_prefix(address: str, url: str, where: str | None) -> None:
    target = open_target(address, Access(environment=KEYS))
    assert isinstance(target, ObjectTarget)
    assert (target.url, target.where) == (url, where or url)


def test_the_region_is_that_of_the_address_then_of_the_environment() -> None:
    for environment, address, region in (
        ({**KEYS, "AWS_REGION": "eu-2"}, "s3://bkt?region=eu-3", "eu-3"),
        ({**KEYS, "AWS_REGION": "eu-2", "AWS_DEFAULT_REGION": "eu-9"}, "s3://bkt", "eu-2"),
        ({**KEYS, "AWS_DEFAULT_REGION": "eu-9"}, "s3://bkt", "eu-9"),
    ):
        target = open_target(address, Access(environment=environment))
        assert isinstance(target, ObjectTarget)
        assert target.url == f"https://s3.{region}.amazonaws.com/bkt"


WRONG: Final[Mapping[str, str]] = {
    "": "that is no address",
    "a\nb": "that is no address",
    "ftp://example.org/x": "there is no such kind of target",
    "git+https://example.org/x": "name the branch behind a #",
    "git+https://example.org/x#": "name the branch behind a #",
    "git+https://example.org/x#a..b": "makes no name of a branch",
    "git+https://example.org/x#-f": "makes no name of a branch",
    "git+https://example.org/x#a.lock": "makes no name of a branch",
    "git+http://example.org/x#main": "https, ssh, file only, not by http",
    "git+#main": "that is no remote of git",
    "git+ext::sh -c x#main": "that is no remote of git",
    "git+--upload-pack=x#main": "that is no remote of git",
    "git+https://me:THE-SECRET@example.org/x#main": "a password does not belong into an address",
    "https://": "it needs a host",
    "https://example.org:99999/x": "Port out of range",
    "https://example.org/../x": "its path must be of plain letters",
    "https://example.org/a//b": "its path must be of plain letters",
    "https://example.org/a b": "its path must be of plain letters",
    "https://example.org/%2e%2e/x": "its path must be of plain letters",
    "https://example.org/x?y=1": "an address with a query has no prefix",
    "https://example.org/x#y": "nothing behind a #",
    "https://me:THE-SECRET@example.org/": "a name or a password does not belong into an address",
    "http://example.org/x": "without TLS only this machine itself may be named",
    "s3:///x": "it needs a host",
    "s3://bkt/x?colour=1": "'colour' is no setting: there are endpoint and region",
    "s3://bkt/x?region=a/b": "has no such name",
    "s3://bkt/x?endpoint=ftp://example.org": "the endpoint must be http(s)://",
    "s3://bkt/x?endpoint=https://example.org/path": "the endpoint must be http(s)://",
}


@pytest.mark.parametrize("address", WRONG)
def test_an_address_that_means_nothing_is_refused_with_the_forms_there_are(address: str) -> None:
    with pytest.raises(AddressError) as caught:
        open_target(address, Access(environment=KEYS))
    said = str(caught.value)
    assert WRONG[address] in said
    assert said.endswith("or s3://BUCKET/PREFIX?region=REGION")
    assert "\n" not in said
    assert "THE-SECRET" not in said


def test_a_secret_that_would_protect_nothing_is_refused(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    for address in ("directory", "s3://bkt/x", "git+ssh://git@example.org/x#main"):
        with pytest.raises(AddressError, match="--to-token-file is for"):
            open_target(address, Access(token_file=token, environment=KEYS))
    for address in ("directory", "https://example.org/x", "git+https://example.org/x#main"):
        with pytest.raises(AddressError, match="--to-credentials-file is for s3:// only"):
            open_target(address, Access(credentials_file=token, environment={}))


def test_a_token_is_for_the_remote_s_host_alone_and_not_on_a_command_line(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    target = open_target("git+https://example.org/x#main", Access(token_file=token, environment={}))
    assert "s3cret" not in repr(target)
    with pytest.raises(UnreadableFileError, match="the token"):
        open_target("https://example.org/x", Access(token_file=tmp_path / "none", environment={}))


def test_keys_come_from_the_file_then_from_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "credentials"
    path.write_text(
        "[default]\naws_access_key_id = first\naws_secret_access_key = a%b\n[ci]\nAWS_ACCESS_KEY_ID = second\n"
    )
    opened = open_target("s3://bkt/x", Access(credentials_file=path, environment={}))
    assert isinstance(opened, ObjectTarget)
    with pytest.raises(BadCredentialsError, match="there is no pair of keys for it; set AWS_ACCESS_KEY_ID"):
        open_target("s3://bkt/x", Access(credentials_file=path, environment={"AWS_PROFILE": "ci"}))
    with pytest.raises(BadCredentialsError, match=r"has no section \[other\]"):
        open_target("s3://bkt/x", Access(credentials_file=path, environment={"AWS_PROFILE": "other"}))
    with pytest.raises(BadCredentialsError):
        open_target("s3://bkt/x", Access(environment={"AWS_ACCESS_KEY_ID": "key"}))


def test_the_fleet_comes_last_and_each_signature_before_its_file() -> None:
    names = [
        "fleet.resolved.json",
        "rollouts/a@1.json",
        "fleet.resolved.json.sig",
        "rollouts/a@1.json.sig",
        "revocations.json",
    ]
    assert in_order(names) == [
        "revocations.json",
        "rollouts/a@1.json.sig",
        "rollouts/a@1.json",
        "fleet.resolved.json.sig",
        "fleet.resolved.json",
    ]


# Which manifests go

DAY_MS: Final = 24 * HOUR_MS


def released(directory: Path, commits: int, every_ms: int = DAY_MS) -> WallMs:
    """Releases `0`, `1` and so on, each with other closures; when the last was signed."""
    for number in range(commits):
        wanted = description().with_closures({"node1": closure("node1", number + 1)})
        publish_release(wanted, CI_KEY, directory, f"{number:x}", WallMs(NOW + number * every_ms))
    return WallMs(NOW + (commits - 1) * every_ms)


def commits_of(names: tuple[str, ...]) -> set[str]:
    return {name.rpartition("@")[2].removesuffix(".json") for name in names}


def test_nothing_is_removed_unless_somebody_says_how_many_are_kept(tmp_path: Path) -> None:
    last = released(tmp_path, 4)
    assert prunable(DirectoryTarget(root=tmp_path), (), Pruning(), WallMs(last + 400 * DAY_MS)) == ()


def test_the_newest_releases_keep_their_manifests(tmp_path: Path) -> None:
    last = released(tmp_path, 5)
    gone = prunable(DirectoryTarget(root=tmp_path), (), Pruning(keep=2, keep_days=1), WallMs(last + 9 * DAY_MS))
    assert gone == tuple(f"rollouts/{channel}@{commit}.json" for channel in ("edge", "stable") for commit in "012")


def test_a_manifest_that_was_signed_lately_stays_however_few_are_kept(tmp_path: Path) -> None:
    last = released(tmp_path, 5)
    target = DirectoryTarget(root=tmp_path)
    assert commits_of(prunable(target, (), Pruning(keep=1, keep_days=3), WallMs(last + 1))) == {"0", "1"}
    assert prunable(target, (), Pruning(keep=1), WallMs(last + 1)) == ()


def test_what_is_published_now_counts_and_is_never_removed(tmp_path: Path) -> None:
    released(tmp_path, 4)
    wanted = description().with_closures({"node1": closure("node1", 9)})
    at = WallMs(NOW + 400 * DAY_MS)
    published = publish_release(wanted, CI_KEY, tmp_path, "abcd", at, Pruning(keep=1))
    assert commits_of(published.pruned) == {"0", "1", "2", "3"}
    left = sorted(path.name for path in (tmp_path / "rollouts").iterdir())
    assert left == ["edge@abcd.json", "edge@abcd.json.sig", "stable@abcd.json", "stable@abcd.json.sig"]


def test_a_refresh_removes_too_and_keeps_what_the_fleet_names_however_old(tmp_path: Path) -> None:
    released(tmp_path, 3)
    at = WallMs(NOW + 400 * DAY_MS)
    published = refresh_release(CI_KEY, tmp_path, at, pruning=Pruning(keep=1))
    assert commits_of(published.pruned) == {"0", "1"}
    assert commits_of(DirectoryTarget(root=tmp_path).names()) == {"2"}


# When it is due


def test_it_is_due_when_half_of_the_shortest_window_is_gone(tmp_path: Path) -> None:
    publish_release(description(), CI_KEY, tmp_path, "abcd", NOW)
    assert due_at(DirectoryTarget(root=tmp_path), slot(CI_KEY), NOW) == later(1)  # `edge` has 120 minutes


def test_what_does_not_verify_puts_nothing_off(tmp_path: Path) -> None:
    target = DirectoryTarget(root=tmp_path)
    with pytest.raises(NothingPublishedError):
        due_at(target, slot(CI_KEY), NOW)
    publish_release(description(), OTHER_KEY, tmp_path, "abcd", NOW)
    with pytest.raises(UnprovenError):
        due_at(target, slot(CI_KEY), NOW)


# AWS Signature Version 4: the requests and signatures that AWS publishes

SUITE: Final = Credentials(access_key="AKIDEXAMPLE", secret_key="wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
GUIDE: Final = Credentials(access_key="AKIAIOSFODNN7EXAMPLE", secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
NO_BODY: Final = hashlib.sha256(b"").hexdigest()


@attrs.frozen(kw_only=True)
class Example:
    """A request and the signature it has."""

    method: str = "GET"
    path: str = "/"
    query: str = ""
    headers: Mapping[str, str] = attrs.field(factory=dict)
    body: bytes = b""
    signature: str


IN_THE_SUITE: Final[Mapping[str, Example]] = {
    "get-vanilla": Example(signature="5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
    "post-vanilla": Example(
        method="POST", signature="5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
    ),
    "get-vanilla-query-order-key-case": Example(
        query="Param2=value2&Param1=value1",
        signature="b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
    ),
}
IN_THE_GUIDE: Final[Mapping[str, Example]] = {
    "GET Object": Example(
        path="/test.txt",
        headers={"Range": "bytes=0-9"},
        signature="f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
    ),
    "PUT Object": Example(
        method="PUT",
        path="/test%24file.text",
        headers={"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
        body=b"Welcome to Amazon S3.",
        signature="98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
    ),
    "GET Bucket Lifecycle": Example(
        query="lifecycle", signature="fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"
    ),
    "GET Bucket (List Objects)": Example(
        query="max-keys=2&prefix=J", signature="34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"
    ),
}


@pytest.mark.parametrize("name", IN_THE_SUITE)
def test_the_signatures_of_the_test_suite(name: str) -> None:
    example, at = IN_THE_SUITE[name], "20150830T123600Z"
    headers = {"Host": "example.amazonaws.com", "X-Amz-Date": at}
    canonical = canonical_request(example.method, example.path, example.query, headers, NO_BODY)
    value = authorization(canonical, headers, at, SUITE, region="us-east-1", service="service")
    assert value == (
        "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, "
        f"SignedHeaders=host;x-amz-date, Signature={example.signature}"
    )


@pytest.mark.parametrize("name", IN_THE_GUIDE)
def test_the_signatures_of_the_guide_to_s3(name: str) -> None:
    example, at, payload = IN_THE_GUIDE[name], "20130524T000000Z", hashlib.sha256(IN_THE_GUIDE[name].body).hexdigest()
    headers = {
        "Host": "examplebucket.s3.amazonaws.com", **example.headers, "x-amz-content-sha256": payload, "x-amz-date": at
    }  # fmt: skip
    canonical = canonical_request(example.method, example.path, example.query, headers, payload)
    value = authorization(canonical, headers, at, GUIDE, region="us-east-1", service="s3")
    assert value.endswith(f"Signature={example.signature}")


def test_a_request_is_signed_as_it_is_sent() -> None:
    """The client puts its own headers in; the conditions of a PUT are among what is signed."""
    auth = SignatureV4(
        credentials=attrs.evolve(GUIDE, session_token="lent"), region="us-east-1", now=lambda: 1_369_353_600.0
    )
    request = httpx.Request(
        "PUT",
        f"https://examplebucket.s3.amazonaws.com/{encoded('rollouts/stable@abcd.json')}",
        content=b"x",
        headers={"If-Match": '"tag"', "Accept-Encoding": "identity"},
    )
    signed = next(auth.auth_flow(request))
    assert signed.url.raw_path == b"/rollouts/stable%40abcd.json"
    assert signed.headers["X-Amz-Date"] == "20130524T000000Z"
    assert signed.headers["X-Amz-Content-SHA256"] == hashlib.sha256(b"x").hexdigest()
    names = "SignedHeaders=host;if-match;x-amz-content-sha256;x-amz-date;x-amz-security-token,"
    assert names in signed.headers["Authorization"]
    assert "secret" not in repr(auth)
    assert GUIDE.secret_key not in repr(auth)


def test_another_secret_day_or_path_is_another_signature() -> None:
    headers = {"host": "h"}
    canonical = canonical_request("GET", "/a", "", headers, NO_BODY)
    seen = {
        authorization(canonical, headers, at, credentials, region=region, service="s3").rpartition("=")[2]
        for credentials in (SUITE, GUIDE)
        for at in ("20130524T000000Z", "20130525T000000Z")
        for region in ("a", "b")
    }
    assert len(seen) == 8


def test_no_secret_of_git_is_on_its_command_line(tmp_path: Path) -> None:
    """A git that writes down how it was called stands in front of the real one."""
    log, real = tmp_path / "log", tmp_path / "bin"
    real.mkdir()
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    (real / "git").write_text(
        f'#!/bin/sh\nprintf "%s " "$@" >> {log}\nenv | grep -c "^GIT_CONFIG_VALUE_0=Authorization" >> {log}\n'
    )
    (real / "git").chmod(0o755)
    script = (
        "import sys; from pathlib import Path\n"
        "from nixfleet.release.targets.choice import Access, open_target\n"
        "target = open_target('git+https://example.org/x#main', Access(token_file=Path(sys.argv[1])))\n"
        "print(target.read('fleet.resolved.json'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(token)], capture_output=True, text=True,
        env={**os.environ, "PATH": f"{real}:{os.environ['PATH']}", "XDG_CACHE_HOME": str(tmp_path / "cache")},
    )  # fmt: skip
    assert done.stdout == "None\n", done.stderr
    assert "s3cret" not in log.read_text()
    assert "ls-remote" in log.read_text()
    assert log.read_text().rstrip().endswith("1")
