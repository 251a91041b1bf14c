"""Weekly windows: what people may write, and the instants that amounts to when clocks are put forward and back."""

import itertools
import os
import subprocess
import sys
import time
import zoneinfo
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nixfleet_agent.config import examine, read_config
from nixfleet_agent.options import Raw
from nixfleet_agent.windows import DAYS, Window, WindowError, in_words, parse_window, spans
from nixfleet_agent.workers.calendar import calendar_of
from state_machine.events import Span
from state_machine.values import WallMs

BERLIN: Final = "Europe/Berlin"
NEW_YORK: Final = "America/New_York"
EVERY_DAY: Final = frozenset(range(7))
GOOD: Final[Raw] = {
    "control_plane_url": ("https://cp.example",),
    "machine_id": ("node1",),
    "client_cert": ("/var/lib/cert.pem",),
}


def utc(text: str) -> WallMs:
    """`2026-03-29 01:00` as an instant."""
    return WallMs(int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp() * 1000))


def opened(text: str, day: str, days: int = 0, delay_s: float = 0, jitter: float = 0) -> list[str]:
    """The windows from the noon before `day` to its end and `days` more, in UTC."""
    since = WallMs(utc(f"{day} 00:00") - 12 * 3_600_000)
    found = spans((parse_window(text),), since, days + 1, delay_s=delay_s, jitter=jitter)
    until = utc(f"{day} 00:00") + (days + 1) * 86_400_000
    return [in_utc(span) for span in found if span.begins < until]


def in_utc(span: Span) -> str:
    begins, ends = (datetime.fromtimestamp(each / 1000, UTC) for each in (span.begins, span.ends))
    return f"{begins:%m-%d %H:%M} to {ends:%m-%d %H:%M}"


# What people write


@pytest.mark.parametrize(
    ("text", "window"),
    [
        ("04:00-05:00", Window(days=EVERY_DAY, begins=240, ends=300)),
        ("4:00-5:30", Window(days=EVERY_DAY, begins=240, ends=330)),
        ("  22:00-02:00  ", Window(days=EVERY_DAY, begins=1320, ends=120)),
        ("00:00-24:00 UTC", Window(days=EVERY_DAY, begins=0, ends=1440, zone="UTC")),
        ("Mon-Fri 04:00-05:00 Europe/Berlin", Window(days=frozenset(range(5)), begins=240, ends=300, zone=BERLIN)),
        ("mon,WED,Friday 04:00-05:00", Window(days=frozenset({0, 2, 4}), begins=240, ends=300)),
        ("Sat-Mon 04:00-05:00", Window(days=frozenset({5, 6, 0}), begins=240, ends=300)),
        ("Tue-Tue 04:00-05:00", Window(days=frozenset({1}), begins=240, ends=300)),
        ("Mon-Wed,Sun 04:00-05:00 Etc/GMT+5",
         Window(days=frozenset({0, 1, 2, 6}), begins=240, ends=300, zone="Etc/GMT+5")),
    ],
)  # fmt: skip
def test_a_window_is_read_as_it_was_meant(text: str, window: Window) -> None:
    assert parse_window(text) == window


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "is not days, a span of time and a zone"),
        ("soon", "is not days, a span of time and a zone"),
        ("04:00", "is not days, a span of time and a zone"),
        ("04:00 - 05:00", "is not days, a span of time and a zone"),
        ("Mon to Fri 04:00-05:00", "is not days, a span of time and a zone"),
        ("04:00-05:00 Europe/Berlin UTC", "is not days, a span of time and a zone"),
        ("\u0660\u0664:00-05:00", "is not days, a span of time and a zone"),
        ("04:00-05:00 Europe/Berlyn", "names 'Europe/Berlyn', which this host's time zone database does not have"),
        ("04:00-05:00 Europe", "names 'Europe', which"),
        ("04:00-05:00 ../../etc/passwd", "is not days"),
        ("04:00-05:00 a/../../etc/passwd", "is not days"),
        ("04:61-05:00", "has 04:61, which is no time of day"),
        ("04:00-24:01", "has 24:01, which is no time of day"),
        ("04:00-25:00", "has 25:00, which is no time of day"),
        ("24:00-05:00", "begins at 24:00, which is 00:00 of the next day"),
        ("04:00-04:00", "ends when it begins; a whole day is 00:00-24:00"),
        ("00:00-00:00", "ends when it begins; a whole day is 00:00-24:00"),
        ("Mond-Freitag 04:00-05:00", "has 'Freitag', which is no day of the week"),
        ("M-F 04:00-05:00", "has 'M', which is no day of the week"),
        ("Mon-Tue-Wed 04:00-05:00", "which is no day of the week"),
        ("x" * 5000, "is not days"),
    ],
)
def test_what_is_no_window_is_refused_with_a_reason_and_an_example(text: str, complaint: str) -> None:
    with pytest.raises(WindowError) as caught:
        parse_window(text)
    said = str(caught.value)
    assert complaint in said
    assert "Mon-Fri 04:00-05:00 Europe/Berlin" in said
    assert len(said) < 300


