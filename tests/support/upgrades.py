"""A database in the state of an earlier version, for upgrade tests."""

from __future__ import annotations

from sqlalchemy import Connection, text

# Undoes each migration; a new migration that an upgrade test crosses needs its own line.
UNDO = {
    "0011": ("DROP TABLE organization_slugs",),
    "0012": ("DROP TABLE scopes",),
    "0013": ("DROP INDEX ix_grants_member_id", "ALTER TABLE grants DROP COLUMN member_id"),
    "0014": ("DROP INDEX ix_grants_user_key",),
    "0015": (
        "ALTER TABLE grants DROP COLUMN refreshed_at",
        "ALTER TABLE grants DROP COLUMN used_at",
    ),
}


def downgrade(connection: Connection, revision: str) -> None:
    """Revert the schema to `revision`, so `migrate` upgrades it again."""
    for later, statements in sorted(UNDO.items(), reverse=True):
        if later > revision:
            for statement in statements:
                connection.execute(text(statement))
    connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": revision})
