"""Many hosts waiting at once: who has gone is let go of, and a host that asks twice is answered where it listens."""

import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.cplab import Lab, Running, closure, eventually

HOSTS = tuple(f"h{number:03}" for number in range(200))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    return Lab(tmp_path_factory.mktemp("polls"), hosts=HOSTS)


@pytest.fixture(scope="module")
def cp(lab: Lab) -> Iterator[Running]:
    # Nobody has a target, so everybody waits.
    lab.publish("c0ffee", targets={"nobody": closure("x")})
    with lab.start() as running:
        yield running


def long_poll(cp: Running, host: str) -> socket.socket:
    """A long-poll under way on a bare connection."""
    address, port = cp.url.removeprefix("https://").split(":")
    plain = socket.create_connection((address, int(port)))
    connection = cp.lab.tls(host).wrap_socket(plain, server_hostname="127.0.0.1")
    connection.sendall(b"GET /v1/agent/dispatch?wait=60 HTTP/1.1\r\nHost: cp\r\nX-Nixfleet-Protocol: 1\r\n\r\n")
    return connection


def handlers(cp: Running) -> float:
    """Requests being handled, but for the one that asks."""
    count = cp.metric("nixfleet_cp_requests_in_flight")
    assert count is not None
    return count - 1


def test_a_dropped_client_leaves_no_handler_behind(cp: Running) -> None:
    connections = [long_poll(cp, host) for host in HOSTS]
    eventually(lambda: handlers(cp) == len(HOSTS), what="200 long-polls")
    assert cp.metric("nixfleet_cp_long_polls") == len(HOSTS)
    for number, connection in enumerate(connections):
        if number % 2:  # half of them say goodbye, half just vanish
            connection.close()
        else:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            connection.close()
    eventually(lambda: handlers(cp) == 0, what="the end of every handler")
    assert cp.metric("nixfleet_cp_long_polls") == 0


def test_a_second_request_of_a_host_takes_the_place_of_its_first(cp: Running) -> None:
    first = long_poll(cp, "h000")
    eventually(lambda: cp.metric("nixfleet_cp_long_polls") == 1, what="the first long-poll")
    second = long_poll(cp, "h000")
    first.settimeout(20)
    assert first.recv(4096).startswith(b"HTTP/1.1 204")
    assert cp.metric("nixfleet_cp_long_polls") == 1
    first.close()
    second.close()
    eventually(lambda: handlers(cp) == 0, what="the end of every handler")


def test_a_nonsense_wait_is_refused_and_a_long_one_is_cut(cp: Running) -> None:
    client = cp.client("h001")
    assert client.get("/v1/agent/dispatch", params={"wait": "soon"}).status_code == 400
    assert client.get("/v1/agent/dispatch", params={"wait": "-5"}).status_code == 204


def test_every_waiting_host_is_answered_when_a_release_comes(cp: Running, lab: Lab) -> None:
    answers: dict[str, Any] = {}

    def wait_for(host: str) -> None:
        agent = cp.agent(host)
        answers[host] = agent.dispatch(wait=60)

    waiting = [threading.Thread(target=wait_for, args=(host,)) for host in HOSTS[:20]]
    for thread in waiting:
        thread.start()
    eventually(lambda: cp.metric("nixfleet_cp_long_polls") == 20, what="20 long-polls")
    lab.publish("dead01")
    for thread in waiting:
        thread.join(30)
    assert {host: answer["target_closure"] for host, answer in answers.items()} == {
        host: closure(f"{host}-dead01") for host in HOSTS[:20]
    }
