"""The users of an organisation: the request, the pages of the answer, and who joins and leaves."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from etl.demo.faults import Fault
from etl.demo.gateway import DemoGateway
from etl.demo.world import World
from etl.domain.guard import Limits
from etl.domain.roster import ListedUsers, RosterChanges, compared
from etl.errors import GatewayError, Malformed, Refused
from etl.gateway import Gateway
from tests.support.gateways import ACCESS_KEY, SECRET, gateway, settings_for
from tests.support.hostile import Hostile, Step, http

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
    ],
    ids=["two pages", "a user twice", "a user on two pages", "a number", "nobody", "no page number", "the older code"],
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
        roster_of(*steps)
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
        world.add_user("o1", user)
    with (
        DemoGateway(world, access_key=ACCESS_KEY, secret_key=SECRET, roster_page_size=size) as local,
        Gateway(settings_for(local.url, auth="token")) as client,
    ):
        assert client.roster("o1") == set(names(0, count))
        assert local.counters.roster_calls == pages
        assert local.counters.bad_signatures == 0
        local.order(Fault("code", endpoint="roster", code=31403))
        with pytest.raises(Refused):
            client.roster("o1")
        with pytest.raises(Refused) as unknown:
            client.roster("o2")
        assert unknown.value.code == "31404"


ANN, BOB = frozenset({"ann"}), frozenset({"bob"})
TEN = frozenset(names(0, 10))
FIVE = frozenset(names(0, 5))
MOVES: list[tuple[str, ListedUsers, frozenset[str], bool, RosterChanges]] = [
    ("1 joins", ListedUsers(ANN), ANN | BOB, False, RosterChanges(joined=BOB)),
    ("2 back", ListedUsers(ANN | BOB, BOB), ANN | BOB, False, RosterChanges(back=BOB)),
    ("3 leaves", ListedUsers(ANN | BOB), ANN, False, RosterChanges(left=BOB)),
    (
        "3 four of ten leave",
        ListedUsers(TEN),
        TEN - set(names(0, 4)),
        False,
        RosterChanges(left=frozenset(names(0, 4))),
    ),
    (
        "3 who is missing stays",
        ListedUsers(TEN, frozenset({"u0"})),
        TEN - {"u0", "u1"},
        False,
        RosterChanges(left=frozenset({"u1"})),
    ),
    ("4 five of ten", ListedUsers(TEN), TEN - FIVE, False, RosterChanges(newly_missing=FIVE)),
    ("4 nobody is left", ListedUsers(ANN), frozenset(), False, RosterChanges(newly_missing=ANN)),
    (
        "4 with those missing",
        ListedUsers(TEN, frozenset(names(0, 4))),
        TEN - FIVE,
        False,
        RosterChanges(newly_missing=frozenset({"u4"})),
    ),
    (
        "4 and somebody joins",
        ListedUsers(TEN),
        (TEN - FIVE) | ANN,
        False,
        RosterChanges(joined=ANN, newly_missing=FIVE),
    ),
    ("5 a person says so", ListedUsers(TEN, FIVE), TEN - FIVE, True, RosterChanges(left=FIVE)),
    ("nothing", ListedUsers(ANN), ANN, False, RosterChanges()),
]


@pytest.mark.parametrize(("listed", "answered", "approved", "moves"), [m[1:] for m in MOVES], ids=[m[0] for m in MOVES])
def test_who_joins_and_leaves_is_as_the_table_says(
    listed: ListedUsers, answered: frozenset[str], approved: bool, moves: RosterChanges
) -> None:
    assert compared(listed, answered, LIMITS, approved=approved) == moves


USERS = st.frozensets(st.sampled_from(names(0, 12)))


@given(USERS, USERS, USERS, st.booleans())
def test_a_user_that_moves_is_reported_once_and_an_approved_answer_is_the_roster(
    users: frozenset[str], missing: frozenset[str], answered: frozenset[str], approved: bool
) -> None:
    listed = ListedUsers(users, users & missing)
    moves = compared(listed, answered, LIMITS, approved=approved)
    groups = [moves.joined, moves.left, moves.newly_missing, moves.back]
    assert sum(map(len, groups)) == len(frozenset().union(*groups))
    after = (users | moves.joined) - moves.left
    still_missing = (listed.missing | moves.newly_missing) - moves.back - moves.left
    assert after - still_missing == answered
    assert not (approved and still_missing)
