-- The newest changes: the newest change sets by their own counts and an index, and only then their changes. Who agreed to
-- one is looked up in the view, for each that is shown.
SELECT x.*,
       (SELECT l.ticket FROM list_change l
        WHERE l.change_set_id = x.change_set_id AND l.flow_id = x.flow_id AND l.kind = x.kind) AS ticket,
       (SELECT l.acknowledged_by FROM list_change l
        WHERE l.change_set_id = x.change_set_id AND l.flow_id = x.flow_id AND l.kind = x.kind) AS acknowledged_by,
       (SELECT l.acknowledged_at FROM list_change l
        WHERE l.change_set_id = x.change_set_id AND l.flow_id = x.flow_id AND l.kind = x.kind) AS acknowledged_at
FROM (SELECT p.id AS change_set_id, p.run_id, p.org_id, p.user_id, p.expression, c.flow_id, c.kind, c.old_name, c.new_name, c.old_cycle,
             c.new_cycle, c.old_editable, c.new_editable, p.last_unchanged_at, p.observed_at
      FROM (SELECT s.id, s.run_id, t.org_id, t.user_id, t.expression, s.last_unchanged_at, s.observed_at
            FROM change_set s JOIN target t ON t.id = s.target_id
            WHERE {sets}
            ORDER BY s.observed_at DESC, s.id DESC{most}) p
      CROSS JOIN {changes}
      ORDER BY p.observed_at DESC, p.id DESC, c.flow_id DESC, c.kind DESC LIMIT :limit) x
ORDER BY x.observed_at DESC, x.change_set_id DESC, x.flow_id DESC, x.kind DESC
