"""Which commit a release is of, when nobody says."""

import hashlib
import subprocess
from pathlib import Path

from evidence.canonical import canonicalize
from nixfleet.release.changes import without_meta
from wire.json_value import JsonObject

_REF_LENGTH = 40
"""As long as a git commit, so that nothing downstream can tell the difference."""


def head_of(directory: Path) -> str | None:
    """The commit that is checked out in a directory, or None where there is no git repository (or no git)."""
    try:
        done = subprocess.run(
            ["git", "-C", str(directory), "rev-parse", "--verify", "--quiet", "HEAD"],
            capture_output=True,
            check=False,
            text=True,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None


def ref_of(document: JsonObject) -> str:
    """A name made of what the fleet is to run: the same intent always has the same."""
    return hashlib.sha256(canonicalize(without_meta(document))).hexdigest()[:_REF_LENGTH]
