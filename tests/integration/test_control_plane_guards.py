"""What every request passes first, over real TLS and raw sockets: readiness, protocol, certificate, role."""

import http.server
import signal
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from control_plane.clock import wall_now
from evidence.documents import encode
from evidence.signature import Algorithm
from nixfleet.keys import certificates
from tests.cplab import Lab, Running, closure, eventually

OPERATORS_ONLY = (
    ("GET", "/v1/rollouts"),
    ("GET", "/v1/deferrals"),
    ("GET", "/v1/quarantine"),
    ("GET", "/metrics"),
    ("POST", "/v1/quarantine/clear"),
    ("POST", "/v1/machines"),
    ("POST", "/v1/refresh"),
    ("POST", "/v1/rollouts/stable@c0ffee/rollback"),
)
AGENTS_ONLY = (
    ("GET", "/v1/agent/dispatch?wait=0"),
    ("POST", "/v1/agent/events"),
    ("POST", "/v1/agent/heartbeat"),
    ("POST", "/v1/agent/renew"),
)


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("guards"))
    lab.publish("c0ffee")
    return lab


@pytest.fixture(scope="module")
def cp(lab: Lab) -> Iterator[Running]:
    with lab.start(metrics_listen="127.0.0.1:0") as running:
        yield running


def refusal(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body) <= {"error", "reason"}
    return answer.status_code, body["reason"]


