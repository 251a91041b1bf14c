"""A release is refused while hosts could not fetch it: caches that Nix wrote, caches that lie, and caches that fail."""

import base64
import functools
import gzip
import http.server
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import attrs
import pytest

from nixfleet.__main__ import run
from nixfleet.keys.keyset import trust_bytes
from nixfleet.release.cache_address import CacheUrlError, NetrcError, read_netrc
from nixfleet.release.cache_check import Checked, Fault, Flaw, NotInCacheError, TooManyPathsError, check_caches
from nixfleet.release.caches import CacheError
from nixfleet.release.narinfo import LIMIT, base32, parse_narinfo
from nixfleet_agent.activation.cache_keys import CacheKey, TrustedKeys
from state_machine.values import Closure, HostName
from tests.nixlab import HAVE_NIX, NO_NIX, NixPublisher
from tests.unit.nixfleet_samples import CI_KEY, trusted, write_key

needs_nix: Final = pytest.mark.skipif(not HAVE_NIX, reason=NO_NIX)
OURS: Final = CacheKey(name="ours-1", seed=b"1" * 32)
UPSTREAM: Final = CacheKey(name="upstream-1", seed=b"2" * 32)
STRANGER: Final = CacheKey(name="stranger-1", seed=b"3" * 32)
BOTH: Final = TrustedKeys.parse([OURS.public, UPSTREAM.public])
WEB1: Final = HostName("web1")


# Caches made by hand, for what Nix would never write


def path(name: str) -> Closure:
    return Closure(base32(name.encode().ljust(20, b"-")) + "-" + name)


def put(cache: Path, name: str, *references: str, key: CacheKey | None = OURS, store: str = "/nix/store") -> Closure:
    """A description and, as its content, a few bytes."""
    cache.mkdir(exist_ok=True)
    (cache / "nix-cache-info").write_text(f"StoreDir: {store}\nWantMassQuery: 1\n")
    names = " ".join(map(path, references))
    text = f"StorePath: {store}/{path(name)}\nURL: {name}.nar\nNarHash: sha256:{'0' * 52}\nNarSize: 1\n"
    text += f"References: {names}\n"
    info = parse_narinfo(text.encode(), path(name), store)
    if key is not None:
        text += f"Sig: {key.sign(info.fingerprint)}\n"
    (cache / f"{path(name)[:32]}.narinfo").write_text(text)
    (cache / f"{name}.nar").write_text("content")
    return path(name)


def check(*urls: str, trusting: TrustedKeys = BOTH, **hosts: Closure) -> Checked:
    return check_caches({HostName(name): top for name, top in hosts.items()}, urls, trusting)


def faults(*urls: str, trusting: TrustedKeys = BOTH, **hosts: Closure) -> Mapping[HostName, tuple[Fault, ...]]:
    with pytest.raises(NotInCacheError) as caught:
        check(*urls, trusting=trusting, **hosts)
    return caught.value.faults


@attrs.define(kw_only=True)
class Server:
    """A directory over HTTP that counts, and misbehaves as it is told."""

    directory: Path
    url: str = ""
    asked: Counter[str] = attrs.field(factory=Counter)
    authorizations: set[str] = attrs.field(factory=set)
    failures: dict[str, list[int]] = attrs.field(factory=dict)
    """Statuses to answer first, by the end of the path."""
    bodies: dict[str, tuple[dict[str, str], bytes]] = attrs.field(factory=dict)
    redirects: str = ""
    password: str = ""
    slow_s: float = 0.0
    has_head: bool = True


