"""When a schedule is due."""

from __future__ import annotations

import datetime as dt
import itertools
import random
from collections.abc import Iterator
from zoneinfo import ZoneInfo, available_timezones

import pytest
from cronsim import CronSim
from hypothesis import given
from hypothesis import strategies as st

from etl.config.slots import MOST_COUNTED, Cron, Every, Slots, quartz_in_words

UTC = dt.UTC
MICROSECOND = dt.timedelta(microseconds=1)


def utc(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text).replace(tzinfo=UTC)


def walk(slots: Slots, after: dt.datetime, until: dt.datetime) -> Iterator[dt.datetime]:
    slot = slots.next_after(after)
    while slot < until:
        yield slot
        following = slots.next_after(slot)
        assert following > slot
        slot = following


def local(slots: list[dt.datetime], zone: str) -> list[str]:
    return [f"{slot.astimezone(ZoneInfo(zone)):%d %H:%M %z}" for slot in slots]


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("*/15 * * * *", "2025-01-01 00:00", "2025-01-01 00:15"),
        ("0 0 * * 0", "2025-01-01 00:00", "2025-01-05 00:00"),
        ("0 0 * * 7", "2025-01-01 00:00", "2025-01-05 00:00"),
        ("0 0 * * SUN", "2025-01-01 00:00", "2025-01-05 00:00"),
        ("0 0 * * 1", "2025-01-01 00:00", "2025-01-06 00:00"),
        ("0 0 * * 5-7", "2025-01-04 00:00", "2025-01-05 00:00"),
        ("0 0 13 * 5", "2025-01-11 00:00", "2025-01-13 00:00"),
        ("0 0 */2 * 5", "2025-01-01 00:00", "2025-01-03 00:00"),
        ("0 0 1 jan,jul *", "2025-01-01 00:00", "2025-07-01 00:00"),
        ("10-20/5 8 * * *", "2025-01-01 08:15", "2025-01-01 08:20"),
        ("9-9/5 * * * *", "2025-01-01 08:09", "2025-01-01 09:09"),
        ("0 0 * * MON-1/2", "2025-01-06 00:00", "2025-01-13 00:00"),
        ("0 0 * mar-3/2,4 *", "2025-04-30 00:00", "2026-03-01 00:00"),
        ("9/25 8 * * *", "2025-01-01 08:09", "2025-01-01 08:34"),
        ("0 0 29 2 *", "2025-01-01 00:00", "2028-02-29 00:00"),
        ("0 0 L * *", "2025-02-01 00:00", "2025-02-28 00:00"),
    ],
)
def test_fields_mean_what_they_mean_to_cron(expression: str, after: str, expected: str) -> None:
    assert Cron(expression).next_after(utc(after)) == utc(expected)


def test_a_slot_is_strictly_after_and_the_latest_may_be_now() -> None:
    noon = utc("2025-01-01 12:00")
    for slots in (Cron("0 12 * * *"), Every(dt.timedelta(days=1) / 2)):
        assert slots.next_after(noon - MICROSECOND) == noon
        assert slots.next_after(noon) > noon
        assert slots.latest_until(noon) == noon
        assert slots.latest_until(noon + MICROSECOND) == noon
        earlier = slots.latest_until(noon - MICROSECOND)
        assert earlier is not None
        assert earlier < noon


def test_instants_of_any_zone_go_in_and_utc_comes_out() -> None:
    shanghai = dt.datetime(2025, 1, 1, 8, 30, tzinfo=ZoneInfo("Asia/Shanghai"))
    for slots in (Cron("0 9 * * *", "Asia/Shanghai"), Every(dt.timedelta(hours=1))):
        assert slots.next_after(shanghai) == utc("2025-01-01 01:00")
        assert slots.next_after(shanghai).tzinfo is UTC


