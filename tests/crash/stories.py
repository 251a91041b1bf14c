"""The standard runs: what the released system is like, what happens to the world meanwhile, and when it is over."""

from collections.abc import Callable
from typing import Final

import attrs

from tests.crash.office import FINAL
from tests.crash.world import Target, World


def _nothing(world: World) -> bool:
    return False


def _reboots(world: World) -> bool:
    """Somebody reboots the host once the control plane shows that it waits for that."""
    return world.boots == 1 and world.office.kinds()[-1:] == ["ActivationDeferred"]


def _wipes(world: World) -> bool:
    """The control plane loses its database in the middle of the soak."""
    if world.office.wipes == 0 and "ActivationCompleted" in world.office.kinds():
        world.office.wipe()
    return False


@attrs.frozen(kw_only=True)
class Story:
    """`interfere` lets happen what happens to the world, whenever it is asked; True: the host is to reboot now."""

    name: str
    target: Target
    ends_in: str
    interfere: Callable[[World], bool] = _nothing
    wipes: int = 0

    def is_over(self, world: World) -> bool:
        """The control plane has been told the end of it."""
        kinds = world.office.kinds()
        return world.office.wipes == self.wipes and kinds[-1:] == [self.ends_in] and self.ends_in in FINAL


STORIES: Final = (
    Story(name="clean rollout", target=Target(), ends_in="Converged"),
    Story(name="failing switch", target=Target(exit_code=4), ends_in="RollbackComplete"),
    Story(name="sustained failure with rollback", target=Target(sick=True), ends_in="RollbackComplete"),
    Story(name="deferral with reboot", target=Target(component="kernel"), ends_in="Converged", interfere=_reboots),
    Story(name="replay after a wipe", target=Target(), ends_in="Converged", interfere=_wipes, wipes=1),
)
