"""Every quiet run writes each open span once more: leave room for all of a page's next versions, on PostgreSQL.

With less room than that, most of them go to another page, and into each index again.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    if op.get_context().dialect.name == "postgresql":  # pages that are written from now on; nothing is rewritten
        op.execute("ALTER TABLE observation SET (fillfactor = 50)")


def downgrade() -> None:
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE observation SET (fillfactor = 75)")
