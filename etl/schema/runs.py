"""The tables of runs, of the seals that prove them, and of what the service keeps for itself."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    UniqueConstraint,
    text,
)

from etl.schema.columns import (
    BIG,
    BYTEWISE,
    UtcTime,
    change_counts,
    count,
    id_column,
    key,
    metadata,
    partial_index,
    string,
    time,
)

ASKS_NOBODY: Final = '{"targets":[],"membership_id":0}'
"""The scope of a run without targets."""
DIGEST_OF_NONE: Final = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
"""The digest of an empty list."""
OWN_SLOT: Final = text("origin IN ('schedule', 'catch_up') AND status <> 'aborted'")
"""A run that has its slot to itself. Written like the index over slots, so that SQLite can use it."""

sync_run: Final = Table(
    "sync_run",
    metadata,
    id_column(),
    Column("schedule", BYTEWISE),
    string("origin"),
    Column("scheduled_for", UtcTime),
    count("missed"),
    string("status"),
    time("started_at"),
    time("heartbeat_at"),
    Column("finished_at", UtcTime),
    Column("closed_at", UtcTime),
    Column("notified_at", UtcTime),
    Column("scope", Text, nullable=False, server_default=ASKS_NOBODY),
    Column("targets_digest", Text, nullable=False, server_default=DIGEST_OF_NONE),
    string("host"),
    Column("pid", Integer, nullable=False),
    count("targets"),
    count("changed"),
    count("unchanged"),
    count("held"),
    count("failed"),
    count("stale"),
    *change_counts(big=True),
    partial_index("uq_sync_run_slot", "schedule", "scheduled_for", where=OWN_SLOT, unique=True),
    Index(None, "schedule", "id"),
    partial_index("ix_sync_run_running", "heartbeat_at", where="status = 'running'"),
    partial_index("ix_sync_run_untold", "finished_at", where="notified_at IS NULL"),
    comment="One run of a schedule, of the command or of an approval, with its sums.",
)

sync_issue: Final = Table(
    "sync_issue",
    metadata,
    id_column(),
    Column("run_id", BIG, ForeignKey("sync_run.id", ondelete="CASCADE"), nullable=False),
    Column("target_id", BIG, nullable=False),
    string("verdict"),
    Column("error_code", Text),
    string("message"),
    count("attempts"),
    count("missing"),
    Index(None, "run_id"),
    Index(None, "target_id", "id"),
    comment="A target that failed, was held or was stale in a run, and why.",
)

target_membership: Final = Table(
    "target_membership",
    metadata,
    id_column(),
    Column("target_id", BIG, nullable=False),
    Column("run_id", BIG, nullable=False),
    Column("schedule", BYTEWISE),
    string("kind"),
    time("at"),
    Column("coverage_gap_seconds", BIG),
    Index(None, "schedule", "target_id", "id"),
    Index(None, "target_id", "id"),
    Index(None, "run_id", "id"),
    partial_index("ix_target_membership_retired", "target_id", "at", where="schedule IS NULL"),
    comment="When a target joined (with which gap) or left a schedule, was retired, or came back. Append-only.",
)

hold_event: Final = Table(
    "hold_event",
    metadata,
    id_column(),
    Column("target_id", BIG, nullable=False),
    Column("run_id", BIG, nullable=False),
    string("kind"),
    time("at"),
    string("flow_ids"),
    string("doubted"),
    string("data_hash"),
    Index(None, "target_id", "id"),
    Index(None, "run_id", "id"),
    comment="Workflows whose removal or change was held: when that began, and how it ended. Append-only.",
)

pruned_issues: Final = Table(
    "pruned_issues",
    metadata,
    id_column(),
    Column("run_id", BIG, nullable=False),
    Column("pruned_run_id", BIG, nullable=False),
    time("at"),
    Index(None, "run_id", "id"),
    Index(None, "pruned_run_id"),
    comment="A run whose issues were deleted, and the run that deleted them. Append-only.",
)

workflow_detail: Final = Table(
    "workflow_detail",
    metadata,
    id_column(),
    key("org_id"),
    key("flow_id"),
    Column("run_id", BIG, nullable=False),
    time("asked_at"),
    time("observed_at"),
    Column("update_user", Text),
    Column("update_time", Text),
    Column("creator", Text),
    Column("create_time", Text),
    Column("owner", Text),
    Column("freq", Text),
    Column("active", Integer),
    Column("type", Integer),
    Column("locked", Boolean),
    string("detail_hash"),
    Column("body", LargeBinary),
    Index(None, "org_id", "flow_id", "id"),
    Index(None, "run_id", "id"),
    comment="The details of a workflow as EnOS gave them; body: the answer's data, zlib. Append-only.",
)


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
