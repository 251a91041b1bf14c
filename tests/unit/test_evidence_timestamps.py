"""RFC 3339 in and out, side by side."""

import pytest

from state_machine.values import WallMs
from wire.timestamps import TimestampError, format_rfc3339, parse_rfc3339

READ = [
    ("1970-01-01T00:00:00Z", 0),
    ("2026-06-01T10:00:02.125Z", 1_780_308_002_125),
    ("2026-06-01T10:00:02.125+00:00", 1_780_308_002_125),
    ("2026-06-01T12:00:02.125+02:00", 1_780_308_002_125),
    ("2026-06-01T04:30:02.125-05:30", 1_780_308_002_125),
    ("2026-06-01T10:00:02.125000Z", 1_780_308_002_125),
    ("2026-06-01T10:00:02.125999999Z", 1_780_308_002_125),
    ("2026-06-01t10:00:02.1z", 1_780_308_002_100),
    ("1969-12-31T23:59:59.999Z", -1),
    # RFC 3339 section 5.8
    ("1985-04-12T23:20:50.52Z", 482_196_050_520),
    ("1996-12-19T16:39:57-08:00", 851_042_397_000),
    ("1937-01-01T12:00:27.87+00:20", -1_041_337_172_130),
]

REFUSED = [
    "",
    "2026-06-01",
    "2026-06-01T10:00:02",
    "2026-06-01 10:00:02Z",
    "2026-6-1T10:00:02Z",
    "2026-02-30T10:00:02Z",
    "2026-13-01T10:00:02Z",
    "2026-06-01T24:00:00Z",
    "2026-06-01T10:60:02Z",
    "1990-12-31T23:59:60Z",  # the leap second of RFC 3339 section 5.8
    "2026-06-01T10:00:02.Z",
    "2026-06-01T10:00:02.1234567890Z",
    "2026-06-01T10:00:02+0200",
    "2026-06-01T10:00:02Z\n",
    " 2026-06-01T10:00:02Z",
    "٢٠٢٦-06-01T10:00:02Z",
    "0000-01-01T00:00:00Z",
    "0001-01-01T00:00:00+00:01",
    "9999-12-31T23:59:59-00:01",
    "99999-01-01T00:00:00Z",
]


@pytest.mark.parametrize(("text", "ms"), READ)
def test_a_timestamp_is_read_to_the_millisecond(text: str, ms: int) -> None:
    assert parse_rfc3339(text) == ms


@pytest.mark.parametrize("text", REFUSED)
def test_anything_that_is_not_rfc_3339_is_refused_and_quoted(text: str) -> None:
    with pytest.raises(TimestampError) as caught:
        parse_rfc3339(text)
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    ("ms", "text"),
    [
        (0, "1970-01-01T00:00:00Z"),
        (1_780_308_002_125, "2026-06-01T10:00:02.125Z"),
        (1_780_308_002_005, "2026-06-01T10:00:02.005Z"),
        (1_780_308_002_000, "2026-06-01T10:00:02Z"),
        (-1, "1969-12-31T23:59:59.999Z"),
        (-62_135_596_800_000, "0001-01-01T00:00:00Z"),
        (253_402_300_799_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_a_fraction_is_written_only_when_there_is_one(ms: int, text: str) -> None:
    assert format_rfc3339(WallMs(ms)) == text


@pytest.mark.parametrize("ms", [-62_135_596_800_001, 253_402_300_800_000, 2**63])
def test_an_instant_without_a_four_digit_year_is_not_written(ms: int) -> None:
    with pytest.raises(TimestampError):
        format_rfc3339(WallMs(ms))
