"""Grants name the member who made them, so that they end with that member."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; who made older grants is not known."""
    column = sa.Column("member_id", sa.String(length=40), nullable=False, server_default="")
    op.add_column("grants", column)
    op.create_index(
        "ix_grants_member_id",
        "grants",
        ["member_id"],
        sqlite_where=sa.text("member_id <> ''"),
        postgresql_where=sa.text("member_id <> ''"),
    )
