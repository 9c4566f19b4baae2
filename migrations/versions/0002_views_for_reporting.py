"""The views for reporting.

Each level of a view has one window, partitioned by the organisation first, so that a condition on ``org_id`` reaches
the tables on SQLite, too; with two windows in a level, SQLite would not push it down.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

import re

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SPELLED = {
    "sqlite": {
        "@kind": "c.kind",
        "AS @time)": "AS TEXT)",
        "AS @flag)": "AS INTEGER)",
    },
    "postgresql": {
        "@kind": "c.kind || ''",
        "AS @time)": "AS timestamptz)",
        "AS @flag)": "AS boolean)",
    },
}
"""What the two databases spell differently. DuckDB reads SQLite's views, so they must not contain ``a IS b``.

On SQLite a column of a view has a type only if it is a column of a table or a CAST: programs that ask for types (an ORM
that reflects the schema, a BI tool) would otherwise find none.

The kind of a change is the third column of the primary key. For a condition on the bare column, PostgreSQL plans an
index scan that skips from workflow to workflow, estimates it as more expensive than reading everything, and reads whole
partitions: with fifty million changes (PostgreSQL 18), the changes of cycle took 4 s for an organisation with 100,000.
An expression instead of the column avoids that.
"""


def same(one: str, other: str) -> str:
    """Whether two values are equal or both null."""
    return f"({one} = {other} OR ({one} IS NULL AND {other} IS NULL))"


ONE_CHANGE = f"""(c.kind NOT IN ('renamed', 'editable_changed') OR {same("c.old_cycle", "c.new_cycle")})
      AND (c.kind <> 'editable_changed' OR {same("c.old_name", "c.new_name")})"""
"""A workflow that changed its cycle and its name at once has a row for each, with the same before and after. This keeps
the first of cycle_changed, renamed, editable_changed."""

LIST_WORKFLOW = """
SELECT t.org_id, t.user_id, t.expression, w.flow_id, w.flow_name, w.cycle,
       CAST(CASE w.cycle WHEN 'M' THEN 'month' WHEN 'W' THEN 'week' WHEN 'D' THEN 'day' WHEN 'H' THEN 'hour'
                         WHEN 'mi' THEN 'minute' ELSE w.cycle END AS TEXT) AS cycle_label,
       w.editable, w.first_listed_at, w.changed_at, o.last_at AS last_observed_at, w.missing_since
