"""Changes to a JSON document that leave it JSON: what mutating bytes alone almost never does.

One number decides everything, so an engine that keeps it can do the same again.
"""

import copy
import json
import random
from typing import Any, Final

ODD_VALUES: Final[tuple[Any, ...]] = (
    None, True, False, 0, -1, 1, 1.5, -0.0, 1e300, 5e-324, 2**31, 2**32, 2**53 - 1, 2**53, 10**22, 10**400,
    "", "a", "0", "\0", "\ud800", "é", "\U0001f600", "../x", "-", "a" * 300, "null", "ed25519", "node7", "edge@4be0c1",
    "2026-06-01T10:00:00Z", "9999-12-31T23:59:59.999Z", "2026-02-30T00:00:00+24:00", "AAAA", "enforce",
    [], {}, [None], [[]], {"": None}, {"kind": "x"}, ["a", "a"], {"a": {"a": {}}},
)  # fmt: skip
WHOLE_TEXTS: Final = (
    b"",
    b"\xef\xbb\xbf{}",
    b"[" * 70 + b"]" * 70,
    b'{"a":1,"a":2}',
    b"NaN",
    b"1" * 4000,
    b"\xff",
    b'"\\',
)


def mutated(data: bytes, dice: random.Random, limit: int) -> bytes | None:
    """Another document, no longer than `limit` bytes; None when `data` is no JSON or it did not work out."""
    if dice.random() < 0.01:
        whole = dice.choice(WHOLE_TEXTS)
        return whole if len(whole) <= limit else None
    try:
        document = json.loads(data)
        places = _places(document)
        for _ in range(dice.randint(1, 3)):
            if not places:
                document = copy.deepcopy(dice.choice(ODD_VALUES))
            else:
                _change(*dice.choice(places), places, dice)
            places = _places(document)
        made = json.dumps(document, ensure_ascii=dice.random() < 0.5).encode("utf-8", "surrogatepass")
    except (ValueError, OverflowError, RecursionError):
        return None
    return made if len(made) <= limit else None


def _change(container: Any, key: Any, places: list[tuple[Any, Any]], dice: random.Random) -> None:
    match dice.randrange(7):
        case 0:
            del container[key]
        case 1:
            container[key] = copy.deepcopy(dice.choice(ODD_VALUES))
        case 2:
            other, there = dice.choice(places)
            container[key] = copy.deepcopy(other[there])
        case 3 if isinstance(container, dict):
            container[dice.choice(["", "kind", "seq", f"{key}x", "é", str(key).upper()])] = container.pop(key)
        case 3:
            container.extend(copy.deepcopy(container[: dice.randint(1, 20)]))
        case 4 if isinstance(container[key], int | float):
            container[key] = container[key] + dice.choice([-1, 1, 0.5, 2**32, -(2**53)])
        case 5 if isinstance(container[key], str):
            at = dice.randint(0, len(container[key]))
            container[key] = (
                container[key][:at] + dice.choice(["", "\0", "/", "x" * 200, "é"]) + container[key][at + 1 :]
            )
        case _:
            container[key] = [container[key]] if dice.random() < 0.5 else {"a": container[key]}


def _places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) in a document."""
    found: list[tuple[Any, Any]] = []
    waiting = [value] if isinstance(value, dict | list) else []
    while waiting:
        container = waiting.pop()
        keys = (
            container if isinstance(container, dict) else range(len(container)) if isinstance(container, list) else ()
        )
        for key in keys:
            found.append((container, key))
            if isinstance(container[key], dict | list):
                waiting.append(container[key])
    return found
