-- The targets whose latest answer is older than a moment, or ahead of now: such a time counts as none.
SELECT org_id, user_id, expression,
       CASE WHEN last_observed_at <= :now THEN last_observed_at END AS last_observed_at,
       last_error_code, held_since, consecutive_failures,
       CASE WHEN last_answered_at <= :now THEN last_answered_at END AS last_answered_at
  FROM (SELECT t.org_id, t.user_id, t.expression, o.last_at AS last_observed_at, t.last_error_code, t.held_since,
               t.consecutive_failures,
               CASE WHEN t.held_since IS NOT NULL AND t.held_at > o.last_at THEN t.held_at ELSE o.last_at END
                   AS last_answered_at
          FROM target t
          LEFT JOIN observation o
               ON o.id = (SELECT max(latest.id) FROM observation latest WHERE latest.target_id = t.id)
         WHERE t.retired_at IS NULL) AS known
 WHERE known.last_answered_at IS NULL OR known.last_answered_at < :since OR known.last_answered_at > :now
