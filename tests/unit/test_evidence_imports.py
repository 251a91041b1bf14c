"""What loading this package costs the resident daemon: never the general cryptography library."""

import subprocess
import sys
from pathlib import Path

import evidence

MODULES = sorted(path.stem for path in Path(evidence.__file__).parent.glob("*.py") if path.stem != "__init__")

SCRIPT = """
import importlib, sys, tempfile, pathlib
for name in sys.argv[1:]:
    importlib.import_module(f"evidence.{name}")
from evidence.host_key import generate_host_key, load_host_key
from evidence.signature import PublicKey, verify
path = pathlib.Path(tempfile.mkdtemp()) / "key"
generate_host_key().write_openssh(path)
key = load_host_key(path)
assert verify(PublicKey.ed25519(key.public), b"m", key.sign(b"m")) and key.pkcs8_pem()
print(*sorted({module.partition(".")[0] for module in sys.modules} & {"cryptography", "click", "sqlite_utils", "rich"}))
"""


def test_ed25519_work_never_loads_the_general_library() -> None:
    ran = subprocess.run([sys.executable, "-c", SCRIPT, *MODULES], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == []
