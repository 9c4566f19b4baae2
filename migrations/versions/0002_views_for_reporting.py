"""The views for reporting.

Each level of a view has one window, partitioned by the organisation first: so a condition on ``org_id`` reaches the
tables on SQLite too, which gives up as soon as a level has two.

Revision ID: 0002
Revises: 0001
"""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

SPELLED = {
    "sqlite": {"@utc_day": "substr(s.observed_at, 1, 10)", "@kind": "c.kind"},
    "postgresql": {"@utc_day": "CAST(s.observed_at AT TIME ZONE 'UTC' AS date)", "@kind": "c.kind || ''"},
}
"""All that the two databases spell differently; what SQLite gets, DuckDB reads too, so there is no ``a IS b``.

The kind of a change is the third column of the primary key: PostgreSQL prices an index scan with a condition on it as
one that skips from workflow to workflow of a change set, dear enough to lose against reading everything. An expression
is not the column. Measured on fifty million changes with PostgreSQL 18, for an organisation with 100,000 of them: with
the bare column `org_workflow_event` took 13 s and `cycle_change` 4 s, since whole partitions were read.
"""


def same(one: str, other: str) -> str:
    """Whether two values are equal or both null."""
    return f"({one} = {other} OR ({one} IS NULL AND {other} IS NULL))"


def differs(one: str, other: str) -> str:
    """Whether two values differ, null being a value (or null where they do not)."""
    return f"({one} <> {other} OR ({one} IS NULL) <> ({other} IS NULL))"


ONE_CHANGE = f"""(c.kind NOT IN ('renamed', 'editable_changed') OR {same("c.old_cycle", "c.new_cycle")})
      AND (c.kind <> 'editable_changed' OR {same("c.old_name", "c.new_name")})"""
"""A workflow that changed its cycle and its name at once has a row for each, with the same before and after: the one
that is kept is the first of cycle_changed, renamed, editable_changed."""

CURRENT_WORKFLOW = """
SELECT t.org_id, t.user_id, t.expression, w.flow_id, w.flow_name, w.cycle,
       CASE w.cycle WHEN 'M' THEN 'month' WHEN 'W' THEN 'week' WHEN 'D' THEN 'day' WHEN 'H' THEN 'hour'
                    WHEN 'mi' THEN 'minute' ELSE w.cycle END AS cycle_label,
       w.editable, w.first_seen_at, w.changed_at, o.last_at AS last_observed_at, w.missing_since
FROM target t
JOIN workflow w ON w.target_id = t.id
LEFT JOIN observation o ON o.id = (SELECT max(latest.id) FROM observation latest WHERE latest.target_id = t.id)
WHERE t.retired_at IS NULL
"""

WORKFLOW_EVENT = """
SELECT c.change_set_id, s.run_id, t.org_id, t.user_id, t.expression, c.flow_id, @kind AS kind, c.old_name, c.new_name,
       c.old_cycle, c.new_cycle, c.old_editable, c.new_editable, s.last_unchanged_at, s.observed_at
FROM workflow_change c
JOIN change_set s ON s.id = c.change_set_id
JOIN target t ON t.id = s.target_id
"""

CYCLE_CHANGE = """
SELECT change_set_id, run_id, org_id, user_id, expression, flow_id, kind, old_name, new_name, old_cycle, new_cycle,
       old_editable, new_editable, last_unchanged_at, observed_at
FROM workflow_event
WHERE kind = 'cycle_changed'
"""

