"""Run the operator's hooks: the worker behind `RunHooks`.

Every executable file of the directory runs, in the order of its name, with the moment as its only argument and the
facts on standard input as JSON. The hooks of one moment share the configured deadline; whatever runs when it comes is
killed. Before a switch an exit status that is not 0 is a veto, with the last line of what the hook said as its
reason; the hooks after it are not asked. Afterwards a failure is only told. A directory that cannot be read, and a
hook that cannot be started or that others could have written, veto as well: somebody wanted to be asked. What the
hooks said is in the journal, bounded.
"""

import json
import logging
import os
from pathlib import Path
from typing import Final

import attrs
import trio

from nixfleet_agent.commands import CommandError, run, tail
from nixfleet_agent.desk import Desk
from state_machine.actions import RunHooks
from state_machine.events import HooksFinished
from state_machine.values import HookMoment

OUTPUT_BYTES: Final = 2048
"""Kept of all hooks of one moment together: the end of what they said."""
REASON_BYTES: Final = 300
log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class _Said:
    name: str
    output: str = ""
    problem: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.output or self.problem or 'ok'}"


class HookWorker:
    """Answers with `HooksFinished(op)`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def run(self, order: RunHooks) -> None:
        """Run the hooks of one moment, one after the other."""
        heard = await self._run_all(order)
        failed = next((said for said in heard if said.problem), None)
        may_veto = order.moment is HookMoment.BEFORE_SWITCH
        await self._desk.tell(
            HooksFinished(
                at=self._desk.clock(),
                op=order.op,
                veto=_bounded(f"{failed.name}: {failed.problem}", REASON_BYTES) if failed and may_veto else "",
                output=tail("\n".join(map(str, heard)).encode("utf-8", "replace"), OUTPUT_BYTES),
                jitter=self._desk.jitter(),
            )
        )

    async def _run_all(self, order: RunHooks) -> list[_Said]:
        heard: list[_Said] = []
        deadline = trio.current_time() + self._desk.config.hook_timeout
        try:
            hooks = executables(self._desk.config.hooks_dir)
        except OSError as error:
            return [self._warned(order, _Said(name="hooks", problem=_cause(error)))]
        for hook in hooks:
            heard.append(self._warned(order, await self._run_one(hook, order, deadline)))
            if heard[-1].problem and order.moment is HookMoment.BEFORE_SWITCH:
                break
        return heard

    def _warned(self, order: RunHooks, said: _Said) -> _Said:
        if said.problem:
            fields = {"hook": said.name, "moment": order.moment.value, "problem": said.problem}
            log.warning("a hook failed", extra={"fields": fields})
        return said

    async def _run_one(self, hook: Path, order: RunHooks, deadline: float) -> _Said:
        left_s = deadline - trio.current_time()
        late = f"no answer: the deadline of {self._desk.config.hook_timeout} s for all hooks has passed"
        if left_s <= 0:
            return _Said(name=hook.name, problem=late)
        try:
            done = await run([str(hook), order.moment.value], timeout_s=left_s, stdin=self._facts(order), cwd="/")
        except CommandError as error:
            return _Said(name=hook.name, problem=str(error))
        output = tail(done.stdout + done.stderr, OUTPUT_BYTES)
        if done.ok:
            return _Said(name=hook.name, output=output)
        if done.timed_out:
            return _Said(name=hook.name, output=output, problem=late)
        last = output.rsplit("\n", 1)[-1].strip()
        return _Said(name=hook.name, output=output, problem=last or f"exit status {done.exit_code}")

    def _facts(self, order: RunHooks) -> bytes:
        facts = {
            "moment": order.moment.value,
            "op": order.op,
            "host": self._desk.config.machine_id,
            "rollout": order.rollout_id,
            "closure": order.closure,
            "before": order.before,
            "basis": order.basis.value,
        }
        return json.dumps(facts).encode() + b"\n"


def executables(directory: Path | None) -> list[Path]:
    """The hooks, in the order of their names. An editor's leftovers (`.name`, `name~`) are none.

    Raises:
        OSError: the directory cannot be read, a link in it leads nowhere, or something is not safe to run: somebody
            else than root and this user owns it or may write it.
    """
    if directory is None:
        return []
    found = sorted(path for path in directory.iterdir() if _is_hook(path))
    for path in (directory, *found):
        seen = path.stat()
        if seen.st_uid not in (0, os.geteuid()):
            raise PermissionError(f"{path} belongs to another user; chown it to root")
        if seen.st_mode & 0o022:
            raise PermissionError(f"{path} can be written by others; chmod go-w it")
    return found


def _is_hook(path: Path) -> bool:
    if path.name.startswith(".") or path.name.endswith("~"):
        return False
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(f"{path} leads nowhere; mend the link or remove it")
    return path.is_file() and os.access(path, os.X_OK)


def _cause(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror}" if error.strerror else str(error)


def _bounded(text: str, limit: int) -> str:
    """The beginning of a text, whose name may be no UTF-8 at all."""
    return text.encode("utf-8", "replace")[:limit].decode("utf-8", "ignore")
