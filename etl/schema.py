"""The tables that the statements are written with.

The Alembic revisions create them, with the checks, triggers and views that queries do not need to know.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Dialect,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
    text,
)
from sqlalchemy.types import TypeDecorator, TypeEngine


class UtcTime(TypeDecorator[dt.datetime]):
    """An aware time, given back in UTC: ``timestamptz``, or ``YYYY-MM-DD HH:MM:SS.ffffff`` text on SQLite.

    A naive datetime is refused with a ValueError: nobody knows which moment it means.
    """

    impl = DateTime(timezone=True)
    cache_ok = True

    @property
    def python_type(self) -> type[dt.datetime]:
        return dt.datetime

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return Text() if dialect.name == "sqlite" else DateTime(timezone=True)

    def process_bind_param(self, value: dt.datetime | None, dialect: Dialect) -> dt.datetime | str | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"{value!r} has no time zone")
        utc = value.astimezone(dt.UTC)
        return utc.replace(tzinfo=None).isoformat(" ", "microseconds") if dialect.name == "sqlite" else utc

    def result_processor(self, dialect: Dialect, coltype: object) -> Callable[[Any], dt.datetime | None]:
        return _from_text if dialect.name == "sqlite" else _in_utc


def _from_text(value: str | None) -> dt.datetime | None:
    return None if value is None else dt.datetime.fromisoformat(value + "+00:00")


def _in_utc(value: dt.datetime | None) -> dt.datetime | None:
    return None if value is None else value.astimezone(dt.UTC)


metadata: Final = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "uq": "uq_%(table_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

_BIG: Final = BigInteger().with_variant(Integer(), "sqlite")
_BYTEWISE: Final = Text().with_variant(Text(collation="C"), "postgresql")
"""Text that is compared or indexed, byte by byte, as SQLite does by default."""


def _id() -> Column[int]:
    return Column("id", _BIG, Identity(), primary_key=True)


def _key(name: str) -> Column[str]:
    return Column(name, _BYTEWISE, nullable=False)


def _string(name: str) -> Column[str]:
    return Column(name, Text, nullable=False)


def _time(name: str) -> Column[dt.datetime]:
    return Column(name, UtcTime, nullable=False)


def _count(name: str, *, big: bool = False) -> Column[int]:
    return Column(name, _BIG if big else Integer, nullable=False, server_default=text("0"))


COMING: Final = text("retired_at IS NULL AND (counts_since IS NULL OR away_since >= counts_since)")
"""A target that does not count (again) in its organisation's story yet."""
LEAVING: Final = text("retired_at IS NOT NULL AND (away_since IS NULL OR away_since < retired_at)")
"""A target that was retired, and still counts."""

target: Final = Table(
    "target",
    metadata,
    _id(),
    _key("org_id"),
    _key("user_id"),
    Column("expression", _BYTEWISE, nullable=False, server_default=""),
    _count("version"),
    _count("fence", big=True),
    Column("observation_id", _BIG),
    Column("answer_digest", Text),
    Column("data_hash", Text),
    Column("state_digest", Text),
    _count("flow_count"),
    _count("consecutive_failures"),
    Column("last_error_code", Text),
    Column("last_error", Text),
    Column("held_since", UtcTime),
    Column("retired_at", UtcTime),
    Column("held_asked_at", UtcTime),
    Column("held_at", UtcTime),
    _count("projected_version"),
    Column("counts_since", UtcTime),
    Column("away_since", UtcTime),
    UniqueConstraint("org_id", "user_id", "expression"),
    Index("ix_target_coming", "org_id", "expression", postgresql_where=COMING, sqlite_where=COMING),
    Index("ix_target_leaving", "org_id", "expression", postgresql_where=LEAVING, sqlite_where=LEAVING),
    comment="One (organisation, user, search expression); version 0 was never observed.",
)

