"""How to reach a NATS server, and as whom."""

import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import attrs

from evidence.regular_files import read_whole
from messaging.errors import BadServerError

SCHEMES: Final = ("tls", "nats")
_SECRET_MAX: Final = 64 * 1024
_AUTHORITIES_MAX: Final = 4 * 1024 * 1024
_SEED: Final = re.compile("SU[A-Z2-7]{56}")
_CREDENTIALS: Final = re.compile(r".*BEGIN NATS USER JWT-.*BEGIN USER NKEY SEED-.*", re.DOTALL)
_TOKEN: Final = re.compile("[!-~]{1,1024}")


@attrs.frozen(kw_only=True)
class Server:
    """A server and the ways to prove to it who asks: at most one of a key, credentials and a token, and a certificate.

    Secrets are named by their files and read when a connection is made, so that they can be replaced meanwhile.
    """

    url: str
    """`tls://host:4222`, or `nats://host:4222` for a server on this machine or in a network of one's own."""
    nkey_file: Path | None = None
    """An NKey's seed."""
    credentials_file: Path | None = None
    """A user's JWT and seed, as `nsc` writes them."""
    token_file: Path | None = None
    ca_cert: Path | None = None
    """PEM; default: the system's authorities."""
    client_cert: Path | None = None
    client_key: Path | None = None

    def problems(self) -> Iterator[str]:
        """What keeps this from being tried, in sentences."""
        if not _is_address(self.url):
            shown = self.url.rpartition("@")[2]  # a password may stand before the @
            yield f"{shown[:80]!r} is no address such as tls://nats.example.org:4222"
        given = [name for name in ("nkey_file", "credentials_file", "token_file") if getattr(self, name) is not None]
        if len(given) > 1:
            yield f"{' and '.join(name.replace('_', '-') for name in given)}: give one of them"
        if (self.client_cert is None) != (self.client_key is None):
            yield "client-cert and client-key go together"
        if self.url.startswith("nats:") and (self.ca_cert or self.client_cert):
            yield "certificates are for tls:// addresses"

    def options(self) -> dict[str, Any]:
        """For the client library.

        Raises:
            BadServerError: a file of it cannot be used.
        """
        try:
            return {**self._identity(), **self._tls()}
        except (OSError, ssl.SSLError) as error:
            raise BadServerError(problems=(f"{self.url}: {_said(error)}",)) from error

    def _identity(self) -> dict[str, Any]:
        if self.nkey_file is not None:
            return {"nkeys_seed_str": _seed(self.nkey_file)}
        if self.credentials_file is not None:
            _secret(self.credentials_file, _CREDENTIALS, "holds no user's JWT and seed")
            return {"user_credentials": str(self.credentials_file)}
        return {} if self.token_file is None else {"token": _secret(self.token_file, _TOKEN, "holds no token")}

    def _tls(self) -> dict[str, Any]:
        parts = urlsplit(self.url)
        if parts.scheme != "tls":
            return {}
        context = ssl.create_default_context() if self.ca_cert is None else _believing(self.ca_cert)
        if self.client_cert is not None and self.client_key is not None:
            context.load_cert_chain(self.client_cert, self.client_key)
        return {"tls": context, "tls_hostname": parts.hostname}


def server_of(given: Mapping[str, Any]) -> Server:
    """A server of a table of a configuration file, whose keys are the fields with dashes.

    Raises:
        BadServerError: with everything that is wrong with it.
    """
    fields = {field.name.replace("_", "-"): field for field in attrs.fields(Server)}
    known = {key: value for key, value in given.items() if key in fields}
    problems = [f"`{key[:80]}` is no key of a server; there are {', '.join(fields)}" for key in given.keys() - known]
    problems += [f"`{key}` must be a text" for key, value in known.items() if not isinstance(value, str)]
    if "url" not in given:
        problems.append("`url` is missing, such as tls://nats.example.org:4222")
    if problems:
        raise BadServerError(problems=tuple(problems))
    files = {fields[key].name: Path(value).expanduser().absolute() for key, value in known.items() if key != "url"}
    server = Server(url=known["url"], **files)
    if wrong := tuple(server.problems()):
        raise BadServerError(problems=wrong)
    return server


def _is_address(url: str) -> bool:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return False
    plain = url.isascii() and url.isprintable() and " " not in url and parts.username is None
    return plain and parts.scheme in SCHEMES and bool(parts.hostname) and port != 0 and parts.path in ("", "/")


def _seed(path: Path) -> str:
    import nkeys

    lack = "holds no seed of a user's NKey"
    text = _secret(path, _SEED, lack)
    try:
        nkeys.from_seed(bytearray(text.encode())).wipe()
    except (nkeys.NkeysError, ValueError) as error:
        raise OSError(0, lack, str(path)) from error
    return text


def _secret(path: Path, form: re.Pattern[str], lack: str) -> str:
    text = read_whole(path, _SECRET_MAX).decode("ascii", "replace").strip()
    if form.fullmatch(text) is None:
        raise OSError(0, lack, str(path))
    return text


def _believing(authority: Path) -> ssl.SSLContext:
    try:
        # Without a certificate in it, the system's authorities would be believed instead.
        if b"-----BEGIN CERTIFICATE-----" in read_whole(authority, _AUTHORITIES_MAX):
            return ssl.create_default_context(cafile=str(authority))
    except ssl.SSLError as error:
        raise OSError(0, f"is no PEM of certificates: {error.reason}", str(authority)) from error
    raise OSError(0, "holds no certificate in PEM", str(authority))


def _said(error: OSError | ssl.SSLError) -> str:
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return f"TLS files: {error}"
