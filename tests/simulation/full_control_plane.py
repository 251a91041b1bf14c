"""CI that signs, and the real control plane in a process that may die, lose its disk, or be put back to an old one.

A process death is played so: what is on the disk at that instant is put aside, the process is cancelled, whatever it
still does on its way out is undone by putting the disk back. Nobody hears from it meanwhile.
"""

import base64
import functools
import json
import os
from pathlib import Path
from typing import Final

import attrs
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from control_plane.config import Configuration
from control_plane.identity import CanonicalNames
from control_plane.issuance import Issuer, load_issuer
from control_plane.rows import Mirror
from control_plane.server import ControlPlane, assembled, start_background
from control_plane.surroundings import Surroundings
from evidence.canonical import canonicalize, digest
from evidence.documents import encode as encode_document
from evidence.host_key import HostKey, fingerprint
from evidence.tokens import TOKEN_VERSION, TokenClaims, nonce_entry
from nixfleet.keys import certificates
from state_machine.intent import BootstrapNonce, BootstrapNonces, Meta, Revocation, Revocations
from state_machine.lifecycle import HostRollout
from state_machine.values import HostName, WallMs
from tests.simulation.faults import DAY, FaultKind
from tests.simulation.full_network import Answer, Call, header
from tests.simulation.full_world import CI, CONTROL_PLANE, World, inline, leaves
from tests.simulation.scenario import CHANNEL, EPOCH, commit
from tests.simulation.trace import Weight
from wire.codec import encode
from wire.endpoints import DISPATCH, FLEET, PROTOCOL_HEADER, PROTOCOL_VERSION, ROLLOUT_ROLLBACK
from wire.json_value import JsonObject
from wire.messages import Dispatch

LOOK_S: Final = 60.0
CERTIFICATE_S: Final = 5400
"""So short that most hosts renew once in a run."""
OFFERED_AGAIN_MS: Final = 60_000


@attrs.frozen
class Signed:
    """A document and its signature."""

    data: bytes
    signature: bytes


def key_of(seed: int, *topic: object) -> HostKey:
    """A key that this seed always has."""
    return HostKey(seed=digest(f"{seed}/{'/'.join(map(str, topic))}".encode()).encode()[:32])


@functools.cache
def _authority() -> certificates.Identity:
    key = Ed25519PrivateKey.from_private_bytes(b"simulated fleet certificate keys")
    return certificates.make_authority(key, "simulated CA", WallMs(EPOCH - DAY), 365)


@functools.cache
def operator_pem() -> str:
    """The certificate of the operator."""
    key = Ed25519PrivateKey.from_private_bytes(b"the key of a simulated operator.")
    return certificates.make_operator(_authority(), key, "alice", WallMs(EPOCH - DAY), 365).certificate_pem.decode()


