SELECT org_id, user_id, expression, coverage, observed_before, observed_after, flow_count
FROM covered
UNION ALL
SELECT known.org_id, known.user_id, known.expression, 'unobserved', NULL,
       (SELECT s.observed_at FROM change_set s WHERE s.target_id = known.target_id
        ORDER BY s.observed_at LIMIT 1), NULL
FROM known
WHERE known.change_set_id IS NULL
ORDER BY org_id, user_id, expression
