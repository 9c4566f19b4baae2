"""Two moments of an organisation: nothing is called new or gone that no event proves."""

from __future__ import annotations

import datetime as dt

from sqlalchemy import Engine

from etl.database import reading
from etl.report.workflow_page import difference, first_look
from tests.support.builders import flow
from tests.support.run_history import ANN, BOB, RunHistory


def test_what_a_first_look_shows_has_not_appeared_and_what_nobody_is_asked_for_is_not_gone(engine: Engine) -> None:
    room = RunHistory(engine)
    room.run({ANN: [flow(1), flow(2), flow(3)]})
    with reading(engine) as connection:
        began = first_look(connection, "o1")
    assert began is not None
    anns = [flow(1, name="other"), flow(2, cycle="H"), flow(4)]
    for _ in range(2):
        room.run({ANN: anns, BOB: [flow(5)]})
    now = dt.datetime.now(dt.UTC)
    with reading(engine) as connection:
        assert [row[:2] for row in difference(connection, "o1", began, now)] == [
            ("1", "renamed"),
            ("2", "cycle_changed"),
            ("3", "disappeared"),
            ("4", "appeared"),
            ("5", "baseline"),
        ]
        assert difference(connection, "o1", now, now) == []
    room.store.retire_others([ANN], now, None)
    room.run({ANN: anns})
    later = dt.datetime.now(dt.UTC)
    with reading(engine) as connection:
        assert [tuple(row) for row in difference(connection, "o1", now - dt.timedelta(seconds=1), later)] == [
            ("5", "not_asked", "map", None, "D", None, None)
        ]


def test_access_that_was_granted_or_lost_in_between_is_told_with_its_user(engine: Engine) -> None:
    room = RunHistory(engine)
    anns = [flow(1), flow(2), flow(3)]
    room.run({ANN: anns, BOB: [flow(1)]})
    with reading(engine) as connection:
        began = first_look(connection, "o1")
    assert began is not None
    for bobs in ([flow(1)], [flow(1), flow(3)], [flow(2)], [flow(2)]):
        room.run({ANN: anns, BOB: bobs})
    now = dt.datetime.now(dt.UTC)
    with reading(engine) as connection:
        found = difference(connection, "o1", began, now)
    assert [(row.flow_id, row.kind, row.user_id) for row in found] == [
        ("1", "access_lost", "bob"),
        ("2", "access_granted", "bob"),
    ], "nothing of 3, which Bob was shown in between, and of which he has as much as before"
