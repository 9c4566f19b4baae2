-- The lists at a moment: those of now, and for each workflow that changed since then
-- the old values of its first change.
undone AS (
    SELECT s.target_id, seen.change_set_id, c.flow_id, c.kind, c.old_name, c.old_cycle, c.old_editable,
           row_number() OVER (PARTITION BY s.target_id, c.flow_id ORDER BY c.change_set_id) AS nth
    FROM {changes}
    WHERE s.target_id = seen.target_id AND s.observed_at > :at AND c.change_set_id = s.id{flows}
),
listed AS (
    SELECT c.target_id, c.flow_id, c.flow_name, c.cycle, c.editable, c.first_listed_at, c.changed_at
    FROM seen
    CROSS JOIN workflow c
    WHERE c.target_id = seen.target_id AND c.changed_at <= :at{flows}
    UNION ALL
    SELECT u.target_id, u.flow_id, u.old_name, u.old_cycle, u.old_editable,
           coalesce((SELECT w.first_listed_at FROM workflow w
                     WHERE w.target_id = u.target_id AND w.flow_id = u.flow_id AND w.first_listed_at <= :at),
                    (SELECT s.observed_at FROM workflow_change c JOIN change_set s ON s.id = c.change_set_id
                     WHERE c.flow_id = u.flow_id AND c.change_set_id <= u.change_set_id
                       AND c.kind IN ('baseline', 'added') AND s.target_id = u.target_id
                     ORDER BY c.change_set_id DESC LIMIT 1)),
           (SELECT s.observed_at FROM workflow_change c JOIN change_set s ON s.id = c.change_set_id
            WHERE c.flow_id = u.flow_id AND c.change_set_id <= u.change_set_id AND s.target_id = u.target_id
            ORDER BY c.change_set_id DESC LIMIT 1)
    FROM undone u
    WHERE u.nth = 1 AND u.kind NOT IN ('baseline', 'added')
)
