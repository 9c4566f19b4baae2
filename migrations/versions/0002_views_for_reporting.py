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

WORDS = {
    "sqlite": {"differs_from": "IS NOT", "same_as": "IS", "utc_day": "substr(s.observed_at, 1, 10)"},
    "postgresql": {
        "differs_from": "IS DISTINCT FROM",
        "same_as": "IS NOT DISTINCT FROM",
        "utc_day": "CAST(s.observed_at AT TIME ZONE 'UTC' AS date)",
    },
}
"""What the two databases spell differently."""

ONE_CHANGE = """(c.kind NOT IN ('renamed', 'editable_changed') OR c.old_cycle {same_as} c.new_cycle)
      AND (c.kind <> 'editable_changed' OR c.old_name {same_as} c.new_name)"""
"""A workflow that changed its cycle and its name at once has a row for each, with the same before and after: the one
that is kept is the first of cycle_changed, renamed, editable_changed."""

WORKFLOW_HISTORY = f"""
SELECT l.org_id, l.user_id, l.expression, l.flow_id, l.flow_name, l.cycle, l.editable, l.valid_from,
       coalesce(l.next_at, l.retired_at) AS valid_to, l.from_kind, l.valid_from_after,
       CASE WHEN o.last_at > l.valid_from THEN o.last_at ELSE l.valid_from END AS last_seen_at
FROM (
    SELECT t.id AS target_id, t.org_id, t.user_id, t.expression, t.retired_at, c.flow_id, c.kind AS from_kind,
           c.new_name AS flow_name, c.new_cycle AS cycle, c.new_editable AS editable,
           s.observed_at AS valid_from, s.last_unchanged_at AS valid_from_after,
           lead(s.observed_at) OVER life AS next_at, lead(s.version) OVER life AS next_version
    FROM workflow_change c
    JOIN change_set s ON s.id = c.change_set_id
    JOIN target t ON t.id = s.target_id
    WHERE {ONE_CHANGE}
    WINDOW life AS (PARTITION BY t.org_id, t.user_id, t.expression, c.flow_id ORDER BY s.version)
) l
LEFT JOIN observation o ON o.id = (SELECT p.id FROM observation p
                                   WHERE p.target_id = l.target_id AND p.version < coalesce(l.next_version, 2147483647)
                                   ORDER BY p.version DESC, p.id DESC LIMIT 1)
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

# 1. A report is what one target says of one workflow in one change set: +1 where it is there now and was not, -1 where
#    it is gone, 0 where it changed. A retired target gives up what it saw, in a run of its own that makes no event.
REPORT = f"""
        SELECT t.org_id, c.flow_id, t.user_id, s.run_id, s.observed_at, s.last_unchanged_at, c.change_set_id, c.kind,
               CASE c.kind WHEN 'baseline' THEN 1 WHEN 'added' THEN 1 WHEN 'removed' THEN -1 ELSE 0 END AS delta,
               CASE c.kind WHEN 'removed' THEN 0 ELSE 1 END AS tells,
               c.old_name, c.new_name, c.old_cycle, c.new_cycle, c.old_editable, c.new_editable
        FROM workflow_change c
        JOIN change_set s ON s.id = c.change_set_id
        JOIN target t ON t.id = s.target_id
        WHERE {ONE_CHANGE}
        UNION ALL
        SELECT t.org_id, w.flow_id, t.user_id, -t.id,
               CASE WHEN t.retired_at > w.changed_at THEN t.retired_at ELSE w.changed_at END, NULL,
               9223372036854775807, 'retired', -1, 0, NULL, NULL, NULL, NULL, NULL, NULL
        FROM target t
        JOIN workflow w ON w.target_id = t.id
        WHERE t.retired_at IS NOT NULL"""

# 2. How many of the user's targets show it after the report, and so whether the user's own view of it changed.
BY_USER = f"""
    SELECT r.*, CASE WHEN shown > 0 THEN 1 ELSE 0 END - CASE WHEN shown > delta THEN 1 ELSE 0 END AS user_step
    FROM (
        SELECT reports.*, sum(delta) OVER (PARTITION BY org_id, flow_id, user_id ORDER BY observed_at, change_set_id
                                           ROWS UNBOUNDED PRECEDING) AS shown
        FROM ({REPORT}
        ) reports
    ) r"""

# 3. What the organisation was told last, by whomever; a removal tells nothing of the name and the cycle.
TOLD = f"""
    SELECT u.*, lag(new_name) OVER told AS told_name, lag(new_cycle) OVER told AS told_cycle
    FROM ({BY_USER}
    ) u
    WINDOW told AS (PARTITION BY org_id, flow_id, tells ORDER BY observed_at, change_set_id)"""

# 4. What a run did to the user, all in all; it counts at the user's last report in the run.
BY_RUN_OF_USER = f"""
    SELECT o.*, CASE WHEN row_number() OVER whole = 1 THEN sum(user_step) OVER whole ELSE 0 END AS run_step,
           max(CASE WHEN kind = 'added' THEN 1 ELSE 0 END) OVER whole AS user_added,
           max(CASE WHEN kind = 'removed' THEN 1 ELSE 0 END) OVER whole AS user_removed
    FROM ({TOLD}
    ) o
    WINDOW whole AS (PARTITION BY org_id, flow_id, user_id, run_id ORDER BY observed_at DESC, change_set_id DESC
                     ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)"""

# 5. How many users saw it before the report, and before what the run did to this user.
COUNTED = f"""
    SELECT p.*, sum(user_step) OVER past - user_step AS users_before, sum(run_step) OVER past - run_step AS before_step
    FROM ({BY_RUN_OF_USER}
    ) p
    WINDOW past AS (PARTITION BY org_id, flow_id ORDER BY observed_at, change_set_id ROWS UNBOUNDED PRECEDING)"""

# 6. The run as a whole: how many saw it before, how many more or fewer after, and which is its last step.
BY_RUN = f"""
    SELECT n.*, first_value(before_step) OVER run AS before_run, sum(run_step) OVER run AS net,
           max(user_added) OVER run AS run_added, max(user_removed) OVER run AS run_removed,
           CASE WHEN row_number() OVER run = count(*) OVER run THEN 1 ELSE 0 END AS is_last
    FROM ({COUNTED}
    ) n
    WINDOW run AS (PARTITION BY org_id, flow_id, run_id, CASE WHEN run_step = 0 THEN 0 ELSE 1 END
                   ORDER BY observed_at, change_set_id ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)"""

# 7. A report can be up to three events: of access, of the cycle, of the name.
ORG_WORKFLOW_EVENT = f"""
SELECT org_id, flow_id, kind, CASE WHEN kind IN ('access_granted', 'access_lost') THEN user_id END AS user_id,
       CASE WHEN kind IN ('cycle_changed', 'renamed') THEN told_name
            WHEN kind IN ('disappeared', 'access_lost') THEN old_name END AS old_name,
       CASE WHEN kind NOT IN ('disappeared', 'access_lost') THEN new_name END AS new_name,
       CASE WHEN kind IN ('cycle_changed', 'renamed') THEN told_cycle
            WHEN kind IN ('disappeared', 'access_lost') THEN old_cycle END AS old_cycle,
       CASE WHEN kind NOT IN ('disappeared', 'access_lost') THEN new_cycle END AS new_cycle,
       CASE WHEN kind = 'access_lost' THEN old_editable END AS old_editable,
       CASE WHEN kind = 'access_granted' THEN new_editable END AS new_editable,
       last_unchanged_at, observed_at
