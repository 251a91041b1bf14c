"""A fleet in a directory, with a real control plane: keys, CA, signed artifacts, the process, clients of every role.

    lab = Lab(tmp_path, hosts=("web1", "web2"))
    rollout = lab.publish("c0ffee", waves=(("web1",), ("web2",)))
    with lab.start() as cp:
        agent = cp.agent("web1")           # a host's side of the wire, told what to say
        dispatch = agent.dispatch(wait=5)
        agent.converge(dispatch)
        cp.operator.get(f"/v1/rollouts/{rollout}/lifecycle").json()

Everything is as in production: TLS 1.3 with client certificates on loopback, files signed by a CI key, one process of
`python -m control_plane`. Certificates are made here with the control plane's own issuer, so that a test does not have
to enrol first; `Lab.token` and `Lab.csr` are for those that do.
"""

import hashlib
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import attrs
import httpx
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.x509.oid import NameOID

from control_plane.clock import wall_now
from control_plane.identity import CanonicalNames
from control_plane.issuance import Issuer, load_issuer, parse_request
from evidence.canonical import canonicalize, digest
from evidence.documents import encode as encode_document
from evidence.host_key import HostKey, generate_host_key
from evidence.signature import Algorithm
from evidence.tokens import TokenClaims, mint_token, nonce_entry
from nixfleet.keys import certificates
from state_machine.facts import (
    ActivationCompleted,
    ActivationFailed,
    ActivationStarted,
    Converged,
    DispatchAck,
    Fact,
    ProbeObservedFirst,
    ProbeResult,
    ProbeTopologyDeclared,
    RollbackComplete,
)
from state_machine.intent import (
    BootstrapNonce,
    BootstrapNonces,
    Fleet,
    FleetChannel,
    FleetHost,
    HostTarget,
    Manifest,
    Meta,
    Revocation,
    Revocations,
    RolloutPolicy,
    Wave,
)
from state_machine.values import (
    Channel,
    Closure,
    HostName,
    ProbeMode,
    ProbeSpec,
    ProbeStatus,
    RolloutId,
    SwitchMethod,
    WallMs,
    is_closure,
)
from wire.codec import encode, encode_fact
from wire.endpoints import DISPATCH, EVENTS, HEARTBEAT, PROTOCOL_HEADER, PROTOCOL_VERSION
from wire.json_value import JsonObject
from wire.messages import HeartbeatRequest

STABLE: Final = Channel("stable")
SUFFIX: Final = "fleet.test"
START_TIMEOUT_S: Final = float(os.environ.get("TEST_PATIENCE_S", "40"))
"""How long a start may take; the machine may be busy."""

_NIX32: Final = "0123456789abcdfghijklmnpqrsvwxyz"


def closure(name: str) -> Closure:
    """A well-formed closure that differs whenever `name` does."""
    hashed = hashlib.sha256(name.encode()).digest()
    made = Closure("".join(_NIX32[byte % 32] for byte in hashed) + f"-nixos-system-{name.replace(' ', '-')}")
    assert is_closure(made), made
    return made


OLD: Final = closure("old")
"""What hosts run before anything happens."""


@attrs.frozen(kw_only=True)
class Published:
    """What `Lab.publish` put out."""

    commit: str
    signed_at: WallMs
    fleet: Fleet
    manifests: Mapping[Channel, Manifest]

    @property
    def rollout_id(self) -> RolloutId:
        """The rollout of the only channel."""
        [manifest] = self.manifests.values()
        return manifest.rollout_id


