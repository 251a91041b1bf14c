"""The status document for a person, in the manner of `systemctl status`.

Pure: document and view make the text. Colour never carries anything that the words do not, nothing is ever cut in a
pipe, and whatever a control plane wrote is shown without what a terminal would obey.
"""

import datetime
import enum
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import attrs

from nixfleet_agent.durations import absolute, compact, duration, relative, times
from nixfleet_agent.log import printable
from state_machine.values import WallMs
from wire.timestamps import parse_rfc3339

LABEL: Final = 11
"""Width of the labels, which end in a colon."""
NARROWEST: Final = 40
REFUSALS_SHOWN: Final = 3
_CLOSURE: Final = re.compile(r"[0-9a-z]{32}-[\w+.?=-]+")
_HASH: Final = 32
_HASH_SHOWN: Final = 6


class Tint(enum.StrEnum):
    """Colours, as the terminal is told them."""

    GOOD = "\x1b[1;32m"
    BUSY = "\x1b[1;36m"
    WARN = "\x1b[1;33m"
    BAD = "\x1b[1;31m"
    QUIET = "\x1b[2m"


_RESET: Final = "\x1b[0m"
_PHASE: Final = {"Converged": Tint.GOOD, "Deferred": Tint.WARN, "Failed": Tint.BAD, "Reverted": Tint.BAD}
_MARK: Final = {"pass": ("✓", Tint.GOOD), "fail": ("✗", Tint.BAD), "unknown": ("·", Tint.QUIET)}
_DOT: Final = {"well": ("●", Tint.GOOD), "attention": ("●", Tint.WARN), "sick": ("\N{MULTIPLICATION SIGN}", Tint.BAD)}
_FOLLOWS: Final = {"legacy": "a control plane of the first generation", "gradient": "a project on a Gradient server"}
"""What is not said of the others goes without saying."""
_MEANS: Final = {"next-try": "next try", "at-latest": "at the latest", "soak-end": "until", "window-opens": "opens"}


@attrs.frozen(kw_only=True)
class View:
    """Who looks. `width` None: nobody does, this is a pipe. `zone` None: the host's own time zone."""

    now: WallMs
    width: int | None = None
    colour: bool = False
    zone: datetime.tzinfo | None = datetime.UTC

    def since(self, stamp: str) -> str:
        """An instant that has passed, and how long ago that is."""
        return f"{self.day(stamp)}; {self.ago(stamp)}"

    def until(self, stamp: str) -> str:
        """An instant to come, and in how long that is."""
        return f"{self.day(stamp)}; {relative(parse_rfc3339(stamp), self.now)}"

    def day(self, stamp: str) -> str:
        """The instant alone."""
        return absolute(parse_rfc3339(stamp), self.zone)

    def ago(self, stamp: str) -> str:
        """How long ago. A clock that was set back since then cannot tell."""
        instant = parse_rfc3339(stamp)
        return relative(instant, self.now) if instant <= self.now + 1000 else "by a clock ahead of today's"

    def away(self, stamp: str) -> str:
        """In how long; what is overdue comes now."""
        instant = parse_rfc3339(stamp)
        return relative(instant, self.now) if instant >= self.now + 1000 else "now"

    def painted(self, text: str, tint: Tint | None) -> str:
        """`text` in a colour, where there are any."""
        return f"{tint}{text}{_RESET}" if self.colour and tint is not None and text else text


@attrs.frozen
class Row:
    """One labelled line; `tint` colours `head`, with which it begins."""

    label: str
    text: str
    head: str = ""
    tint: Tint | None = None


def status(said: Mapping[str, Any], view: View) -> str:
    """The whole text, without a newline at its end."""
    lines = [_headline(said, view)]
    for row in _rows(said, view):
        lines += _laid_out(row, view)
    if said.get("recent"):
        lines += ["", *(_tail(entry, view) for entry in said["recent"])]
    return "\n".join(lines)


def _headline(said: Mapping[str, Any], view: View) -> str:
    dot = view.painted(*_DOT[said["health"]]) if said["daemon"] == "running" else "○"
    return f"{dot} {said['machine_id'] or 'this host'} - nixfleet-agent {said['version']}"


def _laid_out(row: Row, view: View) -> list[str]:
    """The row as lines no wider than the view, unless a single word is."""
    head, text = printable(row.head), printable(f"{row.head}{row.text}")
    lines = [text] if view.width is None else _fitted(text, max(NARROWEST, view.width) - LABEL - 2)
    if head and lines[0].startswith(head):
        lines[0] = view.painted(head, row.tint) + lines[0][len(head) :]
    label = f"{row.label}:" if row.label else ""
    return [f"{label if number == 0 else '':>{LABEL + 1}} {line}".rstrip() for number, line in enumerate(lines)]


def _fitted(text: str, width: int) -> list[str]:
    """Wrapped between words. A closure that alone is too long for a line gives way, in its middle."""
    text = _CLOSURE.sub(lambda found: _shortened(found[0], width) if len(found[0]) > width else found[0], text)
    return textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]


