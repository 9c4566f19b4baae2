"""The schema: which revision a database has, which one it should have, and how to get there."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from sqlalchemy import Connection, Engine, inspect

from etl.database import catalog
from etl.database.engine import connect, describe, file_of
from etl.database.transactions import creating, reading, trying, writing
from etl.errors import SchemaAhead, SchemaMismatch

if TYPE_CHECKING:  # Alembic is slow to load, and a run on a schema that is current needs none of it
    from alembic.config import Config

_one_alembic_at_a_time: Final = threading.Lock()
"""Alembic's environment is global to the process."""


def expected() -> str:
    """The revision that this program needs."""
    return _revisions()[-1]


def current(engine: Engine) -> str | None:
    """The revision of the database; None if it has no schema, or the SQLite file does not exist yet."""
    if _is_missing(engine):
        return None
    with reading(engine) as connection:
        if not inspect(connection).has_table("alembic_version"):
            return None
        return connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()


def upgrade(engine: Engine) -> None:
    """Bring the schema to ``expected()``, completely or not at all; any number of processes may do so at once.

    Raises SchemaMismatch if the database is newer than this program.
    """
    found = current(engine)
    if found == expected():
        return
    _refuse_unknown(engine, found)
    with creating(engine) as connection:
        _run_migrations(connection)


def require_current(engine: Engine, *, create_if_empty_sqlite: bool = False) -> None:
    """Raise SchemaMismatch, which says what to do, unless the database has ``expected()``.

    With ``create_if_empty_sqlite``, a missing or empty SQLite file gets its schema instead.
    """
    found = current(engine)
    if found is None and create_if_empty_sqlite and is_empty_sqlite(engine):
        return upgrade(engine)
    name = describe(engine.url)
    if found is None and is_empty_sqlite(engine):
        raise SchemaMismatch(f"Nothing is recorded yet: the first `flowtrail sync` creates {name}.")
    if found is None:
        raise SchemaMismatch(f"{name} has no Flowtrail schema: run `flowtrail db upgrade`.")
    _refuse_unknown(engine, found)
    if found != expected():
        raise SchemaMismatch(
            f"The schema of {name} is at revision {found}, behind the {expected()} that this Flowtrail needs: "
            "run `flowtrail db upgrade`."
        )
    return None


def _refuse_unknown(engine: Engine, found: str | None) -> None:
    if found is not None and found not in _revisions():
        raise SchemaAhead(
            f"The schema of {describe(engine.url)} is at revision {found}, ahead of this Flowtrail, which knows "
            f"{expected()}: install the newer Flowtrail (`flowtrail db upgrade` cannot go back)."
        )


def check(engine: Engine) -> list[str]:
    """How the live schema differs from the one that the migrations make; empty if it does not.

    One sentence for each missing, altered or extra table, column, index, constraint, trigger and view; on PostgreSQL
    also for each policy, option of a view and partition of the trail, and for change sets without one.
    On PostgreSQL the expected schema is built from temporary objects, which needs only the privilege TEMPORARY.
    """
    found = current(engine)
    if found != expected():
        return [f"the schema is at revision {found}, not {expected()}: run `flowtrail db upgrade`"]
    if engine.dialect.name == "sqlite":
        with reading(engine) as connection:
            live = catalog.of_sqlite(connection)
        return catalog.differences(_fresh_sqlite(), live)
    with trying(engine) as connection:
        live, partitions = catalog.of_postgresql(connection), catalog.partitions(connection)
        gaps = catalog.gaps(connection)
        connection.exec_driver_sql("SET LOCAL search_path TO pg_temp")
        _run_migrations(connection)
        fresh, alike = catalog.of_postgresql(connection), catalog.partitions(connection)
        fresh = catalog.reworded(connection, fresh, live)
    one = next(iter(alike.values()))
    return [
        *catalog.differences(fresh, live),
        *gaps,
        *(each.replace("*", name) for name, parts in partitions.items() for each in catalog.differences(one, parts)),
    ]


def _fresh_sqlite() -> catalog.Catalog:
    engine = connect("sqlite://")
    try:
        with writing(engine) as connection:
            _run_migrations(connection)
            return catalog.of_sqlite(connection)
    finally:
        engine.dispose()


def _run_migrations(connection: Connection) -> None:
    import alembic.command

    with _one_alembic_at_a_time:
        alembic.command.upgrade(_config(connection), "head")


def _config(connection: Connection) -> Config:
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(_folder()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def _revisions() -> list[str]:
    """The revisions from oldest to newest: each is a file, NNNN_what_it_does.py, and follows the one before."""
    return sorted(script.name.partition("_")[0] for script in (_folder() / "versions").glob("[0-9]*_*.py"))


def _folder() -> Path:
    """In a checkout the migrations are next to ``etl/``; in the wheel they are inside."""
    here = Path(__file__).parents[1]
    inside = here / "migrations"
    return inside if inside.is_dir() else here.parent / "migrations"


def _is_missing(engine: Engine) -> bool:
    file = file_of(engine.url) if engine.dialect.name == "sqlite" else None
    return file is not None and file.parent.is_dir() and not file.exists()


def is_empty_sqlite(engine: Engine) -> bool:
    """Whether it is an SQLite file that is missing, or has no table."""
    if engine.dialect.name != "sqlite":
        return False
    if _is_missing(engine):
        return True
    with reading(engine) as connection:
        return connection.exec_driver_sql("SELECT 1 FROM sqlite_master").first() is None