class Lab:
    """Keys and files of one fleet below `root`. Start as many control planes as a test needs, one after another."""

    def __init__(
        self,
        root: Path,
        hosts: Sequence[str] = ("web1", "web2", "web3"),
        *,
        suffix: str | None = SUFFIX,
        server_names: Sequence[str] = ("127.0.0.1", "localhost"),
    ) -> None:
        self.root, self.suffix = root, suffix
        self.names = CanonicalNames(suffix=suffix)
        self.hosts = tuple(map(HostName, hosts))
        self.ci, self.org_root = generate_host_key(), generate_host_key()
        self.keys: dict[HostName, HostKey] = {host: generate_host_key() for host in self.hosts}
        self.artifacts = root / "artifacts"
        self.artifacts.mkdir(parents=True)
        self.database = root / "state.db"
        self._nonces: list[BootstrapNonce] = []
        self._make_tls(server_names)
        self.write_trust()

    # TLS

    def path(self, name: str) -> Path:
        """A file of the lab."""
        return self.root / name

    def _make_tls(self, server_names: Sequence[str]) -> None:
        now = wall_now()
        self.authority = certificates.make_authority(certificates.generate(Algorithm.ED25519), "lab CA", now, 30)
        make = certificates.generate
        server = certificates.make_server(self.authority, make(Algorithm.ED25519), server_names, now, 30)
        operator = certificates.make_operator(self.authority, make(Algorithm.ED25519), "alice", now, 30)
        for name, identity in (("ca", self.authority), ("server", server), ("operator", operator)):
            self.path(f"{name}.pem").write_bytes(identity.certificate_pem)
            self.path(f"{name}-key.pem").write_bytes(identity.key_pem)
        for host in self.hosts:
            self.write_certificate(host)

    def issuer(self, *, validity_s: int = 86_400) -> Issuer:
        """The control plane's own issuer over the lab's CA."""
        return load_issuer(self.path("ca.pem"), self.path("ca-key.pem"), self.names, validity_s)

    def csr(self, host: str, *, key: HostKey | None = None, subject: Iterable[x509.NameAttribute[str]] = ()) -> str:
        """A PEM certificate request for `host`, with its own key unless another is given."""
        key = key or self.keys[HostName(host)]
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host), *subject])
        private = Ed25519PrivateKey.from_private_bytes(key.seed)
        csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(private, None)
        return csr.public_bytes(serialization.Encoding.PEM).decode()

    def write_certificate(self, host: str, *, now: WallMs | None = None) -> None:
        """Write `<host>.pem` and `<host>-key.pem`, the client identity of a host."""
        request = parse_request(self.csr(host))
        issued = self.issuer().issue(request, HostName(host), now or wall_now())
        self.path(f"{host}.pem").write_text(issued.pem)
        self.path(f"{host}-key.pem").write_bytes(self.keys[HostName(host)].pkcs8_pem())

    def tls(self, identity: str | None = None) -> ssl.SSLContext:
        """A client's TLS settings: the lab's CA, and the certificate of a host, of `operator`, or none."""
        context = ssl.create_default_context(cafile=self.path("ca.pem"))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        if identity is not None:
            context.load_cert_chain(self.path(f"{identity}.pem"), self.path(f"{identity}-key.pem"))
        return context

    # Trust and artifacts

    def write_trust(
        self, *, ci: Mapping[str, Any] | None = None, org_root: Mapping[str, Any] | None = None, **more: Any
    ) -> Path:
        """Write `trust.json`, whole or not at all. Slots default to the lab's keys."""
        trust = {
            "schemaVersion": 1,
            "ciReleaseKey": slot(self.ci) if ci is None else ci,
            "orgRootKey": slot(self.org_root) if org_root is None else org_root,
            **more,
        }
        path = self.path("trust.json")
        _replace(path, json.dumps(trust).encode())
        return path

    def sign(self, name: str, document: JsonObject, *, key: HostKey | None = None) -> bytes:
        """Write an artifact with its signature into the artifact directory. Returns its bytes."""
        data = canonicalize(document)
        path = self.artifacts / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _replace(path.with_name(path.name + ".sig"), (key or self.ci).sign(data))
        _replace(path, data)
        return data

    def fleet(
        self,
        commit: str,
        *,
        targets: Mapping[str, Closure] | None = None,
        waves: Sequence[Sequence[str]] | None = None,
        soak_secs: int = 0,
        signed_at: WallMs | None = None,
        **changes: Any,
    ) -> Fleet:
        """A fleet of one channel, `stable`, all hosts in one wave unless `waves` says otherwise."""
        targets = targets or {host: closure(f"{host}-{commit}") for host in self.hosts}
        fleet = Fleet(
            schema_version=1,
            hosts={
                host: FleetHost(
                    system="x86_64-linux",
                    channel=STABLE,
                    closure_hash=targets.get(host),
                    pubkey=self.keys[host].openssh_public,
                )
                for host in self.hosts
            },
            channels={STABLE: FleetChannel(rollout_policy="careful", freshness_window=1440)},
            waves={
                STABLE: tuple(
                    Wave(hosts=tuple(map(HostName, wave)), soak_secs=soak_secs) for wave in waves or (self.hosts,)
                )
            },
            rollout_policies={"careful": RolloutPolicy(strategy="staged")},
            meta=Meta(schema_version=1, signed_at=signed_at or wall_now(), ci_commit=commit),
        )
        return attrs.evolve(fleet, **changes)

    def publish(self, commit: str = "c0ffee", *, fleet: Fleet | None = None, **options: Any) -> Published:
        """Sign and put out a fleet and one manifest for each channel that has a target. See `fleet` for `options`."""
        fleet = fleet or self.fleet(commit, **options)
        assert fleet.meta.signed_at is not None
        fleet_bytes = canonicalize(encode_document(fleet))
        manifests = {channel: manifest_of(fleet, channel, commit, digest(fleet_bytes)) for channel in fleet.channels}
        for manifest in manifests.values():
            self.sign(f"rollouts/{manifest.rollout_id}.json", encode_document(manifest))
        self.sign("fleet.resolved.json", encode_document(fleet))
        return Published(commit=commit, signed_at=fleet.meta.signed_at, fleet=fleet, manifests=manifests)

    def token(self, host: str, *, allow: bool = True, **changes: Any) -> JsonObject:
        """A bootstrap token for `host`, on the published allow-list unless told otherwise."""
        options: dict[str, Any] = {
            "hostname": HostName(host),
            "public": self.keys[HostName(host)].public,
            "issued_at": WallMs(wall_now() - 1000),
            **changes,
        }
        token = mint_token(self.org_root, **options)
        if allow:
            claims: Any = token["claims"]
            expires_at = WallMs(options["issued_at"] + options.get("validity_ms", 86_400_000))
            read = TokenClaims(
                hostname=HostName(claims["hostname"]),
                expected_pubkey_fingerprint=claims["expectedPubkeyFingerprint"],
                issued_at=options["issued_at"],
                expires_at=expires_at,
                nonce=claims["nonce"],
            )
            self._nonces.append(nonce_entry(read))
            self.publish_nonces()
        return token

    def publish_nonces(self, nonces: Sequence[BootstrapNonce] | None = None) -> None:
        """Sign and put out the allow-list of all tokens minted so far."""
        listed = tuple(self._nonces if nonces is None else nonces)
        document = BootstrapNonces(schema_version=1, bootstrap_nonces=listed, meta=_meta())
        self.sign("bootstrap-nonces.json", encode_document(document))

    def revoke(self, host: str, not_before: WallMs | None = None) -> None:
        """Sign and put out a list that revokes what `host` was issued before now."""
        entry = Revocation(hostname=HostName(host), not_before=not_before or wall_now())
        document = Revocations(schema_version=1, revocations=(entry,), meta=_meta())
        self.sign("revocations.json", encode_document(document))

    # The process

    def arguments(self, **flags: Any) -> list[str]:
        """The command line; `flags` by their names with underscores, None drops one, True is a bare flag."""
        settings: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "tls_cert": self.path("server.pem"),
            "tls_key": self.path("server-key.pem"),
            "client_ca": self.path("ca.pem"),
            "trust_file": self.path("trust.json"),
            "artifacts": self.artifacts,
            "artifact_poll_secs": 0.25,
            "fleet_ca_cert": self.path("ca.pem"),
            "fleet_ca_key": self.path("ca-key.pem"),
            "agent_cn_suffix": self.suffix,
            "audit_log": self.path("issuance.log"),
            "db_path": self.database,
            "ready_file": self.path("ready.json"),
            **flags,
        }
        line = [sys.executable, "-m", "control_plane"]
        for name, value in settings.items():
            if value is True:
                line.append("--" + name.replace("_", "-"))
            elif value is not None and value is not False:
                line += ["--" + name.replace("_", "-"), str(value)]
        return line

    @contextmanager
    def start(self, **flags: Any) -> Iterator["Running"]:
        """A control plane process, serving. It is killed at the end, if it still runs."""
        ready = self.path("ready.json")
        ready.unlink(missing_ok=True)
        log = self.path("control-plane.log")
        with log.open("ab") as output:
            process = subprocess.Popen(self.arguments(**flags), stdout=output, stderr=output)
        try:
            with Running(lab=self, process=process, addresses=_wait_ready(process, ready, log), log=log) as running:
                yield running
        finally:
            process.kill()
            process.wait()


