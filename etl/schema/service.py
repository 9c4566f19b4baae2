"""The service's own records: notifications, conditions, checks of the trail, and which replica is active."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Column,
    Table,
)

from etl.schema.columns import BIG, BYTEWISE, UtcTime, count, metadata, string, time

overdue_notice: Final = Table(
    "overdue_notice",
    metadata,
    Column("target_id", BIG, primary_key=True, autoincrement=False),
    time("notified_at"),
    comment="A target that receivers know to be overdue, until they are told that it no longer is.",
)

condition: Final = Table(
    "condition",
    metadata,
    Column("code", BYTEWISE, primary_key=True),
    Column("cause", BYTEWISE, primary_key=True),
    time("since"),
    count("subjects"),
    string("named"),
    string("said"),
    string("remedy"),
    Column("begin_told_at", UtcTime),
    Column("ended_at", UtcTime),
    comment="A condition: since when, and whether receivers were told; deleted once they know that it has ended.",
)

verification: Final = Table(
    "verification",
    metadata,
    Column("kind", BYTEWISE, primary_key=True),
    time("began_at"),
    time("ended_at"),
    count("targets"),
    count("change_sets"),
    count("last_seal", big=True),
    count("findings"),
    string("finding"),
    comment="The service's last check of the trail, for each kind: up to which seal, and its findings.",
)

lease: Final = Table(
    "lease",
    metadata,
    Column("name", BYTEWISE, primary_key=True),
    string("holder"),
    time("expires_at"),
    comment="Which replica is active, by the database's clock.",
)
