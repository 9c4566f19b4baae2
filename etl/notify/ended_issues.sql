-- The targets whose failures or hold ended during a run: with a span that opened during it, and an issue since the span
-- before. Of concurrent runs one reports it: one of the schedule that had the issue, else the first.
WITH meanwhile AS MATERIALIZED (
    SELECT id, schedule, started_at, finished_at FROM sync_run
     WHERE started_at <= :finished_at AND (finished_at IS NULL OR finished_at >= :started_at))
SELECT t.org_id, t.user_id, t.expression, issue.verdict
  FROM target t
  JOIN observation opened ON opened.first_at >= :started_at AND opened.id =
       (SELECT span.id FROM observation span
         WHERE span.target_id = t.id AND span.first_at <= :finished_at ORDER BY span.id DESC LIMIT 1)
  JOIN sync_issue issue ON issue.id =
       (SELECT older.id FROM sync_issue older JOIN sync_run older_run ON older_run.id = older.run_id
         WHERE older.target_id = t.id AND older.verdict IN :verdicts AND older.run_id <> :run_id
           AND older_run.started_at < opened.first_at
         ORDER BY older.id DESC LIMIT 1)
  JOIN sync_run its_run ON its_run.id = issue.run_id
 WHERE (:of_all OR t.org_id IN :orgs)
   -- not finished_at: for an abandoned run, that is when it was noticed
   AND NOT EXISTS (SELECT 1 FROM observation earlier
                    WHERE earlier.target_id = t.id AND earlier.id < opened.id
                      AND earlier.first_at > its_run.heartbeat_at)
   AND :run_id = (SELECT coalesce(min(CASE WHEN schedule = its_run.schedule
                                             OR schedule IS NULL AND its_run.schedule IS NULL THEN id END), min(id))
                    FROM meanwhile
                   WHERE started_at <= opened.first_at AND (finished_at IS NULL OR finished_at >= opened.first_at))
 ORDER BY t.org_id, t.user_id, t.expression
