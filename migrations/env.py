"""What Alembic runs: one transaction for the whole upgrade, one upgrade at a time.

``alembic upgrade head`` in a checkout takes the database from ``-x url=...`` or FLOWTRAIL_DATABASE__URL.
A program hands over its connection as ``config.attributes["connection"]``, best with its transaction begun.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from alembic import context
from sqlalchemy import Connection

from etl.schema import metadata

UPGRADE_LOCK = 0x666C6F7774726169  # "flowtrai": any 64-bit number that nobody else is likely to take


def url() -> str:
    given = context.get_x_argument(as_dictionary=True).get("url") or os.environ.get("FLOWTRAIL_DATABASE__URL")
    if not given:
        raise SystemExit("Which database? Give -x url=... or set FLOWTRAIL_DATABASE__URL.")
    return given


@contextmanager
def own_connection() -> Iterator[Connection]:
    from etl.database import connect, creating

    engine = connect(url())
    try:
        with creating(engine) as connection:
            yield connection
    finally:
        engine.dispose()


def take_turns(connection: Connection) -> None:
    """Others wait here until the transaction ends; then they find the work done."""
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({UPGRADE_LOCK})")
    elif not connection.connection.driver_connection.in_transaction:
        connection.exec_driver_sql("BEGIN IMMEDIATE")


def run(connection: Connection) -> None:
    take_turns(connection)
    context.configure(connection=connection, target_metadata=metadata)
    context.run_migrations()


def main() -> None:
    given = context.config.attributes.get("connection")
    if given is None:
        with own_connection() as connection:
            run(connection)
    elif given.in_transaction():
        run(given)
    else:
        with given.begin():
            run(given)


def print_sql() -> None:
    context.configure(url=url(), literal_binds=True, transactional_ddl=True)
    with context.begin_transaction():
        context.run_migrations()


if context.is_offline_mode():
    print_sql()
else:
    main()