class _Handler(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: object, of: Server) -> None:
        self.of = of
        super().__init__(*arguments, directory=str(of.directory))  # type: ignore[arg-type]

    def log_message(self, format: str, *args: object) -> None:
        pass

    def send_head(self) -> None:
        name = self.path.rpartition("/")[2]
        self.of.asked[f"{self.command} {name}"] += 1
        time.sleep(self.of.slow_s)
        given = self.headers.get("Authorization", "")
        self.of.authorizations.add(given)
        if self.of.password and given != "Basic " + base64.b64encode(self.of.password.encode()).decode():
            return self._say(401, {}, b"")
        if self.command == "HEAD" and not self.of.has_head:
            return self._say(405, {}, b"")
        for end, statuses in self.of.failures.items():
            if self.path.endswith(end) and statuses:
                status = statuses[0] if len(statuses) == 1 and statuses[0] != 503 else statuses.pop(0)
                return self._say(status, {}, b"")
        for end, (headers, body) in self.of.bodies.items():
            if self.path.endswith(end):
                return self._say(200, headers, body)
        if self.of.redirects:
            return self._say(302, {"Location": self.of.redirects + self.path}, b"")
        file = Path(self.translate_path(self.path))
        return self._say(200, {}, file.read_bytes()) if file.is_file() else self._say(404, {}, b"")

    def _say(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            try:
                self.wfile.write(body)
            except ConnectionError:
                self.close_connection = True  # it heard enough


@contextmanager
def served(directory: Path) -> Iterator[Server]:
    of = Server(directory=directory)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, of=of)) as server:
        server.daemon_threads = True
        of.url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever, daemon=True, kwargs={"poll_interval": 0.02})
        thread.start()
        yield of
        server.shutdown()
        thread.join()


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """Two systems that share a library."""
    directory = tmp_path / "cache"
    put(directory, "libc")
    put(directory, "ssl", "libc", "ssl")
    put(directory, "web", "ssl", "libc")
    put(directory, "db", "libc", "web")
    return directory


def test_each_path_is_asked_for_once_however_many_hosts_need_it(cache: Path) -> None:
    with served(cache) as server:
        done = check(server.url, web1=path("web"), web2=path("web"), db1=path("db"))
    assert (done.hosts, done.paths) == (3, 4)
    assert {count for name, count in server.asked.items()} == {1}
    assert server.asked.keys() == {
        "GET nix-cache-info",
        *(f"GET {path(name)[:32]}.narinfo" for name in ("libc", "ssl", "web", "db")),
        "HEAD web.nar",
        "HEAD db.nar",
    }


def test_a_directory_is_a_cache_as_well(cache: Path) -> None:
    assert check(f"file://{cache}?compression=none", web1=path("web")).paths == 3


def test_what_is_missing_is_told_for_each_host_that_needs_it(cache: Path) -> None:
    (cache / f"{path('ssl')[:32]}.narinfo").unlink()
    put(cache, "alone")
    found = faults(f"file://{cache}", web1=path("web"), db1=path("db"), other=path("alone"))
    assert found == {host: (Fault(path=path("ssl"), flaw=Flaw.MISSING),) for host in ("web1", "db1")}


def test_a_path_that_nobody_signed_and_one_that_a_stranger_signed_are_told_apart(cache: Path) -> None:
    put(cache, "libc", key=None)
    put(cache, "ssl", "libc", key=STRANGER)
    found = faults(f"file://{cache}", web1=path("web"))[WEB1]
    assert [(fault.path, fault.flaw) for fault in found] == [
        (path("ssl"), Flaw.UNTRUSTED),
        (path("libc"), Flaw.UNSIGNED),
    ]
    assert "signed by stranger-1" in str(found[0])


def test_another_path_in_the_place_of_one_is_damage(cache: Path) -> None:
    shutil.copy(cache / f"{path('libc')[:32]}.narinfo", cache / f"{path('ssl')[:32]}.narinfo")
    [fault] = faults(f"file://{cache}", web1=path("web"))[WEB1]
    assert fault.flaw is Flaw.DAMAGED
    assert "it describes" in str(fault)


def test_a_system_whose_content_is_gone_is_refused_and_so_is_none_below_it(cache: Path) -> None:
    (cache / "libc.nar").unlink()
    (cache / "web.nar").unlink()
    for url in (f"file://{cache}",):
        [fault] = faults(url, web1=path("web"))[WEB1]
        assert (fault.path, fault.flaw) == (path("web"), Flaw.NO_CONTENT)
    with served(cache) as server:
        assert len(faults(server.url, web1=path("web"))[WEB1]) == 1


def test_paths_may_come_from_any_cache_signed_by_any_key_that_counts(tmp_path: Path) -> None:
    ours, upstream = tmp_path / "ours", tmp_path / "upstream"
    put(upstream, "libc", key=UPSTREAM)
    put(ours, "web", "libc")
    with served(upstream) as second:
        assert check(f"file://{ours}", second.url, web1=path("web")).paths == 2
    assert faults(f"file://{ours}", web1=path("web")) != {}


