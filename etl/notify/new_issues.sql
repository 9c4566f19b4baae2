-- The issues of a run, of one kind, whose target did not have one before.
-- After a failure or a hold, a valid answer that is not doubted always opens a span: so a span since the previous issue
-- shows that there was one. Failures do not end a hold; a held answer is valid, and ends a series of failures.
SELECT t.org_id, t.user_id, t.expression, issue.message, issue.error_code
  FROM sync_issue issue
  JOIN target t ON t.id = issue.target_id
  LEFT JOIN sync_issue before ON before.id =
       (SELECT max(earlier.id) FROM sync_issue earlier
         WHERE earlier.target_id = issue.target_id AND earlier.id < issue.id AND earlier.verdict IN :known)
  LEFT JOIN sync_run its_run ON its_run.id = before.run_id
 WHERE issue.run_id = :run_id AND issue.verdict = :kind
   AND (before.id IS NULL OR before.verdict <> :kind OR its_run.started_at <
       (SELECT span.first_at FROM observation span
         WHERE span.target_id = issue.target_id AND span.first_at < :finished_at ORDER BY span.id DESC LIMIT 1))
   AND (:of_all OR t.org_id IN :orgs)
 ORDER BY t.org_id, t.user_id, t.expression
