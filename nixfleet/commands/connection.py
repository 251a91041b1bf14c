"""The four settings that lead to a control plane, as options of every command that talks to one."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from nixfleet.commands import options
from nixfleet.errors import MissingSettingError
from nixfleet.operator_tls import Endpoint

_OPTIONS = (
    click.option(
        "--control-plane-url",
        envvar="NIXFLEET_CONTROL_PLANE_URL",
        show_envvar=True,
        help="Where the control plane is: https://...",
    ),
    click.option(
        "--ca-cert", type=options.FILE, envvar="NIXFLEET_CA_CERT", show_envvar=True, help="The fleet's CA certificate."
    ),
    click.option(
        "--client-cert",
        type=options.FILE,
        envvar="NIXFLEET_CLIENT_CERT",
        show_envvar=True,
        help="Your operator certificate.",
    ),
    click.option(
        "--client-key", type=options.FILE, envvar="NIXFLEET_CLIENT_KEY", show_envvar=True, help="The key it belongs to."
    ),
)


def to_control_plane(command: Callable[..., None]) -> Callable[..., None]:
    """Add the four options and hand them to the command as one `endpoint`."""

    @functools.wraps(command)
    def with_endpoint(
        *args: Any,
        control_plane_url: str | None,
        ca_cert: Path | None,
        client_cert: Path | None,
        client_key: Path | None,
        **kwargs: Any,
    ) -> None:
        if not control_plane_url:
            raise MissingSettingError(
                flag="--control-plane-url", variable="NIXFLEET_CONTROL_PLANE_URL", what="the control plane's URL"
            )
        endpoint = Endpoint(
            url=control_plane_url,
            ca_cert=options.required(ca_cert, "--ca-cert", "the fleet's CA certificate"),
            client_cert=options.required(client_cert, "--client-cert", "the operator certificate"),
            client_key=options.required(client_key, "--client-key", "the operator certificate's key"),
        )
        command(*args, endpoint=endpoint, **kwargs)

    decorated: Callable[..., None] = with_endpoint
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated
