-- How well the list of each target was known at a moment; the further conditions are on the table target.
WITH known AS MATERIALIZED (
    SELECT t.id AS target_id, t.org_id, t.user_id, t.expression,
           (SELECT s.id FROM change_set s
            WHERE s.target_id = t.id AND s.observed_at <= :at
            ORDER BY s.observed_at DESC LIMIT 1) AS change_set_id
    FROM target t
    WHERE coalesce((SELECT m.kind FROM target_membership m
                    WHERE m.target_id = t.id AND m.schedule IS NULL AND m.at <= :at
                    ORDER BY m.at DESC, m.id DESC LIMIT 1), 'resumed') <> 'retired'{targets}
),
seen AS MATERIALIZED (
    SELECT known.*, v.version, v.observed_at, v.flow_count,
           (SELECT o.id FROM observation o
            WHERE o.target_id = known.target_id AND o.version = v.version AND o.first_at <= :at
            ORDER BY o.id DESC LIMIT 1) AS span_id,
           (SELECT o.id FROM observation o
            WHERE o.target_id = known.target_id AND o.version >= v.version AND o.first_at > :at
            ORDER BY o.version, o.id LIMIT 1) AS next_span_id
    FROM known
    JOIN change_set v ON v.id = known.change_set_id
),
spans AS (
    SELECT seen.*, b.last_at, a.version AS next_version, a.interrupted,
           a.first_at AS next_at, n.observed_at AS changed_next_at,
           CASE WHEN b.last_at > :at THEN b.first_at ELSE b.last_at END AS seen_before
    FROM seen
    LEFT JOIN observation b ON b.id = seen.span_id
    LEFT JOIN observation a ON a.id = seen.next_span_id
    LEFT JOIN change_set n ON n.target_id = seen.target_id AND n.version = seen.version + 1
),
covered AS MATERIALIZED (
    SELECT target_id, org_id, user_id, expression, flow_count,
           CASE WHEN last_at >= :at THEN 'observed'
                WHEN last_at IS NULL OR next_version IS NULL THEN 'unobserved'
                WHEN next_version = version THEN 'unchanged_across_gap'
                WHEN interrupted THEN 'unobserved'
                ELSE 'between' END AS coverage,
           coalesce(seen_before, observed_at) AS observed_before,
           CASE WHEN last_at > :at THEN last_at
                WHEN changed_next_at < next_at OR next_at IS NULL THEN changed_next_at
                ELSE next_at END AS observed_after
    FROM spans
)
