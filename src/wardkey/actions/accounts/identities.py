"""Identities: whom the subjects of the deployment's OIDC issuer are, and signing in as one."""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import delete, insert, select, update

from wardkey.actions.accounts import browser_sessions
from wardkey.actions.accounts import members as places
from wardkey.actions.accounts.browser_sessions import NewSession
from wardkey.actions.accounts.organizations import ensure_user, named
from wardkey.actions.core.audit import Target, record
from wardkey.db.engine import Transaction
from wardkey.db.schema import identities, members, organizations, users
from wardkey.domain.errors import IdentityNotFound, SignInNotAllowed
from wardkey.domain.principal import Principal
from wardkey.domain.single_sign_on import Identity, SignInPolicy


@dataclass(frozen=True, slots=True)
class LinkedIdentity:
    """A subject as its owner sees it; times in epoch milliseconds."""

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
    tx: Transaction, by: Principal, identity: Identity, welcome: SignInPolicy, replaced: str
) -> NewSession:
    """Sign in whoever proved an identity; at the first time he is linked, and joins if he may.

    `replaced` is the text of the browser's cookie before, whose session ends. Raises
    `SignInNotAllowed`.
    """
    welcome.check(identity.email)
    user_id = _known(tx, identity) or _link(tx, by, identity, _fitting(tx, by, identity, welcome))
    return _begin(tx, by, identity, user_id, replaced)


def join(  # noqa: PLR0917 - as `sign_in`, and the link
    tx: Transaction,
    by: Principal,
    text: str,
    identity: Identity,
    welcome: SignInPolicy,
    replaced: str,
) -> NewSession:
    """Take the place that an invitation offers to an identity's address, and sign in.

    Raises `InvalidLink`, `AlreadyMember`, `SignInNotAllowed`.
    """
    welcome.check(identity.email)
    found = places.invited(tx, text)
    if not places.is_for(found, identity.email):
        raise SignInNotAllowed(
            f"The invitation is for {found.invitation.email}, and you signed in as "
            f"{identity.email}; sign in as the invited one."
        )
    known, user_id = _known(tx, identity), places.take_place(tx, by, found)
    if known is None:
        _link(tx, by, identity, user_id)
    elif known != user_id:
        raise SignInNotAllowed(
            "Your account has another address by now; ask for an invitation to that one."
        )
    return _begin(tx, by, identity, user_id, replaced)


def confirm(tx: Transaction, by: Principal, session_id: str, identity: Identity) -> None:
    """Note that the caller proved his identity again.

    Raises `SignInNotAllowed` if it is another's, `BrowserSessionNotFound`.
    """
    if _known(tx, identity) != by.id:
        raise SignInNotAllowed(f"{identity.email} is not you; sign in at the issuer as yourself.")
    browser_sessions.refresh(tx, by, session_id)


def unlink(tx: Transaction, by: Principal, issuer: str) -> None:
    """Forget who the caller is at an issuer; raises `IdentityNotFound`.

    Whoever has his address there is linked anew at his next sign-in.
    """
    gone = tx.connection.execute(
        delete(identities).where(identities.c.issuer == issuer, identities.c.user_id == by.id)
    )
    if not gone.rowcount:
        raise IdentityNotFound
    record(tx, by, "identity.unlinked", Target("user", by.id), {"issuer": issuer})


def _known(tx: Transaction, identity: Identity) -> str | None:
    return tx.connection.execute(
        select(identities.c.user_id).where(
            identities.c.issuer == identity.issuer, identities.c.subject == identity.subject
        )
    ).scalar_one_or_none()


def _fitting(tx: Transaction, by: Principal, identity: Identity, welcome: SignInPolicy) -> str:
    """Return whose account an identity's verified address is, made if it is welcome."""
    known = tx.connection.execute(
        select(users.c.id).where(users.c.email_folded == identity.email.lower())
    ).scalar_one_or_none()
    if known is not None:
        return str(known)
    org_id = tx.connection.execute(
        select(organizations.c.id).where(named(welcome.organization))
    ).scalar_one_or_none()
    if org_id is None:
        raise SignInNotAllowed(
            f"{identity.email} has no account here; ask an admin for an invitation."
        )
    user_id = ensure_user(tx, identity.email)
    tx.connection.execute(
        insert(members).values(org_id=org_id, user_id=user_id, role=welcome.role, created_at=tx.now)
    )
    actor = replace(by, id=user_id, label=identity.email)
    details = {"role": welcome.role, "issuer": identity.issuer}
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
            f"{identity.email} belongs to another account at the issuer by now. Its owner unlinks "
            "that on the account page; otherwise the operator makes a new set-up link."
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


def _begin(
    tx: Transaction, by: Principal, identity: Identity, user_id: str, replaced: str
) -> NewSession:
    tx.connection.execute(
        update(identities)
        .where(identities.c.issuer == identity.issuer, identities.c.subject == identity.subject)
        .values(last_used_at=tx.now, email=identity.email)
    )
    return browser_sessions.create_session(tx, by, user_id, identity.issuer, replaced)
