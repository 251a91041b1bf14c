"""The keys that commands sign with, wherever they live, held against the trust file that will judge what they sign.

A key is named in one way by flag, variable and configuration file: `agent:...` is held by `ssh-agent`,
`command:...` is reached through a command, anything else is a key file (`./agent:x` for one that is called so).
"""

from pathlib import Path

import attrs

from evidence.trust import KeySlot, accepted_keys
from nixfleet.clock import wall_now
from nixfleet.commands import options
from nixfleet.errors import ConfigurationError
from nixfleet.keys.roots import read_roots
from nixfleet.release import signing_command, ssh_agent
from nixfleet.release.sign import Signer, load_signer
from nixfleet.release.ssh_agent_errors import PREFIX as AGENT


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


def ci_signer(ci_key: str | None, trust_file: Path | None) -> Signer:
    """The CI release key, which a trust file that was given must name.

    Raises:
        MissingSettingError, UntrustedKeyError: it is not set, or not trusted.
        StoppedError: it cannot be had, as `open_signer`.
    """
    signer = open_signer(options.required(ci_key, "--ci-key", "the CI release key"), "CI release key")
    check_trusted(signer, ci_slot(trust_file), "CI release key", "ciReleaseKey")
    return signer


def org_root_signer(org_root_key: str | None, trust_file: Path | None) -> Signer:
    """The org root key, which a trust file that was given must name.

    Raises:
        MissingSettingError, UntrustedKeyError, StoppedError: as `ci_signer`.
    """
    signer = open_signer(options.required(org_root_key, "--org-root-key", "the org root key"), "org root key")
    check_trusted(signer, org_root_slot(trust_file), "org root key", "orgRootKey")
    return signer


def open_signer(key: str, what: str) -> Signer:
    """Whoever signs with the key of this name. `what` is its role, for errors.

    Raises:
        UnreadableFileError, SigningKeyError: a file that is none, or holds no key to sign with.
        AgentKeyNameError, NoAgentError, AgentLacksKeyError and the like: see `ssh_agent`.
        CommandWordsError, SigningCommandError: see `signing_command`.
    """
    if key.startswith(AGENT):
        return ssh_agent.open_agent_key(key.removeprefix(AGENT), what)
    if key.startswith(signing_command.PREFIX):
        return signing_command.open_command(key.removeprefix(signing_command.PREFIX), what)
    return load_signer(Path(key), what)


def check_trusted(signer: Signer, slot: KeySlot | None, what: str, member: str) -> None:
    """Refuse to sign with a key whose signatures every host would refuse.

    Raises:
        UntrustedKeyError: the slot does not name the key.
    """
    key = signer.public_key
    if slot is not None and key not in [declared.key for declared in accepted_keys(slot, wall_now())]:
        raise UntrustedKeyError(what=what, member=member, key_id=key.key_id)
