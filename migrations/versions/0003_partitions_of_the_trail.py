"""On PostgreSQL `workflow_change` becomes partitioned by ranges of `change_set_id`; SQLite stays as it is.

The table becomes the first partition as it stands: it is read once, to prove that its rows belong there, and not
copied. Whoever numbers a change set gets the partitions that the number needs, and a spare one, from a trigger: so no
insert can come before its partition, whichever program makes it, and no row ever has to move.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

WIDTH = 5_000_000
"""Change sets to a partition. At 3 to 10 changes each that is 15 to 50 million rows, 4 to 13 GB with the indexes;
a billion changes need 20 to 67 partitions, which cost the planner a few milliseconds a query."""

MAKE_PARTITIONS = f"""
CREATE FUNCTION flowtrail_make_partitions() RETURNS trigger LANGUAGE plpgsql
SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    width CONSTANT bigint := {WIDTH};
    parent CONSTANT text := format('%I.workflow_change', TG_TABLE_SCHEMA);
    numbered bigint := (SELECT max(id) FROM added);
    wanted bigint;
    bound bigint;
    made text;
    reads text;
BEGIN
    IF numbered IS NULL THEN
        EXECUTE format('SELECT coalesce(max(id), 0) FROM %I.change_set', TG_TABLE_SCHEMA) INTO numbered;
    END IF;
    wanted := (numbered / width + 2) * width;
    IF EXISTS (SELECT FROM pg_class WHERE oid = to_regclass(parent || '_below_' || wanted) AND relispartition) THEN
        RETURN NULL;
    END IF;
    BEGIN
        EXECUTE 'LOCK TABLE ' || parent || ' IN SHARE UPDATE EXCLUSIVE MODE NOWAIT';
    EXCEPTION WHEN lock_not_available THEN  -- only who has no partition to write to waits for another that makes one
        IF EXISTS (SELECT FROM pg_class
                   WHERE oid = to_regclass(parent || '_below_' || wanted - width) AND relispartition) THEN
            RETURN NULL;
        END IF;
        EXECUTE 'LOCK TABLE ' || parent || ' IN SHARE UPDATE EXCLUSIVE MODE';
    END;
    LOOP
        SELECT max(substring(pg_get_expr(c.relpartbound, c.oid) FROM 'TO [(]''([0-9]+)''[)]')::bigint) INTO bound
        FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = parent::regclass;
        EXIT WHEN bound >= wanted;
        made := parent || '_below_' || greatest(bound + width, wanted - width);
        EXECUTE format('CREATE TABLE %s (LIKE %s INCLUDING ALL)', made, parent);
        EXECUTE format('CREATE TRIGGER workflow_change_no_truncate BEFORE TRUNCATE ON %s
                        FOR EACH STATEMENT EXECUTE FUNCTION %I.flowtrail_append_only()', made, TG_TABLE_SCHEMA);
        FOR reads IN
            SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
            FROM pg_class, aclexplode(relacl)
            WHERE oid = parent::regclass AND privilege_type = 'SELECT' AND grantee <> relowner
        LOOP EXECUTE format('GRANT SELECT ON %s TO %s', made, reads); END LOOP;
        EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)',
                       parent, made, bound, greatest(bound + width, wanted - width));
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER workflow_change_no_truncate,
                        ENABLE ALWAYS TRIGGER workflow_change_no_change', made);
    END LOOP;
    RETURN NULL;
END $$
"""
"""Attached, not created in place: that stops nobody who reads or writes meanwhile. Who may read the whole may read each
part, too: a backup asks for the parts by name."""

CONVERT = f"""
DO $do$
DECLARE
    first name;
    bound bigint;
    owner regrole := (SELECT relowner FROM pg_class WHERE oid = 'workflow_change'::regclass);
    views text[];
    statement text;
