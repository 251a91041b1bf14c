"""Run the operator's hooks: the worker behind `RunHooks`.

Every executable file of the directory runs, in the order of its name, with the moment as its only argument and the
facts on standard input as JSON. Each has the configured deadline. Before a switch an exit status that is not 0 is a
veto, with the last line of what the hook said as its reason; the hooks after it are not asked. Afterwards a failure
is only told. A directory that cannot be read, and a hook that cannot be started, veto as well: somebody wanted to be
asked. What the hooks said is in the journal, bounded.
"""

import json
import logging
import os
from pathlib import Path
from typing import Final

import attrs

from nixfleet_agent.commands import CommandError, run, tail
from nixfleet_agent.desk import Desk
from state_machine.actions import RunHooks
from state_machine.events import HooksFinished
from state_machine.values import HookMoment

OUTPUT_BYTES: Final = 2048
"""Kept of all hooks of one moment together."""
REASON_CHARS: Final = 300
log = logging.getLogger(__name__)


@attrs.frozen(kw_only=True)
class _Said:
    output: str
    problem: str = ""


class HookWorker:
    """Answers with `HooksFinished(op)`."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk

    async def run(self, order: RunHooks) -> None:
        """Run the hooks of one moment, one after the other."""
        outputs, veto = [], ""
        try:
            hooks = executables(self._desk.config.hooks_dir)
        except OSError as error:
            hooks, veto = [], f"the hooks cannot be read: {error}"
        for hook in hooks:
            said = await self._run_one(hook, order)
            outputs.append(f"{hook.name}: {said.output or 'ok'}")
            if said.problem:
                veto = veto or f"{hook.name}: {said.problem}"[:REASON_CHARS]
                log.warning("a hook failed", extra={"fields": {"hook": hook.name, "moment": order.moment.value,
                                                              "problem": said.problem}})  # fmt: skip
                if order.moment is HookMoment.BEFORE_SWITCH:
                    break
        await self._desk.tell(
            HooksFinished(
                at=self._desk.clock(),
                op=order.op,
                veto=veto if order.moment is HookMoment.BEFORE_SWITCH else "",
                output=tail("\n".join(outputs).encode("utf-8", "replace"), OUTPUT_BYTES),
                jitter=self._desk.jitter(),
            )
        )

    async def _run_one(self, hook: Path, order: RunHooks) -> _Said:
        timeout_s = float(self._desk.config.hook_timeout)
        try:
            done = await run([str(hook), order.moment.value], timeout_s=timeout_s, stdin=self._facts(order), cwd="/")
        except CommandError as error:
            return _Said(output="", problem=str(error))
        output = tail(done.stdout + done.stderr, OUTPUT_BYTES)
        if done.ok:
            return _Said(output=output)
        if done.timed_out:
            return _Said(output=output, problem=f"no answer within {timeout_s:g} s")
        last = output.rsplit("\n", 1)[-1].strip()
        return _Said(output=output, problem=last or f"exit status {done.exit_code}")

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
    """The hooks, in the order of their names. What others than the owner may write is refused: it runs as root.

    Raises:
        OSError: the directory cannot be read, or something in it must not be run.
    """
    if directory is None:
        return []
    found = sorted(path for path in directory.iterdir() if path.is_file() and os.access(path, os.X_OK))
    for path in (directory, *found):
        if path.stat().st_mode & 0o022:
            raise PermissionError(f"{path} can be written by others; chmod go-w it")
    return found