def test_a_cache_whose_copy_is_not_signed_hides_none_that_is(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    put(first, "web", key=None)
    put(second, "web")
    assert check(f"file://{first}", f"file://{second}", web1=path("web")).paths == 1


def test_descriptions_that_lead_in_circles_come_to_an_end(tmp_path: Path) -> None:
    for name, other in (("a", "b"), ("b", "c"), ("c", "a")):
        put(tmp_path / "cache", name, other, name)
    assert check(f"file://{tmp_path}/cache", web1=path("a"), web2=path("b")).paths == 3


def test_the_first_ten_are_listed_and_the_rest_is_counted(tmp_path: Path) -> None:
    put(tmp_path / "cache", "web", *(f"lib{number}" for number in range(25)))
    with pytest.raises(NotInCacheError) as caught:
        check(f"file://{tmp_path}/cache", web1=path("web"))
    lines = str(caught.value).splitlines()
    assert lines[1] == "  web1: 25 paths"
    assert [line.split()[0] for line in lines[2:12]] == ["missing"] * 10
    assert lines[12:] == ["    and 15 more"]


# Caches that fail


def test_what_passes_is_tried_again(cache: Path) -> None:
    with served(cache) as server:
        server.failures = {".narinfo": [503, 503], "info": [503]}
        assert check(server.url, web1=path("web")).paths == 3


@pytest.mark.parametrize("status", [500, 401, 407, 418])
def test_a_cache_that_cannot_be_asked_is_no_cache_without_the_path(cache: Path, status: int) -> None:
    with served(cache) as server:
        server.failures = {"info": [], f"{path('ssl')[:32]}.narinfo": [status]}
        with pytest.raises(CacheError, match="cannot be asked") as caught:
            check(server.url, web1=path("web"))
    assert server.url in str(caught.value)


def test_nobody_listening_is_told_of() -> None:
    with pytest.raises(CacheError, match="cannot be asked"):
        check("http://127.0.0.1:1", web1=path("web"))


def test_an_address_that_is_no_cache_is_told_of_at_once(tmp_path: Path, cache: Path) -> None:
    with served(tmp_path) as server, pytest.raises(CacheError, match="no nix-cache-info"):
        check(server.url, web1=path("web"))
    with pytest.raises(CacheError, match="no nix-cache-info"):
        check(f"file://{tmp_path}", web1=path("web"))
    put(cache, "libc", store="/gnu/store")
    with pytest.raises(CacheError, match="hosts have /nix/store"):
        check(f"file://{cache}", web1=path("web"))


def test_forbidden_is_missing_with_a_hint(cache: Path) -> None:
    with served(cache) as server:
        server.failures = {f"{path('ssl')[:32]}.narinfo": [403]}
        with pytest.raises(NotInCacheError, match="answered some questions with 403: --cache-netrc"):
            check(server.url, web1=path("web"))


@pytest.mark.parametrize("packed", [False, True])
def test_an_endless_description_is_cut(cache: Path, packed: bool) -> None:
    flood = b"StorePath: " + b"x" * (64 * LIMIT)
    with served(cache) as server:
        body = gzip.compress(flood) if packed else flood
        server.bodies = {f"{path('ssl')[:32]}.narinfo": ({"Content-Encoding": "gzip"} if packed else {}, body)}
        [fault] = faults(server.url, web1=path("web"))[WEB1]
    assert "more than 1048576 bytes" in str(fault)


def test_a_description_may_come_packed(cache: Path) -> None:
    name = f"{path('ssl')[:32]}.narinfo"
    with served(cache) as server:
        server.bodies = {name: ({"Content-Encoding": "gzip"}, gzip.compress((cache / name).read_bytes()))}
        assert check(server.url, web1=path("web")).paths == 3


def test_a_server_that_has_no_head_is_asked_with_get(tmp_path: Path) -> None:
    """More of them at once than there are connections: none keeps one while it waits for another."""
    tops = {HostName(f"web{number}"): put(tmp_path / "cache", f"web{number}") for number in range(100)}
    with served(tmp_path / "cache") as server:
        server.has_head = False
        assert check_caches(tops, [server.url], BOTH).paths == 100
        assert server.asked["GET web7.nar"] == 1


# Private caches


def test_credentials_go_to_their_host_and_not_where_it_leads(tmp_path: Path, cache: Path) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("# ours\nmachine cache.example login x password y\nmachine 127.0.0.1\n  login ci password p:w\n")
    with served(cache) as behind, served(cache) as server:
        server.password = "ci:p:w"
        server.redirects = behind.url.replace("127.0.0.1", "localhost")
        done = check_caches({WEB1: path("web")}, [server.url], BOTH, credentials=read_netrc(netrc))
        assert done.paths == 3
        assert behind.authorizations == {""}


def test_a_cache_that_wants_credentials_says_so(cache: Path) -> None:
    with served(cache) as server:
        server.password = "ci:secret"
        with pytest.raises(CacheError, match="--cache-netrc"):
            check(server.url, web1=path("web"))


@pytest.mark.parametrize("text", ["THE-SECRET", "machine x login y password z THE-SECRET", "login THE-SECRET"])
def test_a_file_of_credentials_that_is_none_stays_unsaid(tmp_path: Path, text: str) -> None:
    (tmp_path / "netrc").write_text("\n" + text)
    with pytest.raises(NetrcError, match="line 2") as caught:
        read_netrc(tmp_path / "netrc")
    assert "THE-SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    ["nowhere", "s3://bucket", "http://", "https://x:99999", "http://ci:THE-SECRET@x", "file://host/x", "http://[", ""],
)
def test_an_address_where_no_cache_can_be_is_refused(url: str) -> None:
    with pytest.raises(CacheUrlError) as caught:
        check(url, web1=path("web"))
    assert "THE-SECRET" not in str(caught.value)


