"""What notifications need: the runs that nobody was told of, found at once, and the targets known to be overdue.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

UNTOLD = sa.text("notified_at IS NULL")
TYPES = "typeof(target_id) = 'integer' AND length(notified_at) = 26"


def upgrade() -> None:
    sqlite = op.get_context().dialect.name == "sqlite"
    op.create_table(
        "overdue_notice",
        sa.Column(
            "target_id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=False, nullable=False
        ),
        sa.Column("notified_at", sa.DateTime(timezone=True).with_variant(sa.Text(), "sqlite"), nullable=False),
        sa.PrimaryKeyConstraint("target_id", name=op.f("pk_overdue_notice")),
        *([sa.CheckConstraint(TYPES, name=op.f("ck_overdue_notice_types"))] if sqlite else []),
        comment="A target whose receivers know that it is overdue, until they know that it no longer is.",
    )
    op.create_index(
        op.f("ix_sync_run_untold"), "sync_run", ["finished_at"], postgresql_where=UNTOLD, sqlite_where=UNTOLD
    )
    op.create_index(op.f("ix_change_set_run_id"), "change_set", ["run_id"])
