"""Tokens of hooks."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make the table of the tokens with which brokers ask."""
    op.create_table(
        "hook_tokens",
        sa.Column("kid", sa.String(length=12), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("org_id", sa.String(length=40), nullable=True),
        sa.Column("environment", sa.String(length=8), nullable=True),
        sa.Column("prefix", sa.String(length=64), nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("pepper_version", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["org_id"], ["organizations.id"], name=op.f("fk_hook_tokens_org_id")
        ),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_hook_tokens")),
        sqlite_with_rowid=False,
    )
