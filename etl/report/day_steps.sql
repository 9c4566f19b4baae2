-- By how much the workflows of each cycle, the targets, and those that nobody looked at become more, minute by minute,
-- from a moment on; what there was before is counted at that moment.
WITH states AS (
    SELECT valid_from, valid_to, CASE WHEN cycle IN :cycles THEN cycle ELSE 'other' END AS what
    FROM org_workflow_history
    WHERE valid_from < :until AND (valid_to IS NULL OR valid_to >= :since){org}
),
-- A gap with the same list on both sides hides nothing.
gaps AS (
    SELECT gap_from, gap_to FROM coverage_gap
    WHERE (gap_to IS NULL OR (changed_inside AND gap_to >= :since)){org}
),
seen AS (
    SELECT t.id, t.retired_at, s.observed_at
    FROM target t JOIN change_set s ON s.target_id = t.id
    WHERE s.version = 1{org}
),
moves AS (
    SELECT target_id, kind, at AS left_at, lead(at) OVER (PARTITION BY target_id ORDER BY at, id) AS back_at
    FROM target_membership WHERE schedule IS NULL
),
-- Of targets that were retired and came back. After a clock went back, answers may be dated into an absence.
absences AS (
    SELECT CASE WHEN seen.observed_at > moves.left_at THEN seen.observed_at ELSE moves.left_at END AS left_at,
           moves.back_at
    FROM moves JOIN seen ON seen.id = moves.target_id AND seen.observed_at <= moves.back_at
    WHERE moves.kind = 'retired' AND moves.back_at >= :since
),
steps AS (
    SELECT valid_from AS at, what, 1 AS step FROM states
    UNION ALL SELECT valid_to, what, -1 FROM states
    UNION ALL SELECT gap_from, 'unobserved', 1 FROM gaps
    UNION ALL SELECT gap_to, 'unobserved', -1 FROM gaps
    UNION ALL SELECT observed_at, 'targets', 1 FROM seen
    UNION ALL SELECT retired_at, 'targets', -1 FROM seen
    UNION ALL SELECT left_at, 'targets', -1 FROM absences
    UNION ALL SELECT back_at, 'targets', 1 FROM absences
)
SELECT {minute} AS minute, what, sum(step) AS number
FROM (SELECT CASE WHEN at < :since THEN :since ELSE at END AS at, what, step FROM steps WHERE at < :until) AS clipped
GROUP BY 1, 2
