"""Grants say when they were refreshed and first used, so that a lost answer can be asked again."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns; a refresh of an earlier version can't be asked again."""
    op.add_column("grants", sa.Column("refreshed_at", sa.BigInteger))
    op.add_column("grants", sa.Column("used_at", sa.BigInteger))
    op.execute(sa.text("UPDATE grants SET refreshed_at = 0 WHERE replaced_by IS NOT NULL"))
