"""News over a real NATS server: who is told looks at once, at its own pace, and no message has to be right.

Agents and control planes that would look by themselves only after an hour take a release when they are told of it;
whatever is told, and however often, they do nothing but look. Time of the pace itself is simulated.
"""

import contextlib
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, Self

import attrs
import psutil
import pytest
import trio
import trio.testing

from messaging.errors import NoAnswerError, UnreachableError, UnwelcomeError
from messaging.link import connected
from messaging.news import Kind, News, Pace, heard, subjects, tell
from messaging.server import Server
from messaging.subjects import NEWS, is_prefix, token
from nixfleet.keys.keyset import Wishes, generate_keys
from nixfleet.release.example import EXAMPLE
from state_machine.values import WallMs
from tests.agentlab import PATIENCE_S, AgentFleet
from tests.cplab import Lab
from tests.integration.test_messaging import identity
from tests.liar import Liar, status
from tests.natslab import NatsServer, nats_server, needs_nats
from tests.updatelab import UpdateLab

pytestmark = needs_nats

HOUR: Final = 3600
MANUAL: Final = Path(__file__).parents[2] / "docs/operating.md"
RELEASED: Final = News(kind=Kind.RELEASED, name="releases", commit="c0ffee", at=1)
GARBAGE: Final = (b"", b"\x00" * 1000, b"{", b'{"kind": "merged", "commit": ["../../etc"]}', b"\xff" * 100_000)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[NatsServer]:
    with nats_server(tmp_path / "nats", jetstream=False) as server:
        yield server


def say(url: str, *bodies: bytes, subject: str = RELEASED.subject()) -> None:
    """Send these to the subject of releases."""

    async def publish() -> None:
        async with connected(Server(url=url), "somebody") as link:
            for body in bodies:
                await link.publish(subject, body)

    trio.run(publish)