WORKFLOW_HISTORY = f"""
SELECT l.org_id, l.user_id, l.expression, l.flow_id, l.flow_name, l.cycle, l.editable, l.valid_from,
       coalesce(l.next_at, l.retired_at) AS valid_to, l.from_kind, l.valid_from_after,
       coalesce((SELECT o.last_at FROM observation o
                 WHERE o.target_id = l.target_id AND o.version >= l.version
                   AND o.version < coalesce(l.next_version, 2147483647)
                 ORDER BY o.version DESC, o.id DESC LIMIT 1), l.valid_from) AS last_seen_at
FROM (
    SELECT t.id AS target_id, t.org_id, t.user_id, t.expression, t.retired_at, c.flow_id, c.kind AS from_kind,
           c.new_name AS flow_name, c.new_cycle AS cycle, c.new_editable AS editable,
           s.observed_at AS valid_from, s.last_unchanged_at AS valid_from_after, s.version,
           lead(s.observed_at) OVER life AS next_at, lead(s.version) OVER life AS next_version
    FROM workflow_change c
    JOIN change_set s ON s.id = c.change_set_id
    JOIN target t ON t.id = s.target_id
    WHERE {ONE_CHANGE}
    WINDOW life AS (PARTITION BY t.org_id, t.user_id, t.expression, c.flow_id ORDER BY s.version)
) l
WHERE l.from_kind <> 'removed'
"""

ORG_WORKFLOW = """
SELECT org_id, flow_id, flow_name, cycle, users, editors, first_seen_at
FROM (
    SELECT org_id, flow_id, flow_name, cycle,
           row_number() OVER seen AS nth,
           sum(CASE WHEN nth_of_user = 1 THEN 1 ELSE 0 END) OVER seen AS users,
           sum(CASE WHEN nth_of_user = 1 AND editable THEN 1 ELSE 0 END) OVER seen AS editors,
           min(first_seen_at) OVER seen AS first_seen_at
    FROM (
        SELECT t.id AS target_id, t.org_id, w.flow_id, w.flow_name, w.cycle, w.editable, w.changed_at, w.first_seen_at,
               row_number() OVER (PARTITION BY t.org_id, w.flow_id, t.user_id
                                  ORDER BY CASE WHEN w.editable THEN 0 ELSE 1 END, t.id) AS nth_of_user
        FROM target t
        JOIN workflow w ON w.target_id = t.id
        WHERE t.retired_at IS NULL
    ) by_user
    WINDOW seen AS (PARTITION BY org_id, flow_id ORDER BY changed_at DESC, target_id
                    ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
) by_change
WHERE nth = 1
"""

# Who gained or lost a workflow, and what it is called and how often it runs, are told apart: two chains of windows over
# fewer and narrower rows cost less than half of one over all. A retired target gives up what it saw, in a run of its
# own that makes no event, after all that it reported.
RETIREMENT = """CASE WHEN t.retired_at > w.changed_at THEN t.retired_at ELSE w.changed_at END, 9223372036854775807"""

ANOTHER = """EXISTS (SELECT 1 FROM target another
                      WHERE another.org_id = t.org_id AND another.user_id = t.user_id AND another.id <> t.id)"""

# Looked up for what becomes an event, so that the windows sort narrower rows.
LAST_UNCHANGED = "(SELECT s.last_unchanged_at FROM change_set s WHERE s.id = change_set_id)"

# 1. A step is +1 where a target shows a workflow that it did not, and -1 where it does no longer. It is told, that is
#    may be an event, unless it comes with a baseline or a retirement.
STEP = f"""
            SELECT t.org_id, c.flow_id, t.user_id, s.run_id, s.observed_at, c.change_set_id,
                   CASE c.kind WHEN 'removed' THEN c.old_name ELSE c.new_name END AS name,
                   CASE c.kind WHEN 'removed' THEN c.old_cycle ELSE c.new_cycle END AS cycle,
                   CASE c.kind WHEN 'removed' THEN c.old_editable ELSE c.new_editable END AS editable,
                   CASE c.kind WHEN 'removed' THEN -1 ELSE 1 END AS step,
                   CASE c.kind WHEN 'baseline' THEN 0 ELSE 1 END AS told
            FROM target t
            JOIN change_set s ON s.target_id = t.id
            JOIN workflow_change c ON c.change_set_id = s.id
            WHERE @kind IN ('baseline', 'added', 'removed') AND {{whose}}
            UNION ALL
            SELECT t.org_id, w.flow_id, t.user_id, -t.id, {RETIREMENT}, NULL, NULL, NULL, -1, 0
            FROM target t
            JOIN workflow w ON w.target_id = t.id
            WHERE t.retired_at IS NOT NULL AND {{whose}}"""

