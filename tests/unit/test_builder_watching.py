"""What a person sees of builds on builders, on a terminal and in a log."""

import io

import pytest
from rich.console import Console

from nixfleet.builder.messages import Phase, Progress, Request
from nixfleet.builder.watching import LiveWatch, PlainWatch, Watch


def said(host: str, phase: Phase, **facts: object) -> Progress:
    given = {"job": host, "repository": "own", "builder": "big1", "at": 0, **facts}
    return Progress(host=host, phase=phase, **given)  # type: ignore[arg-type]


def test_in_a_log_a_job_has_a_line_when_it_gets_on_and_none_for_what_its_build_says(
    capsys: pytest.CaptureFixture[str],
) -> None:
    watch = PlainWatch()
    watch.heard(said("web1", Phase.QUEUED, builder=""))
    watch.heard(said("web1", Phase.QUEUED, builder="", line="no builder has taken it yet"))
    watch.heard(said("web1", Phase.QUEUED, builder="", line="no builder has taken it yet"))
    watch.heard(said("web1", Phase.BUILDING, line="compiling a"))
    watch.heard(said("web1", Phase.BUILDING, line="compiling b"))
    watch.heard(said("web1", Phase.BUILDING, builder="big2"))
    watch.heard(said("web1", Phase.DONE, seconds=90.0))
    assert capsys.readouterr().err.splitlines() == [
        "web1: queued",
        "web1: queued: no builder has taken it yet",
        "web1: building on big1",
        "web1: building on big2",
        "web1: done on big1 after 1 min 30 s",
    ]


def test_on_a_terminal_every_host_has_a_line_with_what_its_build_said_last() -> None:
    watch = LiveWatch()
    watch.heard(said("web1", Phase.BUILDING, done=3, expected=12, line="compiling [red]a" + "x" * 200))
    watch.heard(said("db1", Phase.DONE, seconds=45.0))
    console = Console(file=io.StringIO(), width=200, highlight=False, markup=False)
    console.print(watch.table())
    assert isinstance(console.file, io.StringIO)
    web1, db1 = (line.split() for line in console.file.getvalue().splitlines())
    assert web1[:3] == ["web1", "building", "3/12"]
    assert web1[-2] == "compiling"
    assert web1[-1].startswith("[red]ax")
    assert len(" ".join(web1[-2:])) <= 100
    assert db1 == ["db1", "done", "45", "s", "big1"]


def test_what_has_no_answer_in_the_end_was_taken_back() -> None:
    watch = Watch()
    requests = [
        Request(repository="own", host=host, asked_by="x", asked_at=0) for host in ("web1", "db1", "never-asked-for")
    ]
    watch.heard(said("web1", Phase.BUILDING, job=requests[0].job))
    watch.heard(said("db1", Phase.DONE, job=requests[1].job))
    web1, db1 = watch.answers(requests, "interrupted; taken back")
    assert (web1.phase, web1.why) == (Phase.CANCELLED, "interrupted; taken back")
    assert (db1.phase, db1.why) == (Phase.DONE, "")
