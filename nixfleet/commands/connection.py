"""The four settings that lead to a control plane, as options of every command that talks to one."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import click
from click.core import ParameterSource

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
    def with_endpoint(*args: Any, **kwargs: Any) -> None:
        command(*args, endpoint=_needed(_taken(kwargs)), **kwargs)

    return _with_options(with_endpoint)


def to_control_plane_if_any(command: Callable[..., Any]) -> Callable[..., Any]:
    """The same for a command that can do without: `endpoint` is None where the configuration file has not all four.

    A flag asks for it, and so does the address alone wherever it is given; certificates may be set for other commands.
    """

    @functools.wraps(command)
    def with_endpoint(*args: Any, **kwargs: Any) -> Any:
        given = _taken(kwargs)
        if not all(given.values()) and not _is_wanted(given):
            return command(*args, endpoint=None, **kwargs)
        return command(*args, endpoint=_needed(given), **kwargs)

    return _with_options(with_endpoint)


def _with_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def _taken(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs.pop(name) for name in ("control_plane_url", "ca_cert", "client_cert", "client_key")}


def _is_wanted(given: Mapping[str, Any]) -> bool:
    source = click.get_current_context().get_parameter_source
    asked = any(source(name) is ParameterSource.COMMANDLINE for name in given)
    return asked or source("control_plane_url") is ParameterSource.ENVIRONMENT


def _needed(given: dict[str, Any]) -> Endpoint:
    if not given["control_plane_url"]:
        raise MissingSettingError(
            flag="--control-plane-url", variable="NIXFLEET_CONTROL_PLANE_URL", what="the control plane's URL"
        )
    return Endpoint(
        url=given["control_plane_url"],
        ca_cert=options.required(given["ca_cert"], "--ca-cert", "the fleet's CA certificate"),
        client_cert=options.required(given["client_cert"], "--client-cert", "the operator certificate"),
        client_key=options.required(given["client_key"], "--client-key", "the operator certificate's key"),
    )