def test_every_bad_window_of_a_configuration_is_told_with_its_flag() -> None:
    raw: Raw = {**GOOD, "activation_window": ("soon", "04:00-05:00", "25:00-26:00"), "reboot_window": ("later",)}
    _, problems = examine(raw)
    assert [problem.split(" ")[0] for problem in problems] == ["--activation-window"] * 2 + ["--reboot-window"]


@pytest.mark.parametrize(
    "text",
    ["04:00-05:00", "Mon,Tue,Wed,Thu,Fri 22:00-02:00 Europe/Berlin", "Sun 00:00-24:00 UTC"],
)
def test_a_window_in_words_is_what_can_be_written(text: str) -> None:
    assert in_words((parse_window(text),)) == text
    assert in_words((parse_window(text), parse_window("1:00-2:00"))) == f"{text}; 01:00-02:00"


# The instants


def test_a_window_of_some_days_is_open_on_them_alone() -> None:
    # 2026-11-21 is a Saturday.
    assert opened("Mon,Sat 04:00-05:00 UTC", "2026-11-21", days=6) == [
        "11-21 04:00 to 11-21 05:00",
        "11-23 04:00 to 11-23 05:00",
    ]


def test_a_window_over_midnight_belongs_to_the_day_on_which_it_begins() -> None:
    assert opened("Fri 22:00-02:00 UTC", "2026-11-20", days=2) == ["11-20 22:00 to 11-21 02:00"]


def test_one_that_began_yesterday_and_is_still_open_is_there() -> None:
    found = spans((parse_window("22:00-02:00 UTC"),), utc("2026-11-21 01:00"), 0)
    assert [in_utc(span) for span in found] == ["11-20 22:00 to 11-21 02:00", "11-21 22:00 to 11-22 02:00"]


def test_one_that_is_over_is_not() -> None:
    assert spans((parse_window("Sat 04:00-05:00 UTC"),), utc("2026-11-21 05:00"), 3) == ()


def test_windows_that_overlap_or_touch_are_one() -> None:
    windows = [parse_window(f"{each} UTC") for each in ("04:00-05:00", "04:30-06:00", "06:00-07:00", "09:00-10:00")]
    found = spans(windows, utc("2026-11-21 00:00"), 0)
    assert [in_utc(span) for span in found] == ["11-21 04:00 to 11-21 07:00", "11-21 09:00 to 11-21 10:00"]


def test_a_whole_week_is_one_span_without_a_gap_at_midnight() -> None:
    found = spans((parse_window("00:00-24:00 Europe/Berlin"),), utc("2026-11-21 12:00"), 35, delay_s=3600, jitter=0.9)
    assert len(found) == 1


def test_each_zone_has_its_own_nine_o_clock() -> None:
    assert opened("Sat 09:00-10:00 Europe/Berlin", "2026-11-21") == ["11-21 08:00 to 11-21 09:00"]
    assert opened("Sat 09:00-10:00 America/New_York", "2026-11-21") == ["11-21 14:00 to 11-21 15:00"]
    assert opened("Sat 09:00-10:00 Asia/Kathmandu", "2026-11-21") == ["11-21 03:15 to 11-21 04:15"]