FROM (
    SELECT e.org_id, e.flow_id, e.user_id, e.told_name, e.told_cycle, e.old_name, e.new_name, e.old_cycle, e.new_cycle,
           e.old_editable, e.new_editable, e.last_unchanged_at, e.observed_at,
           CASE WHEN part.nr = 2 THEN CASE WHEN tells = 1 AND users_before > 0 AND new_cycle {{differs_from}} told_cycle
                                           THEN 'cycle_changed' END
                WHEN part.nr = 3 THEN CASE WHEN tells = 1 AND users_before > 0 AND new_name {{differs_from}} told_name
                                           THEN 'renamed' END
                WHEN run_step = 0 THEN NULL
                WHEN before_run = 0 AND net > 0
                THEN CASE WHEN is_last = 1 AND run_added = 1 THEN 'appeared' END
                WHEN before_run > 0 AND before_run + net = 0
                THEN CASE WHEN is_last = 1 AND run_removed = 1 THEN 'disappeared' END
                WHEN run_step > 0 AND user_added = 1 THEN 'access_granted'
                WHEN run_step < 0 AND user_removed = 1 THEN 'access_lost' END AS kind
    FROM ({BY_RUN}
    ) e
    CROSS JOIN (SELECT 1 AS nr UNION ALL SELECT 2 UNION ALL SELECT 3) part
) events
WHERE kind IS NOT NULL
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
SELECT {utc_day} AS day, t.org_id, k.kind,
       sum(CASE k.kind WHEN 'added' THEN s.added WHEN 'removed' THEN s.removed WHEN 'cycle_changed' THEN s.cycle_changed
                       WHEN 'renamed' THEN s.renamed ELSE s.editable_changed END) AS changes
FROM change_set s
JOIN target t ON t.id = s.target_id
CROSS JOIN (SELECT 'added' AS kind UNION ALL SELECT 'removed' UNION ALL SELECT 'cycle_changed'
            UNION ALL SELECT 'renamed' UNION ALL SELECT 'editable_changed') k
GROUP BY {utc_day}, t.org_id, k.kind
HAVING sum(CASE k.kind WHEN 'added' THEN s.added WHEN 'removed' THEN s.removed WHEN 'cycle_changed' THEN s.cycle_changed
                       WHEN 'renamed' THEN s.renamed ELSE s.editable_changed END) > 0
"""

VIEWS = {
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
        text = select.strip().format(**WORDS[dialect])
        if dialect == "sqlite":
            op.execute(f"CREATE VIEW {name} AS\n-- {row}\n{text}")
        else:
            op.execute(f"CREATE VIEW {name} AS {text}")
            op.execute(f"COMMENT ON VIEW {name} IS '{row}'")


def downgrade() -> None:
    raise NotImplementedError("The schema only goes forward: restore a backup instead.")
