"""Who agreed to a change: docs/acknowledge.md has a table of cases, and each event has the ticket that it gives."""

from __future__ import annotations

import datetime as dt
import random
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sqlalchemy import Engine, insert, select, text

from etl.database import reading, writing
from etl.domain.kinds import DELTA_KINDS, EVENT_KINDS
from etl.errors import DatabaseError, UsageError
from etl.report.listings import CHANGES, EVENTS
from etl.schema import acknowledgement, change_set, org_event, target, workflow_change
from etl.store import NewAcknowledgement, Store
from tests.organisation.mirror import MirroredSimulation, moment
from tests.organisation.settings import DAY, MINUTE
from tests.organisation.world import HOUR, START, Schedule, Setting
from tests.support.questions import now
from tests.support.trails import ANN, House, findings

PAGE = (Path(__file__).parents[2] / "docs" / "acknowledge.md").read_text("utf-8")
CASES = re.findall(r"^\| (\d+) \| (.*?) \| (.*?) ?\| (none|\d) \|$", PAGE, re.MULTILINE)
NOON = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
NOTED = dict.fromkeys(("flow_id", "user_id", "kind", "after", "until", "ticket", "note"))


def at(clock: str) -> dt.datetime:
    return NOON.replace(hour=int(clock[:2]), minute=int(clock[3:]))


def made_of(number: str, said: str, first: int) -> dict[str, Any]:
    """The row of an acknowledgement as a case writes it."""
    row: dict[str, Any] = {**NOTED, "org_id": f"o{number}", "revokes": None}
    if said.startswith("-"):
        return row | {"revokes": first + int(said[1:])}
    scope, *words = said.split()
    row["flow_id"] = None if scope == "*" else f"{scope}{number}"
    for word, value in pairwise([*words, ""]):
        if word in ("after", "until"):
            row[word] = at(value)
        elif word == "of" and value != "another":
            row["user_id"] = value
        elif word == "of":
            row["org_id"] = "another"
        elif word in (*EVENT_KINDS, *DELTA_KINDS):
            row["kind"] = word
    return row


def test_every_case_of_the_page(engine: Engine) -> None:
    """Each in an organisation of its own."""
    made: list[dict[str, Any]] = []
    expected, found = {}, {}
    with writing(engine) as connection:
        for number, event, said, counts in CASES:
            first = len(made)
            for each in filter(None, said.replace("`", "").split("; ")):
                made.append(made_of(number, each, first) | {"id": len(made) + 1, "made_by": "ada", "made_at": NOON})
            expected[f"o{number}"] = None if counts == "none" else first + int(counts)
            insert_event(connection, number, *event.split())
        for row in made:
            row["ticket"] = None if row["revokes"] else f"T{row['id']}"
        connection.execute(insert(acknowledgement), made)
    assert len(expected) == 29
    for listed in (EVENTS.rows(engine), CHANGES.rows(engine)):
        for each in listed:
            found[each.org_id] = each.ticket and int(each.ticket[1:])
            assert (each.acknowledged_by, each.acknowledged_at) == (("ada", NOON) if each.ticket else (None, None))
    assert found == expected


def insert_event(connection: Any, number: str, kind: str, user: str | None = None) -> None:
    """An event of the organisation, or, if no event is of this kind, a change of a user's list."""
    which = {"flow_id": f"w{number}", "kind": kind}
    between = {"last_unchanged_at": at("10:00"), "observed_at": at("11:00")}
    if kind in EVENT_KINDS:
        row = {**which, **between, "run_id": 1, "org_id": f"o{number}", "user_id": user, "decided_at": NOON}
        row |= {"users_before": 1, "users_after": 1, "proven_for_all": True, "unheard": 0}
        connection.execute(insert(org_event), row)
        return
    identity, first = int(number), kind == "baseline"
    connection.execute(insert(target), {"id": identity, "org_id": f"o{number}", "user_id": user})
    row = {"id": identity, "target_id": identity, "run_id": 1, "observed_at": at("11:00"), "asked_at": at("11:00")}
    row |= {"version": 1 if first else 2, "kind": "baseline" if first else "delta", "format": 1}
    row |= {"last_unchanged_at": None if first else at("10:00")}
    row |= dict.fromkeys(("state_digest", "data_hash", "parent_hash", "hash"), "0" * 64)
    connection.execute(insert(change_set), row)
    connection.execute(insert(workflow_change), {"change_set_id": identity, **which})


# --------------------------------------------------------------------------------------------------- a random month


class Agreed(NamedTuple):
    """What was acknowledged, as the oracle remembers it."""

    number: int
    scope: Mapping[str, Any]


def ticket_of(event: Any, agreed: Sequence[Agreed]) -> str | None:
    """The ticket by the words of the page: the latest that covers the event, of those that were not revoked."""
    for number, scope in reversed(agreed) if event.kind != "baseline" else ():
        named = {name: scope[name] for name in ("flow_id", "user_id", "kind") if scope.get(name) is not None}
        is_named = all(getattr(event, name) == value for name, value in named.items())
        begins = scope.get("after") is None or event.observed_at > scope["after"]
        ends = scope.get("until") is None or event.last_unchanged_at < scope["until"]
        if is_named and begins and ends:
            return f"T{number}"
    return None


