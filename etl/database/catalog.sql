-- The parts of a schema of PostgreSQL: kind, table, name in the table, and definition. Only of partitions, or without.
WITH relation AS (
    SELECT c.* FROM pg_class c
    WHERE c.relnamespace = :schema AND c.relispartition = :partitions
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype = 'e')
), tables AS (
    SELECT * FROM relation WHERE relkind IN ('r', 'p')
), views AS (
    SELECT * FROM relation WHERE relkind IN ('v', 'm')
), acting AS (
    SELECT * FROM relation WHERE relkind IN ('r', 'p', 'v')
)
SELECT 'table' AS kind, CAST(c.relname AS text) AS relname, '' AS name,
       format('row security=%s forced=%s unlogged=%s', c.relrowsecurity, c.relforcerowsecurity, c.relpersistence = 'u')
FROM tables c
UNION ALL  -- tables in any schema whose rows are read as rows of the table
SELECT 'heir', c.relname, format('%s.%s', n.nspname, h.relname), ''
FROM tables c
JOIN pg_inherits i ON i.inhparent = c.oid
JOIN pg_class h ON h.oid = i.inhrelid AND h.relkind <> 'I' AND NOT h.relispartition
JOIN pg_namespace n ON n.oid = h.relnamespace
UNION ALL
SELECT 'policy', c.relname, p.polname,
       format('%s permissive=%s roles=%s using=%s check=%s', p.polcmd, p.polpermissive, p.polroles,
              pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
FROM tables c JOIN pg_policy p ON p.polrelid = c.oid
UNION ALL
SELECT 'view', c.relname, '', CASE c.relkind WHEN 'm' THEN 'materialized ' ELSE '' END || pg_get_viewdef(c.oid)
FROM views c
UNION ALL
SELECT 'option', c.relname, o, '' FROM views c CROSS JOIN unnest(c.reloptions) o
UNION ALL
SELECT 'column', c.relname, a.attname,
       format('%s %s required=%s default=%s identity=%s', format_type(a.atttypid, a.atttypmod), o.collname,
              a.attnotnull, pg_get_expr(e.adbin, e.adrelid), a.attidentity)
FROM tables c
JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_collation o ON o.oid = a.attcollation
LEFT JOIN pg_attrdef e ON e.adrelid = c.oid AND e.adnum = a.attnum
UNION ALL
SELECT 'index', c.relname, x.relname, format('%s valid=%s', pg_get_indexdef(i.indexrelid), i.indisvalid)
FROM tables c
JOIN pg_index i ON i.indrelid = c.oid
JOIN pg_class x ON x.oid = i.indexrelid
WHERE NOT EXISTS (SELECT FROM pg_constraint k WHERE k.conindid = i.indexrelid AND k.conrelid = c.oid)
UNION ALL
SELECT 'constraint', c.relname, k.conname, pg_get_constraintdef(k.oid)
FROM tables c JOIN pg_constraint k ON k.conrelid = c.oid AND k.contype <> 'n'
UNION ALL
SELECT 'trigger', c.relname, g.tgname,
       format('%s enabled=%s definer=%s: %s', pg_get_triggerdef(g.oid), g.tgenabled, p.prosecdef, p.prosrc)
FROM acting c
JOIN pg_trigger g ON g.tgrelid = c.oid AND (NOT g.tgisinternal OR g.tgparentid <> 0)
JOIN pg_proc p ON p.oid = g.tgfoid
UNION ALL
SELECT 'rule', c.relname, r.rulename, format('%s enabled=%s', pg_get_ruledef(r.oid), r.ev_enabled)
FROM acting c JOIN pg_rewrite r ON r.ev_class = c.oid AND r.rulename <> '_RETURN'
