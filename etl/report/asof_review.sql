-- A row for each kind of a workflow's last change until the moment, with its ticket.
SELECT covered.org_id, covered.user_id, listed.flow_id, listed.flow_name,
       CASE listed.cycle WHEN 'M' THEN 'month' WHEN 'W' THEN 'week' WHEN 'D' THEN 'day' WHEN 'H' THEN 'hour'
                         WHEN 'mi' THEN 'minute' ELSE listed.cycle END AS cycle_label, listed.editable,
       listed.first_listed_at, covered.coverage, covered.observed_before, covered.observed_after, c.kind,
       listed.changed_at, c.ticket
FROM listed
CROSS JOIN covered
CROSS JOIN change_set s
CROSS JOIN list_change c
WHERE covered.target_id = listed.target_id{listed}
  AND s.target_id = listed.target_id AND s.observed_at = listed.changed_at
  AND c.change_set_id = s.id AND c.flow_id = listed.flow_id
ORDER BY covered.user_id, listed.flow_id, c.kind
