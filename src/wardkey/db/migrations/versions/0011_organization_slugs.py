"""Slugs stay reserved for the organization that used them."""

import json

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_ACTIONS = ("organization.created", "organization.updated", "organization.deleted")


def upgrade() -> None:
    """Make the table and fill it: slugs in use first, then former ones that the audit names."""
    table = op.create_table(
        "organization_slugs",
        sa.Column("slug", sa.String(length=48), nullable=False),
        sa.Column("org_id", sa.String(length=40), nullable=False),
        sa.Column("taken_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("slug", name=op.f("pk_organization_slugs")),
    )
    op.create_index(op.f("ix_organization_slugs_org_id"), "organization_slugs", ["org_id"])
    connection = op.get_bind()
    taken: dict[str, dict[str, object]] = {}
    current = sa.text("SELECT slug, id, created_at FROM organizations WHERE deleted_at IS NULL")
    for slug, org_id, at in connection.execute(current):
        taken[slug] = {"slug": slug, "org_id": org_id, "taken_at": at}
    events = sa.text(
        "SELECT org_id, at, details FROM audit_events WHERE action IN :actions ORDER BY at DESC"
    ).bindparams(sa.bindparam("actions", _ACTIONS, expanding=True))
    for org_id, at, details in connection.execute(events):
        said = json.loads(details)
        for slug in (said.get("slug"), said.get("old_slug")):
            if slug:
                taken.setdefault(slug, {"slug": slug, "org_id": org_id, "taken_at": at})
    if taken:
        op.bulk_insert(table, list(taken.values()))
