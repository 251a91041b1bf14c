"""The keys that commands sign with, held against the trust file that will judge what they sign."""

from pathlib import Path

import attrs

from evidence.trust import KeySlot, accepted_keys
from nixfleet.clock import wall_now
from nixfleet.commands import options
from nixfleet.errors import ConfigurationError
from nixfleet.keys.roots import read_roots
from nixfleet.release.sign import KeyFileSigner, load_signer


@attrs.frozen(kw_only=True)
class UntrustedKeyError(ConfigurationError):
    """What this key signs would be refused everywhere."""

    what: str
    member: str
    key_id: str

    def __str__(self) -> str:
        return (
            f"the {self.what} {self.key_id} is not in `{self.member}` of the trust file: hosts would refuse what it "
            "signs; give the key that is, or rotate to this one with `nixfleet keygen rotate`"
        )


def ci_slot(trust_file: Path | None) -> KeySlot | None:
    """The CI release keys of a trust file, or None when no file was given.

    Raises:
        BadTrustFileError: the file cannot be read.
    """
    return None if trust_file is None else read_roots(trust_file).ci_release_key


def org_root_slot(trust_file: Path | None) -> KeySlot | None:
    """The org root keys of a trust file; None when no file was given or it has no such slot.

    Raises:
        BadTrustFileError: the file cannot be read.
    """
    return None if trust_file is None else read_roots(trust_file).org_root_key


def ci_signer(ci_key: Path | None, trust_file: Path | None) -> KeyFileSigner:
    """The CI release key, which a trust file that was given must name.

    Raises:
        MissingSettingError, SigningKeyError, UntrustedKeyError: it is not set, no key, or not trusted.
    """
    signer = load_signer(options.required(ci_key, "--ci-key", "the CI release key"))
    check_trusted(signer, ci_slot(trust_file), "CI release key", "ciReleaseKey")
    return signer


def check_trusted(signer: KeyFileSigner, slot: KeySlot | None, what: str, member: str) -> None:
    """Refuse to sign with a key whose signatures every host would refuse.

    Raises:
        UntrustedKeyError: the slot does not name the key.
    """
    key = signer.public_key
    if slot is not None and key not in [declared.key for declared in accepted_keys(slot, wall_now())]:
        raise UntrustedKeyError(what=what, member=member, key_id=key.key_id)