workflow: Final = Table(
    "workflow",
    metadata,
    Column("target_id", _BIG, primary_key=True, autoincrement=False),
    Column("flow_id", _BYTEWISE, primary_key=True),
    Column("flow_name", Text),
    Column("cycle", Text),
    Column("editable", Boolean),
    _time("first_seen_at"),
    _time("changed_at"),
    Column("missing_since", UtcTime),
    Index(
        "ix_workflow_missing",
        "target_id",
        postgresql_where=text("missing_since IS NOT NULL"),
        sqlite_where=text("missing_since IS NOT NULL"),
    ),
    comment="A workflow as its target sees it now; missing_since while its removal is held.",
)

change_set: Final = Table(
    "change_set",
    metadata,
    _id(),
    Column("target_id", _BIG, ForeignKey("target.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("run_id", _BIG, nullable=False),
    _string("kind"),
    _time("observed_at"),
    Column("last_unchanged_at", UtcTime),
    _time("asked_at"),
    Column("previous_at", UtcTime),
    Column("held_asked_at", UtcTime),
    Column("held_at", UtcTime),
    _count("flow_count"),
    _string("state_digest"),
    _count("baseline"),
    _count("added"),
    _count("removed"),
    _count("cycle_changed"),
    _count("renamed"),
    _count("editable_changed"),
    Column("approved_by", Text),
    Column("approved_scope", Text),
    _string("data_hash"),
    Column("format", Integer, nullable=False),
    _string("parent_hash"),
    _string("hash"),
    UniqueConstraint("target_id", "version"),
    Index(None, "target_id", "observed_at"),
    Index(None, "observed_at"),
    Index(None, "run_id"),
    comment="One version of a target, chained by hashes. Append-only.",
)

workflow_change: Final = Table(
    "workflow_change",
    metadata,
    Column("change_set_id", _BIG, primary_key=True, autoincrement=False),
    Column("flow_id", _BYTEWISE, primary_key=True),
    Column("kind", _BYTEWISE, primary_key=True),
    Column("old_name", Text),
    Column("new_name", Text),
    Column("old_cycle", Text),
    Column("new_cycle", Text),
    Column("old_editable", Boolean),
    Column("new_editable", Boolean),
    Index(None, "flow_id", "change_set_id"),
    comment="One change of one workflow, with the full before and after. Append-only.",
    postgresql_partition_by="RANGE (change_set_id)",
)
CHANGE_KIND: Final = workflow_change.c.kind.concat(literal_column("''"))
"""The kind of a change, for a condition. Bare, as the third column of the primary key, it lets PostgreSQL 18 price an
index scan as one that skips from workflow to workflow: on a large trail it then reads whole partitions instead."""

observation: Final = Table(
    "observation",
    metadata,
    _id(),
    Column("target_id", _BIG, ForeignKey("target.id"), nullable=False),
    Column("version", Integer, nullable=False),
    _time("first_at"),
    _time("last_asked_at"),
    _time("last_at"),
    Column("observations", Integer, nullable=False, server_default=text("1")),
    _count("longest_gap_seconds", big=True),
    Column("interrupted", Boolean, nullable=False),
    Index(None, "target_id", "id"),
    Index(None, "target_id", "version", "id"),
    comment="A span of time in which a version was seen without interruption.",
)

ASKS_NOBODY: Final = '{"targets":[],"membership_id":0}'
"""The scope of a run that asks no target."""
DIGEST_OF_NONE: Final = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
"""The digest of an empty list."""
OWN_SLOT: Final = text("origin IN ('schedule', 'catch_up') AND status <> 'aborted'")
"""A run that has its slot to itself. Written like the index over slots, so that SQLite can use it."""

sync_run: Final = Table(
    "sync_run",
    metadata,
    _id(),
    Column("schedule", _BYTEWISE),
    _string("origin"),
    Column("scheduled_for", UtcTime),
    _count("missed"),
    _string("status"),
    _time("started_at"),
    _time("heartbeat_at"),
    Column("finished_at", UtcTime),
    Column("closed_at", UtcTime),
    Column("notified_at", UtcTime),
    Column("scope", Text, nullable=False, server_default=ASKS_NOBODY),
    Column("targets_digest", Text, nullable=False, server_default=DIGEST_OF_NONE),
    _string("host"),
    Column("pid", Integer, nullable=False),
    _count("targets"),
    _count("changed"),
    _count("unchanged"),
    _count("held"),
    _count("failed"),
    _count("stale"),
    _count("baseline", big=True),
    _count("added", big=True),
    _count("removed", big=True),
    _count("cycle_changed", big=True),
    _count("renamed", big=True),
    _count("editable_changed", big=True),
    Index(
        "uq_sync_run_slot",
        "schedule",
        "scheduled_for",
        unique=True,
        postgresql_where=OWN_SLOT,
        sqlite_where=OWN_SLOT,
    ),
    Index(None, "schedule", "id"),
    Index(
        "ix_sync_run_running",
        "heartbeat_at",
        postgresql_where=text("status = 'running'"),
        sqlite_where=text("status = 'running'"),
    ),
    Index(
        "ix_sync_run_untold",
        "finished_at",
        postgresql_where=text("notified_at IS NULL"),
        sqlite_where=text("notified_at IS NULL"),
    ),
    comment="One run of a schedule, of the command or of an approval, with its sums.",
)

sync_issue: Final = Table(
    "sync_issue",
    metadata,
    _id(),
    Column("run_id", _BIG, ForeignKey("sync_run.id", ondelete="CASCADE"), nullable=False),
    Column("target_id", _BIG, nullable=False),
    _string("verdict"),
    Column("error_code", Text),
    _string("message"),
    _count("attempts"),
    _count("missing"),
    Index(None, "run_id"),
    Index(None, "target_id", "id"),
    comment="A target that did not go through in a run, and why.",
)

target_membership: Final = Table(
    "target_membership",
    metadata,
    _id(),
    Column("target_id", _BIG, nullable=False),
    Column("run_id", _BIG, nullable=False),
    Column("schedule", _BYTEWISE),
    _string("kind"),
    _time("at"),
    Index(None, "schedule", "target_id", "id"),
    Index(None, "target_id", "id"),
    Index(None, "run_id", "id"),
    Index(
        "ix_target_membership_retired",
        "target_id",
        "at",
        postgresql_where=text("schedule IS NULL"),
        sqlite_where=text("schedule IS NULL"),
    ),
    comment="When a target came into a schedule and left it, was retired and came back. Append-only.",
)

hold_event: Final = Table(
    "hold_event",
    metadata,
    _id(),
    Column("target_id", _BIG, nullable=False),
    Column("run_id", _BIG, nullable=False),
    _string("kind"),
    _time("at"),
    _string("flow_ids"),
    _string("data_hash"),
    Index(None, "target_id", "id"),
    Index(None, "run_id", "id"),
    comment="Which workflows' removal was held, since when, and how that ended. Append-only.",
)

pruned_issues: Final = Table(
    "pruned_issues",
    metadata,
    _id(),
    Column("run_id", _BIG, nullable=False),
    Column("pruned_run_id", _BIG, nullable=False),
    _time("at"),
    Index(None, "run_id", "id"),
    Index(None, "pruned_run_id"),
    comment="A run whose issues were deleted, and the run that deleted them. Append-only.",
)

run_seal: Final = Table(
    "run_seal",
    metadata,
    Column("id", _BIG, primary_key=True, autoincrement=False),
    Column("format", Integer, nullable=False),
    Column("run_id", _BIG, nullable=False),
    _string("parent"),
    _string("seal"),
    _time("sealed_at"),
    _string("targets_digest"),
    _string("change_sets_digest"),
    _string("issues_digest"),
    _string("events_digest"),
    Column("signature", Text),
    Column("key_id", Text),
    UniqueConstraint("run_id"),
    comment="The seal of a run that has ended, chained to the seal before. Append-only.",
)

seal_timestamp: Final = Table(
    "seal_timestamp",
    metadata,
    Column("seal_id", _BIG, primary_key=True, autoincrement=False),
    _time("stamped_at"),
    Column("token", LargeBinary, nullable=False),
    comment="What an authority (RFC 3161) said of when it was shown a seal: its token, in DER. Append-only.",
)

trail: Final = Table(
    "trail",
    metadata,
    _id(),
    _string("trail_id"),
    _time("created_at"),
    _string("reason"),
    Column("first_seal", _BIG, nullable=False),
    Column("last_seal", _BIG, nullable=False),
    _string("head"),
    _time("sealed_at"),
    UniqueConstraint("trail_id"),
    comment="This trail, after those that it was copied from. Append-only, but for the head: the last seal, its "
    "hash (what the next one has as parent) and its time.",
)

answer: Final = Table(
    "answer",
    metadata,
    Column("data_hash", _BYTEWISE, primary_key=True),
    Column("body", LargeBinary, nullable=False),
    _string("encoding"),
    Column("length", _BIG, nullable=False),
    Column("first_run_id", _BIG, nullable=False),
    comment="The bytes of data of an answer, which hash to data_hash, compressed; kept once. Append-only.",
)

organisation: Final = Table(
    "organisation",
    metadata,
    Column("org_id", _BYTEWISE, primary_key=True),
    comment="An organisation whose lists lost something: its row is locked while its removals are added up.",
)

org_turnover: Final = Table(
    "org_turnover",
    metadata,
    _id(),
    _key("org_id"),
    Column("run_id", _BIG, nullable=False),
    _time("counted_at"),
    _count("added"),
    _count("removed"),
    Index(None, "org_id", "counted_at"),
    Index(None, "counted_at"),
    comment="What one transaction added to an organisation's lists and removed from them; for the guard's window.",
)

workflow_detail: Final = Table(
    "workflow_detail",
    metadata,
    _id(),
    _key("org_id"),
    _key("flow_id"),
    Column("run_id", _BIG, nullable=False),
    _time("asked_at"),
    _time("observed_at"),
    Column("update_user", Text),
    Column("update_time", Text),
    Column("creator", Text),
    Column("create_time", Text),
    Column("owner", Text),
    Column("freq", Text),
    Column("active", Integer),
    Column("type", Integer),
    Column("locked", Boolean),
    _string("detail_hash"),
    Column("body", LargeBinary),
    Index(None, "org_id", "flow_id", "id"),
    Index(None, "run_id", "id"),
    comment="What EnOS said of a workflow when it was asked for its details; body is data, zlib. Append-only.",
)

roster: Final = Table(
    "roster",
    metadata,
    Column("org_id", _BYTEWISE, primary_key=True),
    _time("asked_at"),
    Column("answered_at", UtcTime),
    Column("failing_since", UtcTime),
    Column("error_code", Text),
    Column("error", Text),
    comment="When an organisation was last asked who its users are, and what came of it.",
)

roster_user: Final = Table(
    "roster_user",
    metadata,
    Column("org_id", _BYTEWISE, primary_key=True),
    Column("user_id", _BYTEWISE, primary_key=True),
    _time("listed_since"),
    Column("missing_since", UtcTime),
    comment="A user of an organisation as its roster lists them; missing_since while nobody has said that it is right.",
)

org_event: Final = Table(
    "org_event",
    metadata,
    Column("event_id", _BIG, Identity(), primary_key=True),
    Column("run_id", _BIG, nullable=False),
    _key("org_id"),
    _key("expression"),
    _key("flow_id"),
    _string("kind"),
    Column("user_id", _BYTEWISE),
    Column("old_name", Text),
    Column("new_name", Text),
    Column("old_cycle", Text),
    Column("new_cycle", Text),
    Column("old_editable", Boolean),
    Column("new_editable", Boolean),
    _time("last_unchanged_at"),
    _time("observed_at"),
    Column("users_before", Integer, nullable=False),
    Column("users_after", Integer, nullable=False),
    Column("certain", Boolean, nullable=False),
    Column("unheard", Integer, nullable=False),
    _time("decided_at"),
    Index(None, "org_id", "flow_id"),
    Index(None, "org_id", "observed_at"),
    Index(None, "run_id"),
    comment="Something that happened to a workflow in its organisation. Append-only.",
)

org_flow: Final = Table(
    "org_flow",
    metadata,
    Column("org_id", _BYTEWISE, primary_key=True),
    Column("expression", _BYTEWISE, primary_key=True),
    Column("flow_id", _BYTEWISE, primary_key=True),
    _time("since"),
    Column("flow_name", Text),
    _time("name_first_asked_at"),
    _time("name_first_at"),
    Column("name_last_asked_at", UtcTime),
    Column("name_last_at", UtcTime),
    Column("cycle", Text),
    Column("cycle_first_asked_at", UtcTime),
    Column("cycle_first_at", UtcTime),
    Column("cycle_last_asked_at", UtcTime),
    Column("cycle_last_at", UtcTime),
    Column("gone_at", UtcTime),
    Column("is_open", Boolean, nullable=False),
    Column("awaited", Integer, nullable=False),
    Column("users", Integer, nullable=False),
    Column("editors", Integer, nullable=False),
    Column("valid_from", UtcTime),
    Column("valid_from_after", UtcTime),
    Column("from_kind", Text),
    Column("certain", Boolean),
    Index(
        "ix_org_flow_open",
        "org_id",
        "expression",
        "flow_id",
        postgresql_where=text("is_open"),
        sqlite_where=text("is_open"),
    ),
    comment="What is kept of a workflow that somebody of an organisation has ever seen.",
)

org_loss: Final = Table(
    "org_loss",
    metadata,
    Column("org_id", _BYTEWISE, primary_key=True),
    Column("expression", _BYTEWISE, primary_key=True),
    Column("flow_id", _BYTEWISE, primary_key=True),
    Column("user_id", _BYTEWISE, primary_key=True),
    Column("flow_name", Text),
    Column("cycle", Text),
    Column("editable", Boolean),
    _time("shown_asked_at"),
    _time("without_asked_at"),
    _time("without_at"),
    comment="A user who lost a workflow, while it is not known whether he alone did.",
)

org_state: Final = Table(
    "org_state",
    metadata,
    _id(),
    _key("org_id"),
    _key("expression"),
    _key("flow_id"),
    _time("valid_from"),
    Column("valid_from_after", UtcTime),
    _time("valid_to"),
    Column("flow_name", Text),
    Column("cycle", Text),
    _string("from_kind"),
    Column("certain", Boolean, nullable=False),
    Index(None, "org_id", "flow_id", "valid_from"),
    comment="A state of a workflow in its organisation that has ended; the present one is in org_flow.",
)

org_step: Final = Table(
    "org_step",
    metadata,
    _id(),
    Column("run_id", _BIG, nullable=False),
    _key("org_id"),
    _key("expression"),
    _time("decided_at"),
    _string("versions"),
    _string("heard"),
    Index(None, "org_id", "expression", "id"),
    Index(None, "run_id"),
    comment="What was known of an organisation's users when a run's end changed its story. Append-only.",
)

overdue_notice: Final = Table(
    "overdue_notice",
    metadata,
    Column("target_id", _BIG, primary_key=True, autoincrement=False),
    _time("notified_at"),
    comment="A target whose receivers know that it is overdue, until they know that it no longer is.",
)

condition: Final = Table(
    "condition",
    metadata,
    Column("code", _BYTEWISE, primary_key=True),
    Column("cause", _BYTEWISE, primary_key=True),
    _time("since"),
    _count("subjects"),
    _string("named"),
    _string("said"),
    _string("remedy"),
    Column("begin_told_at", UtcTime),
    Column("ended_at", UtcTime),
    comment="Something that is wrong, since when, and whether receivers know; until they know that it has ended.",
)

verification: Final = Table(
    "verification",
    metadata,
    Column("kind", _BYTEWISE, primary_key=True),
    _time("began_at"),
    _time("ended_at"),
    _count("targets"),
    _count("change_sets"),
    _count("last_seal", big=True),
    _count("findings"),
    _string("finding"),
    comment="The service's last check of the trail, of each kind, up to which seal, and what it found.",
)

lease: Final = Table(
    "lease",
    metadata,
    Column("name", _BYTEWISE, primary_key=True),
    _string("holder"),
    _time("expires_at"),
    comment="Which replica is active, by the database's clock.",
)

GAPS_IN_NUMBERS: Final = 1
"""``PRAGMA user_version`` of an SQLite file whose ids came from PostgreSQL, which leaves some out."""
