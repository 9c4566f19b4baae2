"""The tables are what the metadata says, and invalid rows are refused."""

from __future__ import annotations

import datetime as dt
import re

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Boolean, Column, Engine, Integer, Table, insert, select, text
from sqlalchemy.exc import StatementError
from sqlalchemy.types import TypeEngine

from etl.database import reading, writing
from etl.errors import DatabaseDamaged, DatabaseError
from etl.schema import change_set, lease, metadata, observation, sync_run, target, workflow, workflow_change

NOON = dt.datetime(2026, 3, 1, 12, tzinfo=dt.UTC)
SHA = "0" * 64


def a_target(**values: object) -> dict[str, object]:
    return {"org_id": "o1", "user_id": "u1", **values}


def a_change_set(**values: object) -> dict[str, object]:
    row = {"target_id": 1, "version": 1, "run_id": 1, "kind": "baseline", "observed_at": NOON, "state_digest": SHA}
    return {**row, "asked_at": NOON, "data_hash": SHA, "format": 1, "parent_hash": SHA, "hash": SHA, **values}


def a_change(**values: object) -> dict[str, object]:
    return {"change_set_id": 1, "flow_id": "3318", "kind": "baseline", "new_name": "map", "new_cycle": "D", **values}


def a_span(**values: object) -> dict[str, object]:
    times = {"first_at": NOON, "last_asked_at": NOON, "last_at": NOON}
    return {"target_id": 1, "version": 1, **times, "interrupted": False, **values}


def a_run(**values: object) -> dict[str, object]:
    row = {
        "schedule": "plants",
        "origin": "schedule",
        "scheduled_for": NOON,
        "status": "running",
        "host": "h",
        "pid": 1,
    }
    return {**row, "started_at": NOON, "heartbeat_at": NOON, **values}


def a_workflow(**values: object) -> dict[str, object]:
    return {"target_id": 1, "flow_id": "1", "first_listed_at": NOON, "changed_at": NOON, **values}


def is_declared(thing: object, name: str | None, kind: str, *_: object) -> bool:
    """Partitions, indexes and unique constraints stand in the revisions alone."""
    is_partition = kind == "table" and str(name).startswith("workflow_change_below_")
    return not is_partition and kind not in ("index", "unique_constraint")


def differs_in_type(
    context: MigrationContext, inspected: Column, column: Column, found: TypeEngine, *_: object
) -> bool | None:
    """A strict table of SQLite takes no BOOLEAN: an INTEGER that a CHECK limits to 0 and 1 holds one."""
    on_sqlite = context.dialect.name == "sqlite"
    return False if on_sqlite and isinstance(column.type, Boolean) and isinstance(found, Integer) else None


def test_the_metadata_is_what_the_migrations_make(engine: Engine) -> None:
    defaults = engine.dialect.name == "postgresql"  # SQLite knows no Identity(), and would report it missing
    options = {
        "compare_server_default": defaults,
        "compare_type": differs_in_type,
        "include_object": is_declared,
    }
    with reading(engine) as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, metadata) == []


def test_ids_compare_byte_by_byte(engine: Engine) -> None:
    ids = ["a", "A", "a ", "é", "e\u0301", "ä", "Z", "10", "9"]
    with writing(engine) as connection:
        connection.execute(insert(workflow), [a_workflow(flow_id=flow_id) for flow_id in ids])
        ordered = connection.execute(select(workflow.c.flow_id).order_by(workflow.c.flow_id)).scalars().all()
        if engine.dialect.name == "postgresql":
            assert connection.scalar(text("SELECT pg_collation_for(flow_id) FROM workflow LIMIT 1")) == '"C"'
    assert ordered == sorted(ids)


# A time that ends in zeros, one in another zone, and one at each end of the calendar.
TIMES = [
    NOON,
    dt.datetime(2026, 3, 1, 23, 59, 59, 999999, dt.timezone(dt.timedelta(hours=8))),
    dt.datetime(1, 1, 1, tzinfo=dt.UTC),
    dt.datetime(9999, 12, 31, 23, 59, 59, 999999, dt.UTC),
]


def test_a_time_comes_back_as_the_same_moment_in_utc(engine: Engine) -> None:
    with writing(engine) as connection:
        for moment in TIMES:
            connection.execute(insert(lease).values(name=str(moment), holder="me", expires_at=moment))
        found = connection.execute(select(lease.c.expires_at).order_by(lease.c.expires_at)).scalars().all()
    assert found == sorted(TIMES)
    assert {moment.utcoffset() for moment in found} == {dt.timedelta(0)}


