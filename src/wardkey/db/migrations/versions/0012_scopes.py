"""The catalogue of an organization's own scopes, with those that its keys hold."""

import re
import time

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from wardkey.domain.ids import new_id

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

# The form of a scope and the resources that were Wardkey's own at this version.
_SCOPE = re.compile(r"[a-z][a-z0-9_.-]{0,31}(?::[a-z0-9_.-]{1,32}){1,2}")
_OURS = re.compile(
    r"(publish|organization|tokens|keys|clients|acl|retained|providers|previews|members|audit|usage"
    r"|billing|scopes)(:|$)"
)
_keys = sa.table(
    "keys",
    sa.column("id", sa.String),
    sa.column("org_id", sa.String),
    sa.column("permissions", sa.JSON().with_variant(JSONB(), "postgresql")),
    sa.column("revoked_at", sa.BigInteger),
    sa.column("created_by", sa.String),
)


def upgrade() -> None:
    """Make the table and fill it with the scopes of keys that are not revoked.

    `scopes` becomes a resource of Wardkey's own, so keys lose scopes that begin with it: one named
    `scopes:grant` would otherwise let its key grant every scope.
    """
    table = op.create_table(
        "scopes",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("org_id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=98), nullable=False),
        sa.Column("description", sa.String(length=200), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["org_id"], ["organizations.id"], name=op.f("fk_scopes_org_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scopes")),
        sa.UniqueConstraint("org_id", "name", name=op.f("uq_scopes_org_id_name")),
    )
    connection = op.get_bind()
    now = time.time_ns() // 1_000_000
    found: dict[tuple[str, str], dict[str, object]] = {}
    narrowed = []
    for key_id, org_id, permissions, revoked_at, created_by in connection.execute(
        sa.select(*_keys.columns).order_by(_keys.c.id)
    ):
        kept = [name for name in permissions if name.partition(":")[0] != "scopes"]
        if kept != permissions:
            narrowed.append((key_id, kept))
        if revoked_at is not None:
            continue
        for name in kept:
            if _SCOPE.fullmatch(name) and not _OURS.match(name):
                row = {
                    "id": new_id("scope", now),
                    "org_id": org_id,
                    "name": name,
                    "description": "",
                    "created_at": now,
                    "created_by": created_by,
                }
                found.setdefault((org_id, name), row)
    if found:
        op.bulk_insert(table, list(found.values()))
    for key_id, kept in narrowed:
        connection.execute(sa.update(_keys).where(_keys.c.id == key_id).values(permissions=kept))
