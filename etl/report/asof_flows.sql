SELECT covered.org_id, covered.user_id, covered.expression, listed.flow_id, listed.flow_name, listed.cycle,
       CASE listed.cycle WHEN 'M' THEN 'month' WHEN 'W' THEN 'week' WHEN 'D' THEN 'day' WHEN 'H' THEN 'hour'
                         WHEN 'mi' THEN 'minute' ELSE listed.cycle END AS cycle_label, listed.editable, listed.first_listed_at, listed.changed_at,
       covered.observed_before AS last_observed_at, NULL AS missing_since,
       covered.coverage, covered.observed_before, covered.observed_after
FROM listed
CROSS JOIN covered
WHERE covered.target_id = listed.target_id{listed}
ORDER BY covered.org_id, covered.user_id, covered.expression, listed.flow_id
