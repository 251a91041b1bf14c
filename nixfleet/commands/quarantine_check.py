"""Ask the control plane, where one is configured, what it has in quarantine before a release asks for it."""

import functools
from collections.abc import Callable
from typing import Any

import attrs
import click

from nixfleet.commands.connection import to_control_plane_if_any
from nixfleet.errors import ConfigurationError, StoppedError
from nixfleet.operator_api import connected
from nixfleet.operator_tls import Endpoint
from nixfleet.release.quarantined import QuarantinedError, quarantined_in
from state_machine.intent import Fleet


@attrs.frozen(kw_only=True)
class QuarantineCheck:
    """The control plane to ask, if any, and whether what it says is to be passed over."""

    endpoint: Endpoint | None
    allowed: bool

    def look(self, fleet: Fleet) -> tuple[str, ...]:
        """Refuse a fleet that asks for what is quarantined. Returns notices.

        Signing needs no control plane, so one that cannot be asked is told and no more.

        Raises:
            QuarantinedError: it does ask for such a closure.
            ConfigurationError: the address or a file is no use, whoever listens there.
        """
        if self.endpoint is None or self.allowed:
            return ()
        try:
            with connected(self.endpoint) as api:
                rows = api.quarantine().get("quarantine")
        except ConfigurationError:
            raise
        except StoppedError as error:
            return (f"the control plane was not asked what is quarantined: {error}",)
        found = quarantined_in(fleet, [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else [])
        if found:
            raise QuarantinedError(found=found)
        return ()


def quarantine_check(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options and hand them to the command as one `quarantine`."""

    @click.option("--allow-quarantined", is_flag=True, help="Release even what hosts rolled back and remember.")
    @to_control_plane_if_any
    @functools.wraps(command)
    def with_check(*args: Any, endpoint: Endpoint | None, allow_quarantined: bool, **kwargs: Any) -> Any:
        return command(*args, quarantine=QuarantineCheck(endpoint=endpoint, allowed=allow_quarantined), **kwargs)

    return with_check
