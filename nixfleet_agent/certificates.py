"""X.509 work, in a process that ends: `python -m nixfleet_agent.certificates csr|inspect`.

`cryptography` costs 16 MB of memory, and the daemon needs it for a moment every two weeks. So it runs here, on
standard input and output: JSON in, JSON out, the private key by the path it already has.
"""

import json
import sys
from typing import Any, Final

from evidence.regular_files import read_whole

KEY_LIMIT: Final = 64 * 1024


def make_csr(machine_id: str, key_path: str) -> str:
    """A PEM request for `machine_id`, signed with the key that TLS will show."""
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    builder = x509.CertificateSigningRequestBuilder()
    builder = builder.subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, machine_id)]))
    return builder.sign(_private_key(key_path), _hash_for(key_path)).public_bytes(_pem()).decode()


def inspect(cert_pem: str, key_path: str | None) -> dict[str, Any]:
    """Who a certificate is for, how long it is good, and whether it belongs to the key."""
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.x509.oid import NameOID

    try:
        cert = x509.load_pem_x509_certificate(cert_pem.encode())
        names = cert.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        key = cert.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise ValueError(f"it holds no certificate: {_first_line(error)}") from error
    return {
        "cn": str(names[0].value) if names else "",
        "not_before_ms": int(cert.not_valid_before_utc.timestamp() * 1000),
        "not_after_ms": int(cert.not_valid_after_utc.timestamp() * 1000),
        "fits_key": key_path is not None and key == _private_key(key_path).public_key(),
    }


def _pem() -> Any:
    from cryptography.hazmat.primitives.serialization import Encoding

    return Encoding.PEM


def _private_key(path: str) -> Any:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    data = read_whole(path, KEY_LIMIT)
    load = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in data[:64] else load_pem_private_key
    try:
        return load(data, None)
    except (ValueError, TypeError) as error:
        raise ValueError(f"the key {path} cannot be used: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _hash_for(key_path: str) -> Any:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.hashes import SHA256

    return None if isinstance(_private_key(key_path), Ed25519PrivateKey) else SHA256()


def main() -> int:
    """Answer one request; on a certificate or key that cannot be used, say why in one line and exit 1."""
    request = json.loads(sys.stdin.read())
    try:
        if request["do"] == "csr":
            answer: dict[str, Any] = {"csr_pem": make_csr(request["machine_id"], request["key"])}
        else:
            answer = inspect(request["cert_pem"], request["key"])
    except OSError as error:
        print(f"{error.filename}: {error.strerror}", file=sys.stderr)
        return 1
    except (ValueError, TypeError) as error:
        print(_first_line(error), file=sys.stderr)
        return 1
    json.dump(answer, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