FROM target t
JOIN workflow w ON w.target_id = t.id
LEFT JOIN observation o ON o.id = (SELECT max(latest.id) FROM observation latest WHERE latest.target_id = t.id)
WHERE t.retired_at IS NULL
"""

# Who agreed to an event or a change: the latest acknowledgement that covers it and was not revoked, if there is any at
# all. Subqueries, so that whoever does not ask for the columns pays nothing, and planners need not guess how many there
# are. Two lookups in the index over scopes, for the workflow and for any: for one with OR, PostgreSQL reads the rows.
# It finds the number once for all three columns, because it cannot take the join's condition for granted, and leaves
# the join out where none is asked for. SQLite has no LATERAL: see `spelled`. A first list has no interval: no number.
COVERING = """
           SELECT a.id FROM acknowledgement a
           WHERE a.org_id = {org_id} AND a.flow_id {flow_id} AND a.revokes IS NULL
             AND (a.until IS NULL OR a.until > {last_unchanged_at}) AND (a.after IS NULL OR a.after < {observed_at})
             AND (a.kind IS NULL OR a.kind = {kind}) AND (a.user_id IS NULL OR a.user_id = {user_id})
             AND a.id NOT IN (SELECT r.revokes FROM acknowledgement r WHERE r.revokes IS NOT NULL)"""
AGREED = """
       CAST((SELECT k.ticket FROM acknowledgement k WHERE k.id = agreed.id) AS TEXT) AS ticket,
       CAST((SELECT k.made_by FROM acknowledgement k WHERE k.id = agreed.id) AS TEXT) AS acknowledged_by,
       CAST((SELECT k.made_at FROM acknowledgement k WHERE k.id = agreed.id) AS @time) AS acknowledged_at"""


def agreed(**event: str) -> str:
    """The number of the acknowledgement of an event, of which these expressions are the columns."""
    one, all_of_them = (COVERING.format(**event | {"flow_id": f}) for f in (f"= {event['flow_id']}", "IS NULL"))
    happened = f"{event['last_unchanged_at']} < {event['observed_at']}"
    return f"""LEFT JOIN LATERAL (SELECT CASE WHEN EXISTS (SELECT 1 FROM acknowledgement) THEN (
    SELECT max(covering.id) FROM ({one}
           UNION ALL{all_of_them}) covering) END AS id) agreed ON {happened}"""


LATERAL = re.compile(r"\nLEFT JOIN LATERAL \(SELECT (.*) AS id\) agreed ON (.*)$", re.DOTALL)
TIMES = ("last_unchanged_at", "observed_at")
OF_AN_EVENT = {name: f"e.{name}" for name in ("org_id", "flow_id", "kind", "user_id", *TIMES)}
OF_A_CHANGE = {
    **{name: f"t.{name}" for name in ("org_id", "user_id")},
    **{name: f"c.{name}" for name in ("flow_id", "kind")},
    **{name: f"s.{name}" for name in TIMES},
}

LIST_CHANGE = f"""
SELECT c.change_set_id, s.run_id, t.org_id, t.user_id, t.expression, c.flow_id, @kind AS kind, c.old_name, c.new_name,
       c.old_cycle, c.new_cycle, c.old_editable, c.new_editable, s.last_unchanged_at, s.observed_at,{AGREED}
