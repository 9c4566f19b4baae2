"""Moments as people type them."""

from __future__ import annotations

import datetime as dt
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.timeparse import EXAMPLES, parse_moment

UTC = dt.UTC
BERLIN = ZoneInfo("Europe/Berlin")
SHANGHAI = ZoneInfo("Asia/Shanghai")
NOW = dt.datetime(2026, 3, 31, 14, 3, 7, 125, tzinfo=UTC)
"""A Tuesday, two days after the clocks of Berlin went forward."""


def utc(*parts: int) -> dt.datetime:
    return dt.datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "zone", "expected"),
    [
        ("2026-03-31", UTC, utc(2026, 3, 31)),
        ("2026-03-31", SHANGHAI, utc(2026, 3, 30, 16)),
        ("2026-03-31 14:00", UTC, utc(2026, 3, 31, 14)),
        ("2026-03-31T14:00", SHANGHAI, utc(2026, 3, 31, 6)),
        ("2026-03-31 14:00:05.25", UTC, utc(2026, 3, 31, 14, 0, 5, 250_000)),
        ("2026-03-31T14:00Z", SHANGHAI, utc(2026, 3, 31, 14)),
        ("2026-03-31T14:00:00.000001+08:00", UTC, utc(2026, 3, 31, 6, 0, 0, 1)),
        ("2026-03-31 14:00 +0800", UTC, utc(2026, 3, 31, 6)),
        ("2026-03-31 14:00-05", UTC, utc(2026, 3, 31, 19)),
        ("2026-03-31 14:00 Asia/Shanghai", UTC, utc(2026, 3, 31, 6)),
        ("2026-03-31 14:00 UTC", SHANGHAI, utc(2026, 3, 31, 14)),
        ("  now ", SHANGHAI, NOW),
        ("today", UTC, utc(2026, 3, 31)),
        ("today", ZoneInfo("Pacific/Auckland"), utc(2026, 3, 31, 11)),
        ("Yesterday", UTC, utc(2026, 3, 30)),
        ("yesterday", BERLIN, utc(2026, 3, 29, 22)),
        ("yesterday Asia/Shanghai", UTC, utc(2026, 3, 29, 16)),
        ("tuesday", UTC, utc(2026, 3, 31)),
        ("monday", UTC, utc(2026, 3, 30)),
        ("wednesday", UTC, utc(2026, 3, 25)),
        ("tomorrow", UTC, utc(2026, 4, 1, 0, 0)),
        ("90 seconds ago", UTC, utc(2026, 3, 31, 14, 1, 37, 125)),
        ("15m ago", UTC, utc(2026, 3, 31, 13, 48, 7, 125)),
        ("an hour ago", UTC, utc(2026, 3, 31, 13, 3, 7, 125)),
        ("7 days ago", UTC, utc(2026, 3, 24, 14, 3, 7, 125)),
        ("2 weeks ago", UTC, utc(2026, 3, 17, 14, 3, 7, 125)),
        ("1 month ago", UTC, utc(2026, 2, 28, 14, 3, 7, 125)),
        ("15 months ago", UTC, utc(2024, 12, 31, 14, 3, 7, 125)),
        ("a year ago", UTC, utc(2025, 3, 31, 14, 3, 7, 125)),
    ],
)
def test_a_moment_is_understood(text: str, zone: dt.tzinfo, expected: dt.datetime) -> None:
    """Dates, times, offsets, names of zones and words; the answer is in UTC."""
    moment = parse_moment(text, NOW, zone)
    assert moment == expected
    assert moment.tzinfo is UTC


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "write"),
        ("last tuesday", "write"),
        ("31.03.2026", "write"),
        ("03/31/2026", "write"),
        ("2026-3-31", "write"),
        ("2026-03-31 2pm", "write"),
        ("1774958587", "write"),
        ("3 fortnights ago", "write"),
        ("7 days", "write"),
        ("٢٠٢٦-٠٣-٣١", "write"),
        ("2026-02-29", "day is out of range"),
        ("2026-03-31 24:00", "write"),
        ("2026-03-31 14:00:60", "second must be in 0..59"),
        ("2026-03-31 14:00+25:00", "write"),
        ("2026-03-31 14:00 Europe/Atlantis", "no time zone"),
        ("2026-03-31 14:00 Europe/../../etc/passwd", "write"),
        ("9999999 years ago", "too far away"),
        ("9999999 days ago", "too far away"),
        ("0001-01-01 Asia/Shanghai", "too far away"),
        ("0001-01-01T00:00+08:00", "too far away"),
    ],
)
def test_an_invalid_moment_is_refused_in_one_sentence(text: str, said: str) -> None:
    """The sentence quotes what was typed and says what can be."""
    with pytest.raises(ValueError, match=said.replace(".", r"\.").replace("+", r"\+")) as caught:
        parse_moment(text, NOW)
    assert "\n" not in str(caught.value)


