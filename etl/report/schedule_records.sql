-- When the own runs of each schedule last succeeded, times ahead of now left out; when its latest ended run began (if
-- none has ended, its first); and the slot of its run under way, or when that began by hand.
SELECT asked.value AS name,
       (SELECT finished_at FROM sync_run
         WHERE schedule = asked.value AND origin IN ('schedule', 'catch_up') AND status <> 'aborted'
           AND status IN ('succeeded', 'partial') AND finished_at <= :now
         ORDER BY id DESC LIMIT 1) AS succeeded_at,
       coalesce((SELECT started_at FROM sync_run
                  WHERE schedule = asked.value AND origin IN ('schedule', 'catch_up') AND status <> 'aborted'
                    AND status <> 'running' AND started_at <= :now
                  ORDER BY id DESC LIMIT 1),
                (SELECT min(started_at) FROM sync_run
                  WHERE schedule = asked.value AND started_at <= :now)) AS asked_at,
       ran.slot AS under_way
  FROM {names} AS asked
  LEFT JOIN (SELECT schedule, min(coalesce(scheduled_for, started_at)) AS slot FROM sync_run
              WHERE status = 'running' AND finished_at IS NULL AND schedule IS NOT NULL GROUP BY schedule) AS ran
       ON ran.schedule = asked.value