# 2. A user with several expressions is one user: what a run did to the user, all in all, counts at the last of the
#    steps, if it changed whether the user sees the workflow.
STEP_OF_SEVERAL = """
        SELECT org_id, flow_id, user_id, run_id, observed_at, change_set_id, name, cycle, editable,
               net AS step, CASE WHEN net > 0 THEN added ELSE removed END AS told
        FROM (
            SELECT shows.*, row_number() OVER whole AS nth,
                   sum(CASE WHEN shown > 0 THEN 1 ELSE 0 END
                       - CASE WHEN shown > step THEN 1 ELSE 0 END) OVER whole AS net,
                   max(CASE WHEN step > 0 THEN told ELSE 0 END) OVER whole AS added,
                   max(CASE WHEN step < 0 THEN told ELSE 0 END) OVER whole AS removed
            FROM (
                SELECT steps.*, sum(step) OVER (PARTITION BY org_id, flow_id, user_id
                                                ORDER BY observed_at, change_set_id ROWS UNBOUNDED PRECEDING) AS shown
                FROM ({steps}
                ) steps
            ) shows
            WINDOW whole AS (PARTITION BY org_id, flow_id, user_id, run_id
                             ORDER BY observed_at DESC, change_set_id DESC
                             ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
        ) runs
        WHERE nth = 1 AND net <> 0"""

# 3. How many users saw it before the step.
COUNTED = f"""
        SELECT of_users.*, sum(step) OVER (PARTITION BY org_id, flow_id ORDER BY observed_at, change_set_id
                                           ROWS UNBOUNDED PRECEDING) - step AS before_step
        FROM ({STEP.format(whose="NOT " + ANOTHER)}
            UNION ALL{STEP_OF_SEVERAL.format(steps=STEP.format(whose=ANOTHER))}
        ) of_users"""

# 4. The run as a whole: how many saw it before, how many more or fewer after, and whose step is the last.
BY_RUN = f"""
    SELECT counted.*, first_value(before_step) OVER run AS before_run, sum(step) OVER run AS net,
           max(told) OVER run AS run_told, last_value(user_id) OVER run AS last_user_id
    FROM ({COUNTED}
    ) counted
    WINDOW run AS (PARTITION BY org_id, flow_id, run_id ORDER BY observed_at, change_set_id
                   ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)"""

ACCESS_EVENT = f"""
SELECT org_id, flow_id, kind, CASE WHEN kind IN ('access_granted', 'access_lost') THEN user_id END AS user_id,
       CASE WHEN kind IN ('disappeared', 'access_lost') THEN name END AS old_name,
       CASE WHEN kind IN ('appeared', 'access_granted') THEN name END AS new_name,
       CASE WHEN kind IN ('disappeared', 'access_lost') THEN cycle END AS old_cycle,
       CASE WHEN kind IN ('appeared', 'access_granted') THEN cycle END AS new_cycle,
       CASE WHEN kind = 'access_lost' THEN editable END AS old_editable,
       CASE WHEN kind = 'access_granted' THEN editable END AS new_editable,
       {LAST_UNCHANGED} AS last_unchanged_at, observed_at
FROM (
    SELECT org_id, flow_id, user_id, name, cycle, editable, change_set_id, observed_at,
           CASE WHEN before_run = 0 AND net > 0
                THEN CASE WHEN user_id = last_user_id AND run_told = 1 THEN 'appeared' END
                WHEN before_run > 0 AND before_run + net = 0
                THEN CASE WHEN user_id = last_user_id AND run_told = 1 THEN 'disappeared' END
                WHEN told = 1 AND step > 0 THEN 'access_granted'
                WHEN told = 1 THEN 'access_lost' END AS kind
    FROM ({BY_RUN}
    ) steps_of_run
) accesses
WHERE kind IS NOT NULL"""