def test_every_example_of_the_error_message_is_understood() -> None:
    """The remedy works."""
    for example in EXAMPLES.replace(" or ", ", ").split(", "):
        parse_moment(example.strip('"'), NOW)


def test_a_typed_time_that_the_clocks_skipped_is_refused_with_the_next_valid_one() -> None:
    """02:30 never came in Berlin on 29 March 2026."""
    with pytest.raises(ValueError, match=r'02:30 never came in Europe/Berlin.*"2026-03-29T03:30:00\+02:00"'):
        parse_moment("2026-03-29 02:30", NOW, BERLIN)


def test_a_typed_time_that_came_twice_is_refused_with_both_readings() -> None:
    """02:30 came twice in Berlin on 26 October 2025; either remedy is understood."""
    with pytest.raises(ValueError, match="came twice in Europe/Berlin") as caught:
        parse_moment("2025-10-26 02:30", NOW, BERLIN)
    first, second = (parse_moment(quoted, NOW) for quoted in str(caught.value).split('"')[1::2])
    assert (first, second) == (utc(2025, 10, 26, 0, 30), utc(2025, 10, 26, 1, 30))


def test_a_computed_time_is_moved_on_or_the_first_of_two() -> None:
    """ "N days ago" never fails over the clocks of a zone."""
    two_thirty = dt.datetime(2026, 3, 31, 2, 30, tzinfo=BERLIN)
    assert parse_moment("2 days ago", two_thirty, BERLIN) == utc(2026, 3, 29, 1, 30)
    assert parse_moment("2 days ago", dt.datetime(2025, 10, 28, 2, 30, tzinfo=BERLIN), BERLIN) == utc(
        2025, 10, 26, 0, 30
    )
    assert parse_moment("1 day ago", dt.datetime(2026, 3, 30, 1, 30, tzinfo=BERLIN), BERLIN) == utc(2026, 3, 29, 0, 30)


def test_hours_ago_are_exact_across_a_change_of_the_clocks() -> None:
    """24 hours before noon of the day on which Berlin lost an hour is 11 o'clock."""
    noon = dt.datetime(2026, 3, 29, 12, tzinfo=BERLIN)
    assert parse_moment("24 hours ago", noon, BERLIN) == dt.datetime(2026, 3, 28, 11, tzinfo=BERLIN)
    assert parse_moment("1 day ago", noon, BERLIN) == dt.datetime(2026, 3, 28, 12, tzinfo=BERLIN)


@pytest.mark.parametrize(
    ("day", "zone", "expected"),
    [
        ("2018-11-04", "America/Sao_Paulo", utc(2018, 11, 4, 3)),  # 00:00 was skipped: the day began at 01:00
        ("2018-02-18", "America/Sao_Paulo", utc(2018, 2, 18, 3)),
        ("2011-12-30", "Pacific/Apia", utc(2011, 12, 30, 10)),  # a day that never came: the moment of the skip
        ("2025-11-02", "America/Havana", utc(2025, 11, 2, 4)),  # 00:00 came twice: the first
    ],
)
def test_a_day_begins_at_its_first_moment(day: str, zone: str, expected: dt.datetime) -> None:
    """Also where midnight was skipped or came twice."""
    assert parse_moment(day, NOW, ZoneInfo(zone)) == expected


@given(
    st.datetimes(utc(1900, 1, 1).replace(tzinfo=None), utc(2200, 1, 1).replace(tzinfo=None)),
    st.sampled_from([UTC, BERLIN, SHANGHAI]),
)
def test_a_time_with_its_offset_is_read_back(naive: dt.datetime, zone: dt.tzinfo) -> None:
    """isoformat and parse_moment are inverse, to the microsecond."""
    moment = naive.replace(tzinfo=zone)
    offset = moment.utcoffset() or dt.timedelta()
    if offset.seconds % 60 == 0:
        assert parse_moment(moment.isoformat(), NOW, zone) == moment


@given(st.text(max_size=30))
def test_any_text_is_a_moment_or_one_clear_sentence(text: str) -> None:
    """Nothing but a ValueError is raised."""
    assert "\n" not in _moment_or_sentence(text)


def _moment_or_sentence(text: str) -> str:
    try:
        return parse_moment(text, NOW, BERLIN).isoformat()
    except ValueError as error:
        return str(error)
