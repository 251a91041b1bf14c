"""The builder's configuration file: what it may say, and everything that is wrong with it at once."""

from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixfleet.builder.errors import SettingsError
from nixfleet.builder.settings import Source, read_settings, settings_of
from nixfleet.errors import UnreadableFileError

LEAST: Final[dict[str, Any]] = {
    "state-dir": "/var/lib/b",
    "repositories": {"own": {"url": "https://git.example.org/x"}},
}


def own(**keys: Any) -> dict[str, Any]:
    return {**LEAST, "repositories": {"own": {**LEAST["repositories"]["own"], **keys}}}


def problems(given: dict[str, Any]) -> tuple[str, ...]:
    with pytest.raises(SettingsError) as caught:
        settings_of(given, "builder.toml")
    assert str(caught.value).startswith("builder.toml: ")
    return caught.value.problems


def test_the_least_that_a_file_must_say_has_defaults_for_the_rest() -> None:
    settings = settings_of(LEAST, "test")
    assert (settings.parallel, settings.keep, settings.build_timeout, settings.patience) == (2, 3, 4 * 3600, 30)
    assert (settings.memory_max, settings.cache, settings.signing_key_file, settings.metrics_port) == (
        "",
        "",
        None,
        None,
    )
    assert (settings.prefix, settings.role, settings.hosts, dict(settings.nats)) == ("build", "builder", ("*",), {})
    assert settings.name
    assert settings.repositories == {"own": Source(name="own", url="https://git.example.org/x")}


def test_a_file_that_says_everything_is_read(tmp_path: Path) -> None:
    path = tmp_path / "builder.toml"
    path.write_text("""
state-dir = "/var/lib/b"
parallel = 4
memory-max = "8G"
build-timeout = "90m"
patience = "1m"
keep = 5
cache = "s3://cache?region=eu"
signing-key-file = "/run/keys/cache"
hosts = ["web*"]
prefix = "ci.build"
role = "big"
metrics-port = 9100
name = "bench 1"
[repositories.own]
url = "git@git.example.org:us/fleet.git"
branch = "release/25.11"
flake-path = "nix"
hosts = "web1"
prebuild = true
[repositories.other]
url = "/srv/other"
[nats]
servers = ["tls://nats.example.org"]
whatever = 1
""")
    settings = read_settings(path)
    assert (settings.parallel, settings.keep, settings.build_timeout, settings.metrics_port) == (4, 5, 5400, 9100)
    assert (settings.prefix, settings.role, settings.name, settings.hosts) == ("ci.build", "big", "bench 1", ("web*",))
    assert settings.patience == 60
    assert settings.signing_key_file == Path("/run/keys/cache")
    assert settings.nats == {"servers": ["tls://nats.example.org"], "whatever": 1}
    assert settings.repositories["own"] == Source(
        name="own", url="git@git.example.org:us/fleet.git", branch="release/25.11", flake_path="nix", hosts=("web1",),
        prebuild=True,
    )  # fmt: skip
    assert list(settings.repositories) == ["own", "other"]


