"""The tables that the statements are written with.

The Alembic revisions create them, with the indexes, checks, triggers and views that queries do not need to know. The
order is the one in which rows are copied: each table comes after those that it refers to.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import Boolean, Column, ForeignKey, Integer, LargeBinary, Text, literal_column, text

from etl.schema.columns import (
    BIG,
    KEY,
    change_counts,
    counts,
    defaulting,
    numbered,
    optional,
    primary,
    required,
    table,
)
from etl.schema.columns import UnreadableTime as UnreadableTime
from etl.schema.columns import UtcTime as UtcTime
from etl.schema.columns import metadata as metadata
from etl.schema.columns import text_of_time as text_of_time
from etl.schema.columns import time_of_text as time_of_text

GAPS_IN_NUMBERS: Final = 1
"""``PRAGMA user_version`` of an SQLite file whose ids came from PostgreSQL, which leaves some out."""

# ----------------------------------------------------------- targets, what they see now, and the trail of what they saw

COMING: Final = text(
    "user_id <> '' AND expression = '' AND retired_at IS NULL AND (counts_since IS NULL OR away_since >= counts_since)"
)
"""A user who does not count (again) in the organisation's story yet; a target with an expression, and a directory,
never do. Written like the index over these targets, so that SQLite can use it."""
LEAVING: Final = text(
    "user_id <> '' AND expression = '' AND retired_at IS NOT NULL AND (away_since IS NULL OR away_since < retired_at)"
)
"""A target that was retired, and still counts. Written like its index, too."""

target: Final = table(
    "target",
    "A user of an organisation, with a search expression if any, or (user_id '') its directory; version 0: "
    "never observed.",
    numbered(),
    required(KEY, "org_id", "user_id"),
    defaulting(KEY, "''", "expression"),
    counts("version"),
    counts("fence", kind=BIG),
    optional(BIG, "observation_id"),
    optional(Text, "answer_digest", "data_hash", "state_digest"),
    counts("flow_count", "consecutive_failures"),
    optional(Text, "last_error_code", "last_error"),
    optional(UtcTime, "held_since", "retired_at", "held_asked_at", "held_at"),
    counts("projected_version"),
    optional(UtcTime, "counts_since", "away_since"),
    defaulting(BIG, "129600", "coverage_gap_seconds"),
    optional(KEY, "asked_as"),
)
TARGET_KEY: Final = (target.c.org_id, target.c.user_id, target.c.expression)
"""What identifies a target: the fields of ``Target``."""

workflow: Final = table(
    "workflow",
    "A workflow as its target sees it now; held are its removal (missing_since) and what doubted has.",
    primary(BIG, "target_id"),
    primary(KEY, "flow_id"),
    optional(Text, "flow_name", "cycle"),
    optional(Boolean, "editable"),
    required(UtcTime, "first_listed_at", "changed_at"),
    optional(UtcTime, "missing_since"),
    optional(Text, "doubted"),
)

change_set: Final = table(
    "change_set",
    "One version of a target, chained by hashes. Append-only.",
    numbered(),
    [Column("target_id", BIG, ForeignKey("target.id"), nullable=False)],
    required(Integer, "version"),
    required(BIG, "run_id"),
    required(Text, "kind"),
    required(UtcTime, "observed_at"),
    optional(UtcTime, "last_unchanged_at"),
    required(UtcTime, "asked_at"),
    optional(UtcTime, "last_arrived_at", "held_asked_at", "held_at"),
    counts("flow_count"),
    required(Text, "state_digest"),
    change_counts(),
    optional(Text, "approved_by", "approved_scope"),
    required(Text, "data_hash"),
    required(Integer, "format"),
    required(Text, "parent_hash", "hash"),
)

workflow_change: Final = table(
    "workflow_change",
    "One change of one workflow, with the full before and after. Append-only.",
    primary(BIG, "change_set_id"),
    primary(KEY, "flow_id", "kind"),
    optional(Text, "old_name", "new_name", "old_cycle", "new_cycle"),
    optional(Boolean, "old_editable", "new_editable"),
)
CHANGE_KIND: Final = workflow_change.c.kind.concat(literal_column("''"))
"""The kind of a change, for a condition. Bare, as the third column of the primary key, it lets PostgreSQL 18 price an
index scan as one that skips from workflow to workflow: on a large trail it then reads whole partitions instead."""

observation: Final = table(
    "observation",
    "A span of time in which a version was seen without interruption.",
    numbered(),
    [Column("target_id", BIG, ForeignKey("target.id"), nullable=False)],
    required(Integer, "version"),
    required(UtcTime, "first_at", "last_asked_at", "last_at"),
    defaulting(Integer, "1", "observations"),
    counts("longest_gap_seconds", kind=BIG),
    required(Boolean, "interrupted"),
)

# ------------------------------------------------------------------- runs, what they write, and the seals that prove it

ASKS_NOBODY: Final = '{"targets":[],"membership_id":0}'
"""The scope of a run without targets."""
DIGEST_OF_NONE: Final = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
"""The digest of an empty list."""
OWN_SLOT: Final = text("origin IN ('schedule', 'catch_up') AND status <> 'aborted'")
"""A run that has its slot to itself. Written like the index over slots, so that SQLite can use it."""

sync_run: Final = table(
    "sync_run",
    "One run of a schedule, of the command or of an approval, with its sums.",
    numbered(),
    optional(KEY, "schedule"),
    required(Text, "origin"),
    optional(UtcTime, "scheduled_for"),
    counts("missed_slots"),
    required(Text, "status"),
    required(UtcTime, "started_at", "heartbeat_at"),
    optional(UtcTime, "finished_at", "closed_at", "notified_at"),
    [Column("scope", Text, nullable=False, server_default=ASKS_NOBODY)],
    [Column("targets_digest", Text, nullable=False, server_default=DIGEST_OF_NONE)],
    required(Text, "host"),
    required(Integer, "pid"),
    counts("targets", "changed", "unchanged", "held", "failed", "stale"),
    change_counts(BIG),
)

sync_issue: Final = table(
    "sync_issue",
    "A target that failed, was held or was stale in a run, and why.",
    numbered(),
    [Column("run_id", BIG, ForeignKey("sync_run.id", ondelete="CASCADE"), nullable=False)],
    required(BIG, "target_id"),
    required(Text, "verdict"),
    optional(Text, "error_code"),
    required(Text, "message"),
    counts("attempts", "missing"),
)

target_membership: Final = table(
    "target_membership",
    "When a target joined (with which gap) or left a schedule, was retired, or came back. Append-only.",
    numbered(),
    required(BIG, "target_id", "run_id"),
    optional(KEY, "schedule"),
    required(Text, "kind"),
    required(UtcTime, "at"),
    optional(BIG, "coverage_gap_seconds"),
)

hold_event: Final = table(
    "hold_event",
    "Workflows whose removal or change was held: when that began, and how it ended. Append-only.",
    numbered(),
    required(BIG, "target_id", "run_id"),
    required(Text, "kind"),
    required(UtcTime, "at"),
    required(Text, "flow_ids", "doubted", "data_hash"),
)

workflow_detail: Final = table(
    "workflow_detail",
    "The details of a workflow as EnOS gave them; body: the answer's data, zlib. Append-only.",
    numbered(),
    required(KEY, "org_id", "flow_id"),
    required(BIG, "run_id"),
    required(UtcTime, "asked_at", "observed_at"),
    optional(Text, "update_user", "update_time", "creator", "create_time", "owner", "freq"),
    optional(Integer, "active", "type"),
    optional(Boolean, "locked"),
    optional(Text, "enos_timezone"),
    required(Text, "detail_hash"),
    optional(LargeBinary, "body"),
)

pruned_issues: Final = table(
    "pruned_issues",
    "A run whose issues were deleted, and the run that deleted them. Append-only.",
    numbered(),
    required(BIG, "run_id", "pruned_run_id"),
    required(UtcTime, "at"),
)

run_seal: Final = table(
    "run_seal",
    "The seal of a run that has ended, chained to the seal before. Append-only.",
    primary(BIG, "id"),
    required(Integer, "format"),
    required(BIG, "run_id"),
    required(Text, "parent", "seal"),
    required(UtcTime, "sealed_at"),
    required(Text, "targets_digest", "change_sets_digest", "issues_digest", "events_digest", "acknowledgements_digest"),
    optional(Text, "signature", "key_id"),
)

seal_timestamp: Final = table(
    "seal_timestamp",
    "The time stamp of a seal by an authority (RFC 3161): its token, in DER. Append-only.",
    primary(BIG, "seal_id"),
    required(UtcTime, "stamped_at"),
    required(LargeBinary, "token"),
)

trail: Final = table(
    "trail",
    "This trail, after those that it was copied from. Append-only, but for the head: the last seal, its hash (what the "
    "next one has as parent), its time, and the last acknowledgement since.",
    numbered(),
    required(Text, "trail_id"),
    required(UtcTime, "created_at"),
    required(Text, "reason"),
    required(BIG, "first_seal", "last_seal"),
    required(Text, "head"),
    required(UtcTime, "sealed_at"),
    optional(UtcTime, "acknowledged_at"),
)

answer: Final = table(
    "answer",
    "The bytes of data of an answer, compressed, under their hash; kept once. Append-only.",
    primary(KEY, "data_hash"),
    required(LargeBinary, "body"),
    required(Text, "encoding"),
    required(BIG, "length", "first_run_id"),
)

# ------------------------------------ organisations: the guard's window, who their users are, and what happened in them

organisation: Final = table(
    "organisation",
    "An organisation whose lists lost workflows; its row is locked while its removals are added up.",
    primary(KEY, "org_id"),
)

org_turnover: Final = table(
    "org_turnover",
    "What a transaction added to an organisation's lists and removed from them; for the guard's window.",
    numbered(),
    required(KEY, "org_id"),
    required(BIG, "run_id"),
    required(UtcTime, "counted_at"),
    counts("added", "removed"),
)

roster: Final = table(
    "roster",
    "When EnOS was last asked for an organisation's users, and with what result.",
    primary(KEY, "org_id"),
    required(UtcTime, "asked_at"),
    optional(UtcTime, "answered_at", "failing_since"),
    optional(Text, "error_code", "error"),
)

roster_user: Final = table(
    "roster_user",
    "A user whom an organisation's roster lists, or listed within the guard's window; missing_since: while nobody has "
    "confirmed it.",
    primary(KEY, "org_id", "user_id"),
    required(UtcTime, "listed_since"),
    optional(UtcTime, "missing_since", "left_at"),
)

org_event: Final = table(
    "org_event",
    "An event of a workflow in its organisation. Append-only.",
    numbered("event_id"),
    required(BIG, "run_id"),
    required(KEY, "org_id", "flow_id"),
    required(Text, "kind"),
    optional(KEY, "user_id"),
    optional(Text, "old_name", "new_name", "old_cycle", "new_cycle"),
    optional(Boolean, "old_editable", "new_editable"),
    required(UtcTime, "last_unchanged_at", "observed_at"),
    required(Integer, "users_before", "users_after"),
    required(Boolean, "proven_for_all"),
    required(Integer, "unheard"),
    required(UtcTime, "decided_at"),
)

org_flow: Final = table(
    "org_flow",
    "The current state of a workflow that any user of an organisation has ever seen.",
    primary(KEY, "org_id", "flow_id"),
    required(UtcTime, "since"),
    optional(Text, "flow_name"),
    required(UtcTime, "name_first_asked_at", "name_first_at"),
    optional(UtcTime, "name_last_asked_at", "name_last_at"),
    optional(Text, "cycle"),
    optional(UtcTime, "cycle_first_asked_at", "cycle_first_at", "cycle_last_asked_at", "cycle_last_at", "gone_at"),
    optional(UtcTime, "due_at"),
    required(Integer, "awaited", "users", "editors"),
    optional(UtcTime, "valid_from", "last_unchanged_at"),
    optional(Text, "from_kind"),
    optional(Boolean, "proven_for_all"),
)

org_loss: Final = table(
    "org_loss",
    "A user who lost a workflow, while it is unknown whether other users did, too.",
    primary(KEY, "org_id", "flow_id", "user_id"),
    optional(Text, "flow_name", "cycle"),
    optional(Boolean, "editable"),
    required(UtcTime, "shown_asked_at", "without_asked_at", "without_at"),
)

org_state: Final = table(
    "org_state",
    "A past state of a workflow in its organisation; the current one is in org_flow.",
    numbered(),
    required(KEY, "org_id", "flow_id"),
    required(UtcTime, "valid_from"),
    optional(UtcTime, "last_unchanged_at"),
    required(UtcTime, "valid_to"),
    optional(Text, "flow_name", "cycle"),
    required(Text, "from_kind"),
    required(Boolean, "proven_for_all"),
)

org_step: Final = table(
    "org_step",
    "What was known of an organisation's users when the end of a run changed its events. Append-only.",
    numbered(),
    required(BIG, "run_id"),
    required(KEY, "org_id"),
    required(UtcTime, "decided_at"),
    required(Text, "versions", "heard"),
)

acknowledgement: Final = table(
    "acknowledgement",
    "Who agreed to what happened in an organisation, or will, and why; or the end of that. Append-only.",
    primary(BIG, "id"),
    required(UtcTime, "made_at"),
    required(Text, "made_by"),
    optional(Text, "ticket", "note"),
    required(KEY, "org_id"),
    optional(KEY, "flow_id", "user_id", "kind"),
    optional(UtcTime, "after", "until"),
    optional(BIG, "revokes"),
)

# ------------------------------------------------------------------------ what receivers know, and what a service keeps

overdue_notice: Final = table(
    "overdue_notice",
    "A target that receivers know to be overdue, until they are told that it no longer is.",
    primary(BIG, "target_id"),
    required(UtcTime, "notified_at"),
)

condition: Final = table(
    "condition",
    "A condition: since when, and whether receivers were told; deleted once they know that it has ended.",
    primary(KEY, "code", "cause"),
    required(UtcTime, "since"),
    counts("subjects"),
    required(Text, "named", "said", "remedy"),
    optional(UtcTime, "begin_told_at", "ended_at"),
)

webhook: Final = table(
    "webhook",
    "How far a webhook is: from which seal on, from which event of it and after which notice events are still due; and "
    "whether it could be reached.",
    primary(KEY, "name"),
    required(UtcTime, "since"),
    required(BIG, "seal_id", "event_id", "notice_id"),
    counts("delivered", kind=BIG),
    optional(UtcTime, "delivered_at", "failing_since", "not_before"),
    optional(Text, "why"),
)

webhook_notice: Final = table(
    "webhook_notice",
    "What began or ended besides the trail, while a webhook still has to be told: numbered in the order of commits.",
    primary(BIG, "id"),
    required(BIG, "after_seal"),
    required(Text, "kind"),
    required(UtcTime, "at"),
    optional(KEY, "org_id"),
    required(Text, "subject", "data"),
)

verification: Final = table(
    "verification",
    "The service's last check of the trail, for each kind: up to which seal, and its findings.",
    primary(KEY, "kind"),
    required(UtcTime, "began_at", "ended_at"),
    counts("targets", "change_sets"),
    counts("last_seal", kind=BIG),
    counts("findings"),
    required(Text, "finding"),
)

rule: Final = table(
    "rule",
    "A rule as it was last evaluated: after which seal, whether it failed, and what receivers know of it.",
    primary(KEY, "rule"),
    required(Text, "title", "severity", "text"),
    optional(UtcTime, "evaluated_at"),
    counts("seal_id", kind=BIG),
    counts("took_ms"),
    optional(UtcTime, "failing_since"),
    optional(Text, "error"),
    counts("told_id", kind=BIG),
    optional(UtcTime, "broken_told_at"),
)

finding: Final = table(
    "finding",
    "Something that a rule found, from the evaluation that found it first until one that did not.",
    numbered(),
    required(KEY, "rule", "key"),
    required(Text, "row", "severity", "title"),
    required(UtcTime, "since"),
    optional(BIG, "since_run_id"),
    optional(UtcTime, "until"),
    optional(BIG, "until_run_id"),
    optional(Text, "ended_by"),
)

lease: Final = table(
    "lease",
    "Which replica is active, by the database's clock.",
    primary(KEY, "name"),
    required(Text, "holder"),
    required(UtcTime, "expires_at"),
)