@pytest.mark.parametrize(
    ("window", "open_at"),
    [
        # At 02:00 it is 03:00, which is 01:00 in UTC.
        ("Sun 01:00-04:00", ["03-29 00:00 to 03-29 02:00"]),
        ("Sun 01:00-02:00", ["03-29 00:00 to 03-29 01:00"]),
        ("Sun 01:00-02:30", ["03-29 00:00 to 03-29 01:00"]),
        ("Sun 02:00-03:00", []),
        ("Sun 02:10-02:50", []),
        ("Sun 02:30-03:30", ["03-29 01:00 to 03-29 01:30"]),
        ("Sun 03:00-04:00", ["03-29 01:00 to 03-29 02:00"]),
        ("Sat 23:00-02:30", ["03-28 22:00 to 03-29 01:00"]),
    ],
)
def test_a_window_where_clocks_are_put_forward_in_berlin(window: str, open_at: list[str]) -> None:
    assert opened(f"{window} {BERLIN}", "2026-03-29") == open_at


@pytest.mark.parametrize(
    ("window", "open_at"),
    [
        # At 03:00 it is 02:00 once more, which is 01:00 in UTC.
        ("01:00-04:00", ["10-24 23:00 to 10-25 03:00"]),
        ("02:00-03:00", ["10-25 00:00 to 10-25 02:00"]),
        ("02:00-02:30", ["10-25 00:00 to 10-25 00:30"]),
        ("02:30-03:00", ["10-25 00:30 to 10-25 02:00"]),
        ("03:00-04:00", ["10-25 02:00 to 10-25 03:00"]),
        ("Sat 23:00-02:30", ["10-24 21:00 to 10-25 00:30"]),
    ],
)
def test_a_window_where_clocks_are_put_back_in_berlin(window: str, open_at: list[str]) -> None:
    assert opened(f"{window} {BERLIN}", "2026-10-25") == open_at


@pytest.mark.parametrize(
    ("day", "window", "open_at"),
    [
        ("2026-03-08", "01:00-04:00", ["03-08 06:00 to 03-08 08:00"]),
        ("2026-03-08", "02:15-02:45", []),
        ("2026-03-08", "02:15-03:15", ["03-08 07:00 to 03-08 07:15"]),
        ("2026-11-01", "01:00-02:00", ["11-01 05:00 to 11-01 07:00"]),
        ("2026-11-01", "01:30-01:45", ["11-01 05:30 to 11-01 05:45"]),
        ("2026-11-01", "00:30-01:30", ["11-01 04:30 to 11-01 05:30"]),
    ],
)
def test_a_window_where_clocks_change_in_new_york(day: str, window: str, open_at: list[str]) -> None:
    assert opened(f"Sun {window} {NEW_YORK}", day) == open_at


def test_a_window_opens_late_by_a_part_of_the_delay_and_closes_when_it_did() -> None:
    late = opened("04:00-06:00 UTC", "2026-11-21", delay_s=3600, jitter=0.5)
    assert late == ["11-21 04:30 to 11-21 06:00"]


def test_a_delay_longer_than_the_window_leaves_something_of_it() -> None:
    late = opened("04:00-04:10 UTC", "2026-11-21", delay_s=86_400, jitter=0.9)
    assert late == ["11-21 04:09 to 11-21 04:10"]


# The host's own zone


@pytest.fixture
def in_new_york() -> Iterator[None]:
    before = os.environ.get("TZ")
    os.environ["TZ"] = NEW_YORK
    time.tzset()
    yield
    del os.environ["TZ"]
    if before is not None:
        os.environ["TZ"] = before
    time.tzset()


@pytest.mark.usefixtures("in_new_york")
@pytest.mark.parametrize("day", ["2026-11-21", "2026-03-08", "2026-11-01"])
@pytest.mark.parametrize(
    "window", ["09:00-10:00", "00:30-01:30", "01:30-01:45", "02:15-03:15", "02:15-02:45", "23:00-02:30"]
)
def test_without_a_zone_the_host_s_own_counts(window: str, day: str) -> None:
    assert opened(window, day, days=1) == opened(f"{window} {NEW_YORK}", day, days=1)


