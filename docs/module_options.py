"""Pages with the options of the modules for NixOS and nix-darwin, from the modules themselves as nix evaluates them.

Where nix is not installed there is nothing to make the pages from, and those that exist stay as they are.
"""

import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[1]
# The evaluation belongs to the tests, which no installation of the package has.
sys.path.append(str(ROOT))

from tests.modules.evaluation import DARWIN, GRADIENT_DEPLOY, Option, Value, option_docs  # noqa: E402  # found by the line above

PAGES: Final = {
    "nixos": (ROOT / "docs/reference-nixos.md", GRADIENT_DEPLOY, "NixOS options", "nixos/"),
    "darwin": (ROOT / "docs/reference-darwin.md", DARWIN, "nix-darwin options", "darwin/"),
}

_HEAD: Final = """\
# {title}

Written by `docs/generate.py` from the modules in `{folder}`; edit the descriptions there, not here. An option without a
default must be set where the module is enabled.
"""
_ROLE: Final = re.compile(r"\{[a-z]+\}`")


def pages() -> Mapping[Path, str]:
    """Every page; none at all, and a word about it, without nix.

    Raises `EvaluationError` when nix refuses the modules.
    """
    if shutil.which("nix-instantiate") is None:
        names = " and ".join(path.name for path, *_ in PAGES.values())
        print(f"nix-instantiate is not installed: {names} are left as they are", file=sys.stderr)
        return {}
    return {
        path: _page(title, folder, option_docs(world, modules))
        for world, (path, modules, title, folder) in PAGES.items()
    }


def _page(title: str, folder: str, options: Sequence[Option]) -> str:
    services = [(name, list(group)) for name, group in groupby(options, _service)]
    contents = [f"- [`{name}`](#{_anchor(name)})" for name, _ in services]
    sections = [line for name, group in services for line in (f"## `{name}`\n", *map(_section, group))]
    return "\n".join([_HEAD.format(title=title, folder=folder), *contents, "", *sections]).rstrip() + "\n"


def _service(option: Option) -> str:
    """The name of the service that an option belongs to, as in `services.nixfleet-agent`."""
    return ".".join(option.name.split(".")[:2])


def _anchor(heading: str) -> str:
    """The name that a forge gives a heading."""
    return re.sub(r"[^\w-]", "", heading.lower())


def _section(option: Option) -> str:
    facts = [f"Type: {_prose(option.type)}", *_value("Default", option.default), *_value("Example", option.example)]
    if option.read_only:
        facts.append("Read only")
    description = _ROLE.sub("`", option.description)
    return f"### `{option.name}`\n\n{description}\n\n" + "\n".join(f"- {fact}" for fact in facts) + "\n"


def _prose(text: str) -> str:
    """Text that Markdown shows as it is."""
    return re.sub(r"([\\`*_\[\]<>|])", r"\\\1", text)


def _value(label: str, value: Value | None) -> Iterator[str]:
    if value is None:
        return
    if value.is_markdown:
        yield f"{label}: {value.text}"
    elif "\n" not in value.text:
        yield f"{label}: `{value.text}`"
    else:
        indented = "\n".join(f"  {line}".rstrip() for line in value.text.splitlines())
        yield f"{label}:\n\n  ```nix\n{indented}\n  ```"