def _shortened(closure: str, room: int) -> str:
    """The beginning of the hash, and of the name as much of its end as there is room for."""
    name = closure[_HASH:]
    return f"{closure[:_HASH_SHOWN]}…{name[-max(1, room - _HASH_SHOWN - 1) :]}"


def _tail(entry: Mapping[str, Any], view: View) -> str:
    line = printable(f"{compact(parse_rfc3339(entry['at']), view.zone)} #{entry['n']} {entry['said']}")
    width = view.width
    if width is not None and len(line) > width:
        line = _CLOSURE.sub(lambda found: _shortened(found[0], width), line)
        line = line if len(line) <= width else line[: width - 1] + "…"
    return line


def _rows(said: Mapping[str, Any], view: View) -> Iterator[Row]:
    yield _daemon(said, view)
    if said.get("source") in _FOLLOWS:
        yield Row("Follows", _FOLLOWS[said["source"]])
    yield from _system(said["system"], said["rollout"], view)
    yield from _rollout(said, view)
    yield from _intent(said, view)
    yield from _listed("Probes", _probes(said["probes"], view))
    yield from _contact(said["contact"], view)
    yield from _record(said, view)
    yield from _problems(said["problems"])


def _daemon(said: Mapping[str, Any], view: View) -> Row:
    process = said.get("process")
    if said["daemon"] != "running":
        return Row("Daemon", "; this is what its journal says", "not running", Tint.BAD)
    if process is None:
        return Row("Daemon", "", "running", Tint.GOOD)
    which = f"pid {process['pid']}, start {said['runs']}"
    return Row("Daemon", f" since {view.since(process['since'])} ({which})", "running", Tint.GOOD)


def _system(system: Mapping[str, Any], rollout: Mapping[str, Any] | None, view: View) -> Iterator[Row]:
    about = [f"generation {system['generation']}"] if system.get("generation") else []
    if system.get("running_since"):
        about.append(f"since {view.since(system['running_since'])}")
    yield Row("Runs", system["running"] or "unknown: the link to the running system leads to no store path")
    if about:
        yield Row("", ", ".join(about))
    if system["profile"] and system["profile"] != system["running"]:
        yield Row("Next boot", system["profile"])
    if system["drift"]:
        yield Row("Drift", f"{system['drift']} was not sent by anybody", "", Tint.WARN)


def _rollout(said: Mapping[str, Any], view: View) -> Iterator[Row]:
    rollout = said["rollout"]
    if rollout is None:
        yield Row("State", "no rollout yet")
    else:
        yield Row("Wanted", rollout["target"])
        wave = "" if rollout["wave"] is None else f", wave {rollout['wave']}"
        signed = rollout.get("basis", "signed-manifest") == "signed-manifest"
        yield Row("", f"by {rollout['id']}" + (f" of channel {rollout['channel']}{wave}" if signed else ""))
        if rollout["signed_by"]:
            yield Row("Signed", f"{view.since(rollout['signed_at'])}, {_by_whom(rollout, said.get('trust'))}")
        elif rollout.get("rests_on"):
            name = f"; the source calls it {rollout['offered_as']}" if rollout["offered_as"] else ""
            yield Row("Rests on", f": nobody signed it{name}", rollout["rests_on"], Tint.WARN)
        since = f" since {view.since(rollout['phase_since'])}" if rollout["phase_since"] else ""
        yield Row("State", since, rollout["phase"], _PHASE.get(rollout["phase"], Tint.BUSY))
        if rollout["failure"]:
            yield Row("Failure", rollout["failure"].strip().splitlines()[-1])
        if rollout["phase"] in ("Activating", "Soaking") and rollout["rollback_to"]:
            yield Row("Falls back", f"to {rollout['rollback_to']} ({rollout['on_failure']})")
    if said["holds"]:
        yield Row("Waits for", "a usable journal; nothing new is begun before")
    elif said["waiting_on"]:
        until, means = said["waiting_until"], said["waiting_until_means"]
        yield Row("Waits for", said["waiting_on"] + (f"; {_MEANS[means]} {view.until(until)}" if until else ""))
    yield from _listed("Windows", _windows(said.get("windows") or {}, view))


def _windows(windows: Mapping[str, Mapping[str, Any] | None], view: View) -> Iterator[Row]:
    for kind, window in windows.items():
        if window is None:
            continue
        opens = f"from {view.until(window['next'])}" if window["next"] else "not for some weeks"
        configured = f" ({window['configured']})" if window.get("configured") else ""
        yield Row("", f"{kind}s {'may begin now' if window['open'] else opens}{configured}")


def _by_whom(rollout: Mapping[str, Any], trust: Mapping[str, Any] | None) -> str:
    slot, file = rollout.get("signed_by_slot"), (trust or {}).get("file")
    key = f"by key {rollout['signed_by']}"
    if not file or (trust or {}).get("problem"):
        return key
    return f"{key}, the {slot} CI key of {file}" if slot else f"{key}, which {file} does not name"