def test_intervals_are_multiples_since_the_epoch() -> None:
    week = Every(dt.timedelta(weeks=1))
    assert week.next_after(utc("1970-01-01 00:00")) == utc("1970-01-08 00:00")
    assert week.latest_until(utc("1969-12-31 00:00")) == utc("1969-12-25 00:00")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 2 * * *", ["29 02:30 +0100", "30 03:00 +0200", "31 02:30 +0200"]),
        ("0,30 2,3 30,31 3 *", ["30 03:00 +0200", "30 03:30 +0200", "31 02:00 +0200"]),
        ("*/30 2 * * *", ["29 02:30 +0100", "31 02:00 +0200", "31 02:30 +0200"]),
    ],
)
def test_a_fixed_time_skipped_by_the_clocks_is_due_at_the_end_of_the_gap(expression: str, expected: list[str]) -> None:
    slots = walk(Cron(expression, "Europe/Berlin"), utc("2025-03-29 01:15"), utc("2025-04-01 00:00"))
    found = local(list(slots), "Europe/Berlin")
    assert found[: len(expected)] == expected


def test_a_repeated_time_is_due_once_if_it_is_fixed_and_twice_otherwise() -> None:
    night = utc("2025-10-25 23:00"), utc("2025-10-26 02:00")
    fixed = local(list(walk(Cron("30 2 * * *", "Europe/Berlin"), *night)), "Europe/Berlin")
    hourly = local(list(walk(Cron("30 * * * *", "Europe/Berlin"), *night)), "Europe/Berlin")
    assert fixed == ["26 02:30 +0200"]
    assert hourly == ["26 01:30 +0200", "26 02:30 +0200", "26 02:30 +0100"]


def test_a_day_that_a_zone_skips_is_caught_up_once() -> None:
    daily = Cron("0 0 * * *", "Pacific/Apia")  # 2011-12-30 did not exist
    days = utc("2011-12-28 12:00"), utc("2012-01-02 12:00")
    found = local(list(walk(daily, *days)), "Pacific/Apia")
    assert found == ["29 00:00 -1000", "31 00:00 +1400", "01 00:00 +1400", "02 00:00 +1400", "03 00:00 +1400"]
    assert daily.count_between(*days) == len(found)


ZONES = sorted(
    {
        *random.Random(7).sample(sorted(available_timezones()), 3),
        *("Europe/Berlin", "America/New_York", "Africa/Cairo", "America/Havana", "America/Scoresbysund"),
        *("Antarctica/Troll", "Africa/Casablanca", "Asia/Shanghai", "Asia/Beirut"),
    }
)
EXPRESSIONS = ("30 2 * * *", "0,30 0-3 * * 0,6", "17 */6 * * *", "5 23 * * 0")


@pytest.mark.parametrize("zone", ZONES)
def test_two_years_of_slots_are_those_of_cronsim_in_every_zone(zone: str) -> None:
    first, last = utc("2024-01-01 00:00"), utc("2026-01-01 00:00")
    for expression in EXPRESSIONS:
        cron = Cron(expression, zone)
        theirs = (slot.astimezone(UTC) for slot in CronSim(expression, first.astimezone(ZoneInfo(zone))))
        expected = [slot for slot in itertools.takewhile(lambda slot: slot < last, theirs) if slot > first]
        assert list(walk(cron, first, last)) == expected
        assert cron.count_between(first, last) == len(expected)
        for before, slot in itertools.pairwise(expected[::7]):
            assert cron.latest_until(slot) == slot
            assert cron.next_after(before - MICROSECOND) == before


@pytest.mark.parametrize(
    ("zone", "turn"),
    [
        ("Australia/Lord_Howe", "2025-04-05 15:00"),
        ("Australia/Lord_Howe", "2025-10-04 15:30"),
        ("America/Argentina/Jujuy", "2008-03-16 02:00"),
        ("America/St_Johns", "2010-11-07 02:31"),
        ("Europe/Berlin", "2025-10-26 01:00"),
    ],
)
@pytest.mark.parametrize("expression", ["*/20 */6 * * *", "* 23 * * *", "7 * * * *", "*/7 0-20/2 * * SUN"])
def test_slots_that_follow_the_real_time_are_the_minutes_whose_clock_matches(
    zone: str, turn: str, expression: str
) -> None:
    """Where cronsim, given the zone, leaves some out: after half an hour put back, and backwards over midnight."""
    cron, wanted = Cron(expression, zone), CronSim(expression, utc("2000-01-01"))
    minutes = [utc(turn) + dt.timedelta(minutes=number) for number in range(-900, 900)]
    clocks = {minute: minute.astimezone(ZoneInfo(zone)) for minute in minutes}
    due = [
        minute
        for minute, clock in clocks.items()
        if clock.minute in wanted.minutes and clock.hour in wanted.hours and wanted.match_day(clock.date())
    ]
    assert list(walk(cron, minutes[0] - MICROSECOND, minutes[-1] + MICROSECOND)) == due
    assert [minute for minute in minutes if cron.latest_until(minute) == minute] == due
    assert cron.count_between(minutes[0] - MICROSECOND, minutes[-1] + MICROSECOND) == len(due)