FROM workflow_change c
JOIN change_set s ON s.id = c.change_set_id
JOIN target t ON t.id = s.target_id
{agreed(**OF_A_CHANGE)}
"""

LAST_LISTED = """
       CAST(coalesce((SELECT o.last_at FROM observation o
                      WHERE o.target_id = l.target_id AND o.version >= l.version
                        AND o.version < coalesce(l.next_version, 2147483647)
                      ORDER BY o.version DESC, o.id DESC LIMIT 1), l.valid_from) AS @time) AS last_listed_at"""

# A target that was retired has a state until then, and the same state again from its return on.
UNTIL = """
       CAST(coalesce((SELECT min(m.at) FROM target_membership m
                      WHERE m.target_id = l.target_id AND m.schedule IS NULL AND m.kind = 'retired'
                        AND m.at > l.{since} AND m.at < coalesce(l.next_at, '9999-12-31')), l.next_at)
            AS @time) AS valid_to"""

STATES = f"""
    SELECT t.id AS target_id, t.org_id, t.user_id, t.expression, c.flow_id, c.kind AS from_kind,
           c.new_name AS flow_name, c.new_cycle AS cycle, c.new_editable AS editable,
           s.observed_at AS valid_from, s.last_unchanged_at AS last_unchanged_at, s.version,
           lead(s.observed_at) OVER life AS next_at, lead(s.version) OVER life AS next_version{{more}}
    FROM {{source}}
    JOIN change_set s ON s.target_id = t.id
    JOIN workflow_change c ON c.change_set_id = s.id
    WHERE {ONE_CHANGE}{{only}}
    WINDOW life AS (PARTITION BY t.org_id, t.user_id, t.expression, c.flow_id{{of}} ORDER BY s.version)"""
AWAY = {
    "more": ", b.at AS back_at",
    "source": "target_membership b JOIN target t ON t.id = b.target_id",
    "only": " AND b.schedule IS NULL AND b.kind = 'resumed'",
    "of": ", b.id",
}

LIST_HISTORY = f"""
SELECT l.org_id, l.user_id, l.expression, l.flow_id, l.flow_name, l.cycle, l.editable, l.valid_from,{
    UNTIL.format(since="valid_from")
}, l.from_kind, l.last_unchanged_at,{LAST_LISTED}
FROM ({STATES.format(more="", source="target t", only="", of="")}
) l
WHERE l.from_kind <> 'removed'
UNION ALL
SELECT l.org_id, l.user_id, l.expression, l.flow_id, l.flow_name, l.cycle, l.editable, l.back_at,{
    UNTIL.format(since="back_at")
}, 'resumed', NULL,{LAST_LISTED}
FROM ({STATES.format(**AWAY)}
) l
WHERE l.from_kind <> 'removed' AND l.valid_from < l.back_at AND l.back_at < coalesce(l.next_at, '9999-12-31')
"""

# The end of each run writes the events and states of organisations into tables (docs/organisation.md). Changes without
# a cycle are a directory's, and have an index of their own: users may have thousands of the same workflow.
ORG_WORKFLOW_EVENT = f"""
SELECT e.org_id, e.flow_id, e.kind, e.user_id, e.old_name, e.new_name, e.old_cycle, e.new_cycle,
       e.old_editable, e.new_editable, e.last_unchanged_at, e.observed_at, e.users_before, e.users_after,
       e.proven_for_all, e.unheard, e.decided_at, e.run_id, s.id AS seal_id, e.event_id, d.update_user, d.update_time,
       (SELECT p.freq FROM workflow_detail p
        WHERE p.id = (SELECT max(earlier.id) FROM workflow_detail earlier
                      WHERE earlier.org_id = d.org_id AND earlier.flow_id = d.flow_id AND earlier.id < d.id)
       ) AS old_freq, d.freq AS new_freq, d.enos_timezone,
       CAST((SELECT CASE WHEN EXISTS (SELECT 1 FROM observation seen
                                      WHERE seen.target_id = v.target_id AND seen.version = v.version
                                        AND seen.first_at <= e.decided_at
                                        AND seen.last_at >= (SELECT r.started_at FROM sync_run r WHERE r.id = e.run_id))
                         THEN coalesce((SELECT CASE c.kind WHEN 'removed' THEN 0 ELSE 1 END
                                        FROM workflow_change c
                                        WHERE c.flow_id = e.flow_id AND c.old_cycle IS NULL AND c.new_cycle IS NULL
                                          AND v.target_id = (SELECT s.target_id FROM change_set s
                                                             WHERE s.id = c.change_set_id AND s.version <= v.version)
                                        ORDER BY c.change_set_id DESC LIMIT 1), 0) END
             FROM target b
             JOIN change_set v ON v.id = (SELECT s.id FROM change_set s
                                          WHERE s.target_id = b.id AND s.observed_at <= e.decided_at
                                          ORDER BY s.observed_at DESC LIMIT 1)
             WHERE b.org_id = e.org_id AND b.user_id = '' AND b.expression = '') AS @flag) AS in_directory,{AGREED}