# The command, with caches that Nix wrote


@attrs.frozen(kw_only=True)
class Fleet:
    """Two hosts over a real cache of two systems, one of which needs the other's output."""

    directory: Path
    publisher: NixPublisher
    web: Closure
    db: Closure

    def release(self, *options: str) -> int:
        words = ["release", str(self.directory / "fleet.toml"), "--ci-key", str(self.directory / "ci.pem")]
        where = ["--releases-dir", str(self.directory / "releases"), "--trust-file", str(self.directory / "trust.json")]
        return run([*words, *where, *options])

    @property
    def is_published(self) -> bool:
        return (self.directory / "releases" / "fleet.resolved.json").exists()


@pytest.fixture
def fleet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Fleet:
    (tmp_path / "nix").mkdir()
    publisher = NixPublisher.at(tmp_path / "nix")
    monkeypatch.setenv("NIX_STORE_DIR", publisher.store_name)
    web = publisher.publish("good", name="web")
    db = publisher.build(
        'derivation { name = "db"; system = builtins.currentSystem; builder = "/bin/sh"; '
        f'args = [ "-c" "echo ${{builtins.storePath {publisher.store_name}/{web}}} ${{./system.nix}} > $out" ]; }}'
    )
    write_key(tmp_path / "ci.pem", CI_KEY.key)
    key = trusted(CI_KEY)
    slot = {"current": {"algorithm": key.algorithm, "public": key.public}}
    (tmp_path / "trust.json").write_bytes(
        trust_bytes({"schemaVersion": 1, "ciReleaseKey": slot, "cacheKeys": [publisher.key]})
    )
    hosts = "".join(
        f'[hosts.{name}]\nsystem = "x86_64-linux"\nchannel = "stable"\nclosure = "{closure}"\n'
        for name, closure in (("web1", web), ("db1", db))
    )
    (tmp_path / "fleet.toml").write_text(
        f'{hosts}[channels.stable]\nrolloutPolicy = "all"\nfreshnessWindow = 240\n'
        '[rolloutPolicies.all]\nstrategy = "all-at-once"\n'
    )
    return Fleet(directory=tmp_path, publisher=publisher, web=web, db=db)


@needs_nix
def test_what_nix_signed_and_copied_is_released(fleet: Fleet, capfd: pytest.CaptureFixture[str]) -> None:
    with served(fleet.publisher.cache) as server:
        assert fleet.release("--cache", server.url, "--json") == 0
    said = json.loads(capfd.readouterr().out)
    assert said["cacheCheck"] == {"caches": [server.url], "hosts": 2, "paths": 3}
    assert fleet.is_published


@needs_nix
def test_what_nobody_signed_is_not_released(fleet: Fleet, capfd: pytest.CaptureFixture[str]) -> None:
    narinfo = fleet.publisher.cache / f"{fleet.web[:32]}.narinfo"
    narinfo.write_text("".join(line for line in narinfo.read_text().splitlines(True) if not line.startswith("Sig")))
    for extra in ((), ("--dry-run",)):
        assert fleet.release("--cache", fleet.publisher.url, *extra) == 1
        err = capfd.readouterr().err
        assert ("nixfleet: 2 of 2 hosts could not fetch what they are to run") in err
        assert err.count(f"    unsigned   {fleet.web}\n") == 2
    assert not fleet.is_published
    assert fleet.release("--cache", fleet.publisher.url, "--no-cache-check") == 0


