"""Rounds over all targets: each in a process of its own, as many at once as there are cores."""

import argparse
import contextlib
import itertools
import logging
import os
import signal
import sys
import tempfile
import traceback
from collections import deque
from pathlib import Path
from typing import Final, NoReturn

import attrs

from tests.fuzz.corpus import CORPUS, FINDINGS, keep, kept, renew
from tests.fuzz.engines import FINDING, Session, run
from tests.fuzz.targets import TARGETS, Target

ROUND_S: Final = 60.0
CI_SECONDS: Final = 3.0
"""With two cores all targets together then take less than a minute."""

_LOG: Final = "log"
_LOG_SHOWN: Final = 60


def main() -> int:
    """Fuzz; 1 when something was found."""
    options = _options().parse_args()
    logging.disable()
    chosen = options.target or list(TARGETS)
    if unknown := [name for name in chosen if name not in TARGETS]:
        print(f"no such target: {', '.join(unknown)}; there are {', '.join(TARGETS)}", file=sys.stderr)
        return 2
    found = 0
    with tempfile.TemporaryDirectory(prefix="nixfleet-fuzz-") as root, contextlib.suppress(KeyboardInterrupt):
        for number in itertools.count():
            found += _Round(root=Path(root) / str(number), options=options).run([TARGETS[name] for name in chosen])
            if options.seconds is not None:
                break
    return 1 if found else 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="make fuzz", description="Fuzz every parser of what others wrote.")
    in_ci = CI_SECONDS if os.environ.get("CI") else None
    parser.add_argument("--seconds", type=float, default=in_ci, help="for each target; else until told to stop")
    parser.add_argument("--target", action="append", help="only this one; may be given more than once")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--keep", action="store_true", help="renew the corpus that is checked in")
    return parser


@attrs.define(kw_only=True)
class _Round:
    """Every target once, some at a time."""

    root: Path
    options: argparse.Namespace
    working: dict[int, Session] = attrs.field(factory=dict)

    def run(self, targets: list[Target]) -> int:
        """How many targets have a finding."""
        waiting, found = deque(targets), 0
        try:
            while waiting or self.working:
                while waiting and len(self.working) < self.options.jobs:
                    self._start(waiting.popleft())
                pid, status = os.wait()
                if (session := self.working.pop(pid, None)) is not None:
                    found += _told(session, os.waitstatus_to_exitcode(status))
                    if self.options.keep and status == 0:
                        renew(session.target, _reached(session))
        finally:
            for pid in self.working:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
        return found

    def _start(self, target: Target) -> None:
        seconds = ROUND_S if self.options.seconds is None else self.options.seconds
        seeds = [*target.genuine, *(path.read_bytes() for path in kept(CORPUS, target))]
        session = Session(target=target, seeds=seeds, work=self.root / target.name, seconds=seconds)
        session.work.mkdir(parents=True)
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            _work(session)
        self.working[pid] = session


def _work(session: Session) -> NoReturn:
    status = 1
    try:
        with (session.work / _LOG).open("wb") as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        run(session)
        status = 0
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(status)


def _told(session: Session, status: int) -> int:
    name = session.target.name
    if status == 0:
        print(f"{name:20} {session.tried:9} inputs, {len(_reached(session)):5} kept", flush=True)
        return 0
    print("\n".join((session.work / _LOG).read_text("utf-8", "replace").splitlines()[-_LOG_SHOWN:]))
    for path in [*session.work.glob(FINDING), *session.work.glob("timeout-*")]:
        print(f"{name}: found {keep(FINDINGS, session.target, path.read_bytes())}")
    print(f"{name}: ended with status {status}", flush=True)
    return 1


def _reached(session: Session) -> list[bytes]:
    return [path.read_bytes() for path in (session.work / "corpus").glob("*") if path.is_file()]
