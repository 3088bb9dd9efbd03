"""Organizations: creating, renaming, suspending and deleting them, and their settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Row, and_, insert, or_, select, update

from wardkey.actions.core.audit import Target, record
from wardkey.db.engine import Transaction
from wardkey.db.schema import (
    acl_rules,
    clients,
    keys,
    members,
    organization_slugs,
    organizations,
    users,
)
from wardkey.domain.errors import (
    DuplicateSlug,
    InvalidEmail,
    InvalidName,
    InvalidRotationPolicy,
    InvalidSlug,
    OrganizationNotFound,
    OwnerOnly,
)
from wardkey.domain.forward_auth import ANY_ORGANIZATION
from wardkey.domain.ids import new_id
from wardkey.domain.keys import ROTATION_BOUNDS, Reason
from wardkey.domain.names import clean_email, clean_name, clean_slug, slug_from
from wardkey.domain.permissions import Permission, Role
from wardkey.domain.principal import Principal


@dataclass(frozen=True, slots=True)
class Organization:
    """A tenant; times in epoch milliseconds."""

    id: str
    slug: str
    name: str
    rotation_days: int
    created_at: int
    suspended_at: int | None
    deleted_at: int | None


def create(
    tx: Transaction, by: Principal, name: str, owner_email: str, slug: str = ""
) -> tuple[Organization, str]:
    """Create an organization with its owner, a new user if needed; return it and the owner's id.

    Raises `InvalidName`, `InvalidEmail`, `InvalidSlug`, `DuplicateSlug`.
    """
    by.require_operator()
    name = validate_name(name)
    org_id = new_id("org", tx.now)
    slug = validate_slug(slug) if slug else _find_free_slug(tx, slug_from(name))
    _reserve(tx, org_id, slug)
    user_id = ensure_user(tx, owner_email)
    tx.connection.execute(
        insert(organizations).values(
            id=org_id, slug=slug, name=name, created_at=tx.now, updated_at=tx.now
        )
    )
    tx.connection.execute(
        insert(members).values(org_id=org_id, user_id=user_id, role=Role.OWNER, created_at=tx.now)
    )
    details = {"name": name, "slug": slug, "owner": user_id}
    record(tx, by, "organization.created", Target("organization", org_id), details, org_id=org_id)
    return _get(tx, org_id), user_id


def ensure_user(tx: Transaction, email: str) -> str:
    """Return the id of the user with this address, a new one if needed; raises `InvalidEmail`."""
    try:
        email = clean_email(email)
    except ValueError as error:
        raise InvalidEmail(str(error), field="email") from None
    existing_id = tx.connection.execute(
        select(users.c.id).where(users.c.email_folded == email.lower())
    ).scalar_one_or_none()
    if existing_id is not None:
        return str(existing_id)
    user_id = new_id("user", tx.now)
    tx.connection.execute(
        insert(users).values(
            id=user_id,
            email=email,
            email_folded=email.lower(),
            name=email.partition("@")[0],
            created_at=tx.now,
        )
    )
    return user_id


def list_all(tx: Transaction, by: Principal) -> list[Organization]:
    """Return the deployment's organizations that are not deleted, by slug."""
    by.require_operator()
    statement = (
        select(organizations)
        .where(organizations.c.deleted_at.is_(None))
        .order_by(organizations.c.slug)
    )
    return [_organization(row) for row in tx.connection.execute(statement)]


def find(tx: Transaction, by: Principal, reference: str) -> Organization:
    """Return the organization with this id or slug; raises `OrganizationNotFound`."""
    by.require_operator()
    row = tx.connection.execute(
        select(organizations).where(matches_reference(reference))
    ).one_or_none()
    if row is None:
        raise OrganizationNotFound
    return _organization(row)


def matches_reference(reference: str) -> ColumnElement[bool]:
    """Return the condition for the organization with this id or slug that is not deleted.

    The two can't be confused: an id never changes, and no slug looks like an id.
    """
    return and_(
        or_(organizations.c.id == reference, organizations.c.slug == reference),
        organizations.c.deleted_at.is_(None),
    )


def suspend(tx: Transaction, by: Principal, org_id: str) -> Organization:
    """Suspend an organization until it is resumed; its keys are verified as `disabled`."""
    by.require_operator()
    return _set_suspended(tx, by, org_id, suspended_at=tx.now)


def resume(tx: Transaction, by: Principal, org_id: str) -> Organization:
    """Resume a suspended organization."""
    by.require_operator()
    return _set_suspended(tx, by, org_id, suspended_at=None)


def delete(tx: Transaction, by: Principal, org_id: str) -> Organization:
    """Delete an organization permanently: revoke its keys, delete its members, clients and rules.

    Its audit chain is kept. Its slugs stay reserved, because proxies may still name it by slug.
    """
    by.require_operator()
    return _delete(tx, by, find(tx, by, org_id))


def close(tx: Transaction, by: Principal) -> Organization:
    """Delete the caller's organization, as its owner; raises `OwnerOnly`."""
    if by.role is not Role.OWNER:
        raise OwnerOnly
    return _delete(tx, by, _get(tx, by.org_id))


def public(tx: Transaction, by: Principal) -> Organization:
    """Return the caller's organization; every key may see its id, slug and name."""
    by.require(Permission.ORGANIZATION_PUBLIC)
    return _get(tx, by.org_id)


