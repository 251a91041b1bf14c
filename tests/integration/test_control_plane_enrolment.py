"""Enrolment and renewal over real TLS: who gets a certificate, for what, and that no failure costs a token."""

import base64
import datetime
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from control_plane.clock import wall_now
from control_plane.issuance import parse_request
from evidence.canonical import canonicalize
from evidence.host_key import generate_host_key
from state_machine.values import HostName, WallMs
from tests.cplab import Lab, Running, eventually, slot

HOSTS = tuple(f"h{number}" for number in range(30))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Lab:
    lab = Lab(tmp_path_factory.mktemp("enrol"), hosts=HOSTS)
    lab.publish("c0ffee")
    lab.publish_nonces()
    return lab


@pytest.fixture(scope="module")
def cp(lab: Lab) -> Iterator[Running]:
    with lab.start() as running:
        yield running


_fresh = iter(HOSTS)


@pytest.fixture
def host() -> str:
    return next(_fresh)


def enroll(cp: Running, token: Any, csr_pem: str) -> httpx.Response:
    return cp.client().post("/v1/enroll", json={"token": token, "csrPem": csr_pem})


def allowed_token(cp: Running, host: str, **changes: Any) -> Any:
    token = cp.lab.token(host, **changes)
    assert "bootstrap-nonces.json" not in cp.refresh()
    return token


def refusal(answer: httpx.Response) -> tuple[int, str]:
    body = answer.json()
    assert set(body) <= {"error", "reason"}
    return answer.status_code, body["reason"]


def issued(answer: httpx.Response) -> x509.Certificate:
    assert answer.status_code == 200, answer.text
    return x509.load_pem_x509_certificate(answer.json()["certPem"].encode())


def test_a_token_gets_a_certificate_that_opens_the_hosts_endpoints(cp: Running, lab: Lab, host: str) -> None:
    answer = enroll(cp, allowed_token(cp, host), lab.csr(host))
    certificate = issued(answer)
    lab.path(f"{host}.pem").write_text(answer.json()["certPem"])
    whoami = cp.client(host).get("/v1/whoami").json()
    assert whoami["cn"] == f"agent-{host}.fleet.test"
    assert cp.client(host).get("/v1/agent/dispatch?wait=0").status_code in (200, 204)
    # Back-dated, so that a host whose clock lags a little can use it at once.
    age = datetime.datetime.fromtimestamp(wall_now() / 1000, tz=datetime.UTC) - certificate.not_valid_before_utc
    assert datetime.timedelta(minutes=4) < age < datetime.timedelta(minutes=6)


def test_a_certificate_is_for_one_name_and_for_clients_only(cp: Running, lab: Lab, host: str) -> None:
    certificate = issued(enroll(cp, allowed_token(cp, host), lab.csr(host)))
    name = f"agent-{host}.fleet.test"
    extensions = certificate.extensions
    assert certificate.subject.rfc4514_string() == f"CN={name}"
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value.get_values_for_type(x509.DNSName)
    assert names == [name]
    usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    public = certificate.public_key()
    assert isinstance(public, ed25519.Ed25519PublicKey)
    assert public.public_bytes_raw() == lab.keys[HostName(host)].public


def test_a_request_cannot_make_its_host_an_operator(cp: Running, lab: Lab, host: str) -> None:
    smuggled = x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, "operator")
    answer = enroll(cp, allowed_token(cp, host), lab.csr(host, subject=[smuggled]))
    assert issued(answer).subject.get_attributes_for_oid(NameOID.ORGANIZATIONAL_UNIT_NAME) == []
    lab.path(f"{host}.pem").write_text(answer.json()["certPem"])
    assert refusal(cp.client(host).get("/v1/rollouts")) == (403, "role")


def test_a_token_is_good_once(cp: Running, lab: Lab, host: str) -> None:
    token = allowed_token(cp, host)
    assert enroll(cp, token, lab.csr(host)).status_code == 200
    assert refusal(enroll(cp, token, lab.csr(host))) == (409, "nonce-used")


def test_of_many_requests_at_once_with_one_token_one_is_answered(cp: Running, lab: Lab, host: str) -> None:
    token, csr = allowed_token(cp, host), lab.csr(host)
    with ThreadPoolExecutor(8) as pool:
        statuses = sorted(pool.map(lambda _: enroll(cp, token, csr).status_code, range(8)))
    assert statuses == [200] + [409] * 7


def test_a_nonce_that_is_not_on_the_signed_list_is_401(cp: Running, lab: Lab, host: str) -> None:
    assert refusal(enroll(cp, lab.token(host, allow=False), lab.csr(host))) == (401, "missing")


