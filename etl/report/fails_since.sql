-- When the run began in which a target failed for the first time in a row with one of these codes, whatever says nothing
-- in between; nothing where the issues before it have been pruned.
WITH row_of_failures AS (
    SELECT id, run_id, error_code FROM sync_issue
     WHERE verdict = 'failed' AND target_id = :target_id ORDER BY id DESC LIMIT :failures
), other AS (SELECT max(id) AS id FROM row_of_failures WHERE error_code NOT IN :codes AND error_code NOT IN :silent)
SELECT r.started_at FROM row_of_failures f JOIN sync_run r ON r.id = f.run_id
 WHERE f.id > (SELECT coalesce(id, 0) FROM other) AND f.error_code IN :codes
   AND ((SELECT id FROM other) IS NOT NULL OR (SELECT count(*) FROM row_of_failures) = :failures)
 ORDER BY f.id LIMIT 1