def change(
    tx: Transaction,
    by: Principal,
    *,
    name: str | None = None,
    slug: str | None = None,
    rotation_days: int | None = None,
) -> Organization:
    """Change the name, slug or rotation policy of the caller's organization.

    Raises `InvalidName`, `InvalidSlug`, `DuplicateSlug`, `InvalidRotationPolicy`.
    """
    by.require(Permission.ORGANIZATION_WRITE)
    before = _get(tx, by.org_id)
    values: dict[str, str | int] = {"updated_at": tx.now}
    if name is not None:
        values["name"] = validate_name(name)
    if slug is not None and slug != before.slug:
        values["slug"] = validate_slug(slug)
        _reserve(tx, by.org_id, slug)
    if rotation_days is not None:
        if not ROTATION_BOUNDS[0] <= rotation_days <= ROTATION_BOUNDS[1]:
            raise InvalidRotationPolicy(field="rotation_days")
        values["rotation_days"] = rotation_days
    tx.connection.execute(
        update(organizations).where(organizations.c.id == by.org_id).values(values)
    )
    after = _get(tx, by.org_id)
    details = {
        "name": after.name,
        "slug": after.slug,
        "old_name": before.name,
        "old_slug": before.slug,
        "rotation_days": after.rotation_days,
        "old_rotation_days": before.rotation_days,
    }
    record(tx, by, "organization.updated", Target("organization", by.org_id), details)
    return after


def validate_name(name: str) -> str:
    """Return a name, validated and cleaned; raises `InvalidName`."""
    try:
        return clean_name(name)
    except ValueError as error:
        raise InvalidName(str(error), field="name") from None


def validate_slug(slug: str) -> str:
    """Return a validated slug; raises `InvalidSlug`."""
    try:
        clean_slug(slug)
    except ValueError as error:
        raise InvalidSlug(str(error), field="slug") from None
    if slug == ANY_ORGANIZATION:
        raise InvalidSlug(
            "The slug “any” means every organization in proxy URLs; choose another slug.",
            field="slug",
        )
    return slug


def _set_suspended(
    tx: Transaction, by: Principal, org_id: str, *, suspended_at: int | None
) -> Organization:
    before = find(tx, by, org_id)
    if (before.suspended_at is None) == (suspended_at is None):
        return before
    tx.connection.execute(
        update(organizations)
        .where(organizations.c.id == before.id)
        .values(suspended_at=suspended_at, updated_at=tx.now)
    )
    action = "organization.resumed" if suspended_at is None else "organization.suspended"
    record(tx, by, action, Target("organization", before.id), org_id=before.id)
    return _get(tx, before.id)


def _delete(tx: Transaction, by: Principal, before: Organization) -> Organization:
    tx.connection.execute(
        update(keys)
        .where(keys.c.org_id == before.id, keys.c.revoked_at.is_(None))
        .values(
            revoked_at=tx.now,
            revoke_reason=Reason.CESSATION_OF_OPERATION,
            revoke_comment="the organization was deleted",
            live_name=None,
            updated_at=tx.now,
        )
    )
    tx.connection.execute(members.delete().where(members.c.org_id == before.id))
    tx.connection.execute(clients.delete().where(clients.c.org_id == before.id))
    tx.connection.execute(acl_rules.delete().where(acl_rules.c.org_id == before.id))
    tx.connection.execute(
        update(organizations)
        .where(organizations.c.id == before.id)
        .values(
            deleted_at=tx.now,
            slug=_find_free_slug(tx, before.id.lower().replace("_", "-")),
            updated_at=tx.now,
        )
    )
    target = Target("organization", before.id)
    record(tx, by, "organization.deleted", target, {"slug": before.slug}, org_id=before.id)
    return _get(tx, before.id)


def _reserve(tx: Transaction, org_id: str, slug: str) -> None:
    """Reserve a slug permanently; raises `DuplicateSlug` if another organization ever had it.

    Proxies name organizations by slug, so a slug must never refer to another tenant later.
    """
    holder_query = select(organization_slugs.c.org_id).where(organization_slugs.c.slug == slug)
    holder = tx.connection.execute(holder_query).scalar_one_or_none()
    if holder not in {None, org_id}:
        raise DuplicateSlug(field="slug")
    # A deleted organization has a slug made from its id, which is not reserved.
    org_query = select(organizations.c.id).where(organizations.c.slug == slug)
    if tx.connection.execute(org_query).scalar_one_or_none() not in {None, org_id}:
        raise DuplicateSlug(field="slug")
    if holder is None:
        row = {"slug": slug, "org_id": org_id, "taken_at": tx.now}
        tx.connection.execute(insert(organization_slugs).values(row))


def _find_free_slug(tx: Transaction, base: str) -> str:
    statements = (
        select(column).where(column.startswith(base[:40], autoescape=True))
        for column in (organization_slugs.c.slug, organizations.c.slug)
    )
    taken = {
        slug for statement in statements for slug in tx.connection.execute(statement).scalars()
    }
    taken.add(ANY_ORGANIZATION)
    slug, number = base, 2
    while slug in taken:
        slug, number = f"{base[:40]}-{number}", number + 1
    return slug


def _get(tx: Transaction, org_id: str) -> Organization:
    row = tx.connection.execute(
        select(organizations).where(organizations.c.id == org_id)
    ).one_or_none()
    if row is None:
        raise OrganizationNotFound
    return _organization(row)


def _organization(row: Row[Any]) -> Organization:
    return Organization(
        row.id,
        row.slug,
        row.name,
        row.rotation_days,
        row.created_at,
        row.suspended_at,
        row.deleted_at,
    )