@pytest.mark.parametrize(
    ("slots", "minutes"),
    [
        (Every(dt.timedelta(minutes=7)), 7),
        (Cron("*/15 * * * *"), 15),
        (Cron("50,10 * * * *"), 20),
        (Cron("0 1,23 * * *"), 120),
        (Cron("0 1,23 * * 1"), 22 * 60),
        (Cron("30 8 * * *"), 24 * 60),
        (Cron("30 8 * * 1,4"), 3 * 24 * 60),
        (Cron("0 0 31 * *"), 31 * 24 * 60),
        (Cron("0 0 29 2 *"), 1461 * 24 * 60),
    ],
)
def test_the_shortest_time_between_two_slots(slots: Slots, minutes: int) -> None:
    assert slots.shortest_gap() == dt.timedelta(minutes=minutes)


INSTANTS = st.integers(946_684_800, 2_114_380_800).map(lambda second: dt.datetime.fromtimestamp(second, UTC))
SLOTS = st.one_of(
    st.builds(
        Cron,
        st.sampled_from(("7 * * * *", "0 2 * * *", "*/20 1-3 * * *", "30 1 * * 7", "0 0 1 */3 *")),
        st.sampled_from(("UTC", "Europe/Berlin", "Australia/Lord_Howe", "America/St_Johns", "Africa/Casablanca")),
    ),
    st.builds(Every, st.timedeltas(dt.timedelta(minutes=7), dt.timedelta(days=30))),
)


@given(SLOTS, INSTANTS)
def test_next_latest_and_count_agree(slots: Slots, instant: dt.datetime) -> None:
    following = slots.next_after(instant)
    assert following > instant
    assert slots.latest_until(following) == following
    latest = slots.latest_until(following - MICROSECOND)
    assert latest is not None
    assert latest <= instant
    assert slots.next_after(latest) == following
    assert slots.count_between(latest, following) == 0
    assert slots.count_between(latest - MICROSECOND, following + MICROSECOND) == 2
    assert slots.count_between(following, latest) == 0


@given(SLOTS, INSTANTS, st.integers(0, 60))
def test_the_count_is_that_of_the_walk(slots: Slots, after: dt.datetime, days: int) -> None:
    until = after + dt.timedelta(days=days)
    assert slots.count_between(after, until) == sum(1 for _ in itertools.islice(walk(slots, after, until), 20_000))


