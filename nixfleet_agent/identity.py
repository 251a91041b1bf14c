"""This host's client certificate: whose it is, how long it is good, how a new one is asked for.

What a certificate says is read once, by a short-lived process, and remembered beside it under the hash of its bytes.
"""

import contextlib
import hashlib
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import attrs

from nixfleet_agent import child
from nixfleet_agent.commands import CommandError, run
from nixfleet_agent.errors import ConfigurationError
from nixfleet_agent.files import read_limited, write_atomically
from state_machine.values import HostName, WallMs

CERTIFICATE_LIMIT: Final = 64 * 1024
HELPER_TIMEOUT_S: Final = 30.0
CertificateTool = Callable[[dict[str, str]], Awaitable[dict[str, Any]]]
"""Answers a request to `nixfleet_agent.certificates`. Raises `UnusableCertificateError`."""

_FACTS: Final = frozenset({"cn", "not_before_ms", "not_after_ms", "fits_key"})


class CertificateError(Exception):
    """A certificate or its key cannot be used."""


@attrs.frozen(kw_only=True)
class UnusableCertificateError(CertificateError):
    """The certificate tool would not have it."""

    problem: str

    def __str__(self) -> str:
        return self.problem


@attrs.frozen(kw_only=True)
class Certificate:
    """What the certificate in `pem` says. `cn` is its common name; `fits_key`: it was made for the client key."""

    pem: bytes
    cn: str
    not_before: WallMs
    not_after: WallMs
    fits_key: bool

    def is_for(self, machine_id: HostName) -> bool:
        """A control plane takes its bearer for that host: `agent-<id>.<suffix>`, or the bare id (section 1.1)."""
        return self.cn == machine_id or self.cn.startswith(f"agent-{machine_id}.")


def read_pem(path: Path) -> bytes | None:
    """What is in a certificate file; None when there is no such file.

    Raises:
        UnusableCertificateError: it cannot be read.
    """
    try:
        return read_limited(path, CERTIFICATE_LIMIT)
    except OSError as error:
        raise UnusableCertificateError(problem=f"the client certificate {path}: {error.strerror}") from error


async def ask_in_a_process(request: dict[str, str]) -> dict[str, Any]:
    """The certificate tool, in a process that ends.

    Raises:
        UnusableCertificateError: it would not have what it was given, or could not be run.
    """
    argv, env = child.module_command("nixfleet_agent.certificates"), child.module_environment()
    try:
        done = await run(argv, env=env, timeout_s=HELPER_TIMEOUT_S, stdin=json.dumps(request).encode())
    except CommandError as error:
        raise UnusableCertificateError(problem=str(error)) from error
    if not done.ok:
        said = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise UnusableCertificateError(problem=said[-1] if said else "the certificate tool failed without a word")
    answer = json.loads(done.stdout)
    assert isinstance(answer, dict)
    return answer


async def make_csr(machine_id: HostName, key: Path, *, ask: CertificateTool = ask_in_a_process) -> str:
    """A PEM signing request for this host, signed by its own key.

    Raises:
        UnusableCertificateError: the key cannot sign one.
    """
    answer = await ask({"do": "csr", "machine_id": machine_id, "key": str(key)})
    return str(answer["csr_pem"])


async def inspect(
    pem: bytes,
    key: Path,
    *,
    path: Path | None = None,
    remember: Path | None = None,
    ask: CertificateTool = ask_in_a_process,
) -> Certificate:
    """Read a certificate, of the file `path` or from the control plane.

    With `remember`, what it says is kept there for the next start, if that is possible.

    Raises:
        UnusableCertificateError: it cannot be read, or the key cannot.
    """
    stamp = hashlib.sha256(pem + _bytes_of(key)).hexdigest()
    facts = _remembered(remember, stamp)
    if facts is None:
        where = "what the control plane sent" if path is None else f"the client certificate {path}"
        request = {"do": "inspect", "cert_pem": pem.decode("utf-8", "replace"), "key": str(key)}
        try:
            facts = await ask(request)
        except UnusableCertificateError as error:
            raise UnusableCertificateError(problem=f"{where}: {error}") from error
        if remember is not None:
            with contextlib.suppress(OSError):  # a full disk costs the next start a moment and nothing else
                write_atomically(remember, json.dumps({"stamp": stamp, "facts": facts}).encode())
    return Certificate(
        pem=pem,
        cn=facts["cn"],
        not_before=WallMs(facts["not_before_ms"]),
        not_after=WallMs(facts["not_after_ms"]),
        fits_key=facts["fits_key"],
    )


def require_own(certificate: Certificate, machine_id: HostName, path: Path) -> None:
    """The certificate must have been issued for this machine, and for its key.

    Raises:
        ConfigurationError: naming both.
    """
    if not certificate.is_for(machine_id):
        problem = (
            f"--machine-id is {machine_id}, but the client certificate {path} was issued for "
            f"{certificate.cn!r}; use that machine id, or remove the file and enrol again"
        )
        raise ConfigurationError(problems=(problem,))
    if not certificate.fits_key:
        problem = (
            f"the client certificate {path} does not belong to the client key; remove it and enrol again, "
            "or point --client-key at the key it was made for"
        )
        raise ConfigurationError(problems=(problem,))


def _bytes_of(key: Path) -> bytes:
    try:
        return read_limited(key, CERTIFICATE_LIMIT) or b""
    except OSError as error:
        raise UnusableCertificateError(problem=f"the client key {key}: {error.strerror}") from error


def _remembered(path: Path | None, stamp: str) -> dict[str, Any] | None:
    """What was kept for these very bytes. Whatever is wrong with it: it is only a memory, and is made again."""
    try:
        kept = json.loads(b"" if path is None else read_limited(path, CERTIFICATE_LIMIT) or b"")
        facts = kept["facts"] if kept["stamp"] == stamp else None
        return facts if facts is None or set(facts) >= _FACTS else None
    except (ValueError, KeyError, TypeError, OSError):
        return None
