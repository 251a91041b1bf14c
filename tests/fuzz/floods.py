"""Inputs as large as a parser reads them, and one byte larger: `python -m tests.fuzz.floods [--worst] [NAME ...]`.

Mutations of small inputs never show what a large one costs. So the smallest pieces of JSON are repeated up to the
limit, and every list and object of a genuine document is grown to it. Each is read in a process of its own, forked from
one that has read nothing, which prints what it cost; the exit status is 1 when a promise was broken.
"""

import copy
import json
import os
import sys
import traceback
from collections.abc import Iterator
from typing import Any, Final

from evidence.canonical import MAX_PARTS
from tests.fuzz.costs import costs_of
from tests.fuzz.targets import TARGETS, Target, answer

ITEMS: Final = ("[]", "{}", "1", "1.5", "1e-300", '""', '"é"', '"\\u0000"', '{"a":1}', '["é"]', "null")
WORST: Final = (
    "one byte",
    "list of []",
    'list of {"a"',
    "escaped quotes",
    'members "ж',
    "and a long text",
    "half of that",
    "genuine 1 with more /systemd/0/units, all",
)
"""Beginnings of the names of those that once cost too much, or come nearest to it."""

_FEW: Final = ("[]", '"é"', '{"a":1}')
Flood = tuple[str, bytes]


def floods(target: Target) -> Iterator[Flood]:
    """All of a target, each with a name."""
    yield "one byte too many", b" " * (target.limit + 1)
    if not target.is_json:
        yield from _floods_of_bytes(target)
        return
    thorough = target.name in ("canonical-json", "health-checks", "dispatch-answer")
    for item in ITEMS if thorough else _FEW:
        yield f"list of {item}", _filled(b"[", item.encode(), b"]", target.limit)
    if thorough:
        yield from _floods_of_json(target.limit)
    for number, genuine in enumerate(target.genuine[:3]):
        for path, grown in _grown(json.loads(genuine), target.limit):
            yield f"genuine {number} with more {path or 'members'}", grown


