"""The rotation policy of organizations."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column."""
    op.add_column(
        "organizations",
        sa.Column("rotation_days", sa.Integer(), nullable=False, server_default="90"),
    )
