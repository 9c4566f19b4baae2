-- spans: those of the latest version of each target, and the end of the last one of the versions before
SELECT t.id, t.org_id, t.user_id, t.expression, t.version, span.first_at, span.last_at, span.observations,
       (SELECT earlier.last_at FROM observation earlier
        WHERE earlier.target_id = t.id AND earlier.version < t.version
        ORDER BY earlier.version DESC, earlier.id DESC LIMIT 1) AS ended_at
FROM target t JOIN observation span ON span.target_id = t.id AND span.version = t.version
WHERE t.id BETWEEN :first AND :last
ORDER BY t.id, span.id

-- issues: those of runs that overlap a span of the latest version
SELECT i.target_id, i.run_id, i.verdict
FROM sync_issue i JOIN target t ON t.id = i.target_id JOIN sync_run r ON r.id = i.run_id
WHERE i.target_id BETWEEN :first AND :last
  AND EXISTS (SELECT 1 FROM observation span
              WHERE span.target_id = t.id AND span.version = t.version
                AND span.last_at >= r.started_at AND span.first_at <= coalesce(r.finished_at, span.first_at))
ORDER BY i.target_id

-- moves: when schedules began and ceased to list a target
SELECT target_id, id, schedule, kind
FROM target_membership
WHERE target_id BETWEEN :first AND :last AND schedule IS NOT NULL
ORDER BY target_id, id

-- runs: those that began since the last look, and those that were under way
SELECT id, scope, status, started_at, finished_at,
       EXISTS (SELECT 1 FROM run_seal WHERE run_id = r.id) AS sealed,
       EXISTS (SELECT 1 FROM pruned_issues WHERE pruned_run_id = r.id) AS pruned,
       failed + stale >= targets AS unanswered
FROM sync_run r
WHERE id > :after OR id IN :again
