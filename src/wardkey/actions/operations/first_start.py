"""The first start of a deployment, which creates an organization, its owner and a key."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import exists, func, select

from wardkey.actions.accounts.organizations import Organization, create
from wardkey.actions.accounts.people import create_setup_link
from wardkey.actions.keys.keys import Issued, issue
from wardkey.db.engine import Transaction
from wardkey.db.schema import identities, members, organizations, passkeys, users
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import TICKED_EXPLICITLY, KeyType, Permission, Role
from wardkey.domain.principal import Principal, member
from wardkey.domain.secret import Environment

FIRST_KEY_NAME = "live-wardkey-bootstrap"


@dataclass(frozen=True, slots=True)
class FirstStart:
    """The result of the first start; the set-up link and the secret are shown only once."""

    organization: Organization
    owner_email: str
    setup_link: str
    issued: Issued


def is_new(tx: Transaction, by: Principal) -> bool:
    """Return whether no organization was ever created."""
    by.require_operator()
    count = tx.connection.execute(select(func.count()).select_from(organizations)).scalar_one()
    return bool(count == 0)


def owners_without_sign_in(tx: Transaction, by: Principal) -> list[str]:
    """Return the e-mail addresses of owners who can't sign in yet, at most five, oldest first."""
    by.require_operator()
    credentials = (passkeys, identities)
    has_none = [~exists().where(table.c.user_id == users.c.id) for table in credentials]
    query = (
        select(users.c.email)
        .join(members, members.c.user_id == users.c.id)
        .where(members.c.role == Role.OWNER, users.c.password_hash.is_(None), *has_none)
        .order_by(users.c.created_at)
        .limit(5)
    )
    return list(tx.connection.execute(query).scalars())


def first_start(tx: Transaction, by: Principal, name: str, owner_email: str) -> FirstStart | None:
    """Create the first organization, its owner and a secret key atomically.

    Returns None if another process was first. The key can create keys and grant every scope, so
    that the command line works immediately in a new deployment.
    """
    by.require_operator()
    if not is_new(tx, by):
        return None
    organization, user_id = create(tx, by, name, owner_email)
    link = create_setup_link(tx, by, owner_email)
    owner = member(
        user_id=user_id,
        email=owner_email,
        org_id=organization.id,
        role=Role.OWNER,
        environment=Environment.LIVE,
    )
    needed = {Permission.KEYS_WRITE, Permission.SCOPES_GRANT}
    permissions = tuple(sorted((frozenset(Permission) - TICKED_EXPLICITLY) | needed))
    spec = KeySpec(
        name=FIRST_KEY_NAME,
        type=KeyType.SECRET,
        environment=Environment.LIVE,
        permissions=permissions,
        description="Created by the first start. Revoke it once you have your own keys.",
    )
    return FirstStart(organization, owner_email, link, issue(tx, owner, spec))