def test_a_time_on_sqlite_is_text_of_26_characters(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(insert(lease).values(name="active", holder="me", expires_at=NOON))
        raw = connection.exec_driver_sql("SELECT expires_at FROM lease").scalar_one()
    assert raw == ("2026-03-01 12:00:00.000000" if engine.dialect.name == "sqlite" else NOON)


@pytest.mark.parametrize("dialect", ["sqlite"], indirect=True)
@pytest.mark.parametrize("time", ["2026-W01-4 04:00:00.050000", "2026-02-30 04:00:00.000000", "now"])
def test_a_time_that_is_written_in_another_way_is_damage_in_one_sentence(engine: Engine, time: str) -> None:
    """SQL compares the texts, so it would be in another place than the moment that a parser makes of it."""
    with writing(engine) as connection:
        connection.exec_driver_sql("PRAGMA ignore_check_constraints = ON")
        connection.exec_driver_sql(f"INSERT INTO lease (name, holder, expires_at) VALUES ('active', 'me', '{time}')")
        connection.exec_driver_sql("PRAGMA ignore_check_constraints = OFF")
    said = f"'{time}' is not a time as YYYY-MM-DD HH:MM:SS.ffffff. `flowtrail verify` names its row"
    with pytest.raises(DatabaseDamaged, match=re.escape(said)), reading(engine) as connection:
        connection.execute(select(lease.c.expires_at)).all()


def test_a_time_without_a_zone_is_refused(engine: Engine) -> None:
    naive = NOON.replace(tzinfo=None)
    with writing(engine) as connection, pytest.raises(StatementError, match="no time zone"):
        connection.execute(insert(lease).values(name="active", holder="me", expires_at=naive))


REFUSED = {
    "a target without an organisation": (target, a_target(org_id="")),
    "a target twice": (target, a_target(user_id="known")),
    "an observed target without a digest": (target, a_target(version=1)),
    "a digest that is none": (target, a_target(state_digest="abc")),
    "a negative count": (target, a_target(flow_count=-1)),
    "a workflow without an id": (workflow, a_workflow(flow_id="")),
    "a version 0": (change_set, a_change_set(version=0, kind="delta", last_unchanged_at=NOON)),
    "a first version that is no baseline": (change_set, a_change_set(kind="delta", last_unchanged_at=NOON)),
    "a second baseline": (change_set, a_change_set(version=2)),
    "a delta since nobody knows when": (change_set, a_change_set(version=2, kind="delta")),
    "a change set of an unknown kind": (change_set, a_change_set(kind="rebase")),
    "a change set of no target": (change_set, a_change_set(target_id=99)),
    "a change set in no format": (change_set, a_change_set(format=0)),
    "a short hash of an answer": (change_set, a_change_set(data_hash=SHA[1:])),
    "a short hash": (change_set, a_change_set(hash=SHA[1:])),
    "a change of an unknown kind": (workflow_change, a_change(kind="touched")),
    "a span that ends before it starts": (observation, a_span(last_at=NOON - dt.timedelta(seconds=1))),
    "a span of no observation": (observation, a_span(observations=0)),
    "an approval of nothing": (change_set, a_change_set(approved_by="Wu")),
    "an approval by nobody": (change_set, a_change_set(approved_scope="c" * 64)),
    "a scope that is no digest": (change_set, a_change_set(approved_by="Wu", approved_scope="c")),
    "a span of no target": (observation, a_span(target_id=99)),
    "a run of an unknown origin": (sync_run, a_run(origin="cron")),
    "a run with an unknown status": (sync_run, a_run(status="done")),
    "a scheduled run without its slot": (sync_run, a_run(scheduled_for=None)),
}


def test_rows_that_the_design_excludes_are_refused(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(insert(target).values(a_target(id=1, user_id="known")))
    assert [case for case, (table, row) in REFUSED.items() if is_stored(engine, table, row)] == []


def is_stored(engine: Engine, table: Table, row: dict[str, object]) -> bool:
    try:
        with writing(engine) as connection:
            connection.execute(insert(table).values(row))
    except DatabaseError as error:
        return "refused" not in str(error)
    return True


def test_rows_that_the_design_allows_are_stored(engine: Engine) -> None:
    with writing(engine) as connection:
        connection.execute(insert(target).values(a_target(id=1)))
        connection.execute(insert(change_set), [a_change_set()])
        connection.execute(
            insert(change_set),
            [a_change_set(version=2, kind="delta", last_unchanged_at=NOON, approved_by="Wu", approved_scope="c" * 64)],
        )
        connection.execute(insert(workflow_change), [a_change(), a_change(kind="renamed", old_editable=True)])
        connection.execute(insert(observation), [a_span()])
        ids = connection.execute(select(change_set.c.id).order_by(change_set.c.version)).scalars().all()
    assert ids == [1, 2]


SPELLED_OTHERWISE = ["2026-W01-4 04:00:00.050000", "2026-01-01T04:00:00.050000", "2026-01-01 04:00:00,050000"]
"""Python takes each for a time of 26 characters."""
BAD_TYPES = [
    "INSERT INTO target (org_id, user_id, version) VALUES ('o', 'u', 'many')",
    "INSERT INTO target (org_id, user_id, held_since) VALUES ('o', 'u', '2026-03-01')",
    *(f"INSERT INTO target (org_id, user_id, held_since) VALUES ('o', 'u', {time!r})" for time in SPELLED_OTHERWISE),
    "INSERT INTO target (org_id, user_id) VALUES (x'00', 'u')",
    "INSERT INTO workflow VALUES (1, '1', 'map', 'D', 'yes', '2026-03-01 12:00:00.000000', "
    "'2026-03-01 12:00:00.000000', NULL, NULL)",
]


@pytest.mark.parametrize("statement", BAD_TYPES)
@pytest.mark.parametrize("dialect", ["sqlite"])
def test_sqlite_refuses_what_a_column_does_not_hold(engine: Engine, statement: str) -> None:
    with pytest.raises(DatabaseError, match=r"CHECK constraint|cannot store"), writing(engine) as connection:
        connection.exec_driver_sql(statement)
