"""Which rollout manifests may go. Never one that the published fleet names, and never one signed lately: some host may
still be in its rollout, or tell of it.

How old a manifest is, its own signature says: a refresh renews those of the fleet that is out, so the last one was
made when the rollout was current for the last time. What cannot be read is nobody's to remove.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

import attrs

from nixfleet.release.published import published_document, signed_at
from nixfleet.release.staging import ROLLOUTS
from nixfleet.release.target import Target
from state_machine.values import WallMs

KEEP_DAYS: Final = 30
_DAY_MS: Final = 86_400_000


@attrs.frozen(kw_only=True)
class Pruning:
    """How many releases keep their manifests; None: all. And for how many days one does in any case."""

    keep: int | None = None
    keep_days: int = KEEP_DAYS


def prunable(target: Target, current: Iterable[str], pruning: Pruning, now: WallMs) -> tuple[str, ...]:
    """Names of manifests that may go once the files called `current` are published. A release is what one commit made.

    Raises:
        DamagedError, TargetError: a manifest cannot be read.
    """
    if pruning.keep is None:
        return ()
    there = {name: at for name in target.names() if (at := signed_at(published_document(target, name))) is not None}
    current = frozenset(name for name in current if name.startswith(f"{ROLLOUTS}/") and name.endswith(".json"))
    kept = frozenset(_newest({**there, **dict.fromkeys(current, now)}, pruning.keep))
    oldest = now - pruning.keep_days * _DAY_MS
    return tuple(
        name for name, at in sorted(there.items()) if name not in current and _commit(name) not in kept and at < oldest
    )


def _newest(there: Mapping[str, WallMs], count: int) -> Iterator[str]:
    last: dict[str, WallMs] = {}
    for name, at in there.items():
        last[_commit(name)] = max(at, last.get(_commit(name), at))
    yield from sorted(last, key=lambda commit: last[commit], reverse=True)[:count]


def _commit(name: str) -> str:
    """The second half of the rollout's id (protocol section 1.5)."""
    return name.removesuffix(".json").rpartition("@")[2]
