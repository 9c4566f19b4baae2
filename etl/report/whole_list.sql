-- The rows of org_workflow of one organisation, from one look at everything that its users see.
WITH latest AS MATERIALIZED (
    SELECT t.id, CASE WHEN t.observation_id IS NULL THEN 1 ELSE 0 END AS in_gap,
           (SELECT o.last_at FROM observation o WHERE o.target_id = t.id ORDER BY o.id DESC LIMIT 1) AS last_at
    FROM target t
    WHERE t.org_id = :org_id AND t.user_id <> '' AND t.expression = '' AND t.retired_at IS NULL
),
seen AS MATERIALIZED (
    SELECT w.flow_id, max(latest.last_at) AS last_listed_at, sum(latest.in_gap) AS users_in_gap
    FROM latest
    CROSS JOIN workflow w
    WHERE w.target_id = latest.id
    GROUP BY w.flow_id
)
SELECT f.org_id, f.flow_id, f.flow_name, f.cycle, f.users, f.editors, f.since AS first_listed_at,
       CASE WHEN f.cycle_first_at > f.name_first_at THEN f.cycle_first_at ELSE f.name_first_at END AS changed_at,
       seen.last_listed_at, coalesce(seen.users_in_gap, 0) AS users_in_gap,
       CASE WHEN b.id IS NOT NULL THEN listed.flow_id IS NOT NULL END AS in_directory
FROM org_flow f
LEFT JOIN seen ON seen.flow_id = f.flow_id
LEFT JOIN target b ON b.org_id = f.org_id AND b.user_id = '' AND b.expression = '' AND b.retired_at IS NULL
                  AND b.observation_id IS NOT NULL
LEFT JOIN workflow listed ON listed.target_id = b.id AND listed.flow_id = f.flow_id
WHERE f.org_id = :org_id AND f.users > 0
