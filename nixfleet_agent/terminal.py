"""The status document for a person at a terminal, in the manner of `systemctl status`."""

from collections.abc import Iterator, Mapping
from typing import Any

from nixfleet_agent.log import printable

_ADVICE = {
    "Failed": "see `nixfleet-agent journal show`; release a good target, or clear what is quarantined",
    "Deferred": "reboot this host to finish",
    "Reverted": "the target is quarantined here; release another, or `nixfleet-agent quarantine clear`",
}


def status(said: Mapping[str, Any]) -> str:
    """A dozen aligned lines."""
    return "\n".join(_lines(said))


def _lines(said: Mapping[str, Any]) -> Iterator[str]:
    rollout, system = said["rollout"], said["system"]
    yield f"{said['machine_id'] or 'this host'} - nixfleet-agent {said['version']}, {said['daemon']}"
    yield _row("running", system["running"] or "unknown")
    if system["reboot_required"]:
        yield _row("reboot", f"required; it would start {system['profile']}")
    if system["drift"]:
        yield _row("drift", f"{system['drift']} was not sent by anybody")
    yield from _rollout(rollout) if rollout else [_row("rollout", "none yet")]
    if said["waiting_on"]:
        yield _row("waiting for", said["waiting_on"])
    yield from _intent(said["intent"])
    for index, probe in enumerate(said["probes"]):
        yield _row("probes" if index == 0 else "", _probe(probe))
    for index, entry in enumerate(said["quarantine"]):
        yield _row("quarantine" if index == 0 else "", f"{entry['closure']} ({entry['why']})")
    for index, note in enumerate(said["refusals"][-3:]):
        yield _row("refused" if index == 0 else "", f"{note['what']}: {note['detail']} ({note['age_secs']} s ago)")
    if said["outbox"]:
        yield _row("outbox", ", ".join(f"{count} of {rollout}" for rollout, count in said["outbox"].items()))
    yield from _contact(said["contact"])
    if said.get("journal_error"):
        yield _row("journal", f"cannot be written: {said['journal_error']}")
    if rollout and rollout["phase"] in _ADVICE:
        yield _row("next", _ADVICE[rollout["phase"]])


def _row(name: str, value: str) -> str:
    return f"{name:>12}  {printable(value)}"


def _rollout(rollout: Mapping[str, Any]) -> Iterator[str]:
    yield _row("rollout", f"{rollout['id']} {rollout['phase']}")
    yield _row("target", rollout["target"])
    if rollout["signed_by"]:
        yield _row("signed", f"{rollout['signed_at']} by key {rollout['signed_by']}")
    if rollout["soak_left_secs"] is not None:
        yield _row("soak", f"{rollout['soak_left_secs']} s left")
    if rollout["failure"]:
        yield _row("failure", rollout["failure"].strip().splitlines()[-1])
    since = ", ".join(f"{name} {stamp}" for name, stamp in rollout["since"].items())
    if since:
        yield _row("since", since)


def _intent(intent: Mapping[str, Any] | None) -> Iterator[str]:
    if intent is None:
        yield _row("intent", "none has been verified yet")
    elif intent["state"] == "fresh":
        yield _row("intent", f"{intent['rollout']} is fresh for another {intent['fresh_for_secs']} s")
    else:
        yield _row("intent", f"{intent['rollout']} is {intent['state']}: nothing new will be activated")


def _probe(probe: Mapping[str, Any]) -> str:
    text = f"{probe['name']} {probe['status']}"
    if "for_secs" in probe:
        text += f" for {probe['for_secs']} s"
    if probe["mode"] != "enforce":
        text += f" ({probe['mode']})"
    return f"{text}: {probe['reason']}" if probe.get("reason") else text


def _contact(contact: Mapping[str, Any] | None) -> Iterator[str]:
    if contact is None:
        return
    yield _row("contact", contact["last"] or "none yet")
    for duty, count in contact["failures"].items():
        cause = contact.get("causes", {}).get(duty)
        yield _row("", f"{duty} failed {count} times" + (f": {cause}" if cause else ""))
    if contact["certificate_days"] is not None:
        yield _row("certificate", f"{contact['certificate_days']} days left")
