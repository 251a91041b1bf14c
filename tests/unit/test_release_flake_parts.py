"""What a release makes of references, commits and Nix's complaints, without Nix."""

import attrs
import pytest

from nixfleet.release.build import UnbuiltHostsError
from nixfleet.release.flake import LockedFlake, NixRefusedError, PinError, Reference, refusal
from nixfleet.update.flake import Built, System
from nixfleet_agent.commands import Completed

COMMIT = "4be0c1d2" * 5
FLAKE = LockedFlake(reference=Reference(flake="."), url="path:/x", revision=None, locked={"type": "path", "path": "/x"})


def locked(**attributes: object) -> LockedFlake:
    return attrs.evolve(FLAKE, locked=attributes)


def said(stderr: str) -> NixRefusedError:
    done = Completed(exit_code=1, stdout=b"", stderr=stderr.encode(), timed_out=False)
    return refusal("evaluating .#fleet", done)


@pytest.mark.parametrize(
    ("text", "flake", "attribute"),
    [
        (".", ".", "fleet"),
        ("", ".", "fleet"),
        ("#", ".", "fleet"),
        ("#other", ".", "other"),
        ("/srv/fleet#nested.intent", "/srv/fleet", "nested.intent"),
        ("git+file:///srv/fleet?rev=4be0c1#a%20b", "git+file:///srv/fleet?rev=4be0c1", "a b"),
        ("github:us/fleet/main", "github:us/fleet/main", "fleet"),
    ],
)
def test_a_reference_is_read_as_nix_reads_it(text: str, flake: str, attribute: str) -> None:
    reference = Reference.of(text)
    assert (reference.flake, reference.attribute) == (flake, attribute)


@pytest.mark.parametrize(
    ("attributes", "url"),
    [
        ({"type": "git", "url": "file:///srv/fleet"}, f"git+file:///srv/fleet?rev={COMMIT}"),
        ({"type": "git", "url": "file:///srv/a%20b"}, f"git+file:///srv/a%20b?rev={COMMIT}"),
        (
            {"type": "git", "url": "ssh://git@example.org/fleet", "ref": "main", "dir": "sub dir", "rev": "0" * 40},
            f"git+ssh://git@example.org/fleet?rev={COMMIT}&dir=sub%20dir&ref=main",
        ),
        ({"type": "git", "url": "https://x/y", "submodules": True}, f"git+https://x/y?rev={COMMIT}&submodules=1"),
        ({"type": "git", "url": "git://x/y"}, f"git://x/y?rev={COMMIT}"),
        ({"type": "github", "owner": "us", "repo": "fleet"}, f"github:us/fleet/{COMMIT}"),
        (
            {"type": "gitlab", "owner": "us", "repo": "fleet", "host": "git.example.org", "dir": "x"},
            f"gitlab:us/fleet/{COMMIT}?dir=x&host=git.example.org",
        ),
        ({"type": "path", "path": "/srv/fleet"}, None),
        ({"type": "tarball", "url": "https://example.org/fleet.tar.gz"}, None),
    ],
)
def test_an_earlier_commit_of_the_same_flake_is_found_where_the_flake_is(
    attributes: dict[str, object], url: str | None
) -> None:
    assert locked(**attributes).at(COMMIT) == url


def test_a_pinned_host_comes_from_its_commit_and_every_other_from_the_flake() -> None:
    flake = locked(type="github", owner="us", repo="fleet").pinned({"web1": COMMIT})
    assert flake.url_for(System(host="web1", attribute="x")) == f"github:us/fleet/{COMMIT}"
    assert flake.url_for(System(host="web2", attribute="x")) == "path:/x"


def test_a_flake_without_commits_can_hold_no_host_at_one() -> None:
    with pytest.raises(PinError, match=r"hosts\.web1\.pin\.commit .*: \. has no commits to build from"):
        FLAKE.pinned({"web1": COMMIT})


def test_the_innermost_complaint_comes_first_and_then_its_place() -> None:
    older = "error: attribute 'x' missing\n\n       at /nix/store/a-source/flake.nix:3:5:\n\n            2|\n"
    newer = (
        "error:\n       … while evaluating the attribute 'fleet'\n         at /nix/store/a-source/flake.nix:2:3:\n"
        "\n       error: attribute 'x' missing\n       at /nix/store/a-source/flake.nix:3:5:\n            2|\n"
    )
    for stderr in (older, newer):
        assert str(said(stderr)) == (
            "error: attribute 'x' missing\n  at /nix/store/a-source/flake.nix:3:5\n  while evaluating .#fleet"
        )


def test_a_complaint_of_several_lines_is_told_whole_and_without_colours() -> None:
    problems = "two problems:\n         hosts.a: one\n         hosts.b: two\n"
    stderr = f"warning: a\n\x1b[31;1merror:\x1b[0m {problems}(use '--show-trace' to see)\n"
    assert said(stderr).complaint == "two problems:\n  hosts.a: one\n  hosts.b: two"


@pytest.mark.parametrize("stderr", ["", "killed", "\n\n"])
def test_a_nix_that_ends_without_an_error_of_its_own_is_told_by_what_it_said(stderr: str) -> None:
    assert str(said(stderr)) == f"error: {stderr.strip() or 'nix failed and said nothing'}\n  while evaluating .#fleet"


def test_hosts_that_do_not_build_are_told_with_the_ends_of_their_logs() -> None:
    failed = Built(system=System(host="web1", attribute="x"), path=None, seconds=1.0, tail="\n".join("abc"))
    text = str(UnbuiltHostsError(failed=(failed,), total=2))
    assert text == "1 of 2 hosts does not build (web1): nothing is released\nweb1:\n  a\n  b\n  c"


def test_when_git_failed_its_reason_is_told() -> None:
    error = said(
        "fatal: unable to access 'https://x/': Could not resolve host: x\n"
        "error: program 'git' failed with exit code 128\n(use '--show-trace' to show detailed location information)\n"
    )
    assert str(error).startswith("error: git: unable to access 'https://x/': Could not resolve host: x\n  while")