def replace(path: Path, data: bytes) -> None:
    """Write a file as a whole."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_bytes(data)
    os.replace(temporary, path)


class Publisher:
    """CI: signs each release when it is due, and the current one again and again."""

    def __init__(self, world: World, host_keys: list[HostKey]) -> None:
        self._world = world
        self._pubkeys = tuple(key.openssh_public for key in host_keys)
        self.keys = [key_of(world.scenario.seed, CI, 0)]
        self.directory = world.root / "artifacts"
        (self.directory / "rollouts").mkdir(parents=True)
        self.archive: dict[int, tuple[Signed, Signed]] = {}
        self._org_root = key_of(world.scenario.seed, "org root")
        self._revoked: dict[HostName, WallMs] = {}
        self._nonces: list[BootstrapNonce] = []
        self._turn = trio.Lock()

    async def run(self) -> None:
        """Publish every release at its time."""
        releases = self._world.scenario.releases
        for number, release in enumerate(releases):
            await self._world.until(release.at_ms)
            self._world.note(CI, f"release{number} is published")
            until = releases[number + 1].at_ms / 1000 if number + 1 < len(releases) else float("inf")
            with trio.move_on_at(until):
                await self._keep_signed(number)

    async def _keep_signed(self, release: int) -> None:
        while True:
            with trio.CancelScope(shield=True):
                await self.sign(release)
            await self._world.sleep(self._world.scenario.resign_s)

    async def sign(self, release: int) -> None:
        """Put out the release, signed now."""
        async with self._turn:
            scenario, now = self._world.scenario, self._world.now
            fleet = self._signed(encode_document(scenario.fleet(release, now, pubkeys=self._pubkeys)))
            manifest = self._signed(encode_document(scenario.manifest(release, now, digest(fleet.data))))
            self.archive[release] = (fleet, manifest)
            await self._put(f"rollouts/{scenario.rollout_id(release)}.json", manifest)
            await self._put("fleet.resolved.json", fleet)

    async def revoke(self, host: HostName) -> WallMs:
        """Take back what the host was issued before now; that instant."""
        self._revoked[host] = at = WallMs(EPOCH + self._world.now)
        await self._put_lists()
        return at

    async def admit(self, host: HostName, public: bytes) -> bytes:
        """Mint a token for the host with that key, and put its nonce on the list; the text of the token."""
        at, number = WallMs(EPOCH + self._world.now), len(self._nonces)
        claims = TokenClaims(
            hostname=host,
            expected_pubkey_fingerprint=fingerprint(public),
            issued_at=at,
            expires_at=WallMs(at + DAY),
            nonce=key_of(self._world.scenario.seed, "nonce", number).seed.hex()[:32],
        )
        self._nonces.append(nonce_entry(claims))
        await self._put_lists()
        document = encode_document(claims)
        signature = base64.b64encode(self._org_root.sign(canonicalize(document))).decode()
        return json.dumps({"version": TOKEN_VERSION, "claims": document, "signature": signature}).encode()

    async def _put_lists(self) -> None:
        meta = Meta(schema_version=1, signed_at=WallMs(EPOCH + self._world.now))
        revoked = tuple(Revocation(hostname=name, not_before=since) for name, since in self._revoked.items())
        lists = {
            "revocations.json": Revocations(schema_version=1, revocations=revoked, meta=meta),
            "bootstrap-nonces.json": BootstrapNonces(schema_version=1, bootstrap_nonces=tuple(self._nonces), meta=meta),
        }
        async with self._turn:
            for name, document in lists.items():
                await self._put(name, self._signed(encode_document(document)))

    def revoked_at(self, host: HostName) -> WallMs | None:
        """The instant before which the host's certificates are no good."""
        return self._revoked.get(host)

    async def rotate(self) -> None:
        """Sign with a new key from now on. The control plane learns of it first."""
        self.keys.append(key_of(self._world.scenario.seed, CI, len(self.keys)))
        await self.sign(max(self.archive, default=0))
        await self._put_lists()

    def trust(self, generation: int | None = None) -> bytes:
        """`trust.json` as of that generation of the key, by default the newest."""
        keys = self.keys if generation is None else self.keys[: generation + 1]
        slot = {"current": _declared(keys[-1])} | ({"previous": _declared(keys[-2])} if len(keys) > 1 else {})
        org_root = {"current": _declared(self._org_root)}
        return json.dumps({"schemaVersion": 1, "ciReleaseKey": slot, "orgRootKey": org_root}).encode()

    def _signed(self, document: JsonObject) -> Signed:
        data = canonicalize(document)
        return Signed(data, self.keys[-1].sign(data))

    async def _put(self, name: str, signed: Signed) -> None:
        replace(self.directory / f"{name}.sig", signed.signature)
        await self._world.sleep(0.01)
        replace(self.directory / name, signed.data)


def _declared(key: HostKey) -> dict[str, str]:
    return {"algorithm": "ed25519", "public": base64.b64encode(key.public).decode()}


