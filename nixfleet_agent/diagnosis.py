"""What is wrong with a host, and what to do about each: from the status document alone.

Pure. Every condition has its own slug, its own sentence and its own remedy, which names a command that exists. A host
is `sick` when something is wrong that ends only when somebody acts or comes back, wants `attention` when something
waits for a person or is worth knowing, and is `well` otherwise.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import attrs

from nixfleet_agent.durations import duration, times
from state_machine.offers import NO_LONGER_OFFERED
from state_machine.values import Reason
from wire.timestamps import parse_rfc3339

FAILURES_THAT_COUNT: Final = 3
"""How often in a row an exchange must fail before the control plane counts as out of reach."""
RECENT_S: Final = 3600
FORGED: Final = frozenset({Reason.BAD_SIGNATURE, Reason.MANIFEST_MISMATCH, Reason.BAD_KEY, Reason.REJECTED_BEFORE})
Said = Mapping[str, Any]


@attrs.frozen(kw_only=True)
class Problem:
    """One condition. `sick` tells what needs mending from what is only worth knowing."""

    what: str
    sick: bool
    said: str
    next: str


def problems(said: Said) -> list[Problem]:
    """All of them, the most telling first."""
    found = [*_daemon(said), *_journal(said), *_trust(said), *_certificate(said), *_reach(said)]
    found += [*_time(said), *_rollout(said), *_refused(said), *_leftovers(said)]
    return sorted(found, key=lambda problem: not problem.sick)


def health(found: list[Problem]) -> str:
    """`well`, `attention` or `sick`."""
    if any(problem.sick for problem in found):
        return "sick"
    return "attention" if found else "well"


def _bad(what: str, said: str, next: str) -> Problem:
    return Problem(what=what, sick=True, said=said, next=next)


def _note(what: str, said: str, next: str) -> Problem:
    return Problem(what=what, sick=False, said=said, next=next)


def _daemon(said: Said) -> Iterator[Problem]:
    if said["daemon"] != "running":
        remedy = "`systemctl start nixfleet-agent`; `journalctl -u nixfleet-agent` says why it ended"
        yield _bad("not-running", "no agent runs here", remedy)


def _journal(said: Said) -> Iterator[Problem]:
    why = said.get("journal_error") or said["holds"]
    if not why:
        return
    if "newer" in why:
        remedy = "install the newer agent again (`nixfleet-agent --version`), or move the journal away to begin anew"
        yield _bad("journal-newer", why, remedy)
    elif "damaged" in why or "set aside" in why:
        remedy = "keep the file for an auditor; `nixfleet-agent journal begin`, then `nixfleet-agent poke`"
        yield _bad("journal-damaged", why, remedy)
    elif "belongs to somebody else" in why:
        remedy = "put the host's key back, or move the journal away; `nixfleet-agent journal verify` names the entry"
        yield _bad("journal-foreign", why, remedy)
    else:
        remedy = "`df` and `mount` show the disk of the state directory; free space, then `nixfleet-agent poke`"
        yield _bad("journal-unwritable", why, remedy)


def _signs(said: Said) -> bool:
    """The source of this host signs what it wants."""
    return bool(said.get("source", "fleet") == "fleet")


def _trust(said: Said) -> Iterator[Problem]:
    trust = said.get("trust") or {}
    if trust.get("problem") and _signs(said):
        remedy = f"put the fleet's trust.json at {trust['file']}; `nixfleet-agent check-config` says when it is good"
        yield _bad("no-trust", f"no signature counts here: {trust['problem']}", remedy)


def _certificate(said: Said) -> Iterator[Problem]:
    contact = said["contact"]
    # Nobody enrols with other sources: their certificates are somebody else's to make and renew.
    if contact is None or not said.get("configured", {}).get("client_cert") or not _signs(said):
        return
    days, failures = contact["certificate_days"], contact["failures"].get("renewal", 0)
    cause = _cause(contact, "renewal")
    file = said["configured"]["client_cert"]
    fresh = "have a token made (`nixfleet mint-token`), put it at --bootstrap-token-file"
    if days is None:
        remedy = f"{fresh}; `nixfleet-agent check-config` says what is missing"
        tried = f"not enrolled; it failed {times(failures)}{cause}" if failures else "not enrolled yet"
        yield Problem(what="not-enrolled", sick=failures > 0, said=tried, next=remedy)
    elif days <= 0:
        remedy = f"remove {file}, {fresh}, `systemctl restart nixfleet-agent`"
        yield _bad("certificate-expired", f"the client certificate expired {duration(int(-days * 86_400))} ago", remedy)
    elif failures:
        remedy = "`journalctl -u nixfleet-agent` has the control plane's answer; an expired one cannot renew"
        left = duration(int(days * 86_400))
        trouble = f"the client certificate has {left} left and renewal failed {times(failures)}{cause}"
        yield _bad("certificate-renewal", trouble, remedy)


def _reach(said: Said) -> Iterator[Problem]:
    contact = said["contact"]
    if contact is None:
        return
    failing = {duty: count for duty, count in contact["failures"].items() if duty != "renewal"}
    worst = max(failing, key=lambda duty: failing[duty], default=None)
    if worst is not None and failing[worst] >= FAILURES_THAT_COUNT:
        who = "the Gradient server" if said.get("source") == "gradient" else "the control plane"
        trouble = f"{who} cannot be reached: {worst} failed {times(failing[worst])}{_cause(contact, worst)}"
        remedy = "`nixfleet-agent check-config`, then the network; `nixfleet-agent poke` tries again at once"
        yield _bad("unreachable", trouble, remedy)


def _cause(contact: Said, duty: str) -> str:
    cause = contact.get("causes", {}).get(duty)
    return f" ({cause})" if cause else ""


def _time(said: Said) -> Iterator[Problem]:
    if said["daemon"] != "running":
        return  # nobody has looked for anything newer
    state = None if said["intent"] is None else said["intent"]["state"]
    if state == "stale" and not _signs(said):
        remedy = "`nixfleet-agent check-config`, then look at the server; `nixfleet-agent poke` asks it at once"
        yield _bad("silent", "the source has not said for a day what it wants: nothing new is activated", remedy)
    elif state == "stale":
        remedy = "have it signed again: `nixfleet release --refresh`; then see to the timer that does so"
        yield _bad("stale", "the signed intent is stale: nothing new is activated", remedy)
    elif state == "clock-behind":
        remedy = "`timedatectl` shows the clock; set it, or see to time synchronisation"
        yield _bad("clock-behind", "this host's clock is behind what was signed: nothing new is activated", remedy)


def _rollout(said: Said) -> Iterator[Problem]:
    rollout = said["rollout"]
    match None if rollout is None else rollout["phase"]:
        case "Failed":
            yield _failed(said)
        case "Reverted":
            remedy = f"mend it and release another target, or `nixfleet-agent quarantine clear {rollout['target']}`"
            wanted = ", and wanted all the same" if rollout["target"] in _barred_but_wanted(said) else ""
            trouble = f"{rollout['id']} failed here and was rolled back; its target is quarantined{wanted}"
            yield _bad("reverted", trouble, remedy)
        case "Deferred":
            component = rollout["deferred_by"] or "a part of the system"
            waits = f"{rollout['target']} takes over at the next boot, because {component} wants one"
            yield _note("deferred", waits, _reboot(said))
        case _:
            yield from _on_the_way(said)


def _reboot(said: Said) -> str:
    """What brings the boot that a target waits for."""
    reboot = said.get("reboot") or {}
    if reboot.get("policy") != "when-required":
        return "`systemctl reboot` to finish"
    if reboot.get("delayed_by"):
        return f"see to what keeps the host up ({reboot['delayed_by']}), or `systemctl reboot` all the same"
    return "nothing: the agent reboots this host when it may; `systemctl reboot` does not wait"


def _failed(said: Said) -> Problem:
    rollout, trouble = said["rollout"], f"{said['rollout']['id']} failed on this host"
    if said["system"]["reboot_required"]:
        waits = f"{trouble}, and {rollout['rollback_to']} takes over again at the next boot"
        return _bad("rollback-deferred", waits, "`systemctl reboot` takes it back")
    if rollout["failure"] == NO_LONGER_OFFERED:
        taken_back = f"the source took {rollout['target']} back before the switch began"
        return _note(
            "taken-back", taken_back, "nothing: what it wants next is begun; `nixfleet-agent poke` asks it now"
        )
    if said["waiting_on"] and "rollback" in said["waiting_on"]:
        return _bad("failed", f"{trouble} and is being rolled back", "`journalctl -u nixfleet-agent -f` shows it go on")
    if (rollout["failure"] or "").startswith("rollback failed"):
        remedy = "`journalctl -u nixfleet-switch`, then switch by hand: the agent notices what runs"
        return _bad("rollback-failed", f"{trouble}, and so did the rollback", remedy)
    return _bad("failed", trouble, "`nixfleet-agent journal show` tells how; mend it, or release another target")


def _on_the_way(said: Said) -> Iterator[Problem]:
    if said["realise_failures"]:
        trouble = f"fetching the closure failed {times(said['realise_failures'])}"
        remedy = "push it to a cache that this host can reach; `journalctl -u nixfleet-agent` has what Nix said"
        yield _note("realise-failing", trouble, remedy)
    if said.get("veto"):
        remedy = "see to what it says: it is asked again by itself; `journalctl -u nixfleet-agent` has every answer"
        yield _note("vetoed", f"a hook does not let the switch begin: {said['veto']}", remedy)
    for probe in said["probes"]:
        if probe["mode"] == "enforce" and probe["status"] == "fail":
            name = probe["name"]
            yield _note("probe-failing", f"probe {name} fails", f"mend what {name} looks at; `nixfleet-agent poke`")


def _refused(said: Said) -> Iterator[Problem]:
    for note in said["refusals"]:
        reason, _, rollout = note["what"].partition(" ")
        if note["age_secs"] > RECENT_S:
            continue
        if reason in FORGED:
            trouble = f"{rollout or 'the fleet'} was refused: {reason}"
            remedy = "compare the keys of the trust file with those that sign; `nixfleet verify-artifact` checks one"
            yield _bad("refused", trouble, remedy)
        elif reason == Reason.AMBIGUOUS:
            remedy = "give each system a name of its own, and this host's to `--gradient-host-name`"
            yield _note("ambiguous", f"the source has several systems for this host: {note['detail']}", remedy)
        elif reason == Reason.WRONG_ARCHITECTURE:
            remedy = "compare `uname -m` with the `system` of the nixosConfiguration that is built for this host"
            yield _note("wrong-architecture", f"the source's system is not for this machine: {note['detail']}", remedy)
    yield from _wanted_though_barred(said)


def _wanted_though_barred(said: Said) -> Iterator[Problem]:
    rollout = said["rollout"]
    told = rollout["target"] if rollout is not None and rollout["phase"] == "Reverted" else None
    for target in _barred_but_wanted(said):
        if target != told:
            trouble = f"the source still wants {target}, which was rolled back here"
            remedy = f"have another build made, or, if it is sound now, `nixfleet-agent quarantine clear {target}`"
            yield _bad("wanted-though-barred", trouble, remedy)


def _barred_but_wanted(said: Said) -> list[str]:
    """What the source went on wanting though this host had rolled it back, if nothing else has been begun since."""
    barred, rollout = {entry["closure"] for entry in said["quarantine"]}, said["rollout"]
    begun = None if rollout is None else rollout["since"].get("acknowledged")
    found = []
    for note in said["refusals"]:
        reason, _, target = note["what"].partition(" ")
        asked_since = begun is None or parse_rfc3339(begun) <= parse_rfc3339(note["at"])
        # The same refusal is put on record once an hour.
        if reason == Reason.QUARANTINED and target in barred and asked_since and note["age_secs"] <= 2 * RECENT_S:
            found.append(target)
    return found


def _leftovers(said: Said) -> Iterator[Problem]:
    if said["system"]["drift"]:
        trouble = "what runs was not sent by anybody"
        yield _note("drift", trouble, "nothing is undone; the next release takes this host from there")
    rollout = said["rollout"]
    told = {rollout["target"]} if rollout is not None and rollout["phase"] in ("Failed", "Reverted") else set()
    told.update(_barred_but_wanted(said))
    for entry in said["quarantine"]:
        if entry["closure"] not in told:
            remedy = f"once it is known to be sound, `nixfleet-agent quarantine clear {entry['closure']}`"
            yield _note("quarantine", f"{entry['closure']} is barred here", remedy)
    if said["facts_refused"]:
        trouble = f"the control plane refused {said['facts_refused']} facts for good"
        yield _note("facts-refused", trouble, "`journalctl -u nixfleet-agent` names them; they stay in the journal")
