-- members: each target, its latest membership of no schedule, and the coverage gap of the schedules that list it
-- (one that left keeps one of those that it had, for which the expected gap is null)
SELECT t.id, t.org_id, t.user_id, t.expression, t.retired_at, t.coverage_gap_seconds, latest.kind, latest.at,
       coalesce(
           (SELECT max(coverage_gap_seconds) FROM target_membership joined
            WHERE target_id = t.id AND kind = 'joined'
              AND NOT EXISTS (SELECT 1 FROM target_membership later
                              WHERE later.target_id = joined.target_id AND later.schedule = joined.schedule
                                AND later.id > joined.id)),
           CASE WHEN NOT EXISTS (SELECT 1 FROM target_membership
                                 WHERE target_id = t.id AND kind = 'joined'
                                   AND coverage_gap_seconds = t.coverage_gap_seconds)
                THEN (SELECT max(coverage_gap_seconds) FROM target_membership
                      WHERE target_id = t.id AND kind = 'joined') END,
           CASE WHEN NOT EXISTS (SELECT 1 FROM target_membership WHERE target_id = t.id AND kind = 'joined')
                THEN CAST(:usual_gap AS INTEGER) END
       ) AS expected_gap
FROM target t
LEFT JOIN target_membership latest
       ON latest.id = (SELECT max(id) FROM target_membership WHERE target_id = t.id AND schedule IS NULL)
WHERE t.id > :after
ORDER BY t.id
LIMIT :at_once

-- held: the targets of which something is or was held
SELECT t.id, t.org_id, t.user_id, t.expression, t.held_since
FROM target t
WHERE t.id > :after AND (t.held_since IS NOT NULL OR EXISTS (SELECT 1 FROM hold_event WHERE target_id = t.id))
ORDER BY t.id
LIMIT :at_once

-- events: what began to be held, and what ended
SELECT target_id, kind, at, flow_ids, doubted
FROM hold_event
WHERE target_id BETWEEN :first AND :last
ORDER BY target_id, id

-- waiting: the workflows of which something is held
SELECT target_id, flow_id, missing_since, doubted
FROM workflow
WHERE target_id BETWEEN :first AND :last AND (missing_since IS NOT NULL OR doubted IS NOT NULL)
ORDER BY target_id

-- approved: the scopes of approvals
SELECT target_id, observed_at, approved_scope
FROM change_set
WHERE target_id BETWEEN :first AND :last AND approved_scope IS NOT NULL
ORDER BY target_id

-- target_membership: rows that are earlier than one of the same target with a lower id
SELECT t.org_id, t.user_id, t.expression, e.run_id, e.at, e.earlier
FROM (SELECT target_id, run_id, id, at,
             max(at) OVER (PARTITION BY target_id ORDER BY id
                           ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS earlier
      FROM target_membership WHERE target_id BETWEEN :first AND :last) e
JOIN target t ON t.id = e.target_id
WHERE e.at < e.earlier
ORDER BY t.id, e.id

-- hold_event: rows that are earlier than one of the same target with a lower id
SELECT t.org_id, t.user_id, t.expression, e.run_id, e.at, e.earlier
FROM (SELECT target_id, run_id, id, at,
             max(at) OVER (PARTITION BY target_id ORDER BY id
                           ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING) AS earlier
      FROM hold_event WHERE target_id BETWEEN :first AND :last) e
JOIN target t ON t.id = e.target_id
WHERE e.at < e.earlier
ORDER BY t.id, e.id
