-- The targets that fail, by error code and message, the most frequent first, with the first few of each.
SELECT error_code, message, targets, id, consecutive_failures, org_id, user_id, expression
  FROM (SELECT last_error_code AS error_code, coalesce(last_error, '') AS message, id, consecutive_failures,
               org_id, user_id, expression,
               count(*) OVER (PARTITION BY last_error_code, last_error) AS targets,
               row_number() OVER (PARTITION BY last_error_code, last_error
                                  ORDER BY consecutive_failures DESC, org_id, user_id, expression) AS nth
          FROM target
         WHERE retired_at IS NULL AND consecutive_failures > 0 AND last_error_code IS NOT NULL) AS each_one
 WHERE nth <= :named ORDER BY targets DESC, error_code, message, nth LIMIT :most
