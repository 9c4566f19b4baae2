-- What differs between an organisation's lists of two moments, whatever happened in between. A state that lasts from one
-- moment to the other is in neither of went and came. A user whose list was not known at both moments got nothing, and
-- lost nothing: nobody can say so.
WITH old_lists AS MATERIALIZED ({old_lists}),
new_lists AS MATERIALIZED ({new_lists}),
went AS MATERIALIZED (
    SELECT h.flow_id, h.flow_name, h.cycle FROM org_workflow_history h
    WHERE h.org_id = :org_id AND h.valid_from <= :old_at AND h.valid_to > :old_at AND h.valid_to <= :new_at
),
came AS MATERIALIZED (
    SELECT h.flow_id, h.flow_name, h.cycle FROM org_workflow_history h
    WHERE h.org_id = :org_id AND h.valid_from > :old_at AND h.valid_from <= :new_at
      AND (h.valid_to IS NULL OR h.valid_to > :new_at)
),
known AS MATERIALIZED (
    SELECT t.id AS target_id, t.user_id, o.coverage AS old_coverage, n.coverage AS new_coverage
    FROM old_lists o
    JOIN new_lists n ON n.user_id = o.user_id
    JOIN target t ON t.org_id = :org_id AND t.user_id = o.user_id AND t.expression = ''
    WHERE o.observed_before IS NOT NULL AND n.observed_before IS NOT NULL
),
moved AS MATERIALIZED (
    SELECT k.target_id, c.flow_id, min(s.id) AS first_id, max(s.id) AS last_id,
           sum(CASE c.kind WHEN 'added' THEN 1 WHEN 'removed' THEN -1 ELSE 0 END) AS got
    FROM known k
    CROSS JOIN change_set s
    CROSS JOIN workflow_change c
    WHERE s.target_id = k.target_id AND s.observed_at > :old_at AND s.observed_at <= :new_at AND c.change_set_id = s.id
    GROUP BY k.target_id, c.flow_id
    HAVING sum(CASE c.kind WHEN 'added' THEN 1 WHEN 'removed' THEN -1 ELSE 0 END) <> 0
),
found AS (
    SELECT m.flow_id, CASE WHEN m.got > 0 THEN 'access_granted' ELSE 'access_lost' END AS kind, k.user_id,
           CASE WHEN m.got < 0 THEN c.old_name END AS old_name, CASE WHEN m.got > 0 THEN c.new_name END AS new_name,
           CASE WHEN m.got < 0 THEN c.old_cycle END AS old_cycle, CASE WHEN m.got > 0 THEN c.new_cycle END AS new_cycle,
           CASE WHEN m.got < 0 THEN c.old_editable END AS old_editable,
           CASE WHEN m.got > 0 THEN c.new_editable END AS new_editable, k.old_coverage, k.new_coverage
    FROM moved m
    JOIN known k ON k.target_id = m.target_id
    JOIN workflow_change c ON c.change_set_id = CASE WHEN m.got > 0 THEN m.last_id ELSE m.first_id END
                          AND c.flow_id = m.flow_id
    WHERE c.kind = (SELECT min(one.kind) FROM workflow_change one
                    WHERE one.change_set_id = c.change_set_id AND one.flow_id = c.flow_id)
      AND (m.flow_id IN (SELECT flow_id FROM went)) = (m.flow_id IN (SELECT flow_id FROM came))
      AND EXISTS (SELECT 1 FROM org_workflow_history h
                  WHERE h.org_id = :org_id AND h.flow_id = m.flow_id AND h.valid_from <= :new_at
                    AND (h.valid_to IS NULL OR h.valid_to > :new_at))
    UNION ALL
    SELECT came.flow_id,
           CASE WHEN EXISTS (SELECT 1 FROM org_event e
                             WHERE e.org_id = :org_id AND e.flow_id = came.flow_id AND e.observed_at > :old_at
                               AND e.observed_at <= :new_at AND e.kind IN ('appeared', 'reappeared'))
                THEN 'appeared' ELSE 'baseline' END,
           NULL, NULL, came.flow_name, NULL, came.cycle, NULL, NULL, NULL, NULL
    FROM came
    WHERE came.flow_id NOT IN (SELECT flow_id FROM went)
    UNION ALL
    SELECT went.flow_id,
           CASE WHEN EXISTS (SELECT 1 FROM org_event e
                             WHERE e.org_id = :org_id AND e.flow_id = went.flow_id AND e.observed_at > :old_at
                               AND e.observed_at <= :new_at AND e.kind = 'disappeared')
                THEN 'disappeared' ELSE 'not_asked' END,
           NULL, went.flow_name, NULL, went.cycle, NULL, NULL, NULL, NULL, NULL
    FROM went
    WHERE went.flow_id NOT IN (SELECT flow_id FROM came)
    UNION ALL
    SELECT went.flow_id, 'renamed', NULL, went.flow_name, came.flow_name, went.cycle, came.cycle, NULL, NULL, NULL, NULL
    FROM went
    JOIN came ON came.flow_id = went.flow_id
    WHERE went.flow_name <> came.flow_name OR (went.flow_name IS NULL) <> (came.flow_name IS NULL)
    UNION ALL
    SELECT went.flow_id, 'cycle_changed', NULL, went.flow_name, came.flow_name, went.cycle, came.cycle,
           NULL, NULL, NULL, NULL
    FROM went
    JOIN came ON came.flow_id = went.flow_id
    WHERE went.cycle <> came.cycle OR (went.cycle IS NULL) <> (came.cycle IS NULL)
)
SELECT :org_id AS org_id, found.flow_id, found.kind, found.user_id, found.old_name, found.new_name,
       found.old_cycle, found.new_cycle, found.old_editable, found.new_editable,
       coalesce(found.old_coverage, :old_coverage) AS old_coverage,
       coalesce(found.new_coverage, :new_coverage) AS new_coverage
FROM found
