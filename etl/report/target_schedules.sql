-- The schedules of the latest runs that recorded something for a target, or that ran when it was last observed.
SELECT DISTINCT r.schedule FROM sync_run r
 WHERE r.schedule IS NOT NULL AND r.id IN (
       SELECT run_id FROM (SELECT run_id FROM change_set WHERE target_id = :id ORDER BY version DESC LIMIT 50) made
       UNION SELECT run_id FROM (SELECT run_id FROM sync_issue WHERE target_id = :id ORDER BY id DESC LIMIT 50) said
       UNION SELECT id FROM (SELECT id FROM sync_run WHERE started_at <= :last_at
                             AND coalesce(finished_at, heartbeat_at) >= :last_at ORDER BY id DESC LIMIT 10) ran)
