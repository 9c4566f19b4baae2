"""Organisations: the guard's window, who their users are, and what happened in them."""

from __future__ import annotations

from typing import Final

from sqlalchemy import (
    Boolean,
    Column,
    Identity,
    Index,
    Integer,
    Table,
    Text,
)

from etl.schema.columns import BIG, BYTEWISE, UtcTime, count, id_column, key, metadata, partial_index, string, time

organisation: Final = Table(
    "organisation",
    metadata,
    Column("org_id", BYTEWISE, primary_key=True),
    comment="An organisation whose lists lost workflows; its row is locked while its removals are added up.",
)

org_turnover: Final = Table(
    "org_turnover",
    metadata,
    id_column(),
    key("org_id"),
    Column("run_id", BIG, nullable=False),
    time("counted_at"),
    count("added"),
    count("removed"),
    Index(None, "org_id", "counted_at"),
    Index(None, "counted_at"),
    comment="What a transaction added to an organisation's lists and removed from them; for the guard's window.",
)

roster: Final = Table(
    "roster",
    metadata,
    Column("org_id", BYTEWISE, primary_key=True),
    time("asked_at"),
    Column("answered_at", UtcTime),
    Column("failing_since", UtcTime),
    Column("error_code", Text),
    Column("error", Text),
    comment="When EnOS was last asked for an organisation's users, and with what result.",
)

roster_user: Final = Table(
    "roster_user",
    metadata,
    Column("org_id", BYTEWISE, primary_key=True),
    Column("user_id", BYTEWISE, primary_key=True),
    time("listed_since"),
    Column("missing_since", UtcTime),
    Column("left_at", UtcTime),
    comment="A user whom an organisation's roster lists, or listed within the guard's window; missing_since: while"
    " nobody has confirmed it.",
)

org_event: Final = Table(
    "org_event",
    metadata,
    Column("event_id", BIG, Identity(), primary_key=True),
    Column("run_id", BIG, nullable=False),
    key("org_id"),
    key("flow_id"),
    string("kind"),
    Column("user_id", BYTEWISE),
    Column("old_name", Text),
    Column("new_name", Text),
    Column("old_cycle", Text),
    Column("new_cycle", Text),
    Column("old_editable", Boolean),
    Column("new_editable", Boolean),
    time("last_unchanged_at"),
    time("observed_at"),
    Column("users_before", Integer, nullable=False),
    Column("users_after", Integer, nullable=False),
    Column("proven_for_all", Boolean, nullable=False),
    Column("unheard", Integer, nullable=False),
    time("decided_at"),
    Index(None, "org_id", "flow_id"),
    Index(None, "org_id", "observed_at"),
    Index(None, "run_id"),
    comment="An event of a workflow in its organisation. Append-only.",
)

org_flow: Final = Table(
    "org_flow",
    metadata,
    Column("org_id", BYTEWISE, primary_key=True),
    Column("flow_id", BYTEWISE, primary_key=True),
    time("since"),
    Column("flow_name", Text),
    time("name_first_asked_at"),
    time("name_first_at"),
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
    Column("last_unchanged_at", UtcTime),
    Column("from_kind", Text),
    Column("proven_for_all", Boolean),
    partial_index("ix_org_flow_open", "org_id", "flow_id", where="is_open"),
    comment="The current state of a workflow that any user of an organisation has ever seen.",
)

org_loss: Final = Table(
    "org_loss",
    metadata,
    Column("org_id", BYTEWISE, primary_key=True),
    Column("flow_id", BYTEWISE, primary_key=True),
    Column("user_id", BYTEWISE, primary_key=True),
    Column("flow_name", Text),
    Column("cycle", Text),
    Column("editable", Boolean),
    time("shown_asked_at"),
    time("without_asked_at"),
    time("without_at"),
    comment="A user who lost a workflow, while it is unknown whether other users did, too.",
)

org_state: Final = Table(
    "org_state",
    metadata,
    id_column(),
    key("org_id"),
    key("flow_id"),
    time("valid_from"),
    Column("last_unchanged_at", UtcTime),
    time("valid_to"),
    Column("flow_name", Text),
    Column("cycle", Text),
    string("from_kind"),
    Column("proven_for_all", Boolean, nullable=False),
    Index(None, "org_id", "flow_id", "valid_from"),
    comment="A past state of a workflow in its organisation; the current one is in org_flow.",
)

org_step: Final = Table(
    "org_step",
    metadata,
    id_column(),
    Column("run_id", BIG, nullable=False),
    key("org_id"),
    time("decided_at"),
    string("versions"),
    string("heard"),
    Index(None, "org_id", "id"),
    Index(None, "run_id"),
    comment="What was known of an organisation's users when the end of a run changed its events. Append-only.",
)
