-- The latest runs that concern a target, the oldest first, each with what it made of it. A run records a target only if
-- it found something; for a quiet target, spans tell. So these are the runs that recorded something for it, and those of
-- the schedules whose latest runs did, or ran when it was last observed.
WITH looked AS (
    SELECT coalesce((SELECT last_at FROM observation WHERE target_id = :id ORDER BY id DESC LIMIT 1), :until) AS last_at
),
named AS (
    SELECT run_id FROM (SELECT run_id FROM change_set WHERE target_id = :id ORDER BY version DESC LIMIT 50) AS made
    UNION SELECT run_id FROM (SELECT run_id FROM sync_issue WHERE target_id = :id ORDER BY id DESC LIMIT 50) AS said
    UNION SELECT id FROM (SELECT id FROM sync_run
                          WHERE started_at <= (SELECT last_at FROM looked)
                            AND coalesce(finished_at, heartbeat_at) >= (SELECT last_at FROM looked)
                          ORDER BY id DESC LIMIT 10) AS ran
),
about AS MATERIALIZED (
    SELECT id AS run_id, started_at, schedule, missed_slots, coalesce(finished_at, heartbeat_at) AS ended_at
    FROM sync_run
    WHERE started_at <= :until AND origin <> 'approval'
      AND (schedule IN (SELECT schedule FROM sync_run WHERE id IN (SELECT run_id FROM named))
           OR id IN (SELECT run_id FROM change_set WHERE target_id = :id)
           OR id IN (SELECT run_id FROM sync_issue WHERE target_id = :id))
    ORDER BY id DESC LIMIT :most
),
made AS (
    SELECT run_id, sum({changes}) AS changes FROM change_set
    WHERE target_id = :id AND run_id IN (SELECT run_id FROM about) GROUP BY run_id
),
said AS (
    SELECT run_id, max(id) AS id FROM sync_issue
    WHERE target_id = :id AND run_id IN (SELECT run_id FROM about) GROUP BY run_id
)
SELECT about.*, coalesce(made.changes, 0) AS changes, issue.error_code,
       CASE WHEN issue.id IS NOT NULL THEN issue.verdict
            WHEN made.run_id IS NOT NULL THEN 'changed'
            WHEN EXISTS (SELECT 1 FROM observation o WHERE o.target_id = :id
                         AND o.first_at <= about.ended_at AND o.last_at >= about.started_at) THEN 'unchanged'
            ELSE 'unseen' END AS verdict
FROM about
LEFT JOIN made ON made.run_id = about.run_id
LEFT JOIN said ON said.run_id = about.run_id
LEFT JOIN sync_issue issue ON issue.id = said.id
ORDER BY about.run_id
