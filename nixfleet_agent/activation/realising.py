"""Bring a closure into the store and keep the garbage collector off it until it is switched to."""

from collections.abc import Sequence

from nixfleet_agent.activation.interface import RealiseOutcome, Store
from nixfleet_agent.commands import tail
from state_machine.values import Closure, Reason, is_closure

TARGET: str = "target"
"""The name under which the store keeps what was realised last."""


async def realise_and_keep(
    store: Store, closure: Closure, *, caches: Sequence[str], timeout_s: float
) -> RealiseOutcome:
    """`Store.realise`, under a garbage collector root that is in place before the first byte arrives."""
    if not is_closure(closure):
        return RealiseOutcome(ok=False, reason=Reason.REALISE_FAILED, detail="not the name of a store path")
    said = ""
    try:
        store.keep(TARGET, closure)
    except OSError as error:
        # Without the root a collection may take the path before the switch, which will then say so.
        said = f"not kept from garbage collection: {error}"
    try:
        outcome = await store.realise(closure, caches=caches, timeout_s=timeout_s)
    except OSError as error:
        said = f"{said}\n{error}"
        outcome = RealiseOutcome(ok=False, reason=Reason.REALISE_FAILED)
    detail = tail("\n".join(part for part in (said, outcome.detail) if part).encode("utf-8", "replace"))
    return RealiseOutcome(ok=outcome.ok, reason=outcome.reason, signature=outcome.signature, detail=detail)
