"""The server's side of TLS: version 1.3 only, a client certificate asked for but not demanded.

A handshake without a certificate completes (enrolment has none yet); one with a certificate that the client CA did not
issue for client use does not. So whoever reads a certificate off a connection may rely on it having been verified.
"""

import ssl
from pathlib import Path
from typing import Final

from control_plane.errors import UnreadableFileError
from evidence.regular_files import check_regular

PEM_LIMIT: Final = 8 * 1024 * 1024
"""A bundle of all public authorities has a fifth of a megabyte."""


def server_context(certificate: Path, key: Path, client_ca: Path | None) -> ssl.SSLContext:
    """The TLS settings of the public listener.

    Raises:
        UnreadableFileError: a file is missing, or is not what its flag asks for.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["http/1.1"])
    context.num_tickets = 0  # agents keep their connections and resume none
    load_certificate(context, certificate, key)
    if client_ca is not None:
        _load_client_ca(context, client_ca)
    return context


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Make `context` present this certificate from the next handshake on.

    Raises:
        UnreadableFileError: a file is missing, or they do not belong together.
    """
    for flag, path in (("--tls-cert", certificate), ("--tls-key", key)):
        _check_readable(flag, path)
    try:
        context.load_cert_chain(certificate, key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        problem = f"not a PEM certificate with its private key, unencrypted, in {key}: {_reason(error)}"
        raise UnreadableFileError(flag="--tls-cert", path=certificate, problem=problem) from error


def outgoing_context(ca: Path | None) -> ssl.SSLContext:
    """The TLS settings towards artifact sources: the system's roots, or `ca` alone.

    Raises:
        UnreadableFileError: the file is missing, or no certificate.
    """
    if ca is None:
        return ssl.create_default_context()
    _check_readable("--artifacts-ca-cert", ca)
    try:
        return ssl.create_default_context(cafile=ca)
    except ssl.SSLError as error:
        problem = f"not a PEM certificate: {_reason(error)}"
        raise UnreadableFileError(flag="--artifacts-ca-cert", path=ca, problem=problem) from error


def _load_client_ca(context: ssl.SSLContext, client_ca: Path) -> None:
    _check_readable("--client-ca", client_ca)
    try:
        context.load_verify_locations(client_ca)
    except ssl.SSLError as error:
        problem = f"not a PEM certificate: {_reason(error)}"
        raise UnreadableFileError(flag="--client-ca", path=client_ca, problem=problem) from error
    context.verify_mode = ssl.CERT_OPTIONAL


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error)


def _no_password() -> str:
    # Without this, OpenSSL would ask on the terminal.
    return ""


def _check_readable(flag: str, path: Path) -> None:
    try:
        check_regular(path, PEM_LIMIT)
    except OSError as error:
        raise UnreadableFileError(flag=flag, path=path, problem=error.strerror or str(error)) from error
