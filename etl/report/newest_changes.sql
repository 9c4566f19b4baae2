-- The newest changes: the newest change sets by their own counts and an index, and only then their changes.
SELECT p.id, p.run_id, p.org_id, p.user_id, p.expression, c.flow_id, c.kind, c.old_name, c.new_name, c.old_cycle,
       c.new_cycle, c.old_editable, c.new_editable, p.last_unchanged_at, p.observed_at
FROM (SELECT s.id, s.run_id, t.org_id, t.user_id, t.expression, s.last_unchanged_at, s.observed_at
      FROM change_set s JOIN target t ON t.id = s.target_id
      WHERE {sets}
      ORDER BY s.observed_at DESC, s.id DESC{most}) p
CROSS JOIN {changes}
ORDER BY p.observed_at DESC, p.id DESC, c.flow_id DESC, c.kind DESC LIMIT :limit
