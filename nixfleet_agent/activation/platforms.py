"""Make the platform that a configuration asks for."""

from collections.abc import Mapping

from nixfleet_agent.activation.darwin import DarwinPlatform
from nixfleet_agent.activation.detached import DetachedRunner
from nixfleet_agent.activation.dry_run import DryRunPlatform
from nixfleet_agent.activation.inhibitors import COMPONENTS
from nixfleet_agent.activation.interface import Platform, Store
from nixfleet_agent.activation.linux import LinuxPlatform
from nixfleet_agent.activation.paths import Paths
from nixfleet_agent.activation.systemd_unit import SystemdRunner
from state_machine.values import SwitchMethod


def platform_for(
    method: SwitchMethod,
    *,
    paths: Paths,
    store: Store,
    environment: Mapping[str, str] | None = None,
    components: Mapping[str, str] = COMPONENTS,
) -> Platform:
    """The platform whose switches are run by `method`. `DRY_RUN` rehearses them.

    `environment` is added to what a switch sees. `components` is what cannot be swapped live, see `inhibitors`.
    """
    extra = environment or {}
    if method is SwitchMethod.DARWIN_ACTIVATE:
        return DarwinPlatform(paths=paths, store=store, environment=extra)
    runner = SystemdRunner() if method is SwitchMethod.SYSTEMD_RUN else DetachedRunner()
    linux = LinuxPlatform(paths=paths, store=store, runner=runner, environment=extra, components=components)
    return DryRunPlatform(inner=linux, paths=paths) if method is SwitchMethod.DRY_RUN else linux
