-- What was known about some targets at a moment, and when they were first and last observed.
SELECT count(*) AS targets, count(CASE WHEN t.expression <> '' THEN 1 END) AS searches,
       count(CASE WHEN EXISTS (SELECT 1 FROM change_set s WHERE s.target_id = t.id AND s.observed_at <= :at)
                  THEN 1 END) AS observed,
       count(CASE WHEN EXISTS (SELECT 1 FROM change_set s WHERE s.target_id = t.id AND s.observed_at <= :at)
                   AND (SELECT m.kind FROM target_membership m
                        WHERE m.target_id = t.id AND m.schedule IS NULL AND m.at <= :at
                        ORDER BY m.at DESC, m.id DESC LIMIT 1) = 'retired' THEN 1 END) AS retired,
       min((SELECT min(s.observed_at) FROM change_set s WHERE s.target_id = t.id)) AS first_at,
       max(coalesce((SELECT max(o.last_at) FROM observation o WHERE o.target_id = t.id),
                    (SELECT max(s.observed_at) FROM change_set s WHERE s.target_id = t.id))) AS last_at
  FROM target t WHERE {chosen}
