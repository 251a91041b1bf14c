"""The one table: what was measured, beside what, and whether it is as good as is aimed for."""

import enum
import json
import math
import operator
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import attrs
from rich.table import Table


class Bound(enum.StrEnum):
    """On which side of the aim it is good to be."""

    BELOW = "<"
    AT_LEAST = "≥"


_HOLDS: Final[Mapping[Bound, Callable[[float, float], bool]]] = {
    Bound.BELOW: operator.lt,
    Bound.AT_LEAST: operator.ge,
}


@attrs.frozen(kw_only=True)
class Aim:
    """A figure to reach. `of_ratio`: it is about the ratio to the figure beside it, not about the figure itself."""

    bound: Bound
    limit: float
    of_ratio: bool = False

    def __str__(self) -> str:
        return f"{self.bound} {shown(self.limit)}{' x' if self.of_ratio else ''}"


def below(limit: float) -> Aim:
    """Less than `limit`."""
    return Aim(bound=Bound.BELOW, limit=limit)


def at_least(limit: float) -> Aim:
    """`limit` or more."""
    return Aim(bound=Bound.AT_LEAST, limit=limit)


def below_times(limit: float) -> Aim:
    """Less than `limit` times the figure beside it."""
    return Aim(bound=Bound.BELOW, limit=limit, of_ratio=True)


@attrs.frozen(kw_only=True)
class Beside:
    """A figure of the same run and unit to compare with."""

    what: str
    measured: float


@attrs.frozen(kw_only=True)
class Row:
    """One figure. `note` says how it came about, where that is not plain."""

    name: str
    measured: float
    unit: str
    beside: Beside | None = None
    aims: tuple[Aim, ...] = ()
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """The figure over the one beside it."""
        return None if self.beside is None or not self.beside.measured else self.measured / self.beside.measured

    @property
    def met(self) -> bool | None:
        """Every aim is reached; None: there is none, or none that could be judged."""
        judged = [self._meets(aim) for aim in self.aims]
        return None if not judged or None in judged else all(judged)

    def _meets(self, aim: Aim) -> bool | None:
        value = self.ratio if aim.of_ratio else self.measured
        return None if value is None or math.isnan(value) else _HOLDS[aim.bound](value, aim.limit)


def shown(value: float) -> str:
    """A figure with three digits that count, thousands set apart."""
    if not math.isfinite(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 or value == 0 else f"{value:.1e}"


def rendered(rows: Sequence[Row]) -> Table:
    """The rows for a terminal or a pipe."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "measured", "unit", "beside (same run)", "ratio", "aim", "met?"):
        table.add_column(heading, justify="right" if heading in ("measured", "ratio") else "left", no_wrap=True)
    for row in rows:
        beside = "" if row.beside is None else f"{row.beside.what}: {shown(row.beside.measured)}"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}"
        aims = ", ".join(map(str, row.aims))
        table.add_row(row.name, shown(row.measured), row.unit, beside, ratio, aims, _MET[row.met])
    return table


_MET: Final[Mapping[bool | None, str]] = {None: "", True: "[green]yes[/green]", False: "[red]no[/red]"}


def document(rows: Sequence[Row], *, quick: bool) -> dict[str, Any]:
    """The rows and what they were measured on, as JSON. `load` is the load average of the last minute."""
    machine = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "cores": _cores(),
        "load": os.getloadavg()[0],
    }
    return {"quick": quick, "machine": machine, "rows": [_as_json(row) for row in rows]}


def write(rows: Sequence[Row], path: Path, *, quick: bool) -> None:
    """Keep `document` in a file."""
    path.write_text(json.dumps(document(rows, quick=quick), indent=2, ensure_ascii=False) + "\n")


def _as_json(row: Row) -> dict[str, Any]:
    beside = None if row.beside is None else {"what": row.beside.what, "measured": row.beside.measured}
    return {
        "name": row.name,
        "measured": None if math.isnan(row.measured) else row.measured,
        "unit": row.unit,
        "beside": beside,
        "ratio": row.ratio,
        "aims": [{"bound": aim.bound.value, "limit": aim.limit, "of_ratio": aim.of_ratio} for aim in row.aims],
        "met": row.met,
        "note": row.note,
    }


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
