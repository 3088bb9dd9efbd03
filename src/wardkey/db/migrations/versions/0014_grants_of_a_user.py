"""Grants are found by the user whom they are for, to see whether that user may return."""

from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the index."""
    op.create_index("ix_grants_user_key", "grants", ["org_id", "environment", "user_key"])
