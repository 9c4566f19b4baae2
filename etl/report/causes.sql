SELECT cause, count(*) AS targets, count(DISTINCT org_id) AS organisations, max(consecutive_failures) AS most_failures,
       min(last_error) AS example
  FROM (SELECT last_error_code AS cause, org_id, consecutive_failures, last_error FROM target
         WHERE retired_at IS NULL AND consecutive_failures > 0
        UNION ALL
        SELECT 'held', org_id, consecutive_failures, NULL FROM target
         WHERE retired_at IS NULL AND held_since IS NOT NULL) AS problem
 GROUP BY cause ORDER BY targets DESC, cause