FROM org_event e
LEFT JOIN run_seal s ON s.run_id = e.run_id
LEFT JOIN workflow_detail d ON d.id = (SELECT max(of_run.id) FROM workflow_detail of_run
                                       WHERE of_run.org_id = e.org_id AND of_run.flow_id = e.flow_id
                                         AND of_run.run_id = e.run_id)
{agreed(**OF_AN_EVENT)}
"""

# Subqueries, so that queries without these columns do not pay for them.
SHOWN_BY = """FROM target t
        JOIN workflow w ON w.target_id = t.id AND w.flow_id = f.flow_id
        {join}WHERE t.org_id = f.org_id AND t.user_id <> '' AND t.expression = '' AND t.retired_at IS NULL"""
LATEST = """JOIN observation o ON o.id = (SELECT max(l.id) FROM observation l WHERE l.target_id = t.id)
        """

ORG_WORKFLOW = f"""
SELECT f.org_id, f.flow_id, f.flow_name, f.cycle, f.users, f.editors, f.since AS first_listed_at,
       CAST(CASE WHEN f.cycle_first_at > f.name_first_at THEN f.cycle_first_at ELSE f.name_first_at END
            AS @time) AS changed_at,
       CAST((SELECT max(o.last_at) {SHOWN_BY.format(join=LATEST)}) AS @time) AS last_listed_at,
       CAST((SELECT count(*) {SHOWN_BY.format(join="")} AND t.observation_id IS NULL) AS BIGINT) AS users_in_gap,
       CAST((SELECT CASE WHEN EXISTS (SELECT 1 FROM workflow w WHERE w.target_id = b.id AND w.flow_id = f.flow_id)
                         THEN 1 ELSE 0 END
             FROM target b
             WHERE b.org_id = f.org_id AND b.user_id = '' AND b.expression = '' AND b.retired_at IS NULL
               AND b.observation_id IS NOT NULL) AS @flag) AS in_directory
FROM org_flow f
WHERE f.users > 0
"""

# Whom a workflow left last: everybody, the users who wait, or the last user who had it and was retired.
UNLISTED_WORKFLOW = """
SELECT u.org_id, u.flow_id, u.flow_name, u.first_listed_at,
       CAST(CASE WHEN u.left_at > u.first_listed_at THEN u.left_at ELSE u.first_listed_at END
            AS @time) AS unlisted_since
FROM (
    SELECT t.org_id, w.flow_id, w.flow_name, w.first_listed_at,
           coalesce(f.gone_at,
                    (SELECT max(l.without_at) FROM org_loss l WHERE l.org_id = f.org_id AND l.flow_id = f.flow_id),
                    (SELECT max(s.valid_to) FROM org_state s WHERE s.org_id = f.org_id AND s.flow_id = f.flow_id)
           ) AS left_at
    FROM target t
    JOIN workflow w ON w.target_id = t.id
    LEFT JOIN org_flow f ON f.org_id = t.org_id AND f.flow_id = w.flow_id
    WHERE t.user_id = '' AND t.retired_at IS NULL AND coalesce(f.users, 0) = 0
) u
"""

ORG_WORKFLOW_HISTORY = """
SELECT s.org_id, s.flow_id, s.flow_name, s.cycle, s.valid_from, s.last_unchanged_at, s.valid_to,
       s.from_kind, s.proven_for_all
FROM org_state s
UNION ALL
SELECT f.org_id, f.flow_id, f.flow_name, f.cycle, f.valid_from, f.last_unchanged_at, NULL, f.from_kind,
       f.proven_for_all
FROM org_flow f
WHERE f.from_kind IS NOT NULL
"""

ORG_PENDING = """
SELECT l.org_id, l.flow_id, l.user_id, l.without_at AS waiting_since, f.awaited AS waits_for
FROM org_loss l
JOIN org_flow f ON f.org_id = l.org_id AND f.flow_id = l.flow_id
"""

WORKFLOW_DETAIL_LATEST = """
SELECT d.org_id, d.flow_id, d.run_id, d.asked_at, d.observed_at, d.update_user, d.update_time, d.creator, d.create_time,
       d.owner, d.freq, d.active, d.type, d.locked, d.enos_timezone, d.detail_hash
FROM workflow_detail d
WHERE d.id = (SELECT max(latest.id) FROM workflow_detail latest
              WHERE latest.org_id = d.org_id AND latest.flow_id = d.flow_id)
"""

TARGET_HEALTH = """
SELECT t.org_id, t.user_id, t.expression, t.version AS versions, t.flow_count, o.last_at AS last_observed_at,
       t.consecutive_failures, t.last_error_code, t.last_error, t.held_since,
       CAST((SELECT count(*) FROM workflow w WHERE w.target_id = t.id
               AND (w.missing_since IS NOT NULL OR w.doubted IS NOT NULL))
            AS BIGINT) AS held_workflows,
       t.retired_at
