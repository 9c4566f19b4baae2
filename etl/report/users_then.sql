-- In how many users' lists of an organisation each of these workflows was at a moment.
SELECT c.flow_id, sum(CASE c.kind WHEN 'baseline' THEN 1 WHEN 'added' THEN 1 WHEN 'removed' THEN -1 ELSE 0 END)
FROM workflow_change c
CROSS JOIN change_set s
WHERE c.flow_id IN :flows AND s.id = c.change_set_id AND s.observed_at <= :at AND s.target_id IN (
    SELECT t.id FROM target t
    WHERE t.org_id = :org_id AND t.user_id <> '' AND t.expression = '' AND
          coalesce((SELECT m.kind FROM target_membership m
                    WHERE m.target_id = t.id AND m.schedule IS NULL AND m.at <= :at
                    ORDER BY m.at DESC, m.id DESC LIMIT 1), 'resumed') <> 'retired')
GROUP BY c.flow_id
