"""The lifecycle as a picture and a table, drawn from `LIFECYCLE` itself so that neither can tell another story.

`docs/lifecycle.md` holds both between `BEGIN` and `END`; a test holds the page to `embedded`.
"""

from collections.abc import Iterator
from typing import Final

from state_machine.lifecycle import LIFECYCLE, TERMINAL
from state_machine.values import Phase

BEGIN: Final = "<!-- drawn from state_machine/lifecycle.py: begin -->"
END: Final = "<!-- drawn from state_machine/lifecycle.py: end -->"


def mermaid() -> str:
    """A Mermaid state diagram: every change of phase, labelled with the facts that make it.

    Facts that leave the phase as it is are in `table` only; as loops they would hide the moves.
    """
    moves = [
        f"    {phase} --> {following}: {', '.join(facts)}"
        for phase in Phase
        for following, facts in _by_following(phase).items()
        if following is not phase
    ]
    ends = [f"    {phase} --> [*]" for phase in Phase if phase in TERMINAL]
    return "\n".join(["stateDiagram-v2", f"    [*] --> {Phase.PENDING}", *moves, *ends])


def table() -> str:
    """A Markdown table: for each phase, the facts it accepts and the phase that follows."""
    return "\n".join(["| phase | accepts | then |", "|---|---|---|", *_rows()])


def embedded(page: str) -> str:
    """`page` with whatever stands between the markers replaced by the diagram and the table of today.

    Raises `ValueError` if `page` lacks a marker.
    """
    before, _, rest = page.partition(BEGIN)
    _, marker, after = rest.partition(END)
    if not marker:
        raise ValueError(f"the page needs a line {BEGIN!r} and, after it, a line {END!r}")
    return f"{before}{BEGIN}\n\n```mermaid\n{mermaid()}\n```\n\n{table()}\n\n{END}{after}"


def _rows() -> Iterator[str]:
    for phase in Phase:
        for following, facts in _by_following(phase).items():
            then = "stays" if following is phase else f"**{following}**"
            yield f"| {phase} | {', '.join(f'`{fact}`' for fact in facts)} | {then} |"


def _by_following(phase: Phase) -> dict[Phase, list[str]]:
    """The names of the facts `phase` accepts, by the phase that follows."""
    grouped: dict[Phase, list[str]] = {}
    for kind, following in LIFECYCLE[phase].items():
        grouped.setdefault(following, []).append(kind.__name__)
    return grouped
