"""The users of an organisation: the request, the pages of the answer, and who joins and leaves."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable, Iterator, Set
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.demo.world import World
from etl.domain.guard import Limits
from etl.domain.rosters import RosterChanges, RosterUser, compared
from etl.errors import GatewayError, Malformed, Refused
from etl.gateway import Gateway
from tests.support.enos import Fault, LocalGateway
from tests.support.gateways import ACCESS_KEY, SECRET, gateway, settings_for
from tests.support.hostile import Hostile, Step, http

Known = dict[str, RosterUser]
LIMITS = Limits()
PAGE = 1000


def people(*users: object) -> list[dict[str, object]]:
    return [{"userId": user, "name": "Ada Lovelace", "email": "ada@example.org", "phone": "5550100"} for user in users]


def page(users: list[dict[str, object]], total: object, number: object = 0, **envelope: object) -> Step:
    pagination = {"totalElements": total, "pageNo": number, "pageSize": PAGE}
    data = {"users": users, "pagination": pagination}
    return http(json.dumps({"code": 0, "message": "OK", "data": data} | envelope))


def roster_of(*steps: Step, **changes: Any) -> frozenset[str]:
    with Hostile(*steps) as server, gateway(server, **({"deadline": 2} | changes)) as client:
        return client.roster("o-1")


def names(start: int, end: int) -> list[str]:
    return [f"u{number}" for number in range(start, end)]


@pytest.mark.parametrize(
    ("steps", "users"),
    [
        ([page(people(*names(0, 1000)), 1200), page(people(*names(1000, 1200)), 1200, 1)], names(0, 1200)),
        ([page(people("u1", "u1", "u2"), 2)], ["u1", "u2"]),
        ([page(people("u1", "u2"), 3), page(people("u2", "u3"), 3, 1)], ["u1", "u2", "u3"]),
        ([page(people(7), 1)], ["7"]),
        ([page([], 0)], []),
        ([page(people("u1"), 1, None)], ["u1"]),
        ([page(people("u1"), 1, code=200)], ["u1"]),
        ([page(people("u1"), 2), page(people("u3"), 3, 1), page(people("u1", "u2", "u3"), 3)], ["u1", "u2", "u3"]),
        ([page(people("u1", "u2"), 3), page(people("u2"), 3, 1), page(people("u0"), 1)], ["u0"]),
    ],
    ids=[
        *("two pages", "a user twice", "a user on two pages", "a number", "nobody", "no page number", "the older code"),
        *("somebody joins while it is read", "somebody moves to the next page, another leaves"),
    ],
)
def test_a_roster_is_the_users_of_all_pages(steps: list[Step], users: list[str]) -> None:
    assert roster_of(*steps) == set(users)


NO_ROSTER: list[tuple[str, list[Step], str]] = [
    ("a page is missing", [page(people("u1"), 2), page([], 2, 1)], "lists 1"),
    ("the same page for ever", [page(people("u1"), 3, 0)], "page 0 came where page 1"),
    ("the same page under any number", [page(people("u1"), 3, None)], "lists 1"),
    ("the total is too small", [page(people("u1", "u2"), 1)], "lists more"),
    ("the total is too large", [page(people("u1"), 2), page([], 2, 1)], "2 users in all"),
    ("the total moves", [page(people("u1"), 2), page(people("u2"), 3, 1)], "page 0 said 2"),
    ("the total is a lie beyond reason", [page(people("u1"), 10**9)], "totalElements"),
    ("a negative total", [page(people("u1"), -1)], "totalElements"),
    ("a total in text", [page(people("u1"), "1")], "totalElements"),
    ("no pagination", [http(json.dumps({"code": 0, "data": {"users": []}}))], "pagination"),
    ("no data", [http(json.dumps({"code": 0}))], "no data"),
    ("data null", [http(json.dumps({"code": 0, "data": None}))], "data"),
    ("no code", [http(json.dumps({"data": {}}))], "no code"),
    ("HTML", [http("<html>Ada Lovelace</html>")], "HTML"),
    ("a user without id", [page([{"name": "Ada Lovelace"}], 1)], "userId"),
    ("an empty id", [page(people(""), 1)], "userId"),
    ("an id with NUL", [page(people("u\0"), 1)], "NUL"),
    ("an id that is blank", [page(people(" "), 1)], "blank"),
    ("an id of two lines", [page(people("u\nv"), 1)], "control character"),
]


@pytest.mark.parametrize(("steps", "named"), [each[1:] for each in NO_ROSTER], ids=[each[0] for each in NO_ROSTER])
def test_an_incomplete_answer_is_not_a_roster(steps: list[Step], named: str) -> None:
    with pytest.raises(Malformed) as caught:
        roster_of(*steps, *steps)
    assert named in str(caught.value)
    assert "Ada" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "word"),
    [(31400, "missing"), (31403, "may not see"), (31404, "no such organisation"), (62103, "privilege")],
)
def test_an_error_code_is_reported_with_its_remedy(code: int, word: str) -> None:
    with pytest.raises(Refused) as caught:
        roster_of(http(json.dumps({"code": code, "message": "no", "data": None})))
    assert caught.value.code == str(code)
    assert word in str(caught.value)


def test_no_text_of_a_failing_roster_service_is_repeated() -> None:
    with pytest.raises(GatewayError) as caught:
        roster_of(http("Ada Lovelace, 5550100", 500), deadline=0.3)
    assert "Ada" not in str(caught.value)


def test_ten_thousand_pages_end_with_the_deadline() -> None:
    def pages() -> Iterator[Step]:
        yield from (page(people(f"u{number}"), 10_000, number) for number in range(200))

    def slowly(step: bytes) -> Callable[[Any], None]:
        return lambda peer: peer.drip(step, 0.002)

    steps = [slowly(step) for step in pages() if isinstance(step, bytes)]
    with pytest.raises(GatewayError) as caught:
        roster_of(*steps, deadline=0.5)
    assert caught.value.code == "deadline"


@pytest.mark.parametrize(("size", "pages"), [(1000, 13), (100, 124), (7, 18)])
def test_a_roster_in_pages_of_any_size_is_whole(size: int, pages: int) -> None:
    count = 12_345 if size > 7 else 121
    world = World(orgs=0)
    for user in names(0, count):
        world.set_flows("o1", user, [])
    with (
        LocalGateway(world, access_key=ACCESS_KEY, secret_key=SECRET, roster_page_size=size) as local,
        Gateway(settings_for(local.url, auth="token")) as client,
    ):
        assert client.roster("o1") == set(names(0, count))
        assert local.calls("roster") == pages
        assert local.bad_signatures == 0
        local.order(Fault("code", endpoint="roster", code=31403))
        with pytest.raises(Refused):
            client.roster("o1")
        with pytest.raises(Refused) as unknown:
            client.roster("o2")
        assert unknown.value.code == "31404"


NOW = dt.datetime(2026, 12, 1, 12, tzinfo=dt.UTC)
HOUR = dt.timedelta(hours=1)
LONG_AGO = NOW - 720 * HOUR
ANN, BOB, ZOE = frozenset({"ann"}), frozenset({"bob"}), frozenset({"zoe"})


def some(start: int, end: int) -> frozenset[str]:
    return frozenset(names(start, end))


def listed(users: Set[str], *, missing: Set[str] = frozenset(), since: dt.datetime = LONG_AGO) -> Known:
    return {user: RosterUser(since, NOW - HOUR if user in missing else None) for user in users}


def left(users: Set[str], hours: float) -> Known:
    return {user: RosterUser(LONG_AGO, left_at=NOW - hours * HOUR) for user in users}


TEN, FIFTY = some(0, 10), some(0, 50)
CASES: dict[str, tuple[Known, list[Set[str]], RosterChanges]] = {
    "R1 joins": (listed(ANN), [ANN | BOB], RosterChanges(joined=BOB)),
    "R1 had left": (listed(ANN) | left(BOB, 1), [ANN | BOB], RosterChanges(joined=BOB)),
    "R1 in one reading of two": (listed(TEN), [TEN | ZOE - {"u4"}, TEN - {"u0"}], RosterChanges(joined=ZOE)),
    "R2 is back": (listed(ANN | BOB, missing=BOB), [ANN | BOB], RosterChanges(back=BOB)),
    "R3 one reading lacks bob": (listed(ANN | BOB), [ANN], RosterChanges(doubted=BOB)),
    "R3 one reading lacks everybody": (listed(ANN), [frozenset()], RosterChanges(doubted=ANN)),
    "R4 both lack bob": (listed(ANN | BOB), [ANN, ANN], RosterChanges(left=BOB)),
    "R4 four of ten": (listed(TEN), [some(4, 10)] * 2, RosterChanges(left=some(0, 4))),
    "R4 nine of fifty": (listed(FIFTY), [some(9, 50)] * 2, RosterChanges(left=some(0, 9))),
    "R4 a day after five others": (
        *(listed(TEN) | left(some(10, 15), 24), [some(4, 10)] * 2),
        RosterChanges(left=some(0, 4), forgotten=some(10, 15)),
    ),
    "R4 those that left are back": (
        *(listed(TEN) | left(some(10, 14), 2), [some(1, 14)] * 2),
        RosterChanges(joined=some(10, 14), left=some(0, 1)),
    ),
    "R5 five of ten": (listed(TEN), [some(5, 10)] * 2, RosterChanges(newly_missing=some(0, 5))),
    "R5 ten of fifty": (listed(FIFTY), [some(10, 50)] * 2, RosterChanges(newly_missing=some(0, 10))),
    "R5 ten of fifty, seven of them an hour ago": (
        *(listed(some(7, 50)) | left(some(0, 7), 1), [some(10, 50)] * 2),
        RosterChanges(newly_missing=some(7, 10)),
    ),
    "R5 with those missing": (
        *(listed(TEN, missing=some(0, 4)), [some(5, 10)] * 2),
        RosterChanges(newly_missing=some(4, 5)),
    ),
    "R5 others joined today": (
        *(listed(TEN) | listed(some(10, 90), since=NOW - HOUR), [some(5, 90)] * 2),
        RosterChanges(newly_missing=some(0, 5)),
    ),
    "R4 the roster came first an hour ago": (
        *(listed(FIFTY, since=NOW - HOUR), [some(9, 50)] * 2),
        RosterChanges(left=some(0, 9)),
    ),
    "R5 others left yesterday": (
        *(listed(FIFTY) | left(some(50, 90), 25), [some(10, 50)] * 2),
        RosterChanges(newly_missing=some(0, 10), forgotten=some(50, 90)),
    ),
    "R5 nobody is left": (listed(ANN), [frozenset()] * 2, RosterChanges(newly_missing=ANN)),
    "R5 and zoe joins": (
        *(listed(TEN), [some(5, 10) | ZOE] * 2),
        RosterChanges(joined=ZOE, newly_missing=some(0, 5)),
    ),
    "R6 is missing still": (listed(TEN, missing=some(0, 1)), [some(1, 10)], RosterChanges()),
    "R6 and another leaves": (
        *(listed(TEN, missing=some(0, 1)), [some(2, 10)] * 2),
        RosterChanges(left=some(1, 2)),
    ),
    "as before": (listed(ANN), [ANN], RosterChanges()),
    "a leave ten years ahead": (
        *(listed(TEN) | left(some(10, 14), -87_600), [some(4, 10)] * 2),
        RosterChanges(left=some(0, 4), forgotten=some(10, 14)),
    ),
}


@pytest.mark.parametrize(("known", "readings", "moves"), CASES.values(), ids=CASES.keys())
def test_who_joins_and_leaves_is_as_the_table_says(
    known: Known, readings: list[Set[str]], moves: RosterChanges
) -> None:
    assert compared(known, readings, NOW, LIMITS) == moves


def test_what_a_person_confirms_leaves_and_starts_the_window_anew() -> None:
    known = listed(TEN, missing=some(0, 5)) | left(some(10, 14), 1)
    doubted = compared(known, [some(6, 10)], NOW, LIMITS, approved=True)
    assert doubted == RosterChanges(doubted=some(0, 6)), "two readings, also for a person"
    moves = compared(known, [some(6, 10)] * 2, NOW, LIMITS, approved=True)
    assert moves == RosterChanges(left=some(0, 6), forgotten=some(0, 6) | some(10, 14))
    assert compared(listed(some(6, 10)), [some(9, 10)] * 2, NOW, LIMITS).left == some(6, 9)


def stays(known: Known) -> set[str]:
    return {user for user, each in known.items() if each.left_at is None}


def after(known: Known, readings: list[Set[str]], now: dt.datetime) -> Known:
    """The rows after ``readings``, as the store writes them."""
    moves = compared(known, readings, now, LIMITS)
    replace = msgspec.structs.replace
    rows = dict(known) | {user: replace(known[user], left_at=now, missing_since=None) for user in moves.left}
    rows |= {user: replace(known[user], missing_since=now) for user in moves.newly_missing}
    rows |= {user: replace(known[user], missing_since=None) for user in moves.back}
    rows = {user: each for user, each in rows.items() if user not in moves.forgotten}
    return rows | {user: RosterUser(now) for user in moves.joined}


USERS = st.frozensets(st.sampled_from(names(0, 30)))
READINGS = st.lists(USERS, min_size=1, max_size=2)


@given(first=USERS, hours=st.lists(st.tuples(st.integers(1, 30), READINGS), max_size=12))
def test_nobody_leaves_unless_two_readings_agree_and_the_window_stays_below_the_limit(
    first: frozenset[str], hours: list[tuple[int, list[Set[str]]]]
) -> None:
    known, now = listed(first, since=NOW), NOW
    leaves: list[tuple[dt.datetime, str]] = []
    for pause, readings in hours:
        now += pause * HOUR
        before, known = known, after(known, readings, now)
        went = stays(before) - stays(known)
        assert not went or len(readings) == 2
        assert not went & frozenset().union(*readings)
        assert frozenset().union(*readings) <= stays(known), "whoever is in a reading is listed"
        leaves += [(now, user) for user in went]
        day = {user for at, user in leaves if now - at < LIMITS.window} - stays(known)
        assert len(day) < max(LIMITS.max_emptied_targets, math.ceil(LIMITS.max_emptied_share * 30))
        assert all(known[user].left_at is not None for user in day)


@given(USERS, USERS, READINGS, st.booleans())
def test_a_user_that_moves_is_reported_once_and_an_approved_answer_is_the_roster(
    users: frozenset[str], missing: frozenset[str], readings: list[Set[str]], approved: bool
) -> None:
    moves = compared(listed(users, missing=users & missing), readings, NOW, LIMITS, approved=approved)
    groups = [moves.joined, moves.left, moves.newly_missing, moves.back, moves.doubted]
    assert sum(map(len, groups)) == len(frozenset().union(*groups))
    still_missing = ((users & missing) | moves.newly_missing) - moves.back - moves.left
    present = frozenset().union(*readings)
    assert ((users | moves.joined) - moves.left) - still_missing - moves.doubted == present - moves.doubted
    assert not (approved and len(readings) == 2 and still_missing)
