"""The inputs that are kept: what reaches every corner found so far, and everything that ever broke a parser."""

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.fuzz.targets import Target, answer

HERE: Final = Path(__file__).parent
CORPUS: Final = HERE / "corpus"
FINDINGS: Final = HERE / "findings"
LENGTH_MAX: Final = 4096
"""What is longer is not kept: a short input reaches the same places."""

PER_TARGET: Final = 7
_OURS: Final = tuple(
    str(HERE.parents[1] / name) for name in ("evidence", "wire", "nixfleet", "control_plane", "state_machine")
)


def kept(directory: Path, target: Target) -> list[Path]:
    """The files of a target below `CORPUS` or `FINDINGS`."""
    return sorted(path for path in (directory / target.name).glob("*") if path.is_file())


def keep(directory: Path, target: Target, data: bytes) -> Path:
    """Write an input down under a name of its own."""
    path = directory / target.name / hashlib.sha256(data).hexdigest()[:12]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def renew(target: Target, found: Iterable[bytes]) -> None:
    """Replace a target's corpus by the few of `found` and of itself that reach the most lines, short ones first."""
    old = kept(CORPUS, target)
    inputs = {path.read_bytes() for path in old} | {data for data in found if len(data) <= LENGTH_MAX}
    reached = {data: _lines(target, data) for data in sorted(inputs, key=lambda data: (len(data), data))}
    chosen: list[bytes] = []
    covered: set[tuple[str, int]] = set().union(*(_lines(target, data) for data in target.genuine))
    while len(chosen) < PER_TARGET and (
        best := max(reached, key=lambda data: len(reached[data] - covered), default=None)
    ):
        if not reached[best] - covered:
            break
        covered |= reached.pop(best)
        chosen.append(best)
    for path in old:
        path.unlink()
    for data in chosen:
        keep(CORPUS, target, data)


def _lines(target: Target, data: bytes) -> set[tuple[str, int]]:
    """The lines of ours that this input reaches."""
    reached: set[tuple[str, int]] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(_OURS):
            return None
        reached.add((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        answer(target, data)
    finally:
        sys.settrace(None)
    return reached
