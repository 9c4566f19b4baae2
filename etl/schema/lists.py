"""Targets, what they see now, and the trail of what they saw: versions, changes, and spans of observation."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    literal_column,
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

COMING: Final = text("expression = '' AND retired_at IS NULL AND (counts_since IS NULL OR away_since >= counts_since)")
"""A target that does not count (again) in its organisation's story yet; one with an expression never does."""
LEAVING: Final = text("expression = '' AND retired_at IS NOT NULL AND (away_since IS NULL OR away_since < retired_at)")
"""A target that was retired, and still counts."""

target: Final = Table(
    "target",
    metadata,
    id_column(),
    key("org_id"),
    key("user_id"),
    Column("expression", BYTEWISE, nullable=False, server_default=""),
    count("version"),
    count("fence", big=True),
    Column("observation_id", BIG),
    Column("answer_digest", Text),
    Column("data_hash", Text),
    Column("state_digest", Text),
    count("flow_count"),
    count("consecutive_failures"),
    Column("last_error_code", Text),
    Column("last_error", Text),
    Column("held_since", UtcTime),
    Column("retired_at", UtcTime),
    Column("held_asked_at", UtcTime),
    Column("held_at", UtcTime),
    count("projected_version"),
    Column("counts_since", UtcTime),
    Column("away_since", UtcTime),
    Column("coverage_gap_seconds", BIG, nullable=False, server_default=text("129600")),
    UniqueConstraint("org_id", "user_id", "expression"),
    partial_index("ix_target_coming", "org_id", where=COMING),
    partial_index("ix_target_leaving", "org_id", where=LEAVING),
    comment="A user of an organisation, with a search expression if any; version 0: never observed.",
)
TARGET_KEY: Final = (target.c.org_id, target.c.user_id, target.c.expression)
"""What identifies a target: the fields of ``Target``."""

workflow: Final = Table(
    "workflow",
    metadata,
    Column("target_id", BIG, primary_key=True, autoincrement=False),
    Column("flow_id", BYTEWISE, primary_key=True),
    Column("flow_name", Text),
    Column("cycle", Text),
    Column("editable", Boolean),
    time("first_listed_at"),
    time("changed_at"),
    Column("missing_since", UtcTime),
    Column("doubted", Text),
    partial_index("ix_workflow_held", "target_id", where="missing_since IS NOT NULL OR doubted IS NOT NULL"),
    comment="A workflow as its target sees it now; held are its removal (missing_since) and what doubted has.",
)

change_set: Final = Table(
    "change_set",
    metadata,
    id_column(),
    Column("target_id", BIG, ForeignKey("target.id"), nullable=False),
    Column("version", Integer, nullable=False),
    Column("run_id", BIG, nullable=False),
    string("kind"),
    time("observed_at"),
    Column("last_unchanged_at", UtcTime),
    time("asked_at"),
    Column("previous_at", UtcTime),
    Column("held_asked_at", UtcTime),
    Column("held_at", UtcTime),
    count("flow_count"),
    string("state_digest"),
    *change_counts(),
    Column("approved_by", Text),
    Column("approved_scope", Text),
    string("data_hash"),
    Column("format", Integer, nullable=False),
    string("parent_hash"),
    string("hash"),
    UniqueConstraint("target_id", "version"),
    Index(None, "target_id", "observed_at"),
    Index(None, "observed_at"),
    Index(None, "run_id"),
    comment="One version of a target, chained by hashes. Append-only.",
)

workflow_change: Final = Table(
    "workflow_change",
    metadata,
    Column("change_set_id", BIG, primary_key=True, autoincrement=False),
    Column("flow_id", BYTEWISE, primary_key=True),
    Column("kind", BYTEWISE, primary_key=True),
    Column("old_name", Text),
    Column("new_name", Text),
    Column("old_cycle", Text),
    Column("new_cycle", Text),
    Column("old_editable", Boolean),
    Column("new_editable", Boolean),
    Index(None, "flow_id", "change_set_id"),
    comment="One change of one workflow, with the full before and after. Append-only.",
    info={"partition_by": "RANGE (change_set_id)"},
)
CHANGE_KIND: Final = workflow_change.c.kind.concat(literal_column("''"))
"""The kind of a change, for a condition. Bare, as the third column of the primary key, it lets PostgreSQL 18 price an
index scan as one that skips from workflow to workflow: on a large trail it then reads whole partitions instead."""

observation: Final = Table(
    "observation",
    metadata,
    id_column(),
    Column("target_id", BIG, ForeignKey("target.id"), nullable=False),
    Column("version", Integer, nullable=False),
    time("first_at"),
    time("last_asked_at"),
    time("last_at"),
    Column("observations", Integer, nullable=False, server_default=text("1")),
    count("longest_gap_seconds", big=True),
    Column("interrupted", Boolean, nullable=False),
    Index(None, "target_id", "id"),
    Index(None, "target_id", "version", "id"),
    comment="A span of time in which a version was seen without interruption.",
)
