"""AWS Signature Version 4: prove to S3, or to what speaks like it, who sends a request.

Written from the published description of the process ("Authenticating Requests: Using the Authorization Header (AWS
Signature Version 4)", Amazon S3 API Reference). A request is put into a canonical form, its hash into a text with time
and scope, and that is authenticated by HMAC-SHA-256 with a key derived from the secret, the day, the region and the
service. The form is made of what is really sent: path and query exactly as they go over the wire.
"""

import hashlib
import hmac
import time
from collections.abc import Callable, Generator, Iterable, Mapping
from typing import Final
from urllib.parse import quote, unquote

import attrs
import httpx

ALGORITHM: Final = "AWS4-HMAC-SHA256"
_UNRESERVED: Final = "-_.~"


@attrs.frozen(kw_only=True)
class Credentials:
    """Who asks. `session_token` comes with credentials that are lent for a while."""

    access_key: str
    secret_key: str = attrs.field(repr=False)
    session_token: str | None = attrs.field(default=None, repr=False)


@attrs.frozen(kw_only=True)
class SignatureV4(httpx.Auth):
    """Signs each request as it is sent, anew at each attempt. `now` is UTC seconds since 1970."""

    credentials: Credentials
    region: str
    service: str = "s3"
    now: Callable[[], float] = time.time

    requires_request_body = True

    def auth_flow(self, request: httpx.Request) -> Generator[httpx.Request, httpx.Response, None]:
        """Add the headers that the description asks for."""
        at = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(self.now()))
        payload = hashlib.sha256(request.content).hexdigest()
        request.headers["X-Amz-Date"] = at
        request.headers["X-Amz-Content-SHA256"] = payload
        if self.credentials.session_token is not None:
            request.headers["X-Amz-Security-Token"] = self.credentials.session_token
        signed = {name: value for name, value in request.headers.items() if _is_signed(name)}
        path, _, query = request.url.raw_path.decode("ascii").partition("?")
        canonical = canonical_request(request.method, path, query, signed, payload)
        request.headers["Authorization"] = authorization(
            canonical, signed, at, self.credentials, region=self.region, service=self.service
        )
        yield request


def canonical_request(method: str, path: str, query: str, headers: Mapping[str, str], payload: str) -> str:
    """The one form that a request has, whoever writes it down. `path` is encoded already, `payload` a hash in hex."""
    lines = {name.lower(): " ".join(value.split()) for name, value in headers.items()}
    return "\n".join(
        (
            method,
            path or "/",
            _canonical_query(query),
            *(f"{name}:{lines[name]}" for name in sorted(lines)),
            "",
            signed_headers(headers),
            payload,
        )
    )


def signed_headers(names: Iterable[str]) -> str:
    """The names of what is signed, as they are listed."""
    return ";".join(sorted(name.lower() for name in names))


def authorization(
    canonical: str, headers: Iterable[str], at: str, credentials: Credentials, *, region: str, service: str
) -> str:
    """The value of the header `Authorization`. `at` is a time such as 20150830T123600Z."""
    scope = f"{at[:8]}/{region}/{service}/aws4_request"
    text = "\n".join((ALGORITHM, at, scope, hashlib.sha256(canonical.encode()).hexdigest()))
    key = f"AWS4{credentials.secret_key}".encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    return (
        f"{ALGORITHM} Credential={credentials.access_key}/{scope}, SignedHeaders={signed_headers(headers)}, "
        f"Signature={signature}"
    )


def encoded(key: str) -> str:
    """An object's key as it goes into a path: every byte but unreserved ones and slashes is written in hex."""
    return quote(key, safe=f"{_UNRESERVED}/")


def _canonical_query(query: str) -> str:
    pairs = (part.partition("=")[::2] for part in query.split("&") if part)
    return "&".join(sorted(f"{_again(name)}={_again(value)}" for name, value in pairs))


def _again(text: str) -> str:
    return quote(unquote(text), safe=_UNRESERVED)


def _is_signed(name: str) -> bool:
    """What no proxy changes: conditions are signed too, so that nobody takes them away."""
    return name in ("host", "content-type", "if-match", "if-none-match", "range") or name.startswith("x-amz-")