@needs_nix
def test_what_was_not_pushed_is_not_released(
    fleet: Fleet, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (fleet.publisher.cache / f"{fleet.db[:32]}.narinfo").unlink()
    monkeypatch.setenv("NIXFLEET_CACHE", f"{fleet.publisher.url} {fleet.publisher.url}")
    assert fleet.release() == 1
    err = capfd.readouterr().err
    assert f"  db1: 1 path\n    missing    {fleet.db}\n" in err
    assert "  web1:" not in err
    assert err.count(fleet.publisher.url) == 1
    assert not fleet.is_published


@pytest.mark.parametrize("attended", [True, False])
def test_a_long_look_counts_on_a_terminal_and_nowhere_else(tmp_path: Path, attended: bool) -> None:
    names = [f"lib{number}" for number in range(14)]
    for name, needed in zip(names, [*names[1:], ""], strict=True):
        put(tmp_path / "cache", name, *filter(None, [needed]))
    key = trusted(CI_KEY)
    slot = {"current": {"algorithm": key.algorithm, "public": key.public}}
    document = {"schemaVersion": 1, "ciReleaseKey": slot, "cacheKeys": [OURS.public]}
    (tmp_path / "trust.json").write_bytes(trust_bytes(document))
    (tmp_path / "fleet.toml").write_text(
        f'[hosts.web1]\nsystem = "x86_64-linux"\nchannel = "stable"\nclosure = "{path("lib0")}"\n'
        '[channels.stable]\nrolloutPolicy = "all"\nfreshnessWindow = 240\n[rolloutPolicies.all]\n'
        'strategy = "all-at-once"\n'
    )
    words = [sys.executable, "-m", "nixfleet", "release", str(tmp_path / "fleet.toml"), "--dry-run"]
    words += ["--trust-file", str(tmp_path / "trust.json"), "--releases-dir", str(tmp_path / "releases")]
    reader, writer = os.openpty() if attended else os.pipe()
    with served(tmp_path / "cache") as server, open(reader, "rb", buffering=0) as told:
        server.slow_s = 0.15
        environment = {**os.environ, "TERM": "xterm"}
        done = subprocess.run([*words, "--cache", server.url], env=environment, stderr=writer, timeout=60, check=False)
        os.write(writer, b"the end")
        said = b""
        while not said.endswith(b"the end"):
            said += told.read(4096)
        os.close(writer)
    assert done.returncode == 0, said
    assert (b"looking in the cache: " in said) == attended


@needs_nix
def test_a_dry_run_looks_and_says_what_it_found(fleet: Fleet, capfd: pytest.CaptureFixture[str]) -> None:
    assert fleet.release("--cache", fleet.publisher.url, "--dry-run") == 0
    said = capfd.readouterr()
    assert "in cache 3 paths of 2 hosts" in said.out
    assert "nobody looked" not in said.err
    assert not fleet.is_published


@needs_nix
def test_without_a_cache_it_says_that_nobody_looked(fleet: Fleet, capfd: pytest.CaptureFixture[str]) -> None:
    assert fleet.release() == 0
    assert "nobody looked whether hosts can fetch" in capfd.readouterr().err
    assert fleet.release("--no-cache-check") == 0
    assert "nobody looked" not in capfd.readouterr().err
    assert fleet.release("--cache-check") == 2
    assert "give --cache" in capfd.readouterr().err


@needs_nix
def test_keys_that_hosts_trust_are_in_the_trust_file(fleet: Fleet, capfd: pytest.CaptureFixture[str]) -> None:
    trust = fleet.directory / "trust.json"
    document = json.loads(trust.read_text())
    for keys, what in (([], "no `cacheKeys`"), (["nonsense"], "cache key"), ([STRANGER.public], "untrusted")):
        trust.write_text(json.dumps({**document, "cacheKeys": keys}))
        assert fleet.release("--cache", fleet.publisher.url) == (1 if what == "untrusted" else 2)
        assert what in capfd.readouterr().err
    assert not fleet.is_published


def test_a_cache_in_which_everything_knows_everything_is_given_up(tmp_path: Path) -> None:
    """No more paths than a fleet may have, and yet more of what they know of each other than there is memory."""
    names = [f"p{number}" for number in range(30)]
    for name in names:
        put(tmp_path / "cache", name, *names)
    hosts, urls = {WEB1: path("p0")}, [f"file://{tmp_path}/cache"]
    assert check_caches(hosts, urls, BOTH, references_max=901).paths == 30
    with pytest.raises(TooManyPathsError):
        check_caches(hosts, urls, BOTH, references_max=900)
