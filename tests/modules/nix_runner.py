"""Run nix-instantiate on an expression, so that neither the user's nor the machine's own Nix has a say in the answer.

Each run has a store of its own in a temporary directory, so it works for any user and with an empty home directory;
files outside of the repository and of what the caller names cannot be read, and nothing can be fetched.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs


@attrs.frozen
class EvaluationError(Exception):
    """Nix refused the configuration; `message` is what it said, `trace` the same with all the places."""

    message: str
    trace: str

    def __str__(self) -> str:
        return self.message


@attrs.frozen(kw_only=True)
class Answer:
    """What became of an expression."""

    json: str
    files: Mapping[str, str]
    """The text of every store file that the evaluation generated, by store path."""
    messages: str
    """What nix printed beside the result, such as traces."""


def ask(expression: str, *, readable: Sequence[Path]) -> Answer:
    """Evaluate `expression` strictly. `readable` are the files and directories that it may read.

    Raises `EvaluationError` when nix refuses.
    """
    with tempfile.TemporaryDirectory(prefix="nixfleet-evaluation-") as directory:
        root = Path(directory)
        done = subprocess.run(
            [*_command(readable), "--expr", expression],
            env=_environment(root),
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise EvaluationError(message=_error(done.stderr), trace=done.stderr)
        return Answer(json=done.stdout, files=dict(_generated(root / "nix/store")), messages=done.stderr)


def _command(readable: Sequence[Path]) -> Sequence[str]:
    return [
        "nix-instantiate",
        *("--eval", "--strict", "--json", "--read-write-mode", "--show-trace"),
        *("--option", "restrict-eval", "true"),
        *("--option", "substitute", "false"),
        *("--option", "build-users-group", ""),
        *("--option", "fsync-metadata", "false"),
        *(word for path in readable for word in ("-I", str(path))),
    ]


def _environment(root: Path) -> Mapping[str, str]:
    """Nothing of the user's own: neither configuration nor caches nor the store of the machine."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": str(root),
        "NIX_REMOTE": f"local?root={root}",
        "NIX_CONF_DIR": str(root),
        "NIX_USER_CONF_FILES": "",
        "NIX_PATH": "",
        "LC_ALL": "C.UTF-8",
    }


def _generated(store: Path) -> Sequence[tuple[str, str]]:
    files = (path for path in store.glob("*") if path.is_file() and path.suffix != ".drv")
    return [(f"/nix/store/{path.name}", path.read_text(encoding="utf-8")) for path in files]


_COMPLAINT: Final = re.compile(r"^ *error: ", re.MULTILINE)
_PLACE: Final = re.compile(r"\s*\n *(?:at .+:\d+:\d+:|…)")


def _error(stderr: str) -> str:
    """The innermost complaint, without the places that led to it and without nix's indentation."""
    *_, message = _COMPLAINT.split(stderr)
    return _PLACE.split(message)[0].replace("\n       ", "\n").strip()