def test_nothing_is_answered_before_a_signed_fleet_is_in_force(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    with lab.start() as cp:
        for client in (cp.client(), cp.client("web1"), cp.operator):
            answer = client.get("/v1/whoami", headers={"X-Nixfleet-Protocol": "nonsense"})
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "30"
            assert answer.json() == {
                "error": "control plane not ready",
                "reason": "awaiting first signed artifact",
            }
        assert cp.client().get("/healthz").json()["ok"] is True
        assert cp.metric("nixfleet_cp_ready") == 0
        lab.publish("c0ffee")
        eventually(lambda: cp.client("web1").get("/v1/whoami").status_code == 200, what="readiness")


def test_a_published_list_that_does_not_prove_keeps_the_door_shut(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    lab.publish("c0ffee")
    lab.revoke("web1")
    signature = lab.artifacts / "revocations.json.sig"
    good = signature.read_bytes()
    signature.write_bytes(bytes(64))
    with lab.start() as cp:
        assert cp.client("web2").get("/v1/whoami").status_code == 503
        signature.write_bytes(good)
        eventually(lambda: cp.client("web2").get("/v1/whoami").status_code == 200, what="readiness")


@pytest.mark.parametrize(
    ("header", "status"), [("1", 200), ("2", 426), ("0", 426), ("-1", 426), ("one", 400), ("1.0", 400), ("", 400)]
)
def test_the_protocol_header_is_checked_before_the_certificate(cp: Running, header: str, status: int) -> None:
    answer = cp.client("web1").get("/v1/whoami", headers={"X-Nixfleet-Protocol": header})
    assert answer.status_code == status
    if status != 200:
        assert refusal(cp.client().get("/v1/whoami", headers={"X-Nixfleet-Protocol": header})) == (status, "protocol")


def test_strict_demands_the_protocol_header_and_both_lists(cp: Running, tmp_path: Path) -> None:
    assert cp.client("web1", headers={}).get("/v1/whoami").status_code == 200
    lab = Lab(tmp_path)
    lab.publish("c0ffee")
    lab.publish_nonces()
    with lab.start(strict=True) as strict:
        assert "--strict demands it" in strict.refresh()["revocations.json"]
        assert strict.client("web1").get("/v1/whoami").status_code == 503
        lab.revoke("web3")
        assert strict.refresh() == {}
        assert refusal(strict.client("web1", headers={}).get("/v1/whoami")) == (400, "protocol")
        assert strict.client("web1").get("/v1/whoami").status_code == 200


@pytest.mark.parametrize(("method", "path"), [*OPERATORS_ONLY, *AGENTS_ONLY, ("GET", "/v1/hosts")])
def test_without_a_certificate_everything_is_401(cp: Running, method: str, path: str) -> None:
    assert refusal(cp.client().request(method, path)) == (401, "no-certificate")


@pytest.mark.parametrize(("method", "path"), OPERATORS_ONLY)
def test_a_host_may_not_do_what_operators_do(cp: Running, method: str, path: str) -> None:
    assert refusal(cp.client("web1").request(method, path, json={})) == (403, "role")


@pytest.mark.parametrize(("method", "path"), AGENTS_ONLY)
def test_an_operator_may_not_pretend_to_be_a_host(cp: Running, method: str, path: str) -> None:
    assert refusal(cp.operator.request(method, path, json={})) == (403, "role")


def test_a_host_sees_what_concerns_itself(cp: Running) -> None:
    agent = cp.agent("web1")
    dispatch = agent.dispatch(wait=10)
    assert dispatch is not None
    agent.ack(dispatch)
    client = cp.client("web1")
    assert [row["hostname"] for row in client.get("/v1/hosts").json()["hosts"]] == ["web1"]
    assert [row["host"] for row in client.get("/v1/rollouts/stable@c0ffee/hosts").json()["hosts"]] == ["web1"]
    events = client.get("/v1/rollouts/stable@c0ffee/events").json()["events"]
    assert {row["host"] for row in events} == {"web1"}
    assert client.get("/v1/channels/stable").json()["name"] == "stable"
    assert client.get("/v1/channels/edge").status_code == 404


def test_a_certificate_of_another_ca_does_not_get_through_the_handshake(cp: Running, lab: Lab, tmp_path: Path) -> None:
    other = certificates.make_authority(certificates.generate(Algorithm.ED25519), "other CA", wall_now(), 30)
    forged = certificates.make_operator(other, certificates.generate(Algorithm.ED25519), "mallory", wall_now(), 30)
    tmp_path.joinpath("c.pem").write_bytes(forged.certificate_pem)
    tmp_path.joinpath("k.pem").write_bytes(forged.key_pem)
    context = ssl.create_default_context(cafile=lab.path("ca.pem"))
    context.load_cert_chain(tmp_path / "c.pem", tmp_path / "k.pem")
    with httpx.Client(base_url=cp.url, verify=context, trust_env=False) as client, pytest.raises(httpx.TransportError):
        client.get("/healthz")


def test_a_servers_certificate_is_no_clients_certificate(cp: Running) -> None:
    with pytest.raises(httpx.TransportError):
        cp.client("server").get("/v1/whoami")


def test_older_tls_is_refused(cp: Running, lab: Lab) -> None:
    context = ssl.create_default_context(cafile=lab.path("ca.pem"))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with httpx.Client(base_url=cp.url, verify=context, trust_env=False) as client, pytest.raises(httpx.ConnectError):
        client.get("/healthz")


def test_unknown_paths_and_methods_are_refused_in_json(cp: Running) -> None:
    assert refusal(cp.operator.get("/v1/nothing")) == (404, "missing")
    assert refusal(cp.operator.delete("/v1/hosts")) == (405, "method")


def test_signed_files_are_served_byte_for_byte_and_not_twice(cp: Running, lab: Lab) -> None:
    client = cp.client("web1")
    for path, name in (("/v1/fleet.resolved", "fleet.resolved.json"), ("/v1/rollouts/stable@c0ffee", None)):
        file = lab.artifacts / (name or "rollouts/stable@c0ffee.json")
        whole, signature = client.get(path), client.get(f"{path}/sig")
        assert whole.content == file.read_bytes()
        assert signature.content == file.with_name(file.name + ".sig").read_bytes()
        assert (whole.headers["content-type"], signature.headers["content-type"]) == (
            "application/json",
            "application/octet-stream",
        )
        again = client.get(path, headers={"If-None-Match": whole.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get(path, headers={"If-None-Match": '"other"'}).status_code == 200
    for path in ("/v1/rollouts/stable@0000", "/v1/rollouts/nonsense", "/v1/rollouts/..%2f..%2ftrust@00"):
        assert client.get(path).status_code == 404


def test_operator_questions_about_nothing_are_answered_as_such(cp: Running) -> None:
    assert cp.operator.get("/v1/rollouts/stable@0000/lifecycle").status_code == 404
    assert cp.operator.get("/v1/rollouts/nonsense/lifecycle").status_code == 400
    assert cp.operator.get("/v1/rollouts/stable@0000/hosts").status_code == 404
    assert cp.operator.get("/v1/rollouts/stable@0000/events").status_code == 404
    assert cp.operator.get("/v1/rollouts/stable@c0ffee/events?limit=many").status_code == 400
    assert len(cp.operator.get("/v1/rollouts/stable@c0ffee/events?limit=0").json()["events"]) == 1
    assert cp.operator.post("/v1/rollouts/stable@0000/rollback", json={"reason": "x"}).status_code == 404
    assert cp.operator.post("/v1/rollouts/stable@c0ffee/rollback", json={}).status_code == 422


def test_a_machine_can_be_announced(cp: Running) -> None:
    assert cp.operator.post("/v1/machines", json={"hostname": "db9", "note": "rack 4"}).json() == {
        "hostname": "db9",
        "declared": False,
    }
    assert cp.operator.post("/v1/machines", json={"hostname": "../db9"}).status_code == 422
    assert "db9" in {row["hostname"] for row in cp.operator.get("/v1/hosts").json()["hosts"]}


def test_a_closure_is_looked_up_only_where_a_cache_is_configured(cp: Running) -> None:
    answer = cp.client("web1").get(f"/v1/agent/closure/{closure('x')}")
    assert answer.status_code == 501
    assert set(answer.json()) == {"error", "closure", "tracking"}


def test_a_closure_is_looked_up_in_the_configured_cache_and_nothing_else_is(tmp_path: Path) -> None:
    asked: list[str] = []

    class Cache(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200 if "missing" not in self.path else 404)
            self.end_headers()
            self.wfile.write(b"StorePath: x")

        def log_message(self, *_: object) -> None:
            pass

    lab = Lab(tmp_path)
    lab.publish("c0ffee")
    wanted = closure("x")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Cache) as cache:
        thread = threading.Thread(target=cache.serve_forever, args=(0.05,))
        thread.start()
        with lab.start(closure_upstream=f"http://127.0.0.1:{cache.server_address[1]}/") as cp:
            answer = cp.client("web1").get(f"/v1/agent/closure/{wanted}")
            assert (answer.status_code, answer.text) == (200, "StorePath: x")
            assert answer.headers["content-type"].startswith("text/x-nix-narinfo")
            assert cp.client("web1").get("/v1/agent/closure/..%2f..%2fsecret").status_code == 404
            cache.shutdown()
            thread.join()
            cache.server_close()
            assert refusal(cp.client("web1").get(f"/v1/agent/closure/{wanted[:32]}")) == (502, "upstream")
    assert asked == [f"/{wanted[:32]}.narinfo"]


def test_metrics_need_no_certificate_on_their_own_listener(cp: Running) -> None:
    assert cp.metrics_url is not None
    text = httpx.get(cp.metrics_url, trust_env=False).text
    assert "nixfleet_fleet_size 3.0" in text
    assert 'nixfleet_cp_build_info{git_commit="",version=' in text


STALLS = (
    None,  # not even a handshake
    b"",  # a handshake and then nothing
    b"GET /v1/wh",  # half a header
    b"POST /v1/agent/events HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{",  # half a body
)


def test_clients_that_dribble_or_stall_hold_nobody_else_up(cp: Running, lab: Lab) -> None:
    stalled = [stall(cp, lab, start) for start in STALLS * 10]
    try:
        answers = [cp.client("web2").get("/v1/whoami").status_code for _ in range(5)]
        assert answers == [200] * 5
    finally:
        for connection in stalled:
            connection.close()
    eventually(lambda: cp.metric("nixfleet_cp_requests_in_flight") == 1, what="letting go of dropped requests")


def stall(cp: Running, lab: Lab, start: bytes | None) -> socket.socket:
    host, port = cp.url.removeprefix("https://").split(":")
    plain = socket.create_connection((host, int(port)))
    if start is None:
        return plain
    tls = lab.tls("web1").wrap_socket(plain, server_hostname="127.0.0.1")
    tls.sendall(start)
    return tls


def test_a_client_that_never_reads_does_not_keep_the_process_alive(tmp_path: Path) -> None:
    lab = Lab(tmp_path)
    padded = {**encode(lab.fleet("c0ffee")), "padding": "x" * 7_000_000}
    lab.sign("fleet.resolved.json", padded)
    with lab.start() as cp:
        host, port = cp.url.removeprefix("https://").split(":")
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((host, int(port)))
        tls = lab.tls("web1").wrap_socket(connection, server_hostname="127.0.0.1")
        tls.sendall(b"GET /v1/fleet.resolved HTTP/1.1\r\nHost: x\r\n\r\n")
        assert tls.recv(16).startswith(b"HTTP/1.1 200")
        assert cp.client("web2").get("/v1/whoami").status_code == 200
        assert cp.stop(timeout_s=30) == 0
        tls.close()
    assert "Traceback" not in cp.log()


def test_headers_beyond_all_measure_are_refused(cp: Running) -> None:
    assert cp.client("web1").get("/v1/whoami", headers={"X-Long": "x" * 70_000}).status_code in (400, 431)


def test_a_new_server_certificate_is_shown_after_sighup(cp: Running, lab: Lab) -> None:

    def shown() -> bytes:
        host, port = cp.url.removeprefix("https://").split(":")
        plain = socket.create_connection((host, int(port)))
        with lab.tls().wrap_socket(plain, server_hostname="127.0.0.1") as tls:
            certificate = tls.getpeercert(binary_form=True)
            assert certificate is not None
            return certificate

    before = shown()
    new = certificates.make_server(
        lab.authority, certificates.generate(Algorithm.ED25519), ("127.0.0.1",), wall_now(), 30
    )
    lab.path("server-key.pem").write_bytes(new.key_pem)
    lab.path("server.pem").write_bytes(new.certificate_pem)
    cp.process.send_signal(signal.SIGHUP)
    eventually(lambda: shown() != before, what="the new certificate")