# 5. What shows a workflow anew, and how many targets showed it before; what only changed was shown before, at least by
#    the target that says so.
ANEW = f"""
            SELECT org_id, flow_id, observed_at, change_set_id, new_name, new_cycle, shown_before
            FROM (
                SELECT shows.*, sum(step) OVER (PARTITION BY org_id, flow_id ORDER BY observed_at, change_set_id
                                                ROWS UNBOUNDED PRECEDING) - step AS shown_before
                FROM (
                    SELECT t.org_id, c.flow_id, s.observed_at, c.change_set_id, c.new_name,
                           c.new_cycle, CASE c.kind WHEN 'removed' THEN -1 ELSE 1 END AS step
                    FROM target t
                    JOIN change_set s ON s.target_id = t.id
                    JOIN workflow_change c ON c.change_set_id = s.id
                    WHERE @kind IN ('baseline', 'added', 'removed')
                    UNION ALL
                    SELECT t.org_id, w.flow_id, {RETIREMENT}, NULL, NULL, -1
                    FROM target t
                    JOIN workflow w ON w.target_id = t.id
                    WHERE t.retired_at IS NOT NULL
                ) shows
            ) anew
            WHERE step > 0"""

# 6. What the organisation was told last, by whomever; a removal tells nothing of the name and the cycle.
TOLD = f"""
        SELECT tells.*, lag(new_name) OVER told AS old_name, lag(new_cycle) OVER told AS old_cycle
        FROM (
            SELECT t.org_id, c.flow_id, s.observed_at, c.change_set_id, c.new_name, c.new_cycle,
                   1 AS shown_before
            FROM target t
            JOIN change_set s ON s.target_id = t.id
            JOIN workflow_change c ON c.change_set_id = s.id
            WHERE @kind IN ('cycle_changed', 'renamed', 'editable_changed') AND {ONE_CHANGE}
            UNION ALL{ANEW}
        ) tells
        WINDOW told AS (PARTITION BY org_id, flow_id ORDER BY observed_at, change_set_id)"""

# 7. A report can be two events: of the cycle and of the name.
ORG_WORKFLOW_EVENT = f"""{ACCESS_EVENT}
UNION ALL
SELECT org_id, flow_id, kind, NULL, old_name, new_name, old_cycle, new_cycle, NULL, NULL,
       {LAST_UNCHANGED}, observed_at
FROM (
    SELECT *
    FROM ({TOLD}
    ) told
    WHERE shown_before > 0 AND ({differs("new_cycle", "old_cycle")} OR {differs("new_name", "old_name")})
) differs
CROSS JOIN (SELECT 'cycle_changed' AS kind UNION ALL SELECT 'renamed') part
WHERE CASE kind WHEN 'renamed' THEN {differs("new_name", "old_name")} ELSE {differs("new_cycle", "old_cycle")} END
"""

WORKFLOW_DETAIL_LATEST = """
SELECT d.org_id, d.flow_id, d.run_id, d.asked_at, d.observed_at, d.update_user, d.update_time, d.creator, d.create_time,
       d.owner, d.freq, d.active, d.type, d.locked, d.detail_hash
FROM workflow_detail d
WHERE d.id = (SELECT max(latest.id) FROM workflow_detail latest
              WHERE latest.org_id = d.org_id AND latest.flow_id = d.flow_id)
"""

TARGET_HEALTH = """
SELECT t.org_id, t.user_id, t.expression, t.version, t.flow_count, o.last_at AS last_observed_at,
       t.consecutive_failures, t.last_error_code, t.last_error, t.held_since,
       (SELECT count(*) FROM workflow w WHERE w.target_id = t.id AND w.missing_since IS NOT NULL) AS held_removals,
       t.retired_at
FROM target t
LEFT JOIN observation o ON o.id = (SELECT max(latest.id) FROM observation latest WHERE latest.target_id = t.id)
"""