def _floods_of_bytes(target: Target) -> Iterator[Flood]:
    for name, item in (
        ("zeros", b"\0"),
        ("dashes", b"-"),
        ("newlines", b"\n"),
        ("letters", b"A"),
        ("highest", b"\xff"),
    ):
        yield name, item * target.limit
    for number, genuine in enumerate(target.genuine):
        yield f"genuine {number} again and again", (genuine * (target.limit // len(genuine) + 1))[: target.limit]
        head, tail = genuine[: len(genuine) // 2], genuine[len(genuine) // 2 :]
        for name, item in (("letters", b"A"), ("newlines", b"\n"), ("zeros", b"\0")):
            yield f"genuine {number} with {name} in the middle", head + item * (target.limit - len(genuine)) + tail


def _floods_of_json(limit: int) -> Iterator[Flood]:
    yield "open brackets", b"[" * limit
    yield "pairs of brackets", b"[]" * (limit // 2)
    yield "quotes", b'"' * limit
    yield "quotes after some depth", (b"[]" * 70 + b'"' * limit)[:limit]
    yield "escaped quotes after some depth", (b"[]" * 70 + b'"' + b'\\"' * (limit // 2))[:limit]
    yield "backslashes", b"\\" * limit
    yield "blanks", b" " * limit
    yield "digits", b"1" * limit
    yield "digits of a fraction", (b"0." + b"1" * limit)[:limit]
    yield "a long text", b'"' + b"x" * (limit - 2) + b'"'
    yield "a long text of escapes", b'"' + b"\\n" * (limit // 2 - 1) + b'"'
    yield "a long text with an emoji", b'"' + b"x" * (limit - 6) + "\U0001f600".encode() + b'"'
    yield "half of that", b'"' + b"x" * (limit // 2 - 64) + "\U0001f600".encode() + b'"'
    for name in ('"{:x}":1', '"ж{:x}":"{:x}xxxxxxxxxxxxx"', '"{:x}":1.{:}5'):
        members = _joined("{", (name.format(n, n) for n in range(MAX_PARTS - 10)), "}", limit)
        yield f"members {name}", members
    deepest = '{"a":' * 62 + "1" + "}" * 62
    deep = _joined("[", (deepest for _ in range(MAX_PARTS // 63 - 10)), "]", limit)
    yield "as many and as deep objects as may be", deep
    yield "and a long text", deep[:-1] + b',"' + b"x" * (limit - len(deep) - 4) + b'"]'
    yield (
        "and a long text of two bytes a letter",
        deep[:-1] + b',"' + "ж".encode() * ((limit - len(deep) - 4) // 2) + b'"]',
    )


def _filled(head: bytes, item: bytes, tail: bytes, limit: int) -> bytes:
    times = (limit - len(head) - len(tail) - len(item)) // (len(item) + 1)
    return head + (item + b",") * times + item + tail


def _joined(head: str, items: Iterator[str], tail: str, limit: int) -> bytes:
    made, size = list[bytes](), 2
    for item in items:
        made.append(item.encode())
        size += len(made[-1]) + 1
        if size > limit:
            made.pop()
            break
    return head.encode() + b",".join(made) + tail.encode()


def _grown(document: Any, limit: int) -> Iterator[Flood]:
    """The document with one of its lists or objects made as long as fits, by its own first item."""
    for path, container in _containers(document, ""):
        if not container:
            continue
        if isinstance(container, list):
            copied = copy.deepcopy(document)
            dict(_containers(copied, ""))[path].extend([1] * min((limit - len(json.dumps(document))) // 2, MAX_PARTS))
            yield f"{path}, all of them numbers", json.dumps(copied, separators=(",", ":")).encode()
        copied = copy.deepcopy(document)
        place = dict(_containers(copied, ""))[path]
        item = copy.deepcopy(place[0] if isinstance(place, list) else next(iter(place.values())))
        spare = limit - len(json.dumps(document))
        times = max(0, min(spare // (len(json.dumps(item)) + 12), MAX_PARTS + 10))
        if isinstance(place, list):
            place.extend([item] * times)
        else:
            place.update({f"x{n}": item for n in range(times)})
        yield path, json.dumps(copied, separators=(",", ":")).encode()


def _containers(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict | list):
        yield path, value
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _containers(inner, f"{path}/{name}")


def _cost(target: Target, name: str, data: bytes) -> str:
    """Read it in a process of its own; what is wrong, if anything."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            costs = costs_of(lambda: answer(target, data))
            told = {"cpu_s": costs.cpu_s, "memory_mib": costs.memory_mib, "broken": costs.broken}
        except BaseException:  # whatever it is, it is not what the table allows
            told = {"cpu_s": 0.0, "memory_mib": 0.0, "broken": traceback.format_exc()[-2000:]}
        os.write(writer, json.dumps(told).encode())
        os._exit(0)
    os.close(writer)
    with open(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    told = json.loads(said or b'{"cpu_s": 0, "memory_mib": 0, "broken": "it ended the process"}')
    print(
        f"{target.name:18} {told['cpu_s']:6.2f} s {told['memory_mib']:6.1f} MiB  {len(data):8} bytes: {name}",
        flush=True,
    )
    return f"{target.name}, {name}: {told['broken']}" if told["broken"] else ""


def main() -> int:
    """Flood the targets named, or all; 1 when one broke a promise."""
    names = [name for name in sys.argv[1:] if name != "--worst"]
    beginnings = WORST if "--worst" in sys.argv else ("",)
    broken = []
    for target in [TARGETS[name] for name in names] or TARGETS.values():
        for name, data in floods(target):
            if name.startswith(beginnings) and (found := _cost(target, name, data)):
                broken.append(found)
    print("\n".join(broken))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