def test_a_host_that_was_given_another_zone_is_asked_anew() -> None:
    """As the daemon runs on, its calendar is made again every few weeks."""
    config = read_config({**GOOD, "activation_window": ("09:00-10:00",)})
    before = os.environ.get("TZ")
    try:
        found = []
        for zone in (NEW_YORK, BERLIN):
            os.environ["TZ"] = zone
            calendar = calendar_of(config, utc("2026-11-21 00:00"), 0.0)
            assert calendar is not None
            assert calendar.activation is not None
            found.append(in_utc(calendar.activation[0]))
    finally:
        del os.environ["TZ"]
        if before is not None:
            os.environ["TZ"] = before
        time.tzset()
    assert found == ["11-21 14:00 to 11-21 15:00", "11-21 08:00 to 11-21 09:00"]


# Against a slow reading of the same sentence


def walked(window: Window, since: WallMs, days: int) -> set[int]:
    """The open minutes, by looking at the clock on the wall minute by minute."""
    zone = zoneinfo.ZoneInfo(window.zone)
    first = since // 60_000 - 2 * 1440
    minutes = range(first, first + (days + 4) * 1440)
    shown = [(minute, datetime.fromtimestamp(minute * 60, zone).replace(tzinfo=None)) for minute in minutes]
    found: set[int] = set()
    for day in sorted({when.date() for _, when in shown}):
        if DAYS[day.weekday()] in {DAYS[each] for each in window.days}:
            found |= _open_minutes(shown, day, window)
    return found


def _open_minutes(shown: list[tuple[int, datetime]], day: date, window: Window) -> set[int]:
    midnight = datetime.combine(day, datetime.min.time())
    begins = midnight + timedelta(minutes=window.begins)
    ends = midnight + timedelta(minutes=window.ends if window.ends > window.begins else window.ends + 1440)
    has_begun = has_ended = False
    found = set()
    for minute, when in shown:
        has_begun = has_begun or when >= begins
        has_ended = has_ended or when >= ends
        if has_begun and not has_ended and when.date() <= day + timedelta(days=1):
            found.add(minute)
    return found


ZONES: Final = (BERLIN, NEW_YORK, "UTC", "Asia/Kolkata", "Australia/Lord_Howe", "Africa/Cairo", "America/Santiago")
"""The last three put their clocks forward by half an hour, and at midnight."""
CHANGES: Final = ("2026-03-08", "2026-03-29", "2026-04-04", "2026-04-23", "2026-09-05", "2026-10-03", "2026-10-24",
                  "2026-10-29", "2026-11-01", "2026-07-01")  # fmt: skip
"""Days around which clocks change somewhere, and one around which they do not."""


@st.composite
def windows(draw: st.DrawFn) -> Window:
    begins = draw(st.integers(0, 1439) | st.sampled_from([0, 60, 119, 120, 150, 180, 1439]))
    ends = draw(st.integers(0, 1440).filter(lambda minute: minute != begins))
    days = draw(st.frozensets(st.integers(0, 6), min_size=1))
    return Window(days=days, begins=begins, ends=ends, zone=draw(st.sampled_from(ZONES)))


@settings(max_examples=25, deadline=None)
@given(some=st.lists(windows(), min_size=1, max_size=2), start=st.sampled_from(CHANGES), shift=st.integers(-4000, 4000))
def test_the_instants_are_those_of_somebody_who_looks_at_the_clock_each_minute(
    some: list[Window], start: str, shift: int
) -> None:
    days, since = 8, WallMs(utc(f"{start} 00:00") + shift * 60_000)
    found = spans(some, since, days)
    looked_at = range(since // 60_000, since // 60_000 + days * 1440)
    expected = set().union(*(walked(window, since, days) for window in some))
    is_open = {m for m in looked_at if any(span.begins <= m * 60_000 < span.ends for span in found)}
    assert is_open == expected & set(looked_at)
    for one, next_one in itertools.pairwise(found):
        assert one.begins < one.ends < next_one.begins < next_one.ends
    assert all(span.ends > since for span in found)


# What it costs


def test_a_host_without_windows_pays_nothing_for_time_zones() -> None:
    """Neither at its start nor in its memory."""
    asked = (
        "import sys; from nixfleet_agent.config import read_config; from nixfleet_agent.workers.calendar import"
        f" calendar_of; assert calendar_of(read_config({GOOD!r}), 0, 0.0) is None; assert 'zoneinfo' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", asked], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
