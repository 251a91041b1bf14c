"""Tell people how a run ended: by ntfy, by whatever apprise knows, and as a TODO in an Org file.

A notice that cannot be delivered is said and changes nothing else: the run has done its work by then.
"""

import fcntl
import os
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Final

import attrs
import httpx
import trio

from nixfleet.clock import wall_now
from nixfleet.errors import StoppedError
from nixfleet.files import read_bytes
from nixfleet.update.forge import read_token
from nixfleet.update.instance import Notify
from nixfleet.update.outcome import Kind, Outcome

TIMEOUT_S: Final = 20.0
TEXT_MAX: Final = 3500
"""ntfy makes a file of anything above 4,096 bytes."""
_Work = Callable[[], Awaitable[None]]


@attrs.frozen(kw_only=True)
class Notice:
    """What is told. `urgency` is ntfy's: 1 (least) to 5."""

    title: str
    text: str
    urgency: int
    tags: tuple[str, ...]
    todo: bool = False
    """Somebody has to do something."""
    link: str = ""


async def tell(settings: Notify, notice: Notice) -> list[str]:
    """Tell everybody who is configured; what went wrong with it."""
    problems: list[str] = []
    for what, work in _ways(settings, notice):
        try:
            await work()
        except (httpx.HTTPError, OSError, StoppedError, RuntimeError) as error:
            problems.append(f"{what}: {error or type(error).__name__}")
    return problems


def _ways(settings: Notify, notice: Notice) -> Iterator[tuple[str, _Work]]:
    if settings.ntfy_topic:
        yield "ntfy", lambda: _ntfy(settings, notice)
    if settings.urls_file is not None:
        yield "apprise", lambda: _apprise(settings, notice)
    if settings.inbox_org is not None and notice.todo:
        yield str(settings.inbox_org), lambda: _org(settings, notice)


async def _ntfy(settings: Notify, notice: Notice) -> None:
    token = read_token(settings.ntfy_token_file)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    message = {
        "topic": settings.ntfy_topic,
        "title": notice.title,
        "message": notice.text[:TEXT_MAX],
        "priority": notice.urgency,
        "tags": list(notice.tags),
        **({"click": notice.link} if notice.link else {}),
    }
    async with httpx.AsyncClient(timeout=TIMEOUT_S, headers=headers) as client:
        (await client.post(settings.ntfy_server, json=message)).raise_for_status()


async def _apprise(settings: Notify, notice: Notice) -> None:
    import apprise

    assert settings.urls_file is not None
    service = apprise.Apprise()
    for line in read_bytes(settings.urls_file, "file of addresses").decode("utf-8", "replace").splitlines():
        if line.strip() and not line.lstrip().startswith("#") and not service.add(line.strip()):
            raise RuntimeError("an address in the file is of no kind that apprise knows")
    kind = apprise.NotifyType.FAILURE if notice.todo else apprise.NotifyType.INFO
    if not await trio.to_thread.run_sync(lambda: service.notify(notice.text[:TEXT_MAX], notice.title, kind)):
        raise RuntimeError("apprise could not deliver it")


async def _org(settings: Notify, notice: Notice) -> None:
    """One write at the end of the file, under a lock: other programs append to an inbox too."""
    assert settings.inbox_org is not None
    entry = org_entry(notice, datetime.fromtimestamp(wall_now() / 1000, UTC))
    handle = os.open(settings.inbox_org, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        before = os.fstat(handle).st_size
        if before and os.pread(handle, 1, before - 1) != b"\n":
            entry = f"\n{entry}"
        if os.write(handle, entry.encode()) != len(entry.encode()):
            os.ftruncate(handle, before)
            raise OSError("the disk is full")
        os.fsync(handle)
    finally:
        os.close(handle)


def org_entry(notice: Notice, at: datetime) -> str:
    """A TODO with its text; lines that Org would take for headings are indented."""
    body = [f"  {line}" for line in notice.text.splitlines()]
    link = [f"  [[{notice.link}]]"] if notice.link else []
    return "\n".join([f"* TODO {notice.title}", f"  [{at:%Y-%m-%d %a %H:%M}]", *link, *body]) + "\n"


def notice_of(outcome: Outcome) -> Notice:
    """What people are told of a run that went to its end."""
    findings, name = outcome.findings, outcome.instance
    if outcome.released is not None and outcome.released.why is not None:
        title = f"{name}: not released"
        return Notice(title=title, text=outcome.released.why, urgency=4, tags=("warning",), todo=True)
    moved = f"{len(findings.moves)} inputs moved"
    match outcome.kind:
        case Kind.UNCHANGED:
            return Notice(title=f"{name}: nothing to update", text="No input has moved.", urgency=1, tags=("zzz",))
        case Kind.BROKEN:
            hosts = ", ".join(built.system.host for built in findings.failed)
            text = f"{moved}. These do not build: {hosts}.\n\n{findings.failed[0].tail[-1500:]}"
            return Notice(
                title=f"{name}: {len(findings.failed)} of {len(findings.built)} systems do not build",
                text=text,
                urgency=4,
                tags=("rotating_light",),
                todo=True,
                link=outcome.pull_request,
            )
        case Kind.MERGED:
            text = f"{moved}; all {len(findings.built)} systems build. Merged into {outcome.branch}."
            return Notice(title=f"{name}: updated", text=text, urgency=2, tags=("white_check_mark",))
        case Kind.PUSHED | Kind.PREPARED:
            text = f"{moved}; all {len(findings.built)} systems build. {outcome.branch or 'Nothing'} waits for review."
            link = outcome.pull_request
            return Notice(title=f"{name}: an update to review", text=text, urgency=3, tags=("eyes",), link=link)
        case Kind.STOPPED:
            text = "\n".join(outcome.notes)
            title = f"{name}: the update could not run"
            return Notice(title=title, text=text, urgency=4, tags=("warning",), todo=True)
