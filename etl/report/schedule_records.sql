-- When the own runs of each schedule last succeeded and last asked, times ahead of now left out.
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
                  WHERE schedule = asked.value AND started_at <= :now)) AS asked_at
  FROM {names} AS asked