BEGIN
    LOCK TABLE workflow_change IN ACCESS EXCLUSIVE MODE;
    SELECT (greatest((SELECT max(id) FROM change_set), (SELECT max(change_set_id) FROM workflow_change), 0)
            / {WIDTH} + 1) * {WIDTH} INTO bound;
    first := 'workflow_change_below_' || bound;
    views := ARRAY(
        SELECT format('CREATE OR REPLACE VIEW %s %s AS %s', c.oid::regclass,
                      'WITH (' || array_to_string(c.reloptions, ', ') || ')', pg_get_viewdef(c.oid))
        FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class AND c.relkind = 'v'
        WHERE EXISTS (SELECT FROM pg_depend d
                      WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
                        AND d.refclassid = 'pg_class'::regclass AND d.refobjid = 'workflow_change'::regclass));

    DROP TRIGGER workflow_change_no_change ON workflow_change;
    ALTER TABLE workflow_change RENAME CONSTRAINT pk_workflow_change TO workflow_change_pkey;
    EXECUTE format('ALTER TABLE workflow_change RENAME TO %I', first);
    EXECUTE format('ALTER INDEX workflow_change_pkey RENAME TO %I', first || '_pkey');
    EXECUTE format('ALTER INDEX ix_workflow_change_flow_id_change_set_id RENAME TO %I',
                   first || '_flow_id_change_set_id_idx');
    EXECUTE format('CREATE TABLE workflow_change (
        LIKE %I INCLUDING ALL EXCLUDING INDEXES,
        CONSTRAINT pk_workflow_change PRIMARY KEY (change_set_id, flow_id, kind)
    ) PARTITION BY RANGE (change_set_id)', first);
    COMMENT ON TABLE workflow_change
        IS 'One change of one workflow, with the full before and after. Append-only.';
    CREATE INDEX ix_workflow_change_flow_id_change_set_id ON workflow_change (flow_id, change_set_id);
    EXECUTE format('ALTER TABLE workflow_change ATTACH PARTITION %I FOR VALUES FROM (MINVALUE) TO (%s)', first, bound);
    EXECUTE format('CREATE TRIGGER workflow_change_no_change BEFORE UPDATE OR DELETE ON workflow_change
                    FOR EACH ROW EXECUTE FUNCTION %I.flowtrail_append_only()', current_schema());
    EXECUTE format('CREATE TRIGGER workflow_change_no_truncate BEFORE TRUNCATE ON workflow_change
                    FOR EACH STATEMENT EXECUTE FUNCTION %I.flowtrail_append_only()', current_schema());
    ALTER TABLE workflow_change ENABLE ALWAYS TRIGGER workflow_change_no_change,
                                ENABLE ALWAYS TRIGGER workflow_change_no_truncate;
    EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER workflow_change_no_change', first);

    FOR statement IN
        SELECT format('GRANT %s ON workflow_change TO %s %s', privilege_type,
                      CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END,
                      CASE WHEN is_grantable THEN 'WITH GRANT OPTION' END)
        FROM pg_class, aclexplode(relacl) WHERE oid = first::regclass AND grantee <> relowner
    LOOP EXECUTE statement; END LOOP;
    FOREACH statement IN ARRAY views LOOP EXECUTE statement; END LOOP;
    EXECUTE format('ALTER TABLE workflow_change OWNER TO %s', owner);
    EXECUTE format('ALTER FUNCTION %I.flowtrail_make_partitions() OWNER TO %s', current_schema(), owner);
END $do$
"""
"""Everything that reads, and every right to, moves to the new table; a view keeps its own rights by being replaced."""

FROM_NOW_ON = """
DO $do$ BEGIN EXECUTE format(
    'CREATE TRIGGER change_set_make_partitions AFTER INSERT ON change_set REFERENCING NEW TABLE AS added
     FOR EACH STATEMENT EXECUTE FUNCTION %I.flowtrail_make_partitions()', current_schema());
END $do$
"""


def upgrade() -> None:
    if op.get_context().dialect.name == "sqlite":
        return
    op.execute(MAKE_PARTITIONS)
    op.execute(CONVERT)
    op.execute("DO $do$ BEGIN EXECUTE format('REVOKE ALL ON FUNCTION %I.flowtrail_make_partitions() FROM PUBLIC', "
               "current_schema()); END $do$")  # fmt: skip
    op.execute(FROM_NOW_ON)
    op.execute("ALTER TABLE change_set ENABLE ALWAYS TRIGGER change_set_make_partitions")
    op.execute("INSERT INTO change_set SELECT * FROM change_set WHERE false")  # makes the spare partition


def downgrade() -> None:
    raise NotImplementedError("The schema only goes forward: restore a backup instead.")
