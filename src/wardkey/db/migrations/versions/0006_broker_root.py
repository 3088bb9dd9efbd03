"""The root of the broker's keys, which outlives the master key that it was derived from."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add its column; empty means that the current master key derives it, as it did so far."""
    op.add_column("master_keys", sa.Column("sealed_broker_root", sa.LargeBinary(), nullable=True))