class Running:
    """A control plane that serves, and clients of it."""

    def __init__(
        self, *, lab: Lab, process: "subprocess.Popen[bytes]", addresses: Mapping[str, Any], log: Path
    ) -> None:
        self.lab, self.process, self.log_file = lab, process, log
        self.url: str = addresses["url"]
        self.metrics_url: str | None = addresses.get("metrics_url")
        self._clients: list[httpx.Client] = []

    def __enter__(self) -> "Running":
        self.operator = self.client("operator")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for client in self._clients:
            client.close()

    def client(self, identity: str | None = None, **options: Any) -> httpx.Client:
        """An HTTP client with the certificate of a host, of `operator`, or none."""
        headers = {PROTOCOL_HEADER: PROTOCOL_VERSION}
        settings: dict[str, Any] = {"headers": headers, "timeout": 70, "trust_env": False, **options}
        client = httpx.Client(base_url=self.url, verify=self.lab.tls(identity), **settings)
        self._clients.append(client)
        return client

    def agent(self, host: str) -> "Puppet":
        """A host's side of the wire."""
        return Puppet(host=HostName(host), key=self.lab.keys[HostName(host)], http=self.client(host))

    def refresh(self) -> Mapping[str, str]:
        """Have the artifacts looked at now; what is wrong with which."""
        answer = self.operator.post("/v1/refresh")
        assert answer.status_code == 200, answer.text
        problems: Mapping[str, str] = answer.json()["problems"]
        return problems

    def metric(self, name: str, **labels: str) -> float | None:
        """One sample of /metrics."""
        text = self.operator.get("/metrics").text
        shown = ",".join(f'{label}="{value}"' for label, value in sorted(labels.items()))
        wanted = f"{name}{{{shown}}} " if labels else f"{name} "
        return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(wanted)), None)

    def log(self) -> str:
        """Everything it has logged so far."""
        return self.log_file.read_text()

    def stop(self, timeout_s: float = 10) -> int:
        """SIGTERM, and the exit status."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        self.process.kill()
        self.process.wait()


@attrs.define(kw_only=True)
class Puppet:
    """A host that says what it is told to, signed and numbered as an agent would."""

    host: HostName
    key: HostKey
    http: httpx.Client
    seqs: dict[str, int] = attrs.field(factory=dict)
    clock: WallMs = attrs.field(factory=wall_now)

    def dispatch(self, wait: int = 0) -> dict[str, Any] | None:
        """The next dispatch, or None."""
        answer = self.http.get(DISPATCH, params={"wait": wait})
        assert answer.status_code in (200, 204), answer.text
        return answer.json() if answer.status_code == 200 else None

    def heartbeat(self, **members: Any) -> httpx.Response:
        """A heartbeat with these members."""
        request = HeartbeatRequest(hostname=self.host, at=wall_now(), **members)
        return self.http.post(HEARTBEAT, json=encode(request))

    def envelope(self, rollout_id: str, event: JsonObject, *, signed: bool = True) -> JsonObject:
        """An event in its envelope."""
        body: JsonObject = {"hostname": self.host, "rolloutId": rollout_id, "event": event}
        return {**body, "signature": self.key.sign(canonicalize(event)).hex()} if signed else body

    def post(self, rollout_id: str, event: JsonObject, *, signed: bool = True) -> httpx.Response:
        """Send an event as it is."""
        return self.http.post(EVENTS, json=self.envelope(rollout_id, event, signed=signed))

    def send(self, rollout_id: str, fact: Fact) -> httpx.Response:
        """Send a fact under the number it has."""
        return self.post(rollout_id, encode_fact(fact))

    def tell(self, rollout_id: str, *facts: Fact) -> None:
        """Send facts under the next numbers; all must be taken."""
        for fact in facts:
            answer = self.send(rollout_id, attrs.evolve(fact, seq=self.next_seq(rollout_id)))
            assert answer.status_code == 204, answer.text

    def next_seq(self, rollout_id: str) -> int:
        """Use up a number."""
        self.seqs[rollout_id] = self.seqs.get(rollout_id, 0) + 1
        return self.seqs[rollout_id]

    def ack(self, dispatch: Mapping[str, Any], running: Closure = OLD) -> None:
        """Take a dispatch."""
        self.tell(dispatch["rollout_id"], acknowledged(running, self.clock))

    def activate(self, dispatch: Mapping[str, Any]) -> None:
        """Take a dispatch and switch to its target; soaking follows."""
        self.ack(dispatch)
        self.tell(dispatch["rollout_id"], *activated(Closure(dispatch["target_closure"]), self.clock))

    def converge(self, dispatch: Mapping[str, Any]) -> None:
        """Go all the way, with one probe that passes."""
        self.activate(dispatch)
        self.tell(dispatch["rollout_id"], *converged(Closure(dispatch["target_closure"]), self.clock))

    def revert(self, dispatch: Mapping[str, Any]) -> None:
        """Fail to activate and go back."""
        self.ack(dispatch)
        self.tell(dispatch["rollout_id"], *reverted(self.clock))


# The usual stories of a host, to be numbered by whoever tells them


def acknowledged(running: Closure, at: WallMs) -> Fact:
    return DispatchAck(seq=0, current_closure_at_dispatch=running, received_at=at)


def activated(target: Closure, at: WallMs) -> tuple[Fact, ...]:
    return (
        ActivationStarted(seq=0, started_at=at, switch_method=SwitchMethod.DETACHED),
        ActivationCompleted(seq=0, observed_current_closure=target, exit_code=0, completed_at=at),
    )


def probed(status: ProbeStatus, at: WallMs) -> tuple[Fact, ...]:
    return (
        ProbeTopologyDeclared(
            seq=0, probes=(ProbeSpec(name="web", kind="http", mode=ProbeMode.ENFORCE),), declared_at=at
        ),
        ProbeObservedFirst(seq=0, probe_name="web", mode=ProbeMode.ENFORCE, observed_at=at),
        ProbeResult(seq=0, probe_name="web", mode=ProbeMode.ENFORCE, status=status, observed_at=at),
    )


def converged(target: Closure, at: WallMs) -> tuple[Fact, ...]:
    return *probed(ProbeStatus.PASS, at), Converged(seq=0, converged_at=at, current_closure=target)


def reverted(at: WallMs) -> tuple[Fact, ...]:
    return (
        ActivationStarted(seq=0, started_at=at, switch_method=SwitchMethod.DETACHED),
        ActivationFailed(seq=0, exit_code=4, stderr_tail="unit web.service failed", failed_at=at),
        RollbackComplete(seq=0, reverted_to_closure=OLD, exit_code=0, completed_at=at),
    )


def slot(current: HostKey, **more: Any) -> dict[str, Any]:
    """A key slot of `trust.json`."""
    return {"current": public_key(current), **more}


def public_key(key: HostKey) -> dict[str, str]:
    """A key as `trust.json` declares it."""
    import base64

    return {"algorithm": "ed25519", "public": base64.b64encode(key.public).decode()}


def manifest_of(fleet: Fleet, channel: Channel, commit: str, fleet_digest: str) -> Manifest:
    """The manifest of a channel as a release tool makes it."""
    wave_of = {host: index for index, wave in enumerate(fleet.waves.get(channel, ())) for host in wave.hosts}
    hosts = tuple(
        HostTarget(hostname=name, wave_index=wave_of.get(name, 0), target_closure=host.closure_hash)
        for name, host in sorted(fleet.hosts.items())
        if host.channel == channel and host.closure_hash is not None
    )
    return Manifest(
        schema_version=1,
        display_name=f"{channel}@{commit[:8]}",
        channel=channel,
        channel_ref=commit,
        fleet_resolved_hash=fleet_digest,
        host_set=hosts,
        meta=fleet.meta,
    )


def eventually(condition: Any, timeout_s: float = 10, what: str = "it") -> Any:
    """What `condition()` returns once that is true. For what another process does in its own time."""
    deadline = time.monotonic() + timeout_s
    while not (found := condition()):
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout_s} s"
        time.sleep(0.02)
    return found


def _meta() -> Meta:
    return Meta(schema_version=1, signed_at=wall_now())


def _replace(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_bytes(data)
    os.replace(temporary, path)


def _wait_ready(process: "subprocess.Popen[bytes]", ready: Path, log: Path) -> Mapping[str, Any]:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not ready.exists():
        assert process.poll() is None, f"the control plane ended with {process.returncode}:\n{log.read_text()}"
        assert time.monotonic() < deadline, f"the control plane is not ready:\n{log.read_text()}"
        time.sleep(0.02)
    addresses: Mapping[str, Any] = json.loads(ready.read_text())
    return addresses
