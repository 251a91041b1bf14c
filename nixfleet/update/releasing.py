"""Release what the main branch has, after it was merged: `nixfleet release --flake`, as an operator would run it.

It is run after a run that found nothing to merge, too: what an earlier run merged and could not release is released
then, and what is released already stays as it is.
"""

import json
from collections.abc import Sequence

import attrs

from nixfleet.errors import StoppedError
from nixfleet.update.instance import Release
from nixfleet.update.worktree import environment_here
from nixfleet_agent.child import module_command, module_environment
from nixfleet_agent.commands import CommandError, run, tail

WHY_MAX = 2000


@attrs.frozen(kw_only=True)
class Released:
    """What became of it. `why` says why nothing was released; None: something was, or is already."""

    rollouts: tuple[str, ...] = ()
    unchanged: bool = False
    """The published release asks for the same."""
    why: str | None = None


async def release(settings: Release, flake: str) -> Released:
    """Release a flake, given as Nix is told it. Never raises for what the command would not do: the merge stands."""
    words = ("release", "--flake", flake, "--json", *settings.args)
    try:
        done = await run(
            module_command("nixfleet", *words),
            timeout_s=settings.timeout,
            env=module_environment(environment_here()),
            keep=16 * 1024 * 1024,
        )
    except CommandError as error:
        return Released(why=str(error))
    if done.timed_out:
        return Released(why=f"it had not ended after {settings.timeout} s")
    if not done.ok:
        return Released(why=_complaint(tail(done.stderr, WHY_MAX)))
    return _read(done.stdout)


def _read(answer: bytes) -> Released:
    try:
        said = json.loads(answer)
        published = said["published"]
        return Released(rollouts=tuple(_texts(published and published["rollouts"])), unchanged=bool(said["unchanged"]))
    except (ValueError, KeyError, TypeError) as error:
        return Released(why=f"`nixfleet release --json` answered what cannot be read ({error})")


def _texts(values: Sequence[object] | None) -> list[str]:
    return [str(value) for value in values or ()]


def _complaint(said: str) -> str:
    """The command's last words, without what it said of its work before."""
    at = said.rfind("nixfleet: ")
    return (said[at + len("nixfleet: ") :] if at >= 0 else said).strip() or StoppedError.__name__
