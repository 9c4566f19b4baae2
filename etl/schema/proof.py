"""What proves the trail: seals, their time stamps, the trail's own name, and kept answers."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Column,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
)

from etl.schema.columns import BIG, BYTEWISE, id_column, metadata, string, time

run_seal: Final = Table(
    "run_seal",
    metadata,
    Column("id", BIG, primary_key=True, autoincrement=False),
    Column("format", Integer, nullable=False),
    Column("run_id", BIG, nullable=False),
    string("parent"),
    string("seal"),
    time("sealed_at"),
    string("targets_digest"),
    string("change_sets_digest"),
    string("issues_digest"),
    string("events_digest"),
    Column("signature", Text),
    Column("key_id", Text),
    UniqueConstraint("run_id"),
    comment="The seal of a run that has ended, chained to the seal before. Append-only.",
)

seal_timestamp: Final = Table(
    "seal_timestamp",
    metadata,
    Column("seal_id", BIG, primary_key=True, autoincrement=False),
    time("stamped_at"),
    Column("token", LargeBinary, nullable=False),
    comment="The time stamp of a seal by an authority (RFC 3161): its token, in DER. Append-only.",
)

trail: Final = Table(
    "trail",
    metadata,
    id_column(),
    string("trail_id"),
    time("created_at"),
    string("reason"),
    Column("first_seal", BIG, nullable=False),
    Column("last_seal", BIG, nullable=False),
    string("head"),
    time("sealed_at"),
    UniqueConstraint("trail_id"),
    comment="This trail, after those that it was copied from. Append-only, but for the head: the last seal, its "
    "hash (what the next one has as parent) and its time.",
)

answer: Final = Table(
    "answer",
    metadata,
    Column("data_hash", BYTEWISE, primary_key=True),
    Column("body", LargeBinary, nullable=False),
    string("encoding"),
    Column("length", BIG, nullable=False),
    Column("first_run_id", BIG, nullable=False),
    comment="The bytes of data of an answer, compressed, under their hash; kept once. Append-only.",
)
