"""Move a role's key on in `trust.json` (protocol section 2.1, rotation).

A planned rotation keeps the old key as `previous` for a grace period; `finish` then drops it. After a compromise the
old key goes at once, and nothing signed before the incident counts any more. The new key is made here, or is one that
exists already, in an agent or behind a command. Members of the file that this software does not know are kept.
"""

import base64
import enum
from pathlib import Path
from typing import Final, cast

import attrs

from evidence.canonical import parse
from evidence.documents import encode
from evidence.signature import Algorithm, PublicKey
from evidence.trust import TRUST_FILE_LIMIT, TrustedKey
from nixfleet.errors import ConfigurationError
from nixfleet.files import PRIVATE, create_file, read_bytes, replace_file
from nixfleet.keys import certificates
from nixfleet.keys.keyset import trust_bytes
from nixfleet.keys.roots import read_roots
from nixfleet.release.sign import public_key_of
from state_machine.values import WallMs
from wire.json_value import JsonObject, JsonValue
from wire.timestamps import format_rfc3339


class Role(enum.StrEnum):
    """Whose key moves on."""

    CI_RELEASE = "ci-release"
    ORG_ROOT = "org-root"


MEMBERS: Final = {Role.CI_RELEASE: "ciReleaseKey", Role.ORG_ROOT: "orgRootKey"}

GRACE_DAYS: Final = {Role.CI_RELEASE: 30, Role.ORG_ROOT: 90}
"""How long the old key usually stays accepted (protocol section 2.1)."""


@attrs.frozen(kw_only=True)
class NoKeyToRotateError(ConfigurationError):
    """The trust file has no current key in that slot."""

    path: Path
    role: Role

    def __str__(self) -> str:
        return f"{self.path} has no current {self.role} key to move on from; `nixfleet keygen` makes the first"


@attrs.frozen(kw_only=True)
class RotationPendingError(ConfigurationError):
    """An earlier rotation has not been finished; a third key would push the second out unseen."""

    path: Path
    role: Role

    def __str__(self) -> str:
        return (
            f"{self.path} still has a previous {self.role} key: what it signed would be refused at once; "
            f"finish that rotation first with `nixfleet keygen rotate --role {self.role} --finish`"
        )


@attrs.frozen(kw_only=True)
class SameKeyError(ConfigurationError):
    """The key to move on to is the one that is there."""

    path: Path
    role: Role
    key_id: str

    def __str__(self) -> str:
        return f"{self.key_id} is the current {self.role} key of {self.path} already: name another to move on to"


NewKey = Path | PublicKey
"""Where a new private key is written, or the public half of one that exists."""


def rotate(trust_file: Path, role: Role, new_key: NewKey, algorithm: Algorithm = Algorithm.ED25519) -> PublicKey:
    """Make a new key at `new_key`, or take the one that it is; make it current, keep the old one as previous.

    Raises:
        NoKeyToRotateError, RotationPendingError, SameKeyError: the slot does not allow it.
        ExistsError: `new_key` is there already.
        BadTrustFileError: the trust file cannot be read.
    """
    document, slot = _slot(trust_file, role)
    if slot.get("previous") is not None:
        raise RotationPendingError(path=trust_file, role=role)
    return _replace_current(trust_file, document, role, {**slot, "previous": slot["current"]}, new_key, algorithm)


def replace_compromised(
    trust_file: Path, role: Role, new_key: NewKey, algorithm: Algorithm, reject_before: WallMs
) -> PublicKey:
    """Make a new key, or one that exists, the only one, and refuse everything signed before `reject_before`.

    Raises:
        NoKeyToRotateError, SameKeyError, ExistsError, BadTrustFileError: as `rotate`.
    """
    document, slot = _slot(trust_file, role)
    emptied = {**slot, "previous": None, "successor": None, "retireAt": None}
    since: JsonObject = {**emptied, "rejectBefore": format_rfc3339(reject_before)}
    return _replace_current(trust_file, document, role, since, new_key, algorithm)


def finish(trust_file: Path, role: Role) -> bool:
    """Drop the previous key. False: there was none.

    Raises:
        NoKeyToRotateError, BadTrustFileError: as `rotate`.
    """
    document, slot = _slot(trust_file, role)
    if slot.get("previous") is None:
        return False
    replace_file(trust_file, trust_bytes({**document, MEMBERS[role]: {**slot, "previous": None}}))
    return True


def _slot(trust_file: Path, role: Role) -> tuple[JsonObject, JsonObject]:
    read_roots(trust_file)
    document = cast(JsonObject, parse(read_bytes(trust_file, "trust file"), limit=TRUST_FILE_LIMIT))
    slot: JsonValue = document.get(MEMBERS[role])
    if not isinstance(slot, dict) or slot.get("current") is None:
        raise NoKeyToRotateError(path=trust_file, role=role)
    return document, slot


def _replace_current(
    trust_file: Path, document: JsonObject, role: Role, slot: JsonObject, new_key: NewKey, algorithm: Algorithm
) -> PublicKey:
    if isinstance(new_key, Path):
        key = certificates.generate(algorithm)
        # The key first: a trust file that names a key nobody has would lock everyone out.
        create_file(new_key, certificates.private_pem(key), PRIVATE)
        public = public_key_of(key)
    else:
        public = new_key
    current = encode(TrustedKey(algorithm=public.algorithm, public=base64.b64encode(public.raw).decode("ascii")))
    if slot["current"] == current:
        raise SameKeyError(path=trust_file, role=role, key_id=public.key_id)
    replace_file(trust_file, trust_bytes({**document, MEMBERS[role]: {**slot, "current": current}}))
    return public
