"""On SQLite, an insert of many changes in one statement no longer copies every page that it touches.

A trigger that may end its statement by ABORT has SQLite keep what the statement must put back. Where many lists have
the same workflows, as those of an organisation's users, that was three quarters of all that a first load wrote. FAIL
leaves the rows that the same statement inserted before the one that is refused: they are new, and the transaction may
still be rolled back.

Revision ID: 0007
Revises: 0006
"""

from __future__ import annotations

from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_context().dialect.name != "sqlite":
        return
    op.execute("DROP TRIGGER workflow_change_no_replace")
    op.execute("""
        CREATE TRIGGER workflow_change_no_replace BEFORE INSERT ON workflow_change
        WHEN EXISTS (SELECT 1 FROM workflow_change
                     WHERE change_set_id = NEW.change_set_id AND flow_id = NEW.flow_id AND kind = NEW.kind)
        BEGIN SELECT RAISE(FAIL, 'workflow_change is append-only'); END
    """)


def downgrade() -> None:
    raise NotImplementedError("The schema only goes forward: restore a backup instead.")