COVERAGE_GAP = """
SELECT t.org_id, t.user_id, t.expression, before.last_at AS gap_from, o.first_at AS gap_to,
       o.version <> before.version AS changed_inside
FROM target t
JOIN observation o ON o.target_id = t.id AND o.interrupted
JOIN observation before ON before.id = (SELECT max(p.id) FROM observation p WHERE p.target_id = t.id AND p.id < o.id)
UNION ALL
SELECT t.org_id, t.user_id, t.expression, latest.last_at, NULL, t.version <> latest.version
FROM target t
JOIN observation latest ON latest.id = (SELECT max(p.id) FROM observation p WHERE p.target_id = t.id)
WHERE t.observation_id IS NULL AND t.retired_at IS NULL
"""

DAILY_CHANGE = """
SELECT @utc_day AS day, t.org_id, k.kind,
       sum(CASE k.kind WHEN 'added' THEN s.added WHEN 'removed' THEN s.removed WHEN 'cycle_changed' THEN s.cycle_changed
                       WHEN 'renamed' THEN s.renamed ELSE s.editable_changed END) AS changes
FROM change_set s
JOIN target t ON t.id = s.target_id
CROSS JOIN (SELECT 'added' AS kind UNION ALL SELECT 'removed' UNION ALL SELECT 'cycle_changed'
            UNION ALL SELECT 'renamed' UNION ALL SELECT 'editable_changed') k
GROUP BY @utc_day, t.org_id, k.kind
HAVING sum(CASE k.kind WHEN 'added' THEN s.added WHEN 'removed' THEN s.removed WHEN 'cycle_changed' THEN s.cycle_changed
                       WHEN 'renamed' THEN s.renamed ELSE s.editable_changed END) > 0
"""

VIEWS = {
    "current_workflow": ("A workflow that a target sees now; retired targets are left out.", CURRENT_WORKFLOW),
    "workflow_event": ("One change of one workflow, as one target saw it.", WORKFLOW_EVENT),
    "cycle_change": ("A workflow_event in which the cycle changed.", CYCLE_CHANGE),
    "workflow_history": (
        "A state of a workflow as one target saw it, from the observation that showed it until the one that showed "
        "another; valid_to is null while it lasts.",
        WORKFLOW_HISTORY,
    ),
    "org_workflow": ("A workflow that at least one user of the organisation sees now.", ORG_WORKFLOW),
    "org_workflow_event": (
        "Something that happened to a workflow in its organisation, once however many users see it; a run is judged "
        "as a whole, as of its end.",
        ORG_WORKFLOW_EVENT,
    ),
    "workflow_detail_latest": (
        "What EnOS said of a workflow when it was last asked for its details.",
        WORKFLOW_DETAIL_LATEST,
    ),
    "target_health": ("A target, and whether what is known of it can be trusted.", TARGET_HEALTH),
    "coverage_gap": ("A time in which nobody was looking at a target; gap_to is null while it lasts.", COVERAGE_GAP),
    "daily_change": (
        "How many changes of a kind the targets of an organisation showed on a day (UTC), without baselines.",
        DAILY_CHANGE,
    ),
}


def upgrade() -> None:
    dialect = op.get_context().dialect.name
    for name, (row, select) in VIEWS.items():
        view(name, row, spelled(select.strip(), dialect), dialect)


def spelled(select: str, dialect: str) -> str:
    for mark, spelling in SPELLED[dialect].items():
        select = select.replace(mark, spelling)
    return select


def view(name: str, row: str, select: str, dialect: str) -> None:
    """``row`` says what a row is: a comment on PostgreSQL; SQLite keeps the text of the view as it is written."""
    if dialect == "sqlite":
        op.execute(f"CREATE VIEW {name} AS\n-- {row}\n{select}")
    else:
        op.execute(f"CREATE VIEW {name} AS {select}")
        op.execute(f"COMMENT ON VIEW {name} IS '{row}'")


def downgrade() -> None:
    raise NotImplementedError("The schema only goes forward: restore a backup instead.")
