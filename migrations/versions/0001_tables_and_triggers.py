"""The tables, and the triggers that keep the trail append-only.

Revision ID: 0001
Revises:
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

BIG = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BYTEWISE = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
BOOLEAN = sa.Boolean().with_variant(sa.Integer(), "sqlite")
TIME = sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite")


def on_sqlite() -> bool:
    return op.get_context().dialect.name == "sqlite"


def identity() -> sa.Column:
    return sa.Column("id", BIG, sa.Identity(), nullable=False)


def key(name: str, *, null: bool = False, default: str | None = None) -> sa.Column:
    return sa.Column(name, BYTEWISE, nullable=null, server_default=default)


def number(name: str, *, null: bool = False, big: bool = True, default: str | None = None) -> sa.Column:
    start = None if default is None else sa.text(default)
    return sa.Column(name, BIG if big else sa.Integer(), nullable=null, server_default=start)


def counts(*names: str, big: bool = False) -> list[sa.Column]:
    return [number(name, big=big, default="0") for name in names]


def text(name: str, *, null: bool = False, default: str | None = None) -> sa.Column:
    return sa.Column(name, sa.Text(), nullable=null, server_default=default)


def time(name: str, *, null: bool = False) -> sa.Column:
    return sa.Column(name, TIME, nullable=null)


def boolean(name: str, *, null: bool = False) -> sa.Column:
    return sa.Column(name, BOOLEAN, nullable=null)


def primary(table: str, *columns: str) -> sa.PrimaryKeyConstraint:
    return sa.PrimaryKeyConstraint(*columns, name=op.f(f"pk_{table}"))


def unique(table: str, *columns: str) -> sa.UniqueConstraint:
    return sa.UniqueConstraint(*columns, name=op.f(f"uq_{table}"))


def refers(table: str, column: str, to: str, **rule: str) -> sa.ForeignKeyConstraint:
    return sa.ForeignKeyConstraint([column], [f"{to}.id"], name=op.f(f"fk_{table}_{to}"), **rule)


def stored_as(column: sa.Column) -> str:
    """The check that a column needs on SQLite besides its type; "" for none."""
    if isinstance(column.type, sa.DateTime):
        return f"{column.name} GLOB '????-??-?? ??:??:??.??????'"  # [0-9] for ? would cost a quarter of an insert
    return f"{column.name} IN (0, 1)" if isinstance(column.type, sa.Boolean) else ""


def create(table: str, *items: sa.schema.SchemaItem, checks: dict[str, str], **options: object) -> None:
    if on_sqlite():
        stored = [check for item in items if isinstance(item, sa.Column) and (check := stored_as(item))]
        checks = {**checks, "types": " AND ".join(stored)} if stored else checks
    named = [sa.CheckConstraint(sql, name=op.f(f"ck_{table}_{name}")) for name, sql in checks.items()]
    op.create_table(table, *items, *named, sqlite_strict=True, **options)


def index(table: str, *columns: str, name: str = "", where: str = "", unique: bool = False) -> None:
    name = name or f"ix_{table}_{'_'.join(columns)}"
    part = {f"{dialect}_where": sa.text(where) for dialect in ("postgresql", "sqlite") if where}
    op.create_index(op.f(name), table, list(columns), unique=unique, **part)


def one_of(column: str, *values: str) -> str:
    """Not IN: for a longer list, SQLite builds a temporary table with every row that it inserts."""
    return " OR ".join(f"{column} = {value!r}" for value in values)


def none_negative(*columns: str) -> str:
    return " AND ".join(f"{column} >= 0" for column in columns)


def sha256(*columns: str) -> str:
    return " AND ".join(f"length({column}) = 64" for column in columns)


ROOM = {"target": {"fillfactor": 75}, "observation": {"fillfactor": 50}}
"""How much of a PostgreSQL page inserts may fill, in percent. An update that fits on the page of its row touches no
index, and a quiet run updates every open span."""
ASKS_NOBODY = '{"targets":[],"membership_id":0}'
DIGEST_OF_NONE = "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945"
EVENT_KINDS = (*("appeared", "reappeared", "access_granted", "cycle_changed", "renamed", "access_lost", "disappeared"),)
KINDS = ("added", "removed", "cycle_changed", "renamed", "editable_changed")


def target() -> None:
    create(
        "target",
        identity(),
        key("org_id"),
        key("user_id"),
        key("expression", default=""),
        number("version", big=False, default="0"),
        number("fence", default="0"),
        number("observation_id", null=True),
        text("answer_digest", null=True),
        text("data_hash", null=True),
        text("state_digest", null=True),
        *counts("flow_count", "consecutive_failures"),
        text("last_error_code", null=True),
        text("last_error", null=True),
        time("held_since", null=True),
        time("retired_at", null=True),
        time("held_asked_at", null=True),
        time("held_at", null=True),
        number("projected_version", big=False, default="0"),
        time("counts_since", null=True),
        time("away_since", null=True),
        number("coverage_gap_seconds", default="129600"),
        key("asked_as", null=True),
        primary("target", "id"),
        unique("target", "org_id", "user_id", "expression"),
        checks={
            "ids": "org_id <> ''",
            "directory": "user_id = '' AND expression = '' OR user_id <> '' AND asked_as IS NULL",
            "counts": none_negative("version", "fence", "flow_count", "consecutive_failures"),
            "digests": sha256("answer_digest", "data_hash", "state_digest"),
            "observed": "version = 0 OR state_digest IS NOT NULL",
        },
        comment="A user of an organisation, with a search expression if any, or (user_id '') its directory; version 0: "
        "never observed.",
        postgresql_with=ROOM["target"],
    )
    user = "user_id <> '' AND expression = ''"
    coming = f"{user} AND retired_at IS NULL AND (counts_since IS NULL OR away_since >= counts_since)"
    leaving = f"{user} AND retired_at IS NOT NULL AND (away_since IS NULL OR away_since < retired_at)"
    index("target", "org_id", name="ix_target_coming", where=coming)
    index("target", "org_id", name="ix_target_leaving", where=leaving)
    index("target", "org_id", name="ix_target_directory", where="user_id = ''")


def workflow() -> None:
    create(
        "workflow",
        number("target_id"),
        key("flow_id"),
        text("flow_name", null=True),
        text("cycle", null=True),
        boolean("editable", null=True),
        time("first_listed_at"),
        time("changed_at"),
        time("missing_since", null=True),
        text("doubted", null=True),
        primary("workflow", "target_id", "flow_id"),
        checks={"flow_id": "flow_id <> ''"},
        comment="A workflow as its target sees it now; held are its removal (missing_since) and what doubted has.",
        sqlite_with_rowid=False,
    )
    index("workflow", "target_id", name="ix_workflow_held", where="missing_since IS NOT NULL OR doubted IS NOT NULL")


def change_set() -> None:
    create(
        "change_set",
        identity(),
        number("target_id"),
        number("version", big=False),
        number("run_id"),
        text("kind"),
        time("observed_at"),
        time("last_unchanged_at", null=True),
        time("asked_at"),
        time("last_arrived_at", null=True),
        time("held_asked_at", null=True),
        time("held_at", null=True),
        *counts("flow_count"),
        text("state_digest"),
        *counts("baseline", *KINDS),
        text("approved_by", null=True),
        text("approved_scope", null=True),
        text("data_hash"),
        number("format", big=False),
        text("parent_hash"),
        text("hash"),
        primary("change_set", "id"),
        unique("change_set", "target_id", "version"),
        refers("change_set", "target_id", "target"),
        checks={
            "id": "id >= 1",
            "format": "format >= 1",
            "kind": one_of("kind", "baseline", "delta"),
            "version": "version >= 1 AND (version = 1) = (kind = 'baseline')",
            "interval": "(kind = 'baseline') = (last_unchanged_at IS NULL)",
            "previous": "(kind = 'delta' OR last_arrived_at IS NULL) AND (held_at IS NULL) = (held_asked_at IS NULL)",
            "counts": none_negative("flow_count", "baseline", *KINDS),
            "digests": sha256("state_digest", "approved_scope", "data_hash", "parent_hash", "hash"),
            "approval": "(approved_by IS NULL) = (approved_scope IS NULL)",
        },
        comment="One version of a target, chained by hashes. Append-only.",
    )
    index("change_set", "target_id", "observed_at")
    index("change_set", "observed_at")
    index("change_set", "run_id")


def workflow_change() -> None:
    create(
        "workflow_change",
        number("change_set_id"),
        key("flow_id"),
        key("kind"),
        text("old_name", null=True),
        text("new_name", null=True),
        text("old_cycle", null=True),
        text("new_cycle", null=True),
        boolean("old_editable", null=True),
        boolean("new_editable", null=True),
        primary("workflow_change", "change_set_id", "flow_id", "kind"),
        checks={"flow_id": "flow_id <> ''", "kind": one_of("kind", "baseline", *KINDS)},
        comment="One change of one workflow, with the full before and after. Append-only.",
        sqlite_with_rowid=False,
        postgresql_partition_by="RANGE (change_set_id)",
    )
    index("workflow_change", "flow_id", "change_set_id")
    of_directory = "old_cycle IS NULL AND new_cycle IS NULL"  # it says none, users have one
    index("workflow_change", "flow_id", "change_set_id", name="ix_workflow_change_directory", where=of_directory)


def observation() -> None:
    create(
        "observation",
        identity(),
        number("target_id"),
        number("version", big=False),
        time("first_at"),
        time("last_asked_at"),
        time("last_at"),
        number("observations", big=False, default="1"),
        number("longest_gap_seconds", default="0"),
        boolean("interrupted"),
        primary("observation", "id"),
        refers("observation", "target_id", "target"),
        checks={
            "counts": "version >= 1 AND observations >= 1 AND longest_gap_seconds >= 0",
            "order": "first_at <= last_at AND last_asked_at <= last_at",
        },
        comment="A span of time in which a version was seen without interruption.",
        postgresql_with=ROOM["observation"],
    )
    index("observation", "target_id", "id")
    index("observation", "target_id", "version", "id")


def sync_run() -> None:
    verdicts = ("targets", "changed", "unchanged", "held", "failed", "stale")
    create(
        "sync_run",
        identity(),
        key("schedule", null=True),
        text("origin"),
        time("scheduled_for", null=True),
        *counts("missed_slots"),
        text("status"),
        time("started_at"),
        time("heartbeat_at"),
        time("finished_at", null=True),
        time("closed_at", null=True),
        time("notified_at", null=True),
        text("scope", default=ASKS_NOBODY),
        text("targets_digest", default=DIGEST_OF_NONE),
        text("host"),
        number("pid", big=False),
        *counts(*verdicts),
        *counts("baseline", *KINDS, big=True),
        primary("sync_run", "id"),
        checks={
            "origin": one_of("origin", "schedule", "command", "catch_up", "approval", "maintenance"),
            "status": one_of("status", "running", "succeeded", "partial", "failed", "aborted"),
            "slot": "origin NOT IN ('schedule', 'catch_up') OR (schedule IS NOT NULL AND scheduled_for IS NOT NULL)",
            "counts": none_negative("missed_slots", *verdicts, "baseline", *KINDS),
            "digests": sha256("targets_digest"),
        },
        comment="One run of a schedule, of the command or of an approval, with its sums.",
        sqlite_autoincrement=True,  # change_set refers to run_id, so an id must never be reused
    )
    own = "origin IN ('schedule', 'catch_up') AND status <> 'aborted'"
    index("sync_run", "schedule", "scheduled_for", name="uq_sync_run_slot", where=own, unique=True)
    index("sync_run", "schedule", "id")
    # Runs under way and those to notify of in one: a quiet run writes a page less as it begins, and as it ends.
    index("sync_run", "finished_at", name="ix_sync_run_open", where="finished_at IS NULL OR notified_at IS NULL")


def sync_issue() -> None:
    create(
        "sync_issue",
        identity(),
        number("run_id"),
        number("target_id"),
        text("verdict"),
        text("error_code", null=True),
        text("message"),
        *counts("attempts", "missing"),
        primary("sync_issue", "id"),
        refers("sync_issue", "run_id", "sync_run", ondelete="CASCADE"),
        checks={
            "verdict": one_of("verdict", "failed", "held", "stale"),
            "counts": none_negative("attempts", "missing"),
        },
        comment="A target that failed, was held or was stale in a run, and why.",
    )
    index("sync_issue", "run_id")
    index("sync_issue", "target_id", "id")


def target_membership() -> None:
    create(
        "target_membership",
        identity(),
        number("target_id"),
        number("run_id"),
        key("schedule", null=True),
        text("kind"),
        time("at"),
        number("coverage_gap_seconds", null=True),
        primary("target_membership", "id"),
        checks={
            "id": "id >= 1",
            "kind": one_of("kind", "joined", "left", "retired", "resumed"),
            "schedule": "(kind = 'joined' OR kind = 'left') = (schedule IS NOT NULL)",
            "coverage_gap": "(kind = 'joined') = (coverage_gap_seconds IS NOT NULL)",
        },
        comment="When a target joined (with which gap) or left a schedule, was retired, or came back. Append-only.",
    )
    index("target_membership", "schedule", "target_id", "id")
    index("target_membership", "target_id", "id")
    index("target_membership", "run_id", "id")
    index("target_membership", "target_id", "at", name="ix_target_membership_retired", where="schedule IS NULL")


def hold_event() -> None:
    create(
        "hold_event",
        identity(),
        number("target_id"),
        number("run_id"),
        text("kind"),
        time("at"),
        text("flow_ids"),
        text("doubted"),
        text("data_hash"),
        primary("hold_event", "id"),
        checks={
            "id": "id >= 1",
            "kind": one_of("kind", "held", "back", "approved"),
            "digests": sha256("data_hash"),
        },
        comment="Workflows whose removal or change was held: when that began, and how it ended. Append-only.",
    )
    index("hold_event", "target_id", "id")
    index("hold_event", "run_id", "id")


def pruned_issues() -> None:
    create(
        "pruned_issues",
        identity(),
        number("run_id"),
        number("pruned_run_id"),
        time("at"),
        primary("pruned_issues", "id"),
        checks={"id": "id >= 1"},
        comment="A run whose issues were deleted, and the run that deleted them. Append-only.",
    )
    index("pruned_issues", "run_id", "id")
    index("pruned_issues", "pruned_run_id")


def run_seal() -> None:
    digests = (*("targets_digest", "change_sets_digest", "issues_digest", "events_digest"), "acknowledgements_digest")
    create(
        "run_seal",
        sa.Column("id", BIG, autoincrement=False, nullable=False),
        number("format", big=False),
        number("run_id"),
        text("parent"),
        text("seal"),
        time("sealed_at"),
        *map(text, digests),
        text("signature", null=True),
        text("key_id", null=True),
        primary("run_seal", "id"),
        unique("run_seal", "run_id"),
        checks={
            "id": "id >= 1 AND format >= 1",
            "digests": sha256("parent", "seal", *digests, "key_id"),
            "signature": "(signature IS NULL) = (key_id IS NULL)",
        },
        comment="The seal of a run that has ended, chained to the seal before. Append-only.",
    )


def seal_timestamp() -> None:
    create(
        "seal_timestamp",
        sa.Column("seal_id", BIG, autoincrement=False, nullable=False),
        time("stamped_at"),
        sa.Column("token", sa.LargeBinary(), nullable=False),
        primary("seal_timestamp", "seal_id"),
        checks={"seal_id": "seal_id >= 1"},
        comment="The time stamp of a seal by an authority (RFC 3161): its token, in DER. Append-only.",
    )


def trail() -> None:
    create(
        "trail",
        identity(),
        text("trail_id"),
        time("created_at"),
        text("reason"),
        number("first_seal"),
        number("last_seal"),
        text("head"),
        time("sealed_at"),
        time("acknowledged_at", null=True),
        primary("trail", "id"),
        unique("trail", "trail_id"),
        checks={
            "id": "id >= 1",
            "reason": one_of("reason", "new", "copied"),
            "seals": "first_seal >= 1 AND last_seal >= first_seal - 1",
            "digests": sha256("head"),
        },
        comment="This trail, after those that it was copied from. Append-only, but for the head: the last seal, its "
        "hash (what the next one has as parent), its time, and the last acknowledgement since.",
    )


def answer() -> None:
    create(
        "answer",
        key("data_hash"),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        text("encoding"),
        number("length"),
        number("first_run_id"),
        primary("answer", "data_hash"),
        checks={"digests": sha256("data_hash"), "length": "length >= 0"},
        comment="The bytes of data of an answer, compressed, under their hash; kept once. Append-only.",
    )


def organisation() -> None:
    create(
        "organisation",
        key("org_id"),
        primary("organisation", "org_id"),
        checks={"org_id": "org_id <> ''"},
        comment="An organisation whose lists lost workflows; its row is locked while its removals are added up.",
    )


def org_turnover() -> None:
    create(
        "org_turnover",
        identity(),
        key("org_id"),
        number("run_id"),
        time("counted_at"),
        *counts("added", "removed"),
        primary("org_turnover", "id"),
        checks={"org_id": "org_id <> ''", "counts": none_negative("added", "removed")},
        comment="What a transaction added to an organisation's lists and removed from them; for the guard's window.",
    )
    index("org_turnover", "org_id", "counted_at")
    index("org_turnover", "counted_at")


def workflow_detail() -> None:
    create(
        "workflow_detail",
        identity(),
        key("org_id"),
        key("flow_id"),
        number("run_id"),
        time("asked_at"),
        time("observed_at"),
        *(text(name, null=True) for name in ("update_user", "update_time", "creator", "create_time", "owner", "freq")),
        number("active", big=False, null=True),
        number("type", big=False, null=True),
        boolean("locked", null=True),
        text("enos_timezone", null=True),
        text("detail_hash"),
        sa.Column("body", sa.LargeBinary(), nullable=True),
        primary("workflow_detail", "id"),
        checks={
            "id": "id >= 1",
            "ids": "org_id <> '' AND flow_id <> ''",
            "order": "asked_at <= observed_at",
            "digests": sha256("detail_hash"),
        },
        comment="The details of a workflow as EnOS gave them; body: the answer's data, zlib. Append-only.",
    )
    index("workflow_detail", "org_id", "flow_id", "id")
    index("workflow_detail", "run_id", "id")


def roster() -> None:
    create(
        "roster",
        key("org_id"),
        time("asked_at"),
        time("answered_at", null=True),
        time("failing_since", null=True),
        text("error_code", null=True),
        text("error", null=True),
        primary("roster", "org_id"),
        checks={"org_id": "org_id <> ''"},
        comment="When EnOS was last asked for an organisation's users, and with what result.",
    )


def roster_user() -> None:
    create(
        "roster_user",
        key("org_id"),
        key("user_id"),
        time("listed_since"),
        time("missing_since", null=True),
        time("left_at", null=True),
        primary("roster_user", "org_id", "user_id"),
        checks={"ids": "org_id <> '' AND user_id <> ''"},
        comment="A user whom an organisation's roster lists, or listed within the guard's window; missing_since: while"
        " nobody has confirmed it.",
        sqlite_with_rowid=False,
    )


def org_event() -> None:
    create(
        "org_event",
        sa.Column("event_id", BIG, sa.Identity(), nullable=False),
        number("run_id"),
        key("org_id"),
        key("flow_id"),
        text("kind"),
        key("user_id", null=True),
        text("old_name", null=True),
        text("new_name", null=True),
        text("old_cycle", null=True),
        text("new_cycle", null=True),
        boolean("old_editable", null=True),
        boolean("new_editable", null=True),
        time("last_unchanged_at"),
        time("observed_at"),
        number("users_before", big=False),
        number("users_after", big=False),
        boolean("proven_for_all"),
        number("unheard", big=False),
        time("decided_at"),
        primary("org_event", "event_id"),
        checks={
            "kind": one_of("kind", *EVENT_KINDS),
            "access": "(kind IN ('access_granted', 'access_lost')) = (user_id IS NOT NULL)",
            "interval": "last_unchanged_at < observed_at",
            "counts": none_negative("users_before", "users_after", "unheard"),
        },
        comment="An event of a workflow in its organisation. Append-only.",
    )
    index("org_event", "org_id", "flow_id")
    index("org_event", "org_id", "observed_at")
    index("org_event", "observed_at")
    index("org_event", "run_id")


def org_flow() -> None:
    create(
        "org_flow",
        key("org_id"),
        key("flow_id"),
        time("since"),
        text("flow_name", null=True),
        time("name_first_asked_at"),
        time("name_first_at"),
        time("name_last_asked_at", null=True),
        time("name_last_at", null=True),
        text("cycle", null=True),
        time("cycle_first_asked_at", null=True),
        time("cycle_first_at", null=True),
        time("cycle_last_asked_at", null=True),
        time("cycle_last_at", null=True),
        time("gone_at", null=True),
        time("due_at", null=True),
        number("awaited", big=False),
        number("users", big=False),
        number("editors", big=False),
        time("valid_from", null=True),
        time("last_unchanged_at", null=True),
        text("from_kind", null=True),
        boolean("proven_for_all", null=True),
        primary("org_flow", "org_id", "flow_id"),
        checks={"counts": none_negative("awaited", "users", "editors")},
        comment="The current state of a workflow that any user of an organisation has ever seen.",
        sqlite_with_rowid=False,
    )
    index("org_flow", "due_at", "org_id", where="due_at IS NOT NULL")
    index("org_flow", "org_id", "due_at", "flow_id", where="due_at IS NOT NULL")


def org_loss() -> None:
    create(
        "org_loss",
        key("org_id"),
        key("flow_id"),
        key("user_id"),
        text("flow_name", null=True),
        text("cycle", null=True),
        boolean("editable", null=True),
        time("shown_asked_at"),
        time("without_asked_at"),
        time("without_at"),
        primary("org_loss", "org_id", "flow_id", "user_id"),
        checks={},
        comment="A user who lost a workflow, while it is unknown whether other users did, too.",
        sqlite_with_rowid=False,
    )


def org_state() -> None:
    create(
        "org_state",
        identity(),
        key("org_id"),
        key("flow_id"),
        time("valid_from"),
        time("last_unchanged_at", null=True),
        time("valid_to"),
        text("flow_name", null=True),
        text("cycle", null=True),
        text("from_kind"),
        boolean("proven_for_all"),
        primary("org_state", "id"),
        checks={"order": "valid_from < valid_to"},
        comment="A past state of a workflow in its organisation; the current one is in org_flow.",
    )
    index("org_state", "org_id", "flow_id", "valid_from")


def org_step() -> None:
    create(
        "org_step",
        identity(),
        number("run_id"),
        key("org_id"),
        time("decided_at"),
        text("versions"),
        text("heard"),
        primary("org_step", "id"),
        checks={},
        comment="What was known of an organisation's users when the end of a run changed its events. Append-only.",
    )
    index("org_step", "org_id", "id")
    index("org_step", "run_id")


def acknowledgement() -> None:
    scope = ("flow_id", "user_id", "kind", "after", "until")
    create(
        "acknowledgement",
        sa.Column("id", BIG, autoincrement=False, nullable=False),
        time("made_at"),
        text("made_by"),
        text("ticket", null=True),
        text("note", null=True),
        key("org_id"),
        key("flow_id", null=True),
        key("user_id", null=True),
        key("kind", null=True),
        time("after", null=True),
        time("until", null=True),
        number("revokes", null=True),
        primary("acknowledgement", "id"),
        unique("acknowledgement", "revokes"),
        checks={
            "id": "id >= 1 AND made_by <> '' AND org_id <> ''",
            "kind": one_of("kind", *dict.fromkeys((*EVENT_KINDS, *KINDS))),
            "interval": "after < until",
            "revokes": "revokes IS NULL OR "
            f"(revokes < id AND ticket IS NULL AND {' AND '.join(f'{name} IS NULL' for name in scope)})",
        },
        comment="Who agreed to what happened in an organisation, or will, and why; or the end of that. Append-only.",
    )
    scoped = ("org_id", "flow_id", "until", "after", "kind", "user_id", "revokes", "id")
    index("acknowledgement", *scoped, name="ix_acknowledgement_scope")


def overdue_notice() -> None:
    create(
        "overdue_notice",
        sa.Column("target_id", BIG, autoincrement=False, nullable=False),
        time("notified_at"),
        primary("overdue_notice", "target_id"),
        checks={},
        comment="A target that receivers know to be overdue, until they are told that it no longer is.",
    )


def condition() -> None:
    create(
        "condition",
        key("code"),
        key("cause"),
        time("since"),
        *counts("subjects"),
        text("named"),
        text("said"),
        text("remedy"),
        time("begin_told_at", null=True),
        time("ended_at", null=True),
        primary("condition", "code", "cause"),
        checks={},
        comment="A condition: since when, and whether receivers were told; deleted once they know that it has ended.",
    )


def webhook() -> None:
    create(
        "webhook",
        key("name"),
        time("since"),
        number("seal_id"),
        number("event_id"),
        number("notice_id"),
        *counts("delivered", big=True),
        time("delivered_at", null=True),
        time("failing_since", null=True),
        time("not_before", null=True),
        text("why", null=True),
        primary("webhook", "name"),
        checks={"counts": none_negative("seal_id", "event_id", "notice_id", "delivered")},
        comment="How far a webhook is: from which seal on, from which event of it and after which notice events are "
        "still due; and whether it could be reached.",
    )


def webhook_notice() -> None:
    create(
        "webhook_notice",
        sa.Column("id", BIG, autoincrement=False, nullable=False),
        number("after_seal"),
        text("kind"),
        time("at"),
        key("org_id", null=True),
        text("subject"),
        text("data"),
        primary("webhook_notice", "id"),
        checks={},
        comment="What began or ended besides the trail, while a webhook still has to be told: numbered in the order of "
        "commits.",
    )


def verification() -> None:
    create(
        "verification",
        key("kind"),
        time("began_at"),
        time("ended_at"),
        *counts("targets", "change_sets"),
        *counts("last_seal", big=True),
        *counts("findings"),
        text("finding"),
        primary("verification", "kind"),
        checks={},
        comment="The service's last check of the trail, for each kind: up to which seal, and its findings.",
    )


def rule() -> None:
    create(
        "rule",
        key("rule"),
        text("title"),
        text("severity"),
        text("text"),
        time("evaluated_at", null=True),
        *counts("seal_id", big=True),
        *counts("took_ms"),
        time("failing_since", null=True),
        text("error", null=True),
        *counts("told_id", big=True),
        time("broken_told_at", null=True),
        primary("rule", "rule"),
        checks={
            "severity": one_of("severity", "info", "warning", "error"),
            "counts": none_negative("seal_id", "took_ms", "told_id"),
            "failing": "(failing_since IS NULL) = (error IS NULL)",
        },
        comment="A rule as it was last evaluated: after which seal, whether it failed, and what receivers know of it.",
    )


def finding() -> None:
    create(
        "finding",
        identity(),
        key("rule"),
        key("key"),
        text("row"),
        text("severity"),
        text("title"),
        time("since"),
        number("since_run_id", null=True),
        time("until", null=True),
        number("until_run_id", null=True),
        text("ended_by", null=True),
        primary("finding", "id"),
        checks={
            "severity": one_of("severity", "info", "warning", "error"),
            "end": "(until IS NULL) = (ended_by IS NULL) AND (until IS NULL OR since <= until)",
            "ended_by": one_of("ended_by", "mended", "rule_changed", "rule_removed"),
        },
        comment="Something that a rule found, from the evaluation that found it first until one that did not.",
    )
    index("finding", "rule", "key", name="uq_finding_open", where="until IS NULL", unique=True)
    index("finding", "rule", "id")


def lease() -> None:
    create(
        "lease",
        key("name"),
        text("holder"),
        time("expires_at"),
        primary("lease", "name"),
        checks={},
        comment="Which replica is active, by the database's clock.",
    )


TRAIL = {
    "change_set": "id = NEW.id OR (target_id = NEW.target_id AND version = NEW.version)",
    "workflow_change": "change_set_id = NEW.change_set_id AND flow_id = NEW.flow_id AND kind = NEW.kind",
    "target_membership": "id = NEW.id",
    "hold_event": "id = NEW.id",
    "workflow_detail": "id = NEW.id",
    "pruned_issues": "id = NEW.id",
    "run_seal": "id = NEW.id OR run_id = NEW.run_id",
    "seal_timestamp": "seal_id = NEW.seal_id",
    "trail": "id = NEW.id OR trail_id = NEW.trail_id",
    "answer": "data_hash = NEW.data_hash",
    "org_event": "event_id = NEW.event_id",
    "org_step": "id = NEW.id",
    "acknowledgement": "id = NEW.id OR revokes = NEW.revokes",
}
"""The append-only tables, and the condition under which a new row would replace an existing one."""
ALTERED = {"trail": " OF id, trail_id, created_at, reason, first_seal"}
"""The columns that must not be altered, for tables where others may be."""


def append_only_on_sqlite() -> None:
    """INSERT OR REPLACE deletes without firing the DELETE trigger, so a BEFORE INSERT trigger refuses existing keys.

    If a trigger may ABORT its statement, SQLite keeps a copy of every page that the statement touches: three quarters
    of what a first load of `workflow_change` wrote. FAIL needs no copies. It leaves the rows that the statement
    inserted before the refused one, but those are new, and the transaction can still be rolled back.
    """
    for table, same in TRAIL.items():
        refuse = f"BEGIN SELECT RAISE(ABORT, '{table} is append-only'); END"
        op.execute(f"CREATE TRIGGER {table}_no_update BEFORE UPDATE{ALTERED.get(table, '')} ON {table} {refuse}")
        op.execute(f"CREATE TRIGGER {table}_no_delete BEFORE DELETE ON {table} {refuse}")
        exists = f"EXISTS (SELECT 1 FROM {table} WHERE {same})"
        refuse = refuse.replace("ABORT", "FAIL") if table == "workflow_change" else refuse
        op.execute(f"CREATE TRIGGER {table}_no_replace BEFORE INSERT ON {table} WHEN {exists} {refuse}")


def append_only_on_postgresql() -> None:
    """Row triggers apply to partitions; TRUNCATE needs its own trigger. ALWAYS: also in a replication session.

    The function is named with its schema, because functions in a temporary one (see `flowtrail db check`) are not found
    by name.
    """
    op.execute("""
        CREATE FUNCTION flowtrail_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
                USING ERRCODE = 'integrity_constraint_violation';
        END $$
    """)
    for table in TRAIL:
        altered = f"DELETE OR UPDATE{ALTERED[table]}" if table in ALTERED else "UPDATE OR DELETE"
        for name, event in (("no_change", altered), ("no_truncate", "TRUNCATE")):
            each = "ROW" if name == "no_change" else "STATEMENT"
            op.execute(f"""
                DO $do$ BEGIN EXECUTE format(
                    'CREATE TRIGGER {table}_{name} BEFORE {event} ON {table}
                     FOR EACH {each} EXECUTE FUNCTION %I.flowtrail_append_only()', current_schema());
                END $do$
            """)
            op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_{name}")


def upgrade() -> None:
    tables = (target, workflow, change_set, workflow_change, observation, sync_run, sync_issue, organisation)
    history = (target_membership, hold_event, workflow_detail, pruned_issues, run_seal, seal_timestamp, trail, answer)
    story = (org_event, org_flow, org_loss, org_state, org_step, acknowledgement)
    notes = (overdue_notice, condition, webhook, webhook_notice, verification, rule, finding, lease)
    for make in (*tables, *history, org_turnover, *story, roster, roster_user, *notes):
        make()
    append_only_on_sqlite() if on_sqlite() else append_only_on_postgresql()


def downgrade() -> None:
    raise NotImplementedError("The schema only goes forward: restore a backup instead.")