def test_everything_that_is_wrong_is_told_at_once() -> None:
    found = problems({"paralell": 3, "keep": 0, "repositories": {"own": {"brunch": "x"}, "other": 3}, "nats": []})
    assert found == (
        "`paralell` is no option; did you mean `parallel`?",
        "`keep` must be a whole number above 0",
        "`repositories.own.brunch` is no option; did you mean `branch`?",
        "`repositories.own.url` is missing: what git is to fetch from",
        "`repositories.other` must be a table",
        "`nats` must be a table",
        "`state-dir` is missing: a directory for mirrors, GC roots and logs",
    )


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({**LEAST, "memory-max": "lots"}, "`memory-max` 'lots' is no amount such as 8G, 512M or 50%"),
        ({**LEAST, "memory-max": "8G\n"}, "`memory-max`"),
        ({**LEAST, "memory-max": "8Gx"}, "`memory-max`"),
        ({**LEAST, "build-timeout": "soon"}, "`build-timeout`: 'soon' is not a duration"),
        ({**LEAST, "prefix": "a..b"}, "`prefix` 'a..b'"),
        ({**LEAST, "prefix": "a.>"}, "`prefix` 'a.>'"),
        ({**LEAST, "prefix": "*"}, "`prefix`"),
        ({**LEAST, "name": ""}, "`name` must be a name"),
        ({**LEAST, "role": "a\nb"}, "`role` must be a name"),
        ({**LEAST, "metrics-port": 70000}, "`metrics-port` must be 65535 at most"),
        ({**LEAST, "parallel": 10000}, "`parallel` must be 256 at most"),
        ({**LEAST, "parallel": True}, "`parallel` must be a whole number"),
        ({**LEAST, "cache": "-x"}, "`cache` '-x' is no store"),
        ({**LEAST, "cache": "somewhere"}, "`cache` 'somewhere' is no store"),
        ({**LEAST, "cache": "http://[x"}, "`cache`"),
        ({**LEAST, "hosts": []}, "`hosts` is empty"),
        ({**LEAST, "repositories": {}}, "`repositories` is missing"),
        ({**LEAST, "repositories": 3}, "`repositories` must be a table"),
        ({**LEAST, "repositories": {"a.b": {"url": "x"}}}, "`repositories.a.b` is no name of a repository"),
        ({**LEAST, "repositories": {"..": {"url": "x"}}}, "is no name of a repository"),
        (own(url="ext::sh -c x"), "git would run a program for `ext::`"),
        (own(url="--upload-pack=x"), "no address that git takes"),
        (own(url=""), "no address that git takes"),
        (own(url="a\nb"), "no address that git takes"),
        (own(url="ftp://x/y"), "git may fetch by file, git, http, https, ssh only"),
        (own(url="../x"), "a directory of this machine must be named from the top"),
        (own(url=3), "`repositories.own.url` must be a text"),
        (own(branch="a..b"), "`repositories.own.branch` 'a..b' is no name of a branch"),
        (own(branch="-x"), "`repositories.own.branch`"),
        (own(**{"flake-path": "../x"}), "`repositories.own.flake-path` '../x' must be below the repository"),
        (own(**{"flake-path": "/x"}), "must be below the repository"),
        (own(hosts=[]), "`repositories.own.hosts` is empty"),
        (own(hosts=[1]), "`repositories.own.hosts` must be a list of texts"),
        (own(prebuild="yes"), "`repositories.own.prebuild` must be true or false"),
        (own(name="x"), "`repositories.own.name` is no option"),
    ],
)
def test_what_cannot_be_meant_is_told(given: dict[str, Any], problem: str) -> None:
    assert [found for found in problems(given) if problem in found]


@pytest.mark.parametrize(
    "url",
    ["git@host:us/fleet.git", "ssh://git@host/x", "https://host/x", "/srv/x", "file:///srv/x", "host:x::y"],
)
def test_whatever_git_takes_for_a_remote_may_be_named(url: str) -> None:
    assert settings_of(own(url=url), "test").repositories["own"].url == url


def test_what_may_be_built_is_what_both_lists_name() -> None:
    settings = settings_of({**own(hosts=["web*", "db1"]), "hosts": ["*1"]}, "test")
    may = {host: not settings.refusal("own", host) for host in ("web1", "db1", "web2", "mac1", "WEB1", "")}
    assert may == {"web1": True, "db1": True, "web2": False, "mac1": False, "WEB1": False, "": False}
    assert settings.refusal("x\n\x1b", "web1") == "this builder has no repository 'x\\n\\x1b'; it has own"


def test_a_file_that_is_not_there_or_is_no_toml_is_named(tmp_path: Path) -> None:
    with pytest.raises(UnreadableFileError, match="cannot read the configuration of the builder"):
        read_settings(tmp_path / "nowhere")
    (tmp_path / "x").write_bytes(b"\xff = 1")
    with pytest.raises(SettingsError, match="not TOML"):
        read_settings(tmp_path / "x")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
KEYS: Final = (
    "state-dir", "parallel", "memory-max", "build-timeout", "keep", "cache", "signing-key-file", "hosts", "name",
    "prefix", "role", "metrics-port", "nats", "repositories",
)  # fmt: skip


@given(
    st.dictionaries(st.sampled_from(KEYS) | st.text(max_size=5), anything),
    st.dictionaries(st.sampled_from(["url", "branch", "flake-path", "hosts", "prebuild"]), anything),
)
def test_any_document_is_read_or_refused_with_reasons(top: dict[str, Any], table: dict[str, Any]) -> None:
    for document in (top, {**LEAST, **top}, own(**table)):
        said = refusal(document)
        assert said
        assert said.isprintable()


def refusal(document: dict[str, Any]) -> str:
    """What is wrong with it."""
    try:
        settings_of(document, "test")
    except SettingsError as error:
        return "; ".join(error.problems)
    return "nothing is wrong"
