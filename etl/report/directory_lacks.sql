-- The workflows that users list and the directory of their organisation lacks, if both have said so twice: each was
-- asked again after the later of the two was first known. Looked for among the ten of an organisation that most users
-- list, because not everybody's list can be searched at each look; `number` is all that the directory lacks.
WITH directory AS MATERIALIZED (
    SELECT b.id, b.org_id, b.version, d.last_asked_at,
           (SELECT s.id FROM change_set s WHERE s.target_id = b.id ORDER BY s.observed_at DESC LIMIT 1) AS newest
      FROM target b
      JOIN observation d ON d.id = b.observation_id
     WHERE b.user_id = '' AND b.retired_at IS NULL
),
lacking AS MATERIALIZED (
    SELECT b.org_id, b.id AS directory_id, b.last_asked_at, f.flow_id,
           count(*) OVER (PARTITION BY b.org_id) AS number,
           row_number() OVER (PARTITION BY b.org_id ORDER BY f.users DESC, f.flow_id) AS nth
      FROM directory b
      JOIN change_set v ON v.id = b.newest
      JOIN org_flow f ON f.org_id = b.org_id AND f.users > 0 AND f.since < b.last_asked_at
     WHERE NOT EXISTS (SELECT 1 FROM workflow x WHERE x.target_id = b.id AND x.flow_id = f.flow_id)
       AND (v.observed_at < b.last_asked_at OR v.version > 1 AND NOT EXISTS (
            SELECT 1 FROM workflow_change c WHERE c.change_set_id = v.id AND c.flow_id = f.flow_id))
),
looked_at AS MATERIALIZED (
    SELECT l.org_id, l.flow_id, l.number, l.nth, l.last_asked_at,
           (SELECT s.observed_at FROM change_set s WHERE s.id = coalesce(
                   (SELECT c.change_set_id FROM workflow_change c
                     WHERE c.flow_id = l.flow_id AND c.old_cycle IS NULL AND c.new_cycle IS NULL
                       AND l.directory_id = (SELECT v.target_id FROM change_set v WHERE v.id = c.change_set_id)
                     ORDER BY c.change_set_id DESC LIMIT 1),
                   (SELECT v.id FROM change_set v WHERE v.target_id = l.directory_id
                     ORDER BY v.observed_at LIMIT 1))) AS since
      FROM lacking l WHERE l.nth <= 10
),
said AS MATERIALIZED (
    SELECT l.*, (SELECT t.id
                   FROM target t
                   JOIN observation u ON u.id = t.observation_id AND u.last_asked_at > l.since
                   JOIN workflow w ON w.target_id = t.id AND w.flow_id = l.flow_id AND w.missing_since IS NULL
                                  AND w.first_listed_at < l.last_asked_at AND w.first_listed_at < u.last_asked_at
                  WHERE t.org_id = l.org_id AND t.user_id <> '' AND t.expression = '' AND t.retired_at IS NULL
                  ORDER BY t.user_id LIMIT 1) AS user_target_id
      FROM looked_at l
)
SELECT l.org_id, l.flow_id, t.user_id AS seen_by, l.number,
       CASE WHEN w.first_listed_at > l.since THEN w.first_listed_at ELSE l.since END AS since
  FROM said l
  JOIN target t ON t.id = l.user_target_id
  JOIN workflow w ON w.target_id = t.id AND w.flow_id = l.flow_id
 ORDER BY l.org_id, l.nth