class Month:
    """Somebody who announces and accepts a random half of what happens, and sometimes thinks better of it."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine, self.chance = engine, random.Random(seed)
        self.store = Store(engine)
        self.agreed: list[Agreed] = []
        self.last = self.numbers = 0

    def after_a_run(self, today: dt.datetime) -> None:
        with reading(self.engine) as connection:
            new = connection.execute(select(org_event).where(org_event.c.event_id > self.last)).all()
        self.last = max((each.event_id for each in new), default=self.last)
        for each in new:
            if self.chance.random() < 0.5:
                self.agree(self.accepting(each))
        for each in self.chance.sample(new, min(1, len(new))):
            self.agree({"flow_id": each.flow_id, "after": today, "until": today + dt.timedelta(days=3)})
        if self.chance.random() < 0.1:
            self.agree({"kind": self.chance.choice(EVENT_KINDS), "until": today})
        if self.agreed and self.chance.random() < 0.3:
            revoked = self.chance.choice(self.agreed)
            self.store.revoke(revoked.number, "ben", "by mistake", now())
            self.agreed.remove(revoked)
            self.numbers += 1

    def accepting(self, event: Any) -> dict[str, Any]:
        exactly = {"flow_id": event.flow_id, "user_id": event.user_id, "kind": event.kind}
        exactly |= {"after": event.last_unchanged_at, "until": event.observed_at}
        some = self.chance.sample(sorted(exactly), self.chance.choice([3, 5, 5]))
        return {name: exactly[name] for name in some}

    def agree(self, scope: dict[str, Any]) -> None:
        self.numbers += 1
        new = NewAcknowledgement(made_by="ada", org_id="o1", ticket=f"T{self.numbers}", **scope)
        assert self.store.acknowledge([new], now()).last == self.numbers
        self.agreed.append(Agreed(self.numbers, scope))


def daily(users: list[str]) -> list[Schedule]:
    return [Schedule(tuple(users), DAY, 10 * MINUTE, MINUTE, 36 * HOUR)]


def test_every_event_of_a_month_has_the_ticket_that_the_page_gives_it(engine: Engine) -> None:
    setting = Setting(users=4, workflows=12, schedules=daily, changes_an_hour=0.4, failing=0.1)
    simulation, month = MirroredSimulation(setting, 5, engine), Month(engine, 5)
    for _ in simulation.run(START + 30 * DAY):
        month.after_a_run(moment(simulation.now))
    for listed in (EVENTS, CHANGES):
        rows = list(listed.rows(engine))
        expected = [ticket_of(row, month.agreed) for row in rows]
        assert [row.ticket for row in rows] == expected
        assert 0.2 < expected.count(None) / len(expected) < 0.8
        by = {(row.ticket is None, row.acknowledged_by, row.acknowledged_at is None) for row in rows}
        assert by == {(True, None, True), (False, "ada", False)}


# ------------------------------------------------------------------------------------------------------ how it is made


def test_one_that_does_not_count_cannot_be_revoked(engine: Engine) -> None:
    house = House(engine)
    house.acknowledge({"ticket": "T1"})
    house.store.revoke(1, "ben", None, now())
    for number, why in ((1, "is revoked already"), (2, "2 revokes 1, and stays"), (3, "There is no acknowledgement 3")):
        with pytest.raises(UsageError, match=why):
            house.store.revoke(number, "ben", None, now())
    house.serve({"plants": [ANN]})
    assert findings(engine) == []


def test_what_was_acknowledged_cannot_be_altered_or_replaced(engine: Engine) -> None:
    house = House(engine)
    house.acknowledge({"ticket": "T1"}, {})
    house.store.revoke(2, "ben", None, now())
    columns = "id, made_at, made_by, org_id"
    for statement in (
        "UPDATE acknowledgement SET ticket = 'T2'",
        "DELETE FROM acknowledgement",
        f"INSERT INTO acknowledgement ({columns}, revokes) SELECT 9, made_at, made_by, org_id, 2 FROM acknowledgement",
        f"INSERT INTO acknowledgement ({columns}) SELECT id, made_at, made_by, org_id FROM acknowledgement",
    ):
        with pytest.raises(DatabaseError), writing(engine) as connection:
            connection.execute(text(statement))


@pytest.mark.parametrize("runs", [0, 1])
def test_a_seal_covers_what_was_made_since_the_seal_before_whatever_the_clock_says(engine: Engine, runs: int) -> None:
    house = House(engine)
    future = now() + dt.timedelta(days=1)
    for _ in range(runs):
        house.upstream.clock = lambda: future
        house.serve({"plants": [ANN]})
    house.upstream.clock = now
    house.acknowledge({"ticket": "T1"}, {"ticket": "T2"})
    house.acknowledge({"ticket": "T3"})
    house.serve({"plants": [ANN]})
    house.acknowledge({"ticket": "T4"})
    house.serve({"plants": [ANN]})
    house.acknowledge({"ticket": "T5"})
    query = """SELECT s.id, a.ticket FROM run_seal s LEFT JOIN acknowledgement a
               ON a.made_at <= s.sealed_at AND a.made_at > coalesce(
                   (SELECT b.sealed_at FROM run_seal b WHERE b.id = s.id - 1), '0001-01-01') ORDER BY a.id"""
    covered = [(number - runs, ticket) for number, ticket in house.rows(query) if ticket]
    assert covered == [(1, "T1"), (1, "T2"), (1, "T3"), (2, "T4")]
    assert findings(engine) == []
