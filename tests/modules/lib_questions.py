"""Short ways to ask what a lib makes of a few modules."""

from typing import Any

import pytest

from tests.modules.evaluation import EvaluationError, evaluate


def option(type_: str, more: str = "", *, name: str = "x") -> str:
    """A module that declares one option."""
    return f'{{ _file = "declaring.nix"; options.{name} = lib.mkOption {{ type = with lib.types; {type_}; {more} }}; }}'


def definition(value: str, *, file: str = "one.nix") -> str:
    """A module that defines `x`."""
    return f'{{ _file = "{file}"; config.x = {value}; }}'


def merged(*modules: str) -> Any:
    """The configuration that the modules make together."""
    return evaluate(f"(lib.evalModules {{ modules = [ {' '.join(f'({module})' for module in modules)} ]; }}).config")


def refusal(*modules: str) -> str:
    with pytest.raises(EvaluationError) as caught:
        merged(*modules)
    return caught.value.message