def test_an_expired_token_is_401(cp: Running, lab: Lab, host: str) -> None:
    token = allowed_token(cp, host, issued_at=WallMs(wall_now() - 10_000), validity_ms=9_000)
    assert enroll(cp, token, lab.csr(host)).status_code == 401


def test_a_token_from_the_future_is_401(cp: Running, lab: Lab, host: str) -> None:
    token = allowed_token(cp, host, issued_at=WallMs(wall_now() + 600_000))
    assert refusal(enroll(cp, token, lab.csr(host))) == (401, "future-dated")


def test_a_token_signed_by_somebody_else_is_401(cp: Running, lab: Lab, host: str) -> None:
    token = allowed_token(cp, host)
    forged = generate_host_key().sign(canonicalize(token["claims"]))
    token["signature"] = base64.b64encode(forged).decode()
    assert refusal(enroll(cp, token, lab.csr(host))) == (401, "bad-signature")


def test_a_token_of_another_version_is_401(cp: Running, lab: Lab, host: str) -> None:
    token = {**allowed_token(cp, host), "version": 2}
    assert refusal(enroll(cp, token, lab.csr(host))) == (401, "schema-version")


def test_a_token_enrols_no_other_name_and_no_other_key(cp: Running, lab: Lab, host: str) -> None:
    token = allowed_token(cp, host)
    assert refusal(enroll(cp, token, lab.csr("h0" if host != "h0" else "h1"))) == (401, "wrong-name")
    assert refusal(enroll(cp, token, lab.csr(host, key=generate_host_key()))) == (401, "bad-key")
    assert enroll(cp, token, lab.csr(host)).status_code == 200  # and is still good for its own


def test_a_token_for_another_key_than_the_fleet_declares_is_401(cp: Running, lab: Lab, host: str) -> None:
    other = generate_host_key()
    token = allowed_token(cp, host, public=other.public)
    assert refusal(enroll(cp, token, lab.csr(host, key=other))) == (401, "bad-key")


def test_a_host_that_the_fleet_does_not_declare_is_401(cp: Running, lab: Lab) -> None:
    key = generate_host_key()
    token = allowed_token(cp, "h0", hostname="stranger", public=key.public)
    assert refusal(enroll(cp, token, lab.csr("stranger", key=key))) == (401, "undeclared")


def test_what_is_no_request_is_400_and_costs_nothing(cp: Running, lab: Lab, host: str) -> None:
    token = allowed_token(cp, host)
    unsigned = lab.csr(host)[:-60] + lab.csr("h1")[-60:]
    for pem in ("", "nonsense", unsigned, _ecdsa_csr(host)):
        assert enroll(cp, token, pem).status_code == 400
    assert refusal(enroll(cp, {"claims": {}}, lab.csr(host))) == (400, "parse")
    assert enroll(cp, token, lab.csr(host)).status_code == 200


def _ecdsa_csr(host: str) -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


def test_without_a_ca_key_the_token_stays_good_for_later(tmp_path: Path) -> None:
    lab = Lab(tmp_path, hosts=("web1",))
    lab.publish("c0ffee")
    token = lab.token("web1")
    with lab.start(fleet_ca_cert=None, fleet_ca_key=None) as cp:
        assert refusal(enroll(cp, token, lab.csr("web1"))) == (500, "no-issuer")
    with lab.start() as cp:
        assert enroll(cp, token, lab.csr("web1")).status_code == 200
    with lab.start() as cp:  # and what was used up stays so over a restart
        assert refusal(enroll(cp, token, lab.csr("web1"))) == (409, "nonce-used")


def test_a_trust_file_without_an_org_root_is_the_control_planes_fault(tmp_path: Path) -> None:
    lab = Lab(tmp_path, hosts=("web1",))
    lab.publish("c0ffee")
    token = lab.token("web1")
    with lab.start() as cp:
        lab.write_trust(org_root={"current": None})
        assert refusal(enroll(cp, token, lab.csr("web1"))) == (500, "no-trust-roots")
        lab.path("trust.json").write_text("{")
        assert refusal(enroll(cp, token, lab.csr("web1")))[0] == 500
        lab.write_trust(org_root=slot(generate_host_key(), previous=slot(lab.org_root)["current"]))
        assert enroll(cp, token, lab.csr("web1")).status_code == 200


