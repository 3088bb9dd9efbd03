"""Loads the organization of an action and checks that it is active."""

from __future__ import annotations

from sqlalchemy import bindparam, select

from wardkey.db.engine import Transaction
from wardkey.db.schema import organizations
from wardkey.domain.errors import OrganizationSuspended
from wardkey.domain.principal import Principal

_ORGANIZATION = select(organizations.c.name, organizations.c.suspended_at).where(
    organizations.c.id == bindparam("of_org"), organizations.c.deleted_at.is_(None)
)


def open_organization(tx: Transaction, by: Principal) -> str:
    """Return the name of the caller's organization.

    Raises `OrganizationSuspended` if it is suspended or deleted.
    """
    row = tx.connection.execute(_ORGANIZATION, {"of_org": by.org_id}).one_or_none()
    if row is None or row.suspended_at is not None:
        raise OrganizationSuspended
    return str(row.name)
