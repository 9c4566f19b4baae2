"""How fast the views answer on a trail of many changes, on SQLite or PostgreSQL.

    python benchmarks/views.py sqlite:////tmp/views.db --rows 200000
    python benchmarks/views.py postgresql+psycopg://... --rows 10000000 --json
    python benchmarks/views.py postgresql+psycopg://... --rows 1000000 --times 50

The database must not have Flowtrail's schema yet: the generator makes it and fills it. An organisation has 100,000
changes: 25 users who see most of 1,000 workflows, and a run every three hours that finds a few of them changed, by
everybody who sees them. With ``--times`` the database itself copies them all, as other organisations with other users
and workflows. What is printed is the best of three; ``cpu_seconds`` are this process's, so on SQLite they
are what the question costs however busy the machine is, and on PostgreSQL only the client's part.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Connection,
    Engine,
    Table,
    Text,
    TextClause,
    cast,
    func,
    insert,
    literal_column,
    select,
    text,
)

from etl.database import connect, reading, upgrade, writing
from etl.report.asof import flows_as_of
from etl.schema import UtcTime, change_set, observation, target, workflow, workflow_change

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
CHANGES_OF_AN_ORGANISATION = 100_000
USERS, WORKFLOWS = 25, 1_000
EVERY = dt.timedelta(hours=3)
BATCH = 20_000
COLUMNS = ("old_name", "old_cycle", "old_editable", "new_name", "new_cycle", "new_editable")
State = tuple[str, str, bool]


@dataclass
class Organisation:
    """A world that changes, and its users' rows, given out change set by change set."""

    number: int
    dice: random.Random
    ids: Iterator[int]
    world: dict[str, State] = field(default_factory=dict)
    lists: dict[int, dict[str, State]] = field(default_factory=dict)
    stamps: dict[tuple[int, str], tuple[dt.datetime, dt.datetime]] = field(default_factory=dict)
    versions: Counter[int] = field(default_factory=Counter)
    seen: dict[int, tuple[dt.datetime, dt.datetime]] = field(default_factory=dict)
    spans: list[dict[str, Any]] = field(default_factory=list)

    @property
    def name(self) -> str:
        return f"o{15_427_722_000_000 + self.number}"

    def users(self) -> list[int]:
        return [self.number * USERS + nth + 1 for nth in range(USERS)]

    def live(self, changes: int) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """Change sets with their changes, about so many of these, in the order of the trail."""
        self.begin()
        run = written = 0
        while written < changes:
            run += 1
            self.change()
            for nth, user in enumerate(self.users()):
                for made in self._ask(user, run, START + run * EVERY + dt.timedelta(seconds=nth)):
                    written += len(made[1])
                    yield made

    def begin(self) -> None:
        """Half of the workflows exist at first."""
        for nth in range(WORKFLOWS // 2):
            self.world[str(self.number * WORKFLOWS + nth)] = self._state()

    def _state(self) -> State:
        name = self.dice.choice(["reduce", "map", "join", "sort", "load"])
        return f"{name}_entity_{self.dice.randrange(9000)}", self.dice.choice(["D", "H", "W", "mi"]), True

    def change(self) -> None:
        """Create, delete or alter twelve workflows."""
        for _ in range(12):
            flow_id = str(self.number * WORKFLOWS + self.dice.randrange(WORKFLOWS))
            if flow_id in self.world and self.dice.random() < 0.3:
                del self.world[flow_id]
            elif flow_id in self.world and self.dice.random() < 0.8:
                self.world[flow_id] = (self.world[flow_id][0], *self._state()[1:])
            else:
                self.world[flow_id] = self._state()

    def _ask(self, user: int, run: int, at: dt.datetime) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        after = {flow_id: state for flow_id, state in self.world.items() if (int(flow_id) * 7 + user) % 5}
        before, first = self.lists.get(user, {}), user not in self.lists
        changed = sorted(each for each in before.keys() | after.keys() if before.get(each) != after.get(each))
        if not changed:
            self.seen[user] = (self.seen[user][0], at)
            return
        self.lists[user] = after
        since = None if first else self.seen[user][1] - dt.timedelta(seconds=1)
        self._span(user, at)
        self.versions[user] += 1
        number = next(self.ids)
        changes = [self._row(user, number, each, before.get(each), after.get(each), at, first) for each in changed]
        yield self._head(user, number, run, at, since, Counter(row["kind"] for row in changes)), changes

    def _span(self, user: int, at: dt.datetime | None) -> None:
        if user in self.seen:
            first, last = self.seen[user]
            asked = max(first, last - dt.timedelta(seconds=1))
            times = {"first_at": first, "last_asked_at": asked, "last_at": last}
            self.spans.append({"target_id": user, "version": self.versions[user], **times, "interrupted": False})
        if at:
            self.seen[user] = (at, at)

    def _head(
        self, user: int, number: int, run: int, at: dt.datetime, since: dt.datetime | None, counts: Counter[str]
    ) -> dict[str, Any]:
        kinds = ("baseline", "added", "removed", "cycle_changed", "renamed", "editable_changed")
        return {
            "id": number,
            "target_id": user,
            "version": self.versions[user],
            "run_id": self.number * 100_000 + run,
            "kind": "baseline" if since is None else "delta",
            "observed_at": at,
            "last_unchanged_at": since,
            "asked_at": at,
            "previous_at": since,
            "flow_count": len(self.lists[user]),
            "format": 1,
            **dict.fromkeys(("state_digest", "data_hash", "parent_hash", "hash"), "0" * 64),
            **{kind: counts[kind] for kind in kinds},
        }

    def _row(
        self, user: int, number: int, flow_id: str, old: State | None, new: State | None, at: dt.datetime, first: bool
    ) -> dict[str, Any]:
        if old and new:
            kind = "cycle_changed" if old[1] != new[1] else "renamed"
        else:
            kind = "removed" if old else "baseline" if first else "added"
        stamp = at if old is None else self.stamps[user, flow_id][0]
        self.stamps[user, flow_id] = (stamp, at)
        both = zip(COLUMNS, (*(old or (None,) * 3), *(new or (None,) * 3)), strict=True)
        return {"change_set_id": number, "flow_id": flow_id, "kind": kind, **dict(both)}

    def close(self) -> None:
        for user in self.users():
            self._span(user, None)

    def targets(self) -> Iterator[dict[str, Any]]:
        for user in self.users():
            version, count = self.versions[user], len(self.lists[user])
            who = {"id": user, "org_id": self.name, "user_id": f"u{user:06}", "version": version, "flow_count": count}
            yield who | dict.fromkeys(("answer_digest", "state_digest"), "0" * 64)

    def workflows(self) -> Iterator[dict[str, Any]]:
        for user, listed in self.lists.items():
            for flow_id, (name, cycle, editable) in listed.items():
                what = {"flow_name": name, "cycle": cycle, "editable": editable}
                stamps = dict(zip(("first_listed_at", "changed_at"), self.stamps[user, flow_id], strict=True))
                yield {"target_id": user, "flow_id": flow_id, **what, **stamps}


class Timing(NamedTuple):
    """What a question took."""

    question: str
    rows: int
    seconds: float
    cpu_seconds: float


def generate(engine: Engine, rows: int) -> None:
    """Fill an empty schema with about so many changes."""
    ids = iter(range(1, sys.maxsize))
    with writing(engine) as connection:
        for number in range(max(1, rows // CHANGES_OF_AN_ORGANISATION)):
            organisation = Organisation(number, random.Random(number), ids)
            made = list(organisation.live(min(rows, CHANGES_OF_AN_ORGANISATION)))
            organisation.close()
            load(connection, target, organisation.targets())
            load(connection, change_set, (head for head, _ in made))
            load(connection, workflow_change, (row for _, changes in made for row in changes))
            load(connection, workflow, organisation.workflows())
            load(connection, observation, organisation.spans)


def multiply(engine: Engine, times: int) -> None:
    """Everything so many times, as other organisations."""
    with reading(engine) as connection:
        last = {table: connection.execute(select(func.max(_key(table)))).scalar_one() for table in COPIED}
    organisations = last[target] // USERS
    for nth in range(1, times):
        by = {"target_id": last[target], "change_set_id": last[change_set], "run_id": organisations * 100_000}
        with writing(engine) as connection:
            for table in COPIED:
                further = {name: nth * much for name, much in (by | {"id": last[table]}).items()}
                rows = [_copied(column, further, nth * organisations) for column in table.c]
                connection.execute(insert(table).from_select(table.c, select(*rows).where(_key(table) <= last[table])))


COPIED = (target, change_set, workflow_change, workflow, observation)


def _key(table: Table) -> Column[Any]:
    return next(iter(table.primary_key))


def _copied(column: Column[Any], further: dict[str, int], organisations: int) -> ColumnElement[Any]:
    if column.name == "org_id":
        return literal_column("'o'") + cast(cast(func.substr(column, 2), BigInteger) + organisations, Text)
    if column.name == "flow_id":
        return cast(cast(column, BigInteger) + organisations * WORKFLOWS, Text)
    return column + further[column.name] if column.name in further else column


def load(connection: Connection, table: Table, rows: Any) -> None:
    rows = iter(rows)
    while batch := list(islice(rows, BATCH)):
        if connection.dialect.name == "sqlite":
            connection.execute(insert(table), batch)
        else:
            copy(connection, table, batch)


def copy(connection: Connection, table: Table, rows: list[dict[str, Any]]) -> None:
    columns = list(rows[0])
    cursor = connection.connection.cursor()
    with cursor.copy(f"COPY {table.name} ({', '.join(columns)}) FROM STDIN") as sink:
        for row in rows:
            sink.write_row([row[column] for column in columns])


def settle(engine: Engine) -> None:
    """The statistics that autovacuum would have gathered. On the driver's own connection, which is outside a
    transaction until SQLAlchemy begins one."""
    with engine.connect() as connection:
        driver: Any = connection.connection.driver_connection
        driver.execute("ANALYZE" if engine.dialect.name == "sqlite" else "VACUUM ANALYZE")


ASKED = {
    "one workflow's history": "SELECT * FROM list_history WHERE org_id = :org AND flow_id = :flow",
    "an organisation's month of list_change": (
        "SELECT * FROM list_change WHERE org_id = :org AND observed_at >= :since AND observed_at < :until"
    ),
    "an organisation's changes of cycle": "SELECT * FROM list_change WHERE org_id = :org AND kind = 'cycle_changed'",
    "an organisation's org_workflow_event": "SELECT * FROM org_workflow_event WHERE org_id = :org",
    "an organisation's month of org_workflow_event": (
        "SELECT * FROM org_workflow_event WHERE org_id = :org AND observed_at >= :since AND observed_at < :until"
    ),
    "an organisation's org_workflow": "SELECT * FROM org_workflow WHERE org_id = :org",
    "an organisation's list_history": "SELECT * FROM list_history WHERE org_id = :org",
    "an organisation's list_workflow": "SELECT * FROM list_workflow WHERE org_id = :org",
    "one user's list_workflow": "SELECT * FROM list_workflow WHERE org_id = :org AND user_id = :user",
}


def questions(engine: Engine) -> dict[str, Callable[[], int]]:
    """What is asked of the first organisation, or a user or a workflow of it; each gives how many rows it got."""
    organisation = Organisation(0, random.Random(0), iter(()))
    org, user = organisation.name, f"u{organisation.users()[3]:06}"
    since, until = START + dt.timedelta(days=5), START + dt.timedelta(days=36)
    times = {"since": since, "until": until}
    values = {name: UtcTime().process_bind_param(at, engine.dialect) for name, at in times.items()}
    values |= {"org": org, "user": user, "flow": "7"}
    asked = {question: partial(ask, engine, text(sql), values) for question, sql in ASKED.items()}
    return asked | {"one user's list as of a month in": lambda: count(flows_as_of(engine, until, org=org, user=user))}


def ask(engine: Engine, statement: TextClause, values: dict[str, Any]) -> int:
    bound = {name: values[name] for name in statement.compile().params}
    with reading(engine) as connection:
        return count(connection.execute(statement, bound))


def count(rows: Iterable[Any]) -> int:
    return sum(1 for _ in rows)


def timed(question: str, run: Callable[[], int], rounds: int = 3) -> Timing:
    taken = []
    for _ in range(rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        rows = run()
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    return Timing(question, rows, round(min(each[0] for each in taken), 4), round(min(each[1] for each in taken), 4))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="an empty database: sqlite:////tmp/views.db or postgresql+psycopg://...")
    parser.add_argument("--rows", type=int, default=200_000, help="changes to generate (default: 200000)")
    parser.add_argument("--times", type=int, default=1, help="copies of all of it (default: 1)")
    parser.add_argument("--filled", action="store_true", help="the database was filled before: only ask")
    parser.add_argument("--json", action="store_true", help="a list of objects instead of a table")
    given = parser.parse_args()
    engine = connect(given.url)
    if not given.filled:
        upgrade(engine)
        generate(engine, given.rows)
        multiply(engine, given.times)
        settle(engine)
    timings = [timed(question, run) for question, run in questions(engine).items()]
    engine.dispose()
    sys.stdout.write(as_json(timings) if given.json else as_table(timings))


def as_json(timings: list[Timing]) -> str:
    return json.dumps([each._asdict() for each in timings], indent=2) + "\n"


def as_table(timings: list[Timing]) -> str:
    head = f"{'question':<48}{'rows':>9}{'seconds':>10}{'cpu_seconds':>13}\n"
    return head + "".join(
        f"{each.question:<48}{each.rows:>9}{each.seconds:>10.3f}{each.cpu_seconds:>13.3f}\n" for each in timings
    )


if __name__ == "__main__":
    main()