class Peer:
    """The control plane's process and its disk."""

    def __init__(self, world: World, publisher: Publisher) -> None:
        self._world, self._publisher = world, publisher
        self._directory = world.root / "cp"
        self._directory.mkdir()
        self.database = self._directory / "state.db"
        self.trust_file = self._directory / "trust.json"
        self._write_authority()
        self.learn_trust()
        self._dice = world.scenario.stream(CONTROL_PLANE)
        self.parts: ControlPlane | None = None
        self._tasks: trio.Nursery | None = None
        self._life: trio.CancelScope | None = None
        self._ended = trio.Event()
        self._kept: dict[str, bytes] | None = None
        self._offered: dict[str, int] = {}
        self.lost = False
        """The database was wiped or put back at least once."""

    def _write_authority(self) -> None:
        authority = _authority()
        self._certificate, self._key = self._directory / "ca.pem", self._directory / "ca-key.pem"
        self._certificate.write_bytes(authority.certificate_pem)
        self._key.write_bytes(authority.key_pem)

    @functools.cached_property
    def issuer(self) -> Issuer:
        """Issues certificates as the control plane does."""
        return load_issuer(self._certificate, self._key, CanonicalNames(), CERTIFICATE_S)

    def learn_trust(self) -> None:
        """Somebody deploys the newest trust file here."""
        replace(self.trust_file, self._publisher.trust())

    # --- the process ------------------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """It takes requests."""
        return self.parts is not None

    async def run(self) -> None:
        """Live once, until `crash`."""
        self._ended = trio.Event()
        try:
            with trio.CancelScope() as life:
                self._life = life
                await self._live()
            if not life.cancelled_caught:
                self._world.find(CONTROL_PLANE, "crash", "the control plane came to an end by itself")
        except BaseException as error:
            if any(isinstance(leaf, trio.Cancelled) for leaf in leaves(error)):
                raise
            self._world.find(CONTROL_PLANE, "crash", "; ".join(repr(leaf) for leaf in leaves(error)))
        finally:
            self.parts = self._tasks = self._life = None
            if self._kept is not None:
                self.put_back(self._kept)
            self._ended.set()

    async def _live(self) -> None:
        config = Configuration(
            tls_cert=self._certificate,
            tls_key=self._key,
            client_ca=self._certificate,
            trust_file=self.trust_file,
            artifacts=str(self._publisher.directory),
            artifacts_ca_cert=self._certificate,
            artifact_poll_secs=LOOK_S,
            fleet_ca_cert=self._certificate,
            fleet_ca_key=self._key,
            agent_cert_validity_secs=CERTIFICATE_S,
            audit_log=None,
            db_path=self.database,
        )
        around = Surroundings(
            clock=lambda: WallMs(EPOCH + self._world.now),
            in_thread=inline,
            writes_in_thread=False,
            serial=lambda: self._dice.getrandbits(128) | 1,
        )
        async with assembled(config, around) as parts:
            await parts.adopter.look()
            async with trio.open_nursery() as tasks:
                start_background(tasks, parts, config)
                self.parts, self._tasks = parts, tasks
                self._world.note(CONTROL_PLANE, "the control plane is up")

    async def crash(self) -> None:
        """The process ends at once; what its disk has is what it had then."""
        if self._life is None:
            return
        self._kept = self.on_disk()
        self.parts = None
        self._life.cancel()
        await self._ended.wait()
        self._kept = None
        self._world.note(CONTROL_PLANE, "the control plane is down", Weight.FAULT)

    def on_disk(self) -> dict[str, bytes]:
        """The database's files now."""
        return {path.name: path.read_bytes() for path in self._files() if path.exists()}

    def put_back(self, files: dict[str, bytes]) -> None:
        """Have these files, and no others, as the database."""
        for path in self._files():
            path.unlink(missing_ok=True)
        for name, data in files.items():
            (self._directory / name).write_bytes(data)

    def _files(self) -> list[Path]:
        return [self.database, self.database.with_name(f"{self.database.name}-wal")]

    # --- requests ---------------------------------------------------------------------------------------------------

    def take(self, call: Call) -> None:
        """Answer in a task of the process."""
        assert self._tasks is not None
        self._tasks.start_soon(self._serve, call)

    async def _serve(self, call: Call) -> None:
        parts = self.parts
        try:
            if parts is not None:
                await call.serve(parts.app)
        except Exception as error:
            self._world.find(CONTROL_PLANE, "crash", f"{call.method} {call.path}: {error!r}")
        finally:
            if self.parts is not parts:
                call.answer = None
            call.answered.set()

    def instead(self, call: Call) -> Answer | None:
        """What it says while it is busy or confused."""
        if (busy := self._world.active(FaultKind.CP_BUSY, None)) is not None:
            status = self._dice.choice((503, 429))
            return Answer(status=status, headers=header({"Retry-After": str(busy.amount)}))
        if (confused := self._world.active(FaultKind.CP_CONFUSED, None)) is not None:
            return self._confused(call, confused.amount)
        return None

    def _confused(self, call: Call, releases_ago: int) -> Answer | None:
        number = max(self._publisher.archive, default=0) - releases_ago
        if number not in self._publisher.archive:
            return None
        rollout_id = self._world.scenario.rollout_id(number)
        fleet, manifest = self._publisher.archive[number]
        served = {FLEET: fleet, f"/v1/rollouts/{rollout_id}": manifest}
        for path, signed in served.items():
            if call.path in (path, f"{path}/sig"):
                return Answer(status=200, body=signed.signature if call.path.endswith("/sig") else signed.data)
        return self._old_dispatch(call, number) if call.path == DISPATCH else None

    def _old_dispatch(self, call: Call, release: int) -> Answer | None:
        host = self._host_of(call)
        if host is None or self._world.now - self._offered.get(str(host), -OFFERED_AGAIN_MS) < OFFERED_AGAIN_MS:
            return None
        self._offered[str(host)] = self._world.now
        scenario = self._world.scenario
        dispatch = Dispatch(
            hostname=scenario.name(host),
            rollout_id=scenario.rollout_id(release),
            target_closure=scenario.closure(release, host),
        )
        return Answer(status=200, body=json.dumps(encode(dispatch)).encode())

    def _host_of(self, call: Call) -> int | None:
        from control_plane.identity import peer_of

        peer = peer_of({"extensions": {"tls": {"client_cert_chain": [call.peer]}}}, CanonicalNames())
        names = [self._world.scenario.name(host) for host in range(self._world.scenario.hosts)]
        return None if peer is None else names.index(peer.machine_id)

    async def ask_back(self) -> None:
        """An operator asks the newest rollout back."""
        if not self.up or not self._publisher.archive:
            return
        rollout_id = f"{CHANNEL}@{commit(max(self._publisher.archive))}"
        call = Call(
            method="POST",
            target=ROLLOUT_ROLLBACK.format(rollout_id=rollout_id).encode(),
            headers=header({PROTOCOL_HEADER: PROTOCOL_VERSION}),
            body=json.dumps({"reason": "simulated"}).encode(),
            peer=operator_pem(),
        )
        self.take(call)
        await call.answered.wait()
        said = "no answer" if call.answer is None else f"{call.answer.status} {call.answer.body[:200]!r}"
        self._world.note(CONTROL_PLANE, f"asked for the rollback of {rollout_id}: {said}")

    # --- what it knows ----------------------------------------------------------------------------------------------

    def mirrors(self, host: HostName) -> tuple[HostRollout, ...]:
        """Its records of one host; none while it is down."""
        if self.parts is None:
            return ()
        return tuple(row.record for row in self.parts.ledger.book.all(Mirror) if row.hostname == host)
