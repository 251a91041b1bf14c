"""What moved between two `flake.lock` files, for people (Nix manual, "flake.lock", version 7).

Inputs are named by their path from the root, such as `home-manager/nixpkgs`. An input that follows another is that
other one and is not told twice.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

DEPTH_MAX: Final = 8


@attrs.frozen(kw_only=True)
class Pin:
    """What an input is locked to. `modified` is in seconds since 1970."""

    url: str
    rev: str
    modified: int | None

    @property
    def short(self) -> str:
        """The revision as people say it."""
        return self.rev[:8] if self.rev else "no revision"


@attrs.frozen(kw_only=True)
class Move:
    """One input that is locked to something else now. `before` None: it is new; `after` None: it is gone."""

    name: str
    before: Pin | None
    after: Pin | None


def moves(before: bytes | None, after: bytes) -> tuple[Move, ...]:
    """What differs, by name. `before` None: there was no lock file.

    Raises:
        ValueError: one of them is no lock file.
    """
    old, new = {} if before is None else pins(before), pins(after)
    return tuple(
        Move(name=name, before=old.get(name), after=new.get(name))
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    )


def pins(lock: bytes) -> Mapping[str, Pin]:
    """Every input that is locked to something, by its path from the root.

    Raises:
        ValueError: it is no lock file.
    """
    document = json.loads(lock)
    try:
        nodes, root = document["nodes"], document["root"]
        return dict(_below(nodes, root, "", 0))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no flake.lock of a kind that is known here: {error!r}") from error


def _below(nodes: Mapping[str, Any], name: str, path: str, depth: int) -> Iterator[tuple[str, Pin]]:
    if depth > DEPTH_MAX:
        return
    for input_name, target in nodes[name].get("inputs", {}).items():
        if isinstance(target, list):  # it follows another
            continue
        where = f"{path}/{input_name}" if path else input_name
        if "locked" in nodes[target]:
            yield where, _pin(nodes[target]["locked"])
        yield from _below(nodes, target, where, depth + 1)


def _pin(locked: Mapping[str, Any]) -> Pin:
    modified = locked.get("lastModified")
    return Pin(
        url=_url(locked),
        rev=str(locked.get("rev") or locked.get("narHash") or ""),
        modified=modified if isinstance(modified, int) else None,
    )


def _url(locked: Mapping[str, Any]) -> str:
    if "owner" in locked:
        return f"{locked.get('type')}:{locked['owner']}/{locked.get('repo', '')}"
    return str(locked.get("url") or locked.get("path") or locked.get("type") or "")