def test_every_certificate_is_in_the_issuance_log(cp: Running, lab: Lab, host: str) -> None:
    enroll(cp, allowed_token(cp, host), lab.csr(host))
    cp.client(host).post("/v1/agent/renew", json={"csrPem": lab.csr(host)})
    lines = [json.loads(line) for line in lab.path("issuance.log").read_text().splitlines()]
    own = [line for line in lines if line["issued_cn"] == f"agent-{host}.fleet.test"]
    assert [line["context"] for line in own] == ["enroll", "renew"]
    assert set(own[0]) == {"at", "requester_cn", "issued_cn", "not_after", "validity_secs", "context"}


def test_a_host_renews_its_own_name_with_its_own_key_only(cp: Running, lab: Lab, host: str) -> None:
    own = cp.client(host)
    assert own.post("/v1/agent/renew", json={"csrPem": lab.csr(host)}).status_code == 200
    canonical = lab.csr(host, key=lab.keys[HostName(host)])
    assert own.post("/v1/agent/renew", json={"csrPem": canonical}).status_code == 200
    other = lab.csr("h0" if host != "h0" else "h1", key=lab.keys[HostName(host)])
    assert refusal(own.post("/v1/agent/renew", json={"csrPem": other})) == (403, "wrong-name")
    rekeyed = lab.csr(host, key=generate_host_key())
    assert refusal(own.post("/v1/agent/renew", json={"csrPem": rekeyed})) == (401, "bad-key")
    assert cp.client().post("/v1/agent/renew", json={"csrPem": lab.csr(host)}).status_code == 401


def test_a_revoked_host_is_shut_out_until_it_enrols_again(tmp_path: Path) -> None:
    lab = Lab(tmp_path, hosts=("web1", "web2"))
    lab.publish("c0ffee")
    with lab.start() as cp:
        assert cp.client("web1").get("/v1/whoami").status_code == 200
        lab.revoke("web1")
        assert cp.refresh() == {}
        assert refusal(cp.client("web1").get("/v1/whoami")) == (401, "revoked")
        assert refusal(cp.client("web1").post("/v1/agent/renew", json={"csrPem": lab.csr("web1")})) == (401, "revoked")
        assert cp.client("web2").get("/v1/whoami").status_code == 200
        # A certificate begins at a whole second: in the next one it can begin after the revocation and before now.
        revoked_at = wall_now()
        eventually(lambda: wall_now() // 1000 > revoked_at // 1000, what="another second")
        answer = enroll(cp, allowed_token(cp, "web1"), lab.csr("web1"))
        assert answer.status_code == 200, answer.text
        lab.path("web1.pem").write_text(answer.json()["certPem"])
        # Back-dated, but not to before the revocation, or the host would be shut out for five minutes more.
        assert cp.client("web1").get("/v1/whoami").status_code == 200


def test_a_certificate_that_runs_out_is_no_longer_good_on_the_connection_it_opened(tmp_path: Path) -> None:
    lab = Lab(tmp_path, hosts=("web1",))
    lab.publish("c0ffee")
    with lab.start() as cp:
        now = wall_now()
        issued = lab.issuer(validity_s=2).issue(parse_request(lab.csr("web1")), HostName("web1"), now)
        lab.path("web1.pem").write_text(issued.pem)
        client = cp.client("web1")
        assert client.get("/v1/whoami").status_code == 200
        eventually(lambda: wall_now() > issued.not_after, what="the end of the certificate")
        assert refusal(client.get("/v1/whoami")) == (401, "certificate-expired")


def report(cp: Running, token: Any, event: str) -> httpx.Response:
    body = {
        "token": token,
        "agentVersion": "1.0",
        "occurredAt": "2026-06-01T10:00:00Z",
        "event": {"event": event, "details": {"status": 401}},
    }
    return cp.client().post("/v1/agent/bootstrap-report", json=body)


def test_a_host_that_cannot_enrol_can_say_so(tmp_path: Path) -> None:
    lab = Lab(tmp_path, hosts=("web1",))
    lab.publish("c0ffee")
    with lab.start() as cp:
        token: Any = lab.token("web1", allow=False)
        assert report(cp, token, "enrollment-failed").status_code == 204
        [row] = cp.operator.get("/v1/hosts").json()["hosts"]
        assert row["failure"] == "enrollment-failed"
        assert refusal(report(cp, token, "activation-failed")) == (422, "event")
        forged = {**token, "signature": base64.b64encode(b"0" * 64).decode()}
        assert refusal(report(cp, forged, "trust-error")) == (401, "bad-signature")
        statuses = [report(cp, token, "trust-error").status_code for _ in range(6)]
        assert statuses[-1] == 429  # nobody fills the log without a certificate
        assert token["claims"]["nonce"] not in cp.log()
