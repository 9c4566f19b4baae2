-- The workflows that users list and the directory of their organisation lacks. Both have said so twice: each was asked
-- again after the later of the two was first known.
WITH lacking AS MATERIALIZED (
    SELECT b.org_id, f.flow_id, d.last_asked_at,
           (SELECT max(s.observed_at) FROM change_set s
             WHERE s.target_id = b.id AND (s.version = 1 OR EXISTS (
                   SELECT 1 FROM workflow_change c WHERE c.change_set_id = s.id AND c.flow_id = f.flow_id))) AS since
      FROM target b
      JOIN observation d ON d.id = b.observation_id
      JOIN org_flow f ON f.org_id = b.org_id AND f.users > 0
     WHERE b.user_id = '' AND b.retired_at IS NULL
       AND NOT EXISTS (SELECT 1 FROM workflow x WHERE x.target_id = b.id AND x.flow_id = f.flow_id)
),
said AS (
    SELECT l.org_id, l.flow_id, t.user_id, l.last_asked_at, u.last_asked_at AS user_asked_at,
           CASE WHEN w.first_listed_at > l.since THEN w.first_listed_at ELSE l.since END AS since
      FROM lacking l
      JOIN target t ON t.org_id = l.org_id AND t.user_id <> '' AND t.expression = '' AND t.retired_at IS NULL
      JOIN observation u ON u.id = t.observation_id
      JOIN workflow w ON w.target_id = t.id AND w.flow_id = l.flow_id AND w.missing_since IS NULL
)
SELECT org_id, flow_id, min(user_id) AS seen_by, min(since) AS since
  FROM said WHERE last_asked_at > since AND user_asked_at > since
 GROUP BY org_id, flow_id ORDER BY org_id, flow_id
