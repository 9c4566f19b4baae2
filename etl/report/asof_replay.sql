-- The lists at a moment: the latest change of each workflow until then, by numbering them.
replayed AS (
    SELECT s.target_id, c.flow_id, c.kind, c.new_name, c.new_cycle, c.new_editable, s.observed_at AS changed_at,
           row_number() OVER story AS nth,
           max(CASE WHEN c.kind IN ('baseline', 'added') THEN s.observed_at END) OVER story AS first_listed_at
    FROM {changes}
    WHERE s.target_id = seen.target_id AND s.version <= seen.version AND c.change_set_id = s.id{flows}
    WINDOW story AS (PARTITION BY s.target_id, c.flow_id ORDER BY c.change_set_id DESC
                     ROWS BETWEEN UNBOUNDED PRECEDING AND UNBOUNDED FOLLOWING)
),
listed AS (
    SELECT target_id, flow_id, new_name AS flow_name, new_cycle AS cycle, new_editable AS editable,
           first_listed_at, changed_at
    FROM replayed
    WHERE nth = 1 AND kind <> 'removed'
)