FROM target t
LEFT JOIN observation o ON o.id = (SELECT max(latest.id) FROM observation latest WHERE latest.target_id = t.id)
"""

# Cast around the union: SQLite gives a CAST in a part of one no type.
COVERAGE_GAP = """
SELECT g.org_id, g.user_id, g.expression, g.gap_from, g.gap_to, CAST(g.changed_inside AS @flag) AS changed_inside
FROM (
    SELECT t.org_id, t.user_id, t.expression, before.last_at AS gap_from, o.first_at AS gap_to,
           o.version <> before.version AS changed_inside
    FROM target t
    JOIN observation o ON o.target_id = t.id AND o.interrupted
    JOIN observation before
         ON before.id = (SELECT max(p.id) FROM observation p WHERE p.target_id = t.id AND p.id < o.id)
    UNION ALL
    SELECT t.org_id, t.user_id, t.expression, latest.last_at, NULL, t.version <> latest.version
    FROM target t
    JOIN observation latest ON latest.id = (SELECT max(p.id) FROM observation p WHERE p.target_id = t.id)
    WHERE t.observation_id IS NULL AND t.retired_at IS NULL
) g
"""

VIEWS = {
    "list_workflow": ("A workflow that a target sees now; retired targets are left out.", LIST_WORKFLOW),
    "list_change": ("One change of one workflow, as one target saw it.", LIST_CHANGE),
    "list_history": (
        "A state of a workflow as one target saw it, from the observation that showed it until the one that showed "
        "another; valid_to is null while it lasts.",
        LIST_HISTORY,
    ),
    "org_workflow": (
        "A workflow that at least one user of the organisation sees now, as far as is known.",
        ORG_WORKFLOW,
    ),
    "unlisted_workflow": (
        "A workflow in the directory of its organisation that no user has in a list, as of the last run.",
        UNLISTED_WORKFLOW,
    ),
    "org_workflow_event": (
        "An event of a workflow in its organisation: one row, however many users see it.",
        ORG_WORKFLOW_EVENT,
    ),
    "org_workflow_history": (
        "A state of a workflow in its organisation; valid_to is null while it lasts.",
        ORG_WORKFLOW_HISTORY,
    ),
    "org_pending": (
        "A user who lost a workflow, while it is unknown whether other users did, too.",
        ORG_PENDING,
    ),
    "workflow_detail_latest": (
        "The latest details of a workflow that EnOS gave.",
        WORKFLOW_DETAIL_LATEST,
    ),
    "target_health": ("A target, and whether its list can be trusted.", TARGET_HEALTH),
    "coverage_gap": ("A period without an observation of a target; gap_to is null while it lasts.", COVERAGE_GAP),
}


_LIST = {
    "org_id": "the organisation",
    "user_id": "whose list it is; empty: the directory of the organisation",
    "expression": "the search by which it was asked for; empty: all workflows",
}
_STORY = {
    "org_id": "the organisation",
    "flow_id": "the workflow",
}
_ACKNOWLEDGED = {
    "ticket": "the ticket of the latest acknowledgement that covers it and was not revoked; null: none, or without one",
    "acknowledged_by": "who made that; null: nobody acknowledged it",
    "acknowledged_at": "when that was made; null: nobody acknowledged it",
}
_CHANGE = _LIST | {
    "change_set_id": "the version of the list that the change belongs to",
    "run_id": "the run that observed it",
    "flow_id": "the workflow",
    "kind": "baseline, added, removed, renamed, cycle_changed or editable_changed",
    "old_name": "the name before; null if it was not listed",
    "new_name": "the name after; null if it is not listed",
    "old_cycle": "the cycle before",
    "new_cycle": "the cycle after",
    "old_editable": "whether the user could edit it, before",
    "new_editable": "whether the user can edit it, after",
    "last_unchanged_at": "it happened after this; null for a first list",
    "observed_at": "and not after this",
    **_ACKNOWLEDGED,
}
COLUMNS = {
    "list_workflow": _LIST
    | {
        "flow_id": "the workflow",
        "flow_name": "its name; null if EnOS gave none",
        "cycle": "its cycle as EnOS gives it: M, W, D, H or mi",
        "cycle_label": "the cycle as a word; as EnOS gives it if unknown",
        "editable": "whether the user may edit it; null if EnOS does not say",
        "first_listed_at": "the first answer with it, since it was last added",
        "changed_at": "the answer that last changed it, or first showed it",
        "last_observed_at": "the last answer of which nothing was held",
        "missing_since": "since when its removal is held; null if none is held",
    },
    "list_change": _CHANGE,
    "list_history": _LIST
    | {
        "flow_id": "the workflow",
        "flow_name": "its name in that state",
        "cycle": "its cycle in that state",
        "editable": "whether the user might edit it",
        "valid_from": "the observation that the state begins with",
        "valid_to": "the observation that it ends with, or the retirement of the target; null: it is current",
        "from_kind": "the kind of change that it began with; resumed after a retirement",
        "last_unchanged_at": "it began after this; null: known from a first list",
        "last_listed_at": "the last answer with it in that state",
    },
    "workflow_detail_latest": {
        "org_id": "the organisation",
        "flow_id": "the workflow",
        "run_id": "the run that asked",
        "asked_at": "when it asked",
        "observed_at": "when the answer had arrived",
        "update_user": "who changed the workflow last, as EnOS said",
        "update_time": "when, by the clock of EnOS, as it was said",
        "creator": "who created it",
        "create_time": "when, by the clock of EnOS, as it was said",
        "owner": "its owners, separated by semicolons",
        "freq": "its schedule, a Quartz cron expression",
        "active": "0: paused, 1: started",
        "type": "0: manual, 1: periodic, 2: temporary",
        "locked": "whether it is locked, as EnOS said",
        "enos_timezone": "the time zone of its clock, as it said then, such as GMT+8; null where it did not say",
        "detail_hash": "SHA-256 (hex) of what EnOS said",
    },
    "target_health": _LIST
    | {
        "versions": "how many versions of the list are recorded; 0: never observed",
        "flow_count": "how many workflows it has",
        "last_observed_at": "the last answer in which nothing was held; null: there was none",
        "consecutive_failures": "how often in a row it has failed",
        "last_error_code": "the code of its last failure; a refusal stays until it answers; null after a valid answer",
        "last_error": "the same as a sentence",
        "held_since": "since when removals are held; null: none are",
        "held_workflows": "how many workflows are held",
        "retired_at": "when it was retired; null: it is still asked",
    },
    "coverage_gap": _LIST
    | {
        "gap_from": "the last answer before the silence",
        "gap_to": "the first answer after it; null while it lasts",
        "changed_inside": "whether the list changed between the two",
    },
    "org_workflow_event": _STORY
    | {
        "kind": "appeared, disappeared, reappeared, renamed, cycle_changed, access_granted or access_lost",
        "user_id": "whose access it was; else null",
        "old_name": "the name before",
        "new_name": "the name after",
        "old_cycle": "the cycle before",
        "new_cycle": "the cycle after",
        "old_editable": "whether the user could edit it, before; access_lost only",
        "new_editable": "whether the user can edit it; access_granted only",
        "last_unchanged_at": "it happened after this",
        "observed_at": "and not after this",
        "users_before": "how many users had it, or were still to answer, before",
        "users_after": "the same, after",
        "proven_for_all": "whether it is proven for all users",
        "unheard": "active users who did not answer in the run that decided",
        "decided_at": "when that run judged it",
        "run_id": "that run",
        "seal_id": "its seal; null until it is sealed",
        "event_id": "the event, in the order in which events were written",
        "update_user": "who changed the workflow last, as EnOS said to that run when it asked",
        "update_time": "when, by the clock of EnOS, as it was said",
        "old_freq": "its schedule as EnOS had said it before, a Quartz cron expression; null where it was never asked",
        "new_freq": "its schedule as EnOS said it then",
        "enos_timezone": "the time zone of its clock, as it said then, such as GMT+8; null where it did not say",
        "in_directory": "whether the directory of the organisation listed it during that run; null: there was none, or "
        "it was not observed then",
        **_ACKNOWLEDGED,
    },
    "org_workflow": _STORY
    | {
        "flow_name": "its name as last known",
        "cycle": "its cycle as last known",
        "users": "how many users see it",
        "editors": "how many of them may edit it",
        "first_listed_at": "the first answer with it, since it appeared or came back",
        "changed_at": "the first answer with its present name and cycle",
        "last_listed_at": "the latest answer with it",
        "users_in_gap": "how many of its users are in a coverage gap: they failed or were held when last asked",
        "in_directory": "whether the directory of the organisation lists it; null: there is none, or it failed or was "
        "held when last asked for",
    },
    "unlisted_workflow": _STORY
    | {
        "flow_name": "its name in the directory",
        "first_listed_at": "since when the directory lists it",
        "unlisted_since": "since when the directory lists it and no user does",
    },
    "org_workflow_history": _STORY
    | {
        "flow_name": "its name in that state",
        "cycle": "its cycle in that state",
        "valid_from": "the observation that the state begins with",
        "last_unchanged_at": "it began after this; null: known from a first answer",
        "valid_to": "the observation that it ends with, or the retirement of its last user; null: it is current",
        "from_kind": "the kind of event that it began with, or baseline",
        "proven_for_all": "whether that event is proven for all users",
    },
    "org_pending": _STORY
    | {
        "user_id": "who lost it",
        "waiting_since": "the first answer of the user without it",
        "waits_for": "how many users must still answer before it can be decided",
    },
}
"""What each column is; the view ``column_comment`` has it on both databases."""


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    for name, (row, select) in VIEWS.items():
        view(name, row, spelled(select.strip(), dialect), dialect)
        if dialect == "postgresql":
            for column, what in COLUMNS.get(name, {}).items():
                op.execute(f"COMMENT ON COLUMN {name}.{column} IS '{what}'")
    comments = [(name, column, what) for name, columns in COLUMNS.items() for column, what in columns.items()]
    rows = [f"SELECT '{name}', '{column}', '{what}'" for name, column, what in comments]
    named = ("view_name", "column_name", "comment")
    first = "SELECT " + ", ".join(
        f"CAST('{text}' AS TEXT) AS {name}" for text, name in zip(comments[0], named, strict=True)
    )
    view("column_comment", "What a column of a view is.", "\nUNION ALL ".join([first, *rows[1:]]), dialect)


def spelled(select: str, dialect: str) -> str:
    for mark, spelling in SPELLED[dialect].items():
        select = select.replace(mark, spelling)
    lateral = LATERAL.search(select) if dialect == "sqlite" else None
    if lateral is None:
        return select
    return select[: lateral.start()].replace("agreed.id", f"CASE WHEN {lateral[2]} THEN {lateral[1]} END")


def view(name: str, row: str, select: str, dialect: str) -> None:
    """``row`` says what a row is: a comment on PostgreSQL; SQLite keeps the text of a view as written."""
    if dialect == "sqlite":
        columns = "".join(f"-- {column}: {what}\n" for column, what in COLUMNS.get(name, {}).items())
        op.execute(f"CREATE VIEW {name} AS\n-- {row}\n{columns}{select}")
    else:
        op.execute(f"CREATE VIEW {name} AS {select}")
        op.execute(f"COMMENT ON VIEW {name} IS '{row}'")


def downgrade() -> None:
    raise NotImplementedError("The schema only goes forward: restore a backup instead.")
