"""On PostgreSQL, the partitions of `workflow_change`, by ranges of `change_set_id`; SQLite has none.

When a change set is inserted, a trigger makes the partition that its id needs, and a spare one. So no insert can come
before its partition, whichever program makes it, and no row ever has to move.

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
"""Change sets per partition. With 3 to 10 changes each, that is 15 to 50 million rows, 4 to 13 GB with the indexes; a
billion changes need 20 to 67 partitions, which cost the planner a few milliseconds per query."""

DISTINCT = -0.1
"""A change set has about ten changes. ANALYZE estimates this from a sample, in which the changes of a set are adjacent,
and is wrong by a factor of 25 on a large partition: with fifty million changes, `list_history` of an organisation
then took 5 s. Larger change sets, as in first loads, lose nothing: they are read by the same index."""

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
    EXCEPTION WHEN lock_not_available THEN  -- wait for another transaction only if there is no partition to write to
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
        EXECUTE format('ALTER TABLE %s ALTER COLUMN change_set_id SET (n_distinct = {DISTINCT})', made);
        EXECUTE format('CREATE TRIGGER workflow_change_no_truncate BEFORE TRUNCATE ON %s
                        FOR EACH STATEMENT EXECUTE FUNCTION %I.flowtrail_append_only()', made, TG_TABLE_SCHEMA);
        FOR reads IN
            SELECT CASE grantee WHEN 0 THEN 'PUBLIC' ELSE grantee::regrole::text END
            FROM pg_class, aclexplode(relacl)
            WHERE oid = parent::regclass AND privilege_type = 'SELECT' AND grantee <> relowner
        LOOP EXECUTE format('GRANT SELECT ON %s TO %s', made, reads); END LOOP;
        EXECUTE format('ALTER TABLE %s ATTACH PARTITION %s FOR VALUES FROM (%s) TO (%s)',
                       parent, made, coalesce(bound::text, 'MINVALUE'), greatest(bound + width, wanted - width));
        EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER workflow_change_no_truncate,
                        ENABLE ALWAYS TRIGGER workflow_change_no_change', made);
    END LOOP;
    RETURN NULL;
END $$
"""
"""Attached, not created in place, so that concurrent readers and writers are not blocked. Roles that may read the table
may read each partition, too: a backup names the partitions."""

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
    op.execute("DO $do$ BEGIN EXECUTE format('REVOKE ALL ON FUNCTION %I.flowtrail_make_partitions() FROM PUBLIC', "
               "current_schema()); END $do$")  # fmt: skip
    op.execute(FROM_NOW_ON)
    op.execute("ALTER TABLE change_set ENABLE ALWAYS TRIGGER change_set_make_partitions")
    op.execute("INSERT INTO change_set SELECT * FROM change_set WHERE false")  # makes the first two


def downgrade() -> None:
    raise NotImplementedError("The schema only goes forward: restore a backup instead.")
