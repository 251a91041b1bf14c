"""Who the operator is to the control plane, and whom the operator takes for one: mutual TLS from four settings."""

import ssl
from pathlib import Path
from typing import Final

import attrs

from evidence.regular_files import check_regular
from nixfleet.operator_errors import BadIdentityError

PEM_LIMIT: Final = 8 * 1024 * 1024
"""A bundle of all public authorities has a fifth of a megabyte."""


@attrs.frozen(kw_only=True)
class Endpoint:
    """Where the control plane is, and who we are to it."""

    url: str
    ca_cert: Path
    client_cert: Path
    client_key: Path


def tls_of(endpoint: Endpoint) -> ssl.SSLContext:
    """The TLS settings of a client.

    Raises:
        BadIdentityError: a file is missing, or is not what its flag asks for.
    """
    files = (
        ("--ca-cert", endpoint.ca_cert),
        ("--client-cert", endpoint.client_cert),
        ("--client-key", endpoint.client_key),
    )
    for flag, path in files:
        try:
            check_regular(path, PEM_LIMIT)
        except OSError as error:
            raise BadIdentityError(flag=flag, path=path, problem=error.strerror or str(error)) from error
    try:
        # The fleet's own CA alone: no public authority may vouch for a control plane.
        context = ssl.create_default_context(cafile=endpoint.ca_cert)
    except ssl.SSLError as error:
        raise BadIdentityError(flag="--ca-cert", path=endpoint.ca_cert, problem="holds no PEM certificate") from error
    try:
        context.load_cert_chain(endpoint.client_cert, endpoint.client_key, password=_no_password)
    except (ssl.SSLError, ValueError) as error:
        problem = f"is no PEM certificate that belongs to the key {endpoint.client_key}"
        raise BadIdentityError(flag="--client-cert", path=endpoint.client_cert, problem=problem) from error
    return context


def _no_password() -> str:
    # Without this, OpenSSL would ask on the terminal.
    return ""
