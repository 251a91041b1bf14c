"""The agent's side of TLS: one CA to believe, one identity to show, TLS 1.3 and nothing older.

Python's `ssl` takes a private key only from a file and not in OpenSSH's format. The host key is therefore converted
in memory and handed over through a memory file, so that it never lies on a disk in another form.
"""

import contextlib
import os
import ssl
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from evidence.host_key import load_host_key
from evidence.regular_files import check_regular, read_start
from nixfleet_agent.errors import ConfigurationError

PEM_LIMIT: Final = 8 * 1024 * 1024
"""A bundle of all public authorities has a fifth of a megabyte."""


def server_context(ca_cert: Path | None) -> ssl.SSLContext:
    """Verify the control plane. With a CA given, only that one counts: the public ones have no say over a fleet.

    Raises:
        ConfigurationError: the CA file cannot be used.
    """
    try:
        if ca_cert is not None:
            check_regular(ca_cert, PEM_LIMIT)
        context = ssl.create_default_context(cafile=None if ca_cert is None else str(ca_cert))
    except OSError as error:
        problem = f"--ca-cert: {ca_cert} holds no usable certificate ({error.strerror or error})"
        raise ConfigurationError(problems=(problem,)) from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def client_context(ca_cert: Path | None, client_cert: Path, client_key: Path) -> ssl.SSLContext:
    """The same, showing the client certificate.

    Raises:
        ConfigurationError: certificate and key cannot be used together.
        EvidenceError: the key cannot be read; it says what to do.
    """
    context = server_context(ca_cert)
    key = load_host_key(client_key) if not _is_other_pem(client_key) else None
    try:
        if key is None:
            context.load_cert_chain(client_cert, client_key, password=_no_password)
        else:
            with _memory_file(key.pkcs8_pem()) as path:
                context.load_cert_chain(client_cert, path)
    except OSError as error:
        problem = f"--client-cert: {client_cert} and the key {client_key} cannot be used together ({error})"
        raise ConfigurationError(problems=(problem,)) from error
    return context


def _no_password() -> str:
    # Without this, OpenSSL would ask on the terminal.
    return ""


def _is_other_pem(path: Path) -> bool:
    """A PEM key that is not OpenSSH's, which `ssl` reads by itself, whatever its type."""
    try:
        head = read_start(path, 64)
    except OSError:
        return False  # load_host_key says what is wrong with it
    return head.startswith(b"-----BEGIN") and b"OPENSSH" not in head


@contextlib.contextmanager
def _memory_file(data: bytes) -> Iterator[str]:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("client-key", os.MFD_CLOEXEC)
        with open(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            yield f"/proc/self/fd/{descriptor}"
    else:  # macOS has no memory files
        with tempfile.NamedTemporaryFile() as file:
            file.write(data)
            file.flush()
            yield file.name
