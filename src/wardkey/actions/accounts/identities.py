"""Linked identities: users of the deployment's OIDC issuer, and signing in with one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import delete, insert, select, update

from wardkey.actions.accounts import browser_sessions, members
from wardkey.actions.accounts.browser_sessions import NewSession
from wardkey.actions.accounts.organizations import ensure_user, matches_reference
from wardkey.actions.core.audit import Target, record
from wardkey.db.engine import Transaction
from wardkey.db.schema import identities, organizations, users
from wardkey.db.schema import members as memberships
from wardkey.domain.errors import IdentityNotFound, SignInNotAllowed
from wardkey.domain.principal import Principal
from wardkey.domain.single_sign_on import Identity, SignInPolicy


@dataclass(frozen=True, slots=True)
class LinkedIdentity:
    """An identity as shown to its user; times in epoch milliseconds."""

    issuer: str
    email: str
    created_at: int
    last_used_at: int


def list_identities(tx: Transaction, by: Principal) -> list[LinkedIdentity]:
    """Return the caller's own identities, oldest first."""
    return [
        LinkedIdentity(row.issuer, row.email, row.created_at, row.last_used_at)
        for row in tx.connection.execute(
            select(identities)
            .where(identities.c.user_id == by.id)
            .order_by(identities.c.created_at, identities.c.issuer)
        )
    ]


def sign_in(
    tx: Transaction, by: Principal, identity: Identity, policy: SignInPolicy, previous_cookie: str
) -> NewSession:
    """Sign in the user of a verified identity; at first, link it and add the member if allowed.

    The session of `previous_cookie`, the browser's cookie so far, ends. Raises `SignInNotAllowed`.
    """
    policy.check(identity.email)
    user_id = _find_user(tx, identity)
    if user_id is None:
        user_id = _link(tx, by, identity, _find_or_create_user(tx, by, identity, policy))
    return _create_session(tx, by, identity, user_id, previous_cookie)


def join(  # noqa: PLR0917 - as `sign_in`, plus the link
    tx: Transaction,
    by: Principal,
    text: str,
    identity: Identity,
    policy: SignInPolicy,
    previous_cookie: str,
) -> NewSession:
    """Accept an invitation sent to an identity's address, and sign in.

    Raises `InvalidLink`, `AlreadyMember`, `SignInNotAllowed`.
    """
    policy.check(identity.email)
    pending = members.find_invitation(tx, text)
    if not members.is_for(pending, identity.email):
        raise SignInNotAllowed(
            f"The invitation is for {pending.invitation.email}, and you signed in as "
            f"{identity.email}; sign in with the invited address."
        )
    linked_id, user_id = _find_user(tx, identity), members.add_invited_member(tx, by, pending)
    if linked_id is None:
        _link(tx, by, identity, user_id)
    elif linked_id != user_id:
        raise SignInNotAllowed(
            "Your account now has a different address; ask for an invitation to that address."
        )
    return _create_session(tx, by, identity, user_id, previous_cookie)


def confirm(tx: Transaction, by: Principal, session_id: str, identity: Identity) -> None:
    """Record that the caller authenticated again at the issuer.

    Raises `BrowserSessionNotFound`, and `SignInNotAllowed` if it was as another user.
    """
    if _find_user(tx, identity) != by.id:
        raise SignInNotAllowed(
            f"{identity.email} is not your account; sign in at the issuer with your own."
        )
    browser_sessions.refresh(tx, by, session_id)


def unlink(tx: Transaction, by: Principal, issuer: str) -> None:
    """Unlink the caller's identity at an issuer; raises `IdentityNotFound`.

    The next sign-in at the issuer with the caller's address links its identity.
    """
    deleted = tx.connection.execute(
        delete(identities).where(identities.c.issuer == issuer, identities.c.user_id == by.id)
    )
    if not deleted.rowcount:
        raise IdentityNotFound
    record(tx, by, "identity.unlinked", Target("user", by.id), {"issuer": issuer})


def _find_user(tx: Transaction, identity: Identity) -> str | None:
    return tx.connection.execute(
        select(identities.c.user_id).where(
            identities.c.issuer == identity.issuer, identities.c.subject == identity.subject
        )
    ).scalar_one_or_none()


def _find_or_create_user(
    tx: Transaction, by: Principal, identity: Identity, policy: SignInPolicy
) -> str:
    """Return the id of the user with an identity's address, creating one if the policy allows."""
    user_id = tx.connection.execute(
        select(users.c.id).where(users.c.email_folded == identity.email.lower())
    ).scalar_one_or_none()
    if user_id is not None:
        return str(user_id)
    org_id = tx.connection.execute(
        select(organizations.c.id).where(matches_reference(policy.organization))
    ).scalar_one_or_none()
    if org_id is None:
        raise SignInNotAllowed(
            f"There is no account for {identity.email}; ask an admin for an invitation."
        )
    user_id = ensure_user(tx, identity.email)
    tx.connection.execute(
        insert(memberships).values(
            org_id=org_id, user_id=user_id, role=policy.role, created_at=tx.now
        )
    )
    actor = replace(by, id=user_id, label=identity.email)
    details = {"role": policy.role, "issuer": identity.issuer}
    record(tx, actor, "member.joined", Target("member", user_id), details, org_id=org_id)
    return user_id


def _link(tx: Transaction, by: Principal, identity: Identity, user_id: str) -> str:
    other = tx.connection.execute(
        select(identities.c.subject).where(
            identities.c.issuer == identity.issuer, identities.c.user_id == user_id
        )
    ).first()
    if other is not None:
        raise SignInNotAllowed(
            f"{identity.email} now belongs to another account at the issuer. Unlink the earlier "
            "account on the account page, or ask the operator for a new set-up link."
        )
    tx.connection.execute(
        insert(identities).values(
            issuer=identity.issuer,
            subject=identity.subject,
            user_id=user_id,
            email=identity.email,
            created_at=tx.now,
            last_used_at=tx.now,
        )
    )
    details = {"issuer": identity.issuer, "email": identity.email}
    actor = replace(by, id=user_id, label=identity.email)
    record(tx, actor, "identity.linked", Target("user", user_id), details)
    return user_id


def _create_session(
    tx: Transaction, by: Principal, identity: Identity, user_id: str, previous_cookie: str
) -> NewSession:
    tx.connection.execute(
        update(identities)
        .where(identities.c.issuer == identity.issuer, identities.c.subject == identity.subject)
        .values(last_used_at=tx.now, email=identity.email)
    )
    return browser_sessions.create_session(tx, by, user_id, identity.issuer, previous_cookie)