def _intent(said: Mapping[str, Any], view: View) -> Iterator[Row]:
    intent = said["intent"]
    if intent is None:
        signs = said.get("source", "fleet") == "fleet"
        yield Row("Intent", f"none has been {'verified' if signs else 'offered'} yet")
    elif intent["state"] == "withdrawn":
        yield Row("Intent", " that anything would be begun on", "none")
    elif intent["state"] == "fresh" and intent.get("signed_at") is None:
        yield Row(
            "Intent", f" until {view.day(intent['fresh_until'])}, and longer if it is said again", "good", Tint.GOOD
        )
    elif intent["state"] == "fresh":
        until = f"; until {view.day(intent['fresh_until'])}"
        yield Row("Intent", f" for another {duration(intent['fresh_for_secs'])}{until}", "fresh", Tint.GOOD)
    else:
        yield Row("Intent", f": {intent['rollout']}; nothing new will be activated", intent["state"], Tint.BAD)


def _probes(probes: Sequence[Mapping[str, Any]], view: View) -> Iterator[Row]:
    width = max((len(probe["name"]) for probe in probes), default=0)
    for probe in probes:
        mark, tint = _MARK[probe["status"]]
        text = f" {probe['name']:<{width}}  {probe['status']:<7}  {probe['mode']}"
        if "since" in probe:
            text += f"  since {duration(probe['for_secs'])}"
        if probe.get("reason"):
            text += f": {probe['reason']}"
        if probe.get("rollout_fails_at"):
            text += f"; fails the rollout {view.away(probe['rollout_fails_at'])}"
        yield Row("", text, mark, tint)


def _listed(label: str, rows: Iterator[Row]) -> Iterator[Row]:
    for index, row in enumerate(rows):
        yield attrs.evolve(row, label="" if index else label)


def _contact(contact: Mapping[str, Any] | None, view: View) -> Iterator[Row]:
    if contact is None:
        return
    yield Row("Contact", "none since the agent started" if contact["last"] is None else view.since(contact["last"]))
    duties = {*contact["last_by_duty"], *contact["failures"], *contact["next"], *contact["under_way"]} - {"renewal"}
    for duty in sorted(duties):
        failed = duty in contact["failures"]
        yield Row("", f"{'':<{9 - len(duty)}} {_exchange(duty, contact, view)}", duty, Tint.BAD if failed else None)
    if contact["certificate_days"] is not None:
        yield Row("Certificate", _certificate(contact, view))


def _exchange(duty: str, contact: Mapping[str, Any], view: View) -> str:
    parts, failures = [], contact["failures"].get(duty)
    if duty in contact["last_by_duty"]:
        parts.append(f"done {view.ago(contact['last_by_duty'][duty])}")
    if failures:
        cause = contact.get("causes", {}).get(duty)
        parts.append(f"failed {times(failures)}" + (f": {cause}" if cause else ""))
    if duty in contact["under_way"]:
        parts.append(f"asked {view.ago(contact['under_way'][duty])}, waiting for the answer")
    elif duty in contact["next"]:
        parts.append(f"{'next try' if failures else 'next'} {view.away(contact['next'][duty])}")
    return "; ".join(parts)


def _certificate(contact: Mapping[str, Any], view: View) -> str:
    expires, day = parse_rfc3339(contact["certificate_expires"]), view.day(contact["certificate_expires"])
    left = duration(abs(expires - view.now) // 1000)
    text = f"good for another {left}, until {day}" if expires > view.now else f"expired {left} ago, {day}"
    renews, failures = contact["certificate_renews"], contact["failures"].get("renewal", 0)
    if failures:
        text += f"; renewal failed {times(failures)}"
    return f"{text}; {'next try' if failures else 'renewed'} {view.away(renews)}" if renews else text


def _record(said: Mapping[str, Any], view: View) -> Iterator[Row]:
    for index, entry in enumerate(said["quarantine"]):
        yield Row("" if index else "Quarantine", entry["closure"])
        yield Row("", f"since {view.since(entry['since'])}, by {entry['rollout']}: {_last_line(entry['why'])}")
    for index, note in enumerate(said["refusals"][-REFUSALS_SHOWN:]):
        yield Row("" if index else "Refused", f"{note['what']}, {view.ago(note['at'])}: {note['detail']}")
    if said["outbox"]:
        waiting = ", ".join(f"{count} of {rollout}" for rollout, count in said["outbox"].items())
        yield Row("Outbox", f"facts not delivered yet: {waiting}")
    if news := said.get("news"):
        connected = news["state"] == "connected"
        yield Row("News", f" {news['server']}" if connected else f": {news['why'] or news['server']}",
                  "connected to" if connected else "trying", None if connected else Tint.WARN)  # fmt: skip
    if said.get("journal_error"):
        yield Row("Journal", f": {said['journal_error']}", "not usable", Tint.BAD)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else ""


def _problems(problems: Sequence[Mapping[str, Any]]) -> Iterator[Row]:
    for problem in problems:
        label, tint = ("Trouble", Tint.BAD) if problem["sick"] else ("Note", Tint.WARN)
        yield Row(label, "", problem["said"], tint)
        yield Row("Next", problem["next"])
