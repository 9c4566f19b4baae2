"""How fast a trail of many changes is verified and asked, where real runs have written it.

    python -m benchmarks.lived sqlite:////tmp/lived.db --rows 2000000
    python -m benchmarks.lived sqlite:////tmp/lived.db --filled --verify
    python -m benchmarks.lived postgresql+psycopg://... --filled        # after: flowtrail db copy

An organisation has 25 users, who see most of 1,000 workflows, and 100,000 changes; a run asks all of them every three
hours, under a clock of its own. Unlike the rows of ``views.py`` these have everything: chains, seals and organisations'
events. Then each statement of ``docs/sql.md`` is asked, of one organisation and of all, and what stood in the lists at
one moment.
"""

from __future__ import annotations

import argparse
import datetime as dt
import random
import re
import resource
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Engine, func, select, text

from benchmarks.views import CHANGES_OF_AN_ORGANISATION, EVERY, START, Organisation, settle
from benchmarks.views import count as count_rows
from etl import sync
from etl.database import connect, reading, upgrade
from etl.domain.guard import Limits
from etl.domain.model import Flow, Target
from etl.report.asof import flows_as_of
from etl.report.listings import EVENTS, STATES
from etl.schema import org_event, workflow_change
from etl.store import NewAcknowledgement, NewRun, Store
from etl.verify import verify
from tests.support.questions import Upstream

PAGE = Path(__file__).parents[1] / "docs" / "sql.md"
QUESTION = re.compile(r"^## ([^\n]+\?)\n\n.*?\n\n```sql\n(.*?)```$", re.DOTALL | re.MULTILINE)
ACKNOWLEDGED = 10_000
NAMES_AN_ORGANISATION = re.compile(r"org_id = 'o-\w+'")


class World:
    """What every user sees, and a clock that advances by a millisecond a reading."""

    def __init__(self, organisations: int) -> None:
        self.organisations = [Organisation(n, random.Random(n), count(1)) for n in range(organisations)]
        self.targets = [Target(each.name, f"u{user:06}") for each in self.organisations for user in each.users()]
        self.upstream = Upstream({})
        self.upstream.clock = self._clock
        self._now = START
        for each in self.organisations:
            each.begin()

    def _clock(self) -> dt.datetime:
        self._now += dt.timedelta(milliseconds=1)
        return self._now

    def pass_time(self) -> None:
        """Let three hours pass, in which every organisation changes."""
        self._now += EVERY
        for each in self.organisations:
            each.change()
            each.change()
        self.upstream.lists = dict(self._lists())

    def _lists(self) -> Iterator[tuple[Target, list[Flow]]]:
        for each in self.organisations:
            flows = {int(flow_id): Flow(flow_id, *state) for flow_id, state in each.world.items()}
            for user in each.users():
                seen = [flow for flow_id, flow in flows.items() if (flow_id * 7 + user) % 5]
                yield Target(each.name, f"u{user:06}"), seen


