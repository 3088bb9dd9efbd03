"""Auth providers, grants, and what ends many grants at once."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None

Json = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")


def upgrade() -> None:
    """Make the three tables."""
    op.create_table(
        "auth_providers",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("org_id", sa.String(length=40), nullable=False),
        sa.Column("environment", sa.String(length=8), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("enabled", sa.Boolean(), nullable=False),
        sa.Column("settings", Json, nullable=False),
        sa.Column("sealed", sa.LargeBinary()),
        sa.Column("pepper_version", sa.Integer()),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["org_id"], ["organizations.id"], name=op.f("fk_auth_providers_org_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_auth_providers")),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_auth_providers_room", "auth_providers", ["org_id", "environment", "created_at", "id"]
    )
    op.create_table(
        "grants",
        sa.Column("kid", sa.String(length=12), nullable=False),
        sa.Column("org_id", sa.String(length=40), nullable=False),
        sa.Column("environment", sa.String(length=8), nullable=False),
        sa.Column("provider_id", sa.String(length=40), nullable=False),
        sa.Column("user_id", sa.String(length=255), nullable=False),
        sa.Column("user_email", sa.String(length=254), nullable=False),
        sa.Column("user_key", sa.String(length=32), nullable=False),
        sa.Column("username", sa.String(length=64), nullable=False),
        sa.Column("claims", Json, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("pepper_version", sa.Integer(), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=False),
        sa.Column("key_kid", sa.String(length=12), nullable=False),
        sa.Column("family", sa.String(length=12), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("ttl_s", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("refreshable_until", sa.BigInteger(), nullable=False),
        sa.Column("replaced_by", sa.String(length=12)),
        sa.Column("revoked_at", sa.BigInteger()),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_grants_org_id")),
        sa.PrimaryKeyConstraint("kid", name=op.f("pk_grants")),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_grants_room", "grants", ["org_id", "environment", "created_at", "kid"])
    op.create_index("ix_grants_user", "grants", ["org_id", "environment", "user_id"])
    op.create_index("ix_grants_username", "grants", ["org_id", "environment", "username"])
    op.create_index("ix_grants_key_id", "grants", ["key_id", "expires_at"])
    op.create_index("ix_grants_refreshable_until", "grants", ["refreshable_until"])
    op.create_table(
        "grant_cutoffs",
        sa.Column("org_id", sa.String(length=40), nullable=False),
        sa.Column("environment", sa.String(length=8), nullable=False),
        sa.Column("kind", sa.String(length=8), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["org_id"], ["organizations.id"], name=op.f("fk_grant_cutoffs_org_id")
        ),
        sa.PrimaryKeyConstraint(
            "org_id", "environment", "kind", "subject", name=op.f("pk_grant_cutoffs")
        ),
        sqlite_with_rowid=False,
    )
