-- The counts and times of the targets that are not retired.
SELECT count(*) AS targets, coalesce(sum(CASE WHEN versions = 0 THEN 1 ELSE 0 END), 0) AS never_observed,
       coalesce(sum(CASE WHEN last_error_code IN :codes THEN 0 WHEN consecutive_failures > 0 THEN 1 ELSE 0 END), 0)
           AS failing,
       coalesce(sum(CASE WHEN last_error_code IN :codes THEN 1 ELSE 0 END), 0) AS refused,
       coalesce(sum(CASE WHEN held_since IS NOT NULL THEN 1 ELSE 0 END), 0) AS held,
       (SELECT count(*) FROM workflow w JOIN target t ON t.id = w.target_id
         WHERE (w.missing_since IS NOT NULL OR w.doubted IS NOT NULL)
           AND t.held_since IS NOT NULL AND t.retired_at IS NULL) AS held_workflows,
       coalesce(sum(flow_count), 0) AS listed,
       min(CASE WHEN last_observed_at <= :now THEN last_observed_at END) AS oldest_observation_at,
       max(CASE WHEN last_observed_at <= :now THEN last_observed_at END) AS last_observation_at,
       coalesce(sum(CASE WHEN last_observed_at > :ahead THEN 1 ELSE 0 END), 0) AS ahead,
       max(CASE WHEN last_observed_at > :ahead THEN last_observed_at END) AS ahead_until
  FROM target_health WHERE retired_at IS NULL
