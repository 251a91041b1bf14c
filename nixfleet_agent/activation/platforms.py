"""Make the platform that a configuration asks for."""

from collections.abc import Mapping
from typing import assert_never

from nixfleet_agent.activation.inhibitors import DEFAULT, chosen
from nixfleet_agent.activation.interface import Platform, Store
from nixfleet_agent.activation.linux import LinuxPlatform
from nixfleet_agent.activation.paths import Paths
from nixfleet_agent.activation.runners import Runner
from state_machine.values import SwitchMethod


def platform_for(
    method: SwitchMethod,
    *,
    paths: Paths,
    store: Store,
    environment: Mapping[str, str] | None = None,
    components: Mapping[str, str] | None = None,
) -> Platform:
    """The platform whose switches are run by `method`. `DRY_RUN` rehearses them.

    `environment` is added to what a switch sees. `components` is what cannot be swapped live (None: the
    default of `inhibitors`).
    Raises `ValueError` for a method that only other agents use.
    """
    extra = environment or {}
    compared = chosen(DEFAULT) if components is None else components

    def linux(runner: Runner) -> LinuxPlatform:
        return LinuxPlatform(paths=paths, store=store, runner=runner, environment=extra, components=compared)

    # One host needs one of them, and memory is the daemon's scarcest good.
    match method:
        case SwitchMethod.SYSTEMD_RUN:
            from nixfleet_agent.activation.systemd_unit import SystemdRunner

            return linux(SystemdRunner())
        case SwitchMethod.DETACHED:
            from nixfleet_agent.activation.detached import DetachedRunner

            return linux(DetachedRunner())
        case SwitchMethod.DARWIN_ACTIVATE:
            from nixfleet_agent.activation.darwin import DarwinPlatform

            return DarwinPlatform(paths=paths, store=store, environment=extra)
        case SwitchMethod.DRY_RUN:
            from nixfleet_agent.activation.detached import DetachedRunner
            from nixfleet_agent.activation.dry_run import DryRunPlatform

            return DryRunPlatform(inner=linux(DetachedRunner()), paths=paths)
        case SwitchMethod.SWITCH_TO_CONFIGURATION:
            raise ValueError(f"{method} is what other agents report; this one has no such method")
        case _:
            assert_never(method)