def live(engine: Engine, rows: int) -> None:
    """Run until the trail has about ``rows`` changes."""
    world, store = World(max(1, rows // CHANGES_OF_AN_ORGANISATION)), Store(engine)
    new = NewRun(origin="command", host="here", pid=1, targets=len(world.targets), lists={"all": world.targets})
    with ThreadPoolExecutor(4) as fetchers, ThreadPoolExecutor(2) as writers, ThreadPoolExecutor(2) as batches:
        context = sync.RunContext(
            store=store, gateway=world.upstream, fetchers=fetchers, writers=writers, in_flight=4,
            limits=Limits(min_removed=10**9), down_after=9, stop=world.upstream.stop,
        )  # fmt: skip
        while _changes(engine) < rows:
            world.pass_time()
            sync.run(context, new, world.targets, batches, clock=world.upstream.clock)
        agree(engine)
        sync.run(context, new, world.targets, batches, clock=world.upstream.clock)


def agree(engine: Engine) -> None:
    """Acknowledge half of the events, but at most 10,000, and for some hours all that happened in an organisation."""
    names = ("org_id", "flow_id", "kind", "user_id", "last_unchanged_at", "observed_at")
    with reading(engine) as connection:
        events = connection.execute(select(*(org_event.c[name] for name in names)).order_by(org_event.c.event_id)).all()
    chance, made = random.Random(1), []
    for number, event in enumerate(chance.sample(events, min(len(events) // 2, ACKNOWLEDGED))):
        scope = dict(zip(("flow_id", "kind", "user_id"), event[1:4], strict=True)) if number % 20 else {}
        between: dict[str, Any] = {"after": event.last_unchanged_at, "until": event.observed_at}
        made.append(NewAcknowledgement(made_by="ada", org_id=event.org_id, ticket=f"CHG-{number}", **scope, **between))
    Store(engine).acknowledge(made, START)


def _changes(engine: Engine) -> int:
    with reading(engine) as connection:
        return connection.execute(select(func.count()).select_from(workflow_change)).scalar_one()


class Timing(NamedTuple):
    """What a question took, in seconds."""

    question: str
    rows: int
    seconds: float


def timings(engine: Engine, only: str) -> Iterator[Timing]:
    """The best of two, of each question that has ``only`` in its title."""
    for title, run in questions(engine):
        if only in title:
            taken = []
            for _ in range(2):
                began = time.perf_counter()
                rows = run()
                taken.append(time.perf_counter() - began)
            yield Timing(title, rows, min(taken))


def questions(engine: Engine) -> Iterator[tuple[str, Callable[[], int]]]:
    organisation = Organisation(0, random.Random(0), count(1))
    org, user, other = organisation.name, *(f"u{each:06}" for each in organisation.users()[:2])
    with reading(engine) as connection:
        until = connection.execute(select(func.max(org_event.c.observed_at))).scalar_one()
    for title, sql in QUESTION.findall(PAGE.read_text(encoding="utf-8")):
        for old, new in (("'alice'", user), ("'bob'", other)):
            sql = sql.replace(old, f"'{new}'")
        sql = re.sub(r"flow_id = '\d'", "flow_id = '8'", sql)
        sql = _within(sql, until)
        if of_one := _of_one(sql, org):
            yield f"{title} (one)", partial(_ask, engine, of_one)
        yield f"{title} (all)", partial(_ask, engine, NAMES_AN_ORGANISATION.sub("org_id >= ''", sql))
    at = START + (until - START) / 2
    yield "flows --as-of (one)", lambda: count_rows(flows_as_of(engine, at, org=org))
    yield "flows --as-of (all)", lambda: count_rows(flows_as_of(engine, at))
    yield "workflows --as-of (one)", lambda: count_rows(STATES.rows(engine, at=at, org=org))
    yield "workflows --as-of (all)", lambda: count_rows(STATES.rows(engine, at=at))
    asked = {"acknowledged": "no", "newest_first": True}
    yield "events --unacknowledged", lambda: count_rows(EVENTS.rows(engine, **asked, limit=201))
    yield "events --unacknowledged --json --limit 0", lambda: count_rows(EVENTS.rows(engine, **asked))


def _within(sql: str, until: dt.datetime) -> str:
    """The page's times, January to March, moved into the world's."""
    page = (dt.datetime(2026, 1, 1, tzinfo=dt.UTC), dt.datetime(2026, 4, 1, tzinfo=dt.UTC))

    def moved(found: re.Match[str]) -> str:
        at = dt.datetime.fromisoformat(found[1]).replace(tzinfo=dt.UTC)
        return f"'{START + (at - page[0]) / (page[1] - page[0]) * (until - START):%Y-%m-%d %H:%M:%S}+00'"

    return re.sub(r"'(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d)\+00'", moved, sql)


def _of_one(sql: str, org: str) -> str | None:
    """The statement about one organisation: as it stands, or with the condition added to its first WHERE; None if it
    reads no table or view that names one."""
    if NAMES_AN_ORGANISATION.search(sql):
        return NAMES_AN_ORGANISATION.sub(f"org_id = '{org}'", sql)
    if "FROM change_set s\nLEFT JOIN" in sql:
        return None
    if "JOIN target t" in sql:
        condition = f"t.org_id = '{org}'"
    else:
        named = re.search(r"FROM org_workflow w\b", sql)
        condition = f"{'w.' if named else ''}org_id = '{org}'"
    if "WHERE" in sql:
        return sql.replace("WHERE", f"WHERE {condition} AND", 1)
    place = re.search(r"^(GROUP BY|HAVING|ORDER BY|LIMIT)", sql, re.MULTILINE)
    assert place is not None
    return f"{sql[: place.start()]}WHERE {condition}\n{sql[place.start() :]}"


def _ask(engine: Engine, sql: str) -> int:
    with reading(engine) as connection:
        return count_rows(connection.execute(text(sql.replace(":", r"\:"))))


def verified(engine: Engine) -> str:
    began, cpu = time.perf_counter(), time.process_time()
    found = list(verify(engine))
    seconds, peak = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cpu = time.process_time() - cpu
    return f"verify: {len(found)} findings in {seconds:.1f} s ({cpu:.1f} s of CPU), {peak:.0f} MiB\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("url", help="an empty database: sqlite:////tmp/lived.db or postgresql+psycopg://...")
    parser.add_argument("--rows", type=int, default=200_000, help="changes to make (default: 200000)")
    parser.add_argument("--filled", action="store_true", help="the database was filled before: only ask")
    parser.add_argument("--verify", action="store_true", help="verify all of it, too")
    parser.add_argument("--only", default="", help="only questions with these words in their title")
    given = parser.parse_args()
    engine = connect(given.url)
    if not given.filled:
        upgrade(engine)
        live(engine, given.rows)
        settle(engine)
    if given.verify:
        sys.stdout.write(verified(engine))
    for question, rows, seconds in timings(engine, given.only):
        sys.stdout.write(f"{question:<72}{rows:>9,}{seconds:>9.3f}\n")
        sys.stdout.flush()
    engine.dispose()


if __name__ == "__main__":
    main()