def test_slots_are_counted_up_to_a_week_of_minutes() -> None:
    first = utc("2025-01-01 00:00")
    for slots in (Cron("* * * * *", "Europe/Berlin"), Every(dt.timedelta(minutes=1))):
        assert slots.count_between(first, first + dt.timedelta(minutes=MOST_COUNTED)) == MOST_COUNTED - 1
        assert slots.count_between(first, first + dt.timedelta(days=3653)) == MOST_COUNTED


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("* * * *", "five fields"),
        ("* * * * * *", "five fields"),
        ("@daily", "five fields"),
        ("", "five fields"),
        ("60 * * * *", '"60" is not a valid minute'),
        ("* 24 * * *", '"24" is not a valid hour'),
        ("* * 0 * *", '"0" is not a valid day of month'),
        ("* * * FOO *", '"FOO" is not a valid month'),
        ("* * * * 8", '"8" is not a valid day of week'),
        ("*/0 * * * *", r'"\*/0" is not a valid minute'),
        ("* 5-1 * * *", '"5-1" is not a valid hour'),
        ("9-9/0 * * * *", '"9-9/0" is not a valid minute'),
        ("0 0 * * FOO-FOO/2", '"FOO-FOO/2" is not a valid day of week'),
        ("* * 30 2 *", "never fires"),
        ("0 0 31 4,6,9,11 *", "never fires"),
        ("9" * 5000 + " * * * *", "is not a valid minute"),
        ("² * * * *", "is not a valid minute"),
        ("1/2/3 * * * *", "is not a valid minute"),
    ],
)
def test_an_invalid_cron_expression_is_refused_in_one_sentence(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cron(expression)


@given(st.lists(st.text(alphabet="0123456789*/-,#LWMONJAN ", min_size=1, max_size=6), min_size=5, max_size=5))
def test_any_five_fields_are_a_cron_expression_or_a_value_error(fields: list[str]) -> None:
    try:
        cron = Cron(" ".join(fields))
    except ValueError:
        return
    now = utc("2025-01-01 00:00")
    assert cron.next_after(now) > now


@pytest.mark.parametrize("zone", ["asia/shanghai", "Asia/Shangai", "../Asia/Shanghai", "", "\0", "America"])
def test_an_unknown_time_zone_is_refused_by_name(zone: str) -> None:
    with pytest.raises(ValueError, match="is not a time zone: use an IANA name such as"):
        Cron("* * * * *", zone)


def test_an_interval_must_be_positive() -> None:
    with pytest.raises(ValueError, match="longer than zero"):
        Every(dt.timedelta(0))


WORDS = {
    "0 0 0 * * ? *": "at 00:00 every day",
    "0 0 2 * * ? *": "at 02:00 every day",
    "0 0 2 * * ?": "at 02:00 every day",
    "0 30 6 * * ? *": "at 06:30 every day",
    "0 0 * * * ? *": "at the start of every hour",
    "0 */15 * * * ? *": "every 15th minute of every hour",
    "0 0/15 * * * ? *": "every 15th minute of every hour",
    "0 5/15 * * * ? *": "every 15th minute from 5 through 59 of every hour",
    "0 * * * * ? *": "every minute",
    "0 0 8,20 * * ? *": "at 08:00 and 20:00 every day",
    "0 0 9 ? * 2-6 *": "at 09:00 on Monday through Friday",
    "0 0 9 ? * MON-FRI *": "at 09:00 on Monday through Friday",
    "0 0 9 ? * 1 *": "at 09:00 on Sunday",
    "0 0 9 ? * 7 *": "at 09:00 on Saturday",
    "0 0 9 ? * 1,7 *": "at 09:00 on Sunday and Saturday",
    "0 0 9 ? * 6L *": "at 09:00 on the last Friday of the month",
    "0 0 9 ? * 6#2 *": "at 09:00 on the second Friday of the month",
    "0 0 1 1 * ? *": "at 01:00 on the first day of every month",
    "0 0 1 21 * ? *": "at 01:00 on the 21st day of every month",
    "0 0 1 13 * ? *": "at 01:00 on the 13th day of every month",
    "0 0 1 L * ? *": "at 01:00 on the last day of every month",
    "0 0 1 1 JAN ? *": "at 01:00 on January 1",
    "0 0 1 * * ? 2027": "at 01:00 every day, only in 2027",
}


@pytest.mark.parametrize("expression", WORDS)
def test_a_schedule_is_described_as_quartz_means_it(expression: str) -> None:
    assert quartz_in_words(expression) == WORDS[expression]


@pytest.mark.parametrize(
    "expression",
    [
        "",
        "0 2 * * *",  # cron's, not Quartz's
        "0 0 2 1 * 2 *",  # Quartz has one of the two days
        "0 0 9 ? * 2/2 *",
        "0 0 9 ? * L *",
        "0 0 9 ? * 0 *",
        "0 0 9 ? * 8 *",
        "0 0 9 ? * FRI-MON *",
        "0 0 9 15W * ? *",
        "0 0 9 L-3 * ? *",
        "0 0 22-4 * * ? *",
        "0 61 9 * * ? *",
        "0 0 9 * * ? 2026-2028",
        "0 0 9 * * ? * *",
        "`rm -rf` <b> \u202e",
        "0 0 ² * * ? *",
        "0 0 9 ? * ² *",
    ],
)
def test_an_uncertain_schedule_is_not_described(expression: str) -> None:
    assert quartz_in_words(expression) == ""
