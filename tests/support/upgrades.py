"""A database as an earlier version left it, for tests of upgrades."""

from __future__ import annotations

from sqlalchemy import Connection, text

# What each migration made, undone; a new migration that such a test crosses adds its own line.
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
    """Take the schema back to `revision`, so that `migrate` upgrades it again."""
    for later, statements in sorted(UNDO.items(), reverse=True):
        if later > revision:
            for statement in statements:
                connection.execute(text(statement))
    connection.execute(text("UPDATE alembic_version SET version_num = :v"), {"v": revision})