def until(what: str, seen: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not seen():
        assert time.monotonic() < deadline, f"{what} was not seen"
        time.sleep(0.02)


class Talker:
    """A server that greets each visitor with the next of its words, and then listens."""

    def __init__(self, *words: bytes) -> None:
        self.words, self.visits = words, 0

    def __enter__(self) -> Self:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"nats://127.0.0.1:{self._socket.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                visitor, _ = self._socket.accept()
            except OSError:
                return
            with visitor:
                visitor.sendall(self.words[self.visits % len(self.words)])
                self.visits += 1
                visitor.settimeout(2)
                with contextlib.suppress(OSError):
                    while visitor.recv(4096):
                        pass


class Drowner(Talker):
    """A server as it should be, until somebody has subscribed to something: then it says this, and zeros for ever."""

    def __init__(self, endless: bytes) -> None:
        super().__init__(endless)
        self.sent = 0

    def _serve(self) -> None:
        visitor, _ = self._socket.accept()
        with visitor, contextlib.suppress(OSError):
            visitor.sendall(b'INFO {"server_id":"x","version":"2.9.0","proto":1,"max_payload":1048576}\r\n')
            said = b""
            while b"SUB " not in said or not said.endswith(b"PING\r\n"):
                said += visitor.recv(4096)
                if said.endswith(b"PING\r\n"):
                    visitor.sendall(b"PONG\r\n")
            visitor.sendall(self.words[0])
            while self.sent < 1024 * 1024 * 1024:
                visitor.sendall(bytes(65536))
                self.sent += 65536


# Telling and hearing


async def test_a_burst_of_news_is_one_thing_that_waits(server: NatsServer) -> None:
    async with connected(Server(url=server.url), "test") as link, heard(link, NEWS, {Kind.RELEASED}) as news:
        for _ in range(50):
            await link.publish(RELEASED.subject(), b"x")
        with trio.fail_after(PATIENCE_S):
            await news.receive()
        assert news.statistics().current_buffer_used <= 1
        await tell(Server(url=server.url), RELEASED)
        with trio.fail_after(PATIENCE_S):
            await news.receive()


async def test_who_listens_for_one_repository_hears_of_no_other(server: NatsServer) -> None:
    there, names = Server(url=server.url), ("web", "web.site")
    async with (
        connected(there, "test") as link,
        heard(link, NEWS, {Kind.MERGED}, names=names[1:]) as news,
        link.subscribed(">") as everything,
    ):
        for said in (News(kind=Kind.MERGED, name="web", at=1), RELEASED, News(kind=Kind.MERGED, name="web.site", at=1)):
            assert not news.statistics().current_buffer_used
            await tell(there, said)
            with trio.fail_after(PATIENCE_S):
                assert (await everything.receive()).subject == said.subject()
        with trio.fail_after(PATIENCE_S):
            await news.receive()


def test_a_name_is_one_token_and_a_prefix_has_no_wildcard() -> None:
    assert News(kind=Kind.MERGED, name="a.b > c", at=1).subject("fleet") == "fleet.merged.a=2Eb=20=3E=20c"
    assert subjects("f", {Kind.RELEASED, Kind.MERGED}) == ("f.released", "f.merged.*")
    assert token("") not in ("", ".")
    assert [is_prefix(text) for text in ("a.b-c", "a..b", "", "a.>", "a.*", "a b", ".a", "é")] == [True] + [False] * 7


async def test_where_one_may_neither_tell_nor_listen_it_is_said(tmp_path: Path) -> None:
    key, public = identity(tmp_path)
    more = (
        f'authorization {{ users: [ {{ nkey: {public}, permissions: {{ publish: "a", subscribe: "_INBOX.>" }} }} ] }}'
    )
    with nats_server(tmp_path / "nats", more=more) as server:
        me = Server(url=server.url, nkey_file=key)
        with pytest.raises(UnwelcomeError, match=r"(?i)permissions violation"):
            await tell(me, RELEASED)
        async with connected(me, "test") as link:
            with pytest.raises(UnwelcomeError, match=r"(?i)permissions violation"):
                async with heard(link, NEWS, {Kind.RELEASED}):
                    pass


async def test_the_permissions_of_the_manual_are_enough(tmp_path: Path) -> None:
    for name in ("ci", "web1"):
        (tmp_path / name).mkdir()
    (ci, ci_public), (web1, web1_public) = identity(tmp_path / "ci"), identity(tmp_path / "web1")
    [permissions] = re.findall("\n(authorization {.*?)```", MANUAL.read_text(), re.DOTALL)
    more = permissions.replace("U…CI", ci_public).replace("U…WEB1", web1_public)
    with nats_server(tmp_path / "nats", jetstream=False, more=more) as server:
        async with (
            connected(Server(url=server.url, nkey_file=web1), "test") as link,
            heard(link, NEWS, {Kind.RELEASED}) as news,
        ):
            await tell(Server(url=server.url, nkey_file=ci), RELEASED)
            with trio.fail_after(PATIENCE_S):
                await news.receive()
            with pytest.raises(UnwelcomeError):
                await tell(Server(url=server.url, nkey_file=web1), RELEASED)


async def test_telling_a_server_that_is_away_or_silent_ends(tmp_path: Path) -> None:
    with nats_server(tmp_path) as server:
        away = Server(url=server.url)
    with pytest.raises(UnreachableError):
        await tell(away, RELEASED)
    [listener] = await trio.open_tcp_listeners(0, host="127.0.0.1")
    silent = Server(url=f"nats://127.0.0.1:{listener.socket.getsockname()[1]}")
    async with listener:
        with pytest.raises((NoAnswerError, UnreachableError)):
            await tell(silent, RELEASED)


async def test_a_server_that_never_comes_to_an_end_is_left_before_it_fills_the_memory() -> None:
    for endless in (b"MSG x 1 99999999999\r\n", b""):
        with Drowner(endless) as drowner:
            async with (
                connected(Server(url=drowner.url), "test", anew=False) as link,
                heard(link, NEWS, {Kind.RELEASED}) as news,
            ):
                with trio.fail_after(PATIENCE_S):
                    async for _ in news:
                        raise AssertionError("that was no news")
        assert drowner.sent < 32 * 1024 * 1024


# How often


async def test_however_much_news_there_is_the_gap_is_kept(autojump_clock: trio.testing.MockClock) -> None:
    send, receive = trio.open_memory_channel[None](1)
    acted: list[float] = []

    async def act() -> None:
        acted.append(trio.current_time())

    async def flood() -> None:
        async with send:
            for _ in range(3000):
                if not send.statistics().current_buffer_used:
                    send.send_nowait(None)
                await trio.sleep(0.1)

    began = trio.current_time()
    with trio.move_on_after(300):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(flood)
            await Pace(gap_s=30, spread_s=10, dice=lambda: 0.5).keep(receive, act)
    assert [round(at - began) for at in acted] == [5, 40, 75, 110, 145, 180, 215, 250, 285]


async def test_who_hears_the_same_acts_at_different_moments(autojump_clock: trio.testing.MockClock) -> None:
    acted: Counter[int] = Counter()
    began = trio.current_time()

    async def one() -> None:
        send, receive = trio.open_memory_channel[None](1)
        send.send_nowait(None)
        send.close()

        async def act() -> None:
            acted[int(trio.current_time() - began)] += 1

        await Pace(gap_s=0, spread_s=10).keep(receive, act)

    async with trio.open_nursery() as nursery:
        for _ in range(2000):
            nursery.start_soon(one)
    assert set(acted) == set(range(10))
    assert max(acted.values()) < 400


# Agents


@pytest.fixture
def fleet(tmp_path: Path) -> AgentFleet:
    return AgentFleet(tmp_path / "fleet")


SELDOM: Final = {"poll_interval": HOUR, "heartbeat_interval": HOUR}


@pytest.mark.parametrize("bodies", [(b'{"kind":"released"}',), GARBAGE], ids=["right", "garbage"])
def test_an_agent_that_is_told_of_a_release_takes_it(
    fleet: AgentFleet, server: NatsServer, bodies: tuple[bytes, ...]
) -> None:
    """The control plane that it asks dispatches nothing: all that it can go by is the fleet it fetches."""
    first, second = fleet.system(), fleet.system("good", more="newer")
    with Liar(fleet) as liar:
        fleet.publish("c0ffee", targets={"web1": first})
        agent = fleet.agent("web1", liar.url, running=first, nats_url=server.url, **SELDOM)
        with agent.running():
            agent.until_logged("listening for news")
            agent.until_reached("intent")
            before = liar.count("fleet")
            fleet.publish("decaf", targets={"web1": second})
            say(server.url, *bodies)
            liar.until("a look at the fleet", lambda: liar.count("fleet") > before)


def test_a_flood_of_news_has_an_agent_ask_once(fleet: AgentFleet, server: NatsServer) -> None:
    with Liar(fleet) as liar:
        fleet.publish("c0ffee")
        agent = fleet.agent("web1", liar.url, running=fleet.system(), nats_url=server.url, **SELDOM)
        with agent.running():
            agent.until_logged("listening for news")
            agent.until_reached("intent")
            before = liar.count("fleet")
            say(server.url, *[b"x" * 100] * 1000)
            agent.until_logged("there is news")
            liar.until("a look at the fleet", lambda: liar.count("fleet") > before)
            memory = psutil.Process(agent.pid).memory_info().rss
            say(server.url, *[b"x" * 100] * 1000, *[b"x" * 900_000] * 100)
            # The second thousand waits for its time, which is half a poll interval away.
            assert liar.count("fleet") - before <= 2
            assert psutil.Process(agent.pid).memory_info().rss - memory < 32 * 1024 * 1024
            assert sum(line["message"] == "there is news" for line in agent.log()) == 1


def test_news_shortens_no_pause_that_was_asked_for(fleet: AgentFleet, server: NatsServer) -> None:
    with Liar(fleet) as liar:
        fleet.publish("c0ffee")
        liar.says["heartbeat"] = status(503, Retry_After="3600")
        agent = fleet.agent("web1", liar.url, running=fleet.system(), nats_url=server.url, **SELDOM)
        with agent.running():
            agent.until_logged("listening for news")
            agent.until_failed("heartbeat")
            agent.until_reached("intent")
            heartbeats, looks = liar.count("heartbeat"), liar.count("fleet")
            say(server.url, b"")
            assert agent.until_logged("there is news, but what failed is not hurried")["failing"] == ["heartbeat"]
            assert (liar.count("heartbeat"), liar.count("fleet")) == (heartbeats, looks)


def test_a_server_that_is_away_is_waited_for_and_nothing_else_waits(fleet: AgentFleet, tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats", jetstream=False) as server, Liar(fleet) as liar:
        server.kill()
        fleet.publish("c0ffee")
        agent = fleet.agent("web1", liar.url, running=fleet.system(), nats_url=server.url, **SELDOM)
        with agent.running():
            agent.until_logged("no news is heard; polling goes on")
            agent.until_reached("intent")
            assert agent.until_ready()["news"]["state"] == "trying"
            server.start()
            agent.until_status("the connection", lambda said: said["news"]["state"] == "connected")
            assert "connected to" in agent.command("status").stdout
            server.kill()
            agent.until_status("its loss", lambda said: said["news"]["state"] == "trying")
            assert agent.stop() == 0


def test_a_wrong_key_is_logged_once(fleet: AgentFleet, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (key, _), (_, public) = identity(tmp_path), identity(tmp_path / "other")
    more = f"authorization {{ users: [ {{ nkey: {public} }} ] }}"
    with nats_server(tmp_path / "nats", jetstream=False, more=more) as server, Liar(fleet) as liar:
        fleet.publish("c0ffee")
        agent = fleet.agent(
            "web1", liar.url, running=fleet.system(), nats_url=server.url, nats_nkey_file=key, poll_interval=1
        )
        with agent.running():
            agent.until("two refusals", lambda: server.log().count("authentication error") >= 2)
            said = [line for line in agent.log() if line["message"] == "no news is heard; polling goes on"]
            assert len(said) == 1
            assert "does not know who this is" in said[0]["why"]
            agent.until_reached("intent")


def test_a_server_that_talks_nonsense_disturbs_nothing(fleet: AgentFleet) -> None:
    info = b"INFO {}\r\n", b"INFO [1]\r\n", b'INFO {"max_payload": "x"}\r\nMSG a b c d\r\n', b"\x00" * 65536
    with Liar(fleet) as liar, Talker(*info) as talker:
        fleet.publish("c0ffee")
        agent = fleet.agent("web1", liar.url, running=fleet.system(), nats_url=talker.url, poll_interval=1)
        with agent.running():
            agent.until("its visits", lambda: talker.visits >= 2)
            agent.until_reached("heartbeat")
            liar.until_asked("heartbeat", 2)
            assert "Traceback" not in agent.log_text()
            assert agent.stop() == 0


# Control planes


def test_a_control_plane_that_is_told_looks_at_once(tmp_path: Path, server: NatsServer) -> None:
    lab = Lab(tmp_path / "lab", hosts=("web1",))
    lab.publish("c0ffee")
    with lab.start(artifact_poll_secs=HOUR, nats_url=server.url) as cp:
        until("it listens", lambda: "listening for news" in cp.log())
        rollout = lab.publish("decaf").rollout_id
        say(server.url, *GARBAGE)
        until("the release", lambda: cp.operator.get(f"/v1/rollouts/{rollout}/lifecycle").status_code == 200)
        assert cp.stop() == 0


def test_a_control_plane_needs_no_server_that_it_was_told_of(tmp_path: Path) -> None:
    lab = Lab(tmp_path / "lab", hosts=("web1",))
    lab.publish("c0ffee")
    with Talker(b"INFO {}\r\n") as talker, lab.start(nats_url=talker.url) as cp:
        until("its visit", lambda: talker.visits)
        until("a line about it", lambda: "no news is heard" in cp.log())
        rollout = lab.publish("decaf").rollout_id
        until("the release", lambda: cp.operator.get(f"/v1/rollouts/{rollout}/lifecycle").status_code == 200)
        assert "Traceback" not in cp.log()
        assert cp.stop() == 0


# Those who tell


@contextlib.contextmanager
def everything_said(url: str) -> Iterator[list[tuple[str, dict[str, object]]]]:
    """What is told below the usual prefix while the block runs, as subjects and what they say."""
    said: list[tuple[str, dict[str, object]]] = []
    listening, over = threading.Event(), threading.Event()

    async def listen() -> None:
        async with connected(Server(url=url), "test") as link, link.subscribed(f"{NEWS}.>") as messages:
            listening.set()
            while not over.is_set():
                with trio.move_on_after(0.1):
                    message = await messages.receive()
                    said.append((message.subject, json.loads(message.data)))

    thread = threading.Thread(target=trio.run, args=(listen,), daemon=True)
    thread.start()
    assert listening.wait(PATIENCE_S)
    try:
        yield said
    finally:
        over.set()
        thread.join()


@attrs.frozen(kw_only=True)
class Publisher:
    """Keys, a description of a fleet, and a place for releases."""

    root: Path

    @classmethod
    def at(cls, root: Path) -> "Publisher":
        generate_keys(root / "keys", Wishes(), WallMs(1_780_000_000_000))
        (root / "fleet.toml").write_text(EXAMPLE)
        (root / "releases").mkdir()
        return cls(root=root)

    def release(self, *more: str) -> "subprocess.CompletedProcess[str]":
        keys = self.root / "keys"
        words = [f"--ci-key={keys / 'ci-release.pem'}", f"--releases-dir={self.root / 'releases'}", *more]
        return subprocess.run(
            [sys.executable, "-m", "nixfleet", "release", *words],
            capture_output=True, text=True, check=False, timeout=PATIENCE_S * 2,
        )  # fmt: skip


def test_a_release_is_told_and_so_is_its_new_signature(server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "ci").mkdir()
    publisher, nats = Publisher.at(tmp_path / "ci"), f"--nats-url={server.url}"
    with everything_said(server.url) as said:
        description = str(publisher.root / "fleet.toml")
        assert publisher.release(description, "--commit=c0ffee", "--dry-run", nats).returncode == 0
        done = publisher.release(description, "--commit=c0ffee", nats)
        assert (done.returncode, "note: whoever" in done.stderr) == (0, False), done.stderr
        assert publisher.release("--refresh", nats).returncode == 0
        until("both", lambda: len(said) >= 2)
    assert [(subject, what["kind"], what["commit"], what["name"]) for subject, what in said] == [
        (f"{NEWS}.released", "released", "c0ffee", "releases")
    ] * 2


def test_a_release_that_could_not_be_told_is_one_all_the_same(tmp_path: Path) -> None:
    with nats_server(tmp_path / "nats") as server:
        url = server.url
    (tmp_path / "ci").mkdir()
    publisher = Publisher.at(tmp_path / "ci")
    description = str(publisher.root / "fleet.toml")
    done = publisher.release(description, "--commit=c0ffee", "--json", f"--nats-url={url}")
    assert done.returncode == 0
    assert json.loads(done.stdout)["published"]["commit"] == "c0ffee"
    assert "whoever waits for news was not told" in done.stderr
    assert (publisher.root / "releases/fleet.resolved.json").exists()
    with Talker(b"INFO {}\r\n") as talker:
        done = publisher.release("--refresh", f"--nats-url={talker.url}")
    assert (done.returncode, "whoever waits for news was not told" in done.stderr) == (0, True), done.stderr


def test_a_merge_is_told_with_the_name_of_the_repository(server: NatsServer, tmp_path: Path) -> None:
    (tmp_path / "lab").mkdir()
    lab = UpdateLab.at(tmp_path / "lab")
    lab.say("words", "two")
    try:
        with everything_said(server.url) as said:
            ran = lab.update("--auto-merge", "--json", f"--nats-url={server.url}")
            assert (ran.status, ran.json["outcome"], ran.json["notes"]) == (0, "merged", []), ran.err
            until("it", lambda: said)
    finally:
        lab.stop_orphans()
    [(subject, what)] = said
    assert subject == f"{NEWS}.merged.{token(lab.fleet.name)}"
    assert (what["kind"], what["commit"]) == ("merged", lab.main())
