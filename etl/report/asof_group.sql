-- The lists at a moment: the latest change of each workflow until then, by a maximum that is looked up. If several
-- columns changed at once there is a row for each, with the whole state: the last conditions leave one of them.
grouped AS MATERIALIZED (
    SELECT s.target_id, c.flow_id, max(c.change_set_id) AS last_id,
           max(CASE WHEN c.kind IN ('baseline', 'added') THEN c.change_set_id END) AS first_id
    FROM {changes}
    WHERE s.target_id = seen.target_id AND s.version <= seen.version AND c.change_set_id = s.id{flows}
    GROUP BY s.target_id, c.flow_id
),
listed AS (
    SELECT g.target_id, g.flow_id, c.new_name AS flow_name, c.new_cycle AS cycle, c.new_editable AS editable,
           first.observed_at AS first_listed_at, last.observed_at AS changed_at
    FROM grouped g
    CROSS JOIN workflow_change c
    CROSS JOIN change_set last
    CROSS JOIN change_set first
    WHERE c.change_set_id = g.last_id AND c.flow_id = g.flow_id AND c.kind || '' <> 'removed'
      AND (c.kind || '' NOT IN ('renamed', 'editable_changed')
           OR c.old_cycle = c.new_cycle OR (c.old_cycle IS NULL AND c.new_cycle IS NULL))
      AND (c.kind || '' <> 'editable_changed'
           OR c.old_name = c.new_name OR (c.old_name IS NULL AND c.new_name IS NULL))
      AND last.id = g.last_id AND first.id = g.first_id
)
