"""Members of an organization: invitations, roles, removal and ownership transfer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, delete, func, insert, select, update

from wardkey.actions.accounts.organizations import ensure_user
from wardkey.actions.accounts.people import NewUserToken, set_password, sign_in_as
from wardkey.actions.core.audit import Target, record
from wardkey.actions.core.session_impact import end_invitations, end_own_grants
from wardkey.db.engine import Transaction
from wardkey.db.schema import invitations, members, organizations, users
from wardkey.domain.errors import (
    AccountExists,
    AccountNotSetUp,
    AlreadyMember,
    ExceedsOwnPermissions,
    InvalidEmail,
    InvalidLink,
    InvitationNotFound,
    InvitationUsed,
    LastOwner,
    MemberNotFound,
    OwnerOnly,
    SignInNotAllowed,
)
from wardkey.domain.ids import new_id
from wardkey.domain.names import clean_email
from wardkey.domain.permissions import ROLE_TABLE, Permission, Role
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.secret import random_text
from wardkey.domain.times import DAY_MS

INVITATION_MS = 7 * DAY_MS


@dataclass(frozen=True, slots=True)
class Member:
    """A user in an organization; `created_at` in epoch milliseconds."""

    user_id: str
    email: str
    name: str
    role: Role
    created_at: int


@dataclass(frozen=True, slots=True)
class Invitation:
    """An offer of membership to an e-mail address; times in epoch milliseconds."""

    id: str
    email: str
    role: Role
    created_at: int
    created_by: str
    expires_at: int
    accepted_at: int | None
    revoked_at: int | None

    def status(self, now: int) -> str:
        """Return `pending`, `accepted`, `revoked` or `expired`."""
        if self.accepted_at is not None:
            return "accepted"
        if self.revoked_at is not None:
            return "revoked"
        return "pending" if now < self.expires_at else "expired"


@dataclass(frozen=True, slots=True)
class PendingInvitation:
    """A pending invitation, and whether its address has an account and a password."""

    invitation: Invitation
    org_id: str
    has_account: bool
    has_password: bool


def list_members(tx: Transaction, by: Principal) -> list[Member]:
    """Return the members of the caller's organization, oldest first."""
    by.require(Permission.MEMBERS_READ)
    return [
        _member(row)
        for row in tx.connection.execute(
            _select_members(by.org_id).order_by(members.c.created_at, users.c.id)
        )
    ]


def change_role(tx: Transaction, by: Principal, user_id: str, role: Role) -> Member:
    """Change a member's role; only `transfer` can make an owner.

    Raises `MemberNotFound`, `OwnerOnly`, `LastOwner`, `ExceedsOwnPermissions`.
    """
    by.require(Permission.MEMBERS_WRITE)
    before = _get(tx, by, user_id)
    _require_changeable(by, before, role)
    if before.role is role:
        return before
    tx.connection.execute(
        update(members)
        .where(members.c.org_id == by.org_id, members.c.user_id == user_id)
        .values(role=role)
    )
    lost = ROLE_TABLE[before.role] - ROLE_TABLE[role]
    if Permission.CLIENTS_WRITE in lost:
        end_own_grants(tx, by, user_id, before.email, by.org_id)
    elif Permission.TOKENS_CREATE in lost:
        end_own_grants(tx, by, user_id, before.email, by.org_id, keeps_topics=True)
    if Permission.MEMBERS_WRITE not in ROLE_TABLE[role]:
        end_invitations(tx, by, user_id)
    details = {"role": role, "old_role": before.role}
    record(tx, by, "member.role_changed", Target("member", user_id), details)
    return _get(tx, by, user_id)


def remove(tx: Transaction, by: Principal, user_id: str) -> None:
    """Remove a member from the organization, which keeps the keys that the member created.

    Raises `MemberNotFound`, `OwnerOnly`, `LastOwner`.
    """
    if by.id != user_id:
        by.require(Permission.MEMBERS_WRITE)
    before = _get(tx, by, user_id)
    if before.role is Role.OWNER:
        raise LastOwner
    if by.id != user_id:
        _require_changeable(by, before, before.role)
    tx.connection.execute(
        delete(members).where(members.c.org_id == by.org_id, members.c.user_id == user_id)
    )
    end_own_grants(tx, by, user_id, before.email, by.org_id)
    end_invitations(tx, by, user_id)
    record(tx, by, "member.removed", Target("member", user_id), {"role": before.role})


def transfer(tx: Transaction, by: Principal, user_id: str) -> Member:
    """Make another member the owner; the old owner becomes an admin.

    Raises `OwnerOnly`, `MemberNotFound`.
    """
    if by.role is not Role.OWNER:
        raise OwnerOnly
    new_owner = _get(tx, by, user_id)
    if new_owner.user_id == by.id:
        return new_owner
    for member_id, role in ((by.id, Role.ADMIN), (user_id, Role.OWNER)):
        tx.connection.execute(
            update(members)
            .where(members.c.org_id == by.org_id, members.c.user_id == member_id)
            .values(role=role)
        )
    details = {"old_owner": by.id}
    record(tx, by, "ownership.transferred", Target("member", user_id), details)
    return _get(tx, by, user_id)


def invite(tx: Transaction, by: Principal, email: str, role: Role) -> tuple[Invitation, str]:
    """Invite an address; return the invitation and the text of its link, which is shown once.

    Earlier pending invitations of the same address end. Raises `InvalidEmail`, `AlreadyMember`,
    `OwnerOnly`, `ExceedsOwnPermissions`.
    """
    by.require(Permission.MEMBERS_WRITE)
    _require_grantable(by, role)
    try:
        email = clean_email(email)
    except ValueError as error:
        raise InvalidEmail(str(error), field="email") from None
    member = tx.connection.execute(
        _select_members(by.org_id).where(users.c.email_folded == email.lower())
    ).one_or_none()
    if member is not None:
        raise AlreadyMember
    tx.connection.execute(
        update(invitations)
        .where(
            invitations.c.org_id == by.org_id,
            # As accounts are compared: `lower` suffices because addresses are ASCII.
            func.lower(invitations.c.email) == email.lower(),
            invitations.c.accepted_at.is_(None),
            invitations.c.revoked_at.is_(None),
        )
        .values(revoked_at=tx.now)
    )
    text, invitation_id = random_text(43), new_id("inv", tx.now)
    tx.connection.execute(
        insert(invitations).values(
            id=invitation_id,
            org_id=by.org_id,
            email=email,
            role=role,
            digest=tx.vault.digest(text),
            pepper_version=tx.vault.version,
            created_at=tx.now,
            created_by=by.id,
            expires_at=tx.now + INVITATION_MS,
        )
    )
    details = {"email": email, "role": role}
    record(tx, by, "invitation.created", Target("invitation", invitation_id), details)
    return _get_invitation(tx, by, invitation_id), text


def list_invitations(tx: Transaction, by: Principal) -> list[Invitation]:
    """Return the organization's invitations, newest first."""
    by.require(Permission.MEMBERS_READ)
    statement = (
        select(invitations)
        .where(invitations.c.org_id == by.org_id)
        .order_by(invitations.c.created_at.desc(), invitations.c.id)
        .limit(1000)
    )
    return [_read_invitation(row) for row in tx.connection.execute(statement)]


def revoke_invitation(tx: Transaction, by: Principal, invitation_id: str) -> Invitation:
    """Revoke an invitation; raises `InvitationNotFound`, `InvitationUsed`."""
    by.require(Permission.MEMBERS_WRITE)
    before = _get_invitation(tx, by, invitation_id)
    if before.accepted_at is not None:
        raise InvitationUsed
    if before.revoked_at is not None:
        return before
    tx.connection.execute(
        update(invitations)
        .where(invitations.c.id == invitation_id, invitations.c.org_id == by.org_id)
        .values(revoked_at=tx.now)
    )
    target = Target("invitation", invitation_id)
    record(tx, by, "invitation.revoked", target, {"email": before.email})
    return _get_invitation(tx, by, invitation_id)


def find_invitation(tx: Transaction, text: str) -> PendingInvitation:
    """Return the pending invitation of a link's text; raises `InvalidLink`."""
    row = tx.connection.execute(
        select(invitations)
        .join(organizations, organizations.c.id == invitations.c.org_id)
        .where(
            invitations.c.digest.in_([tx.vault.digest(text, v) for v in tx.vault.peppers]),
            organizations.c.deleted_at.is_(None),
        )
    ).one_or_none()
    if row is None or _read_invitation(row).status(tx.now) != "pending":
        raise InvalidLink
    account = tx.connection.execute(
        select(users.c.password_hash).where(users.c.email_folded == row.email.lower())
    ).one_or_none()
    return PendingInvitation(
        _read_invitation(row),
        row.org_id,
        has_account=account is not None,
        has_password=account is not None and account.password_hash is not None,
    )


def accept(tx: Transaction, by: Principal, text: str, password_hash: str) -> NewUserToken:
    """Accept an invitation as a new user; return a user token. Raises what `join` raises."""
    user_id = join(tx, by, text, password_hash)
    return sign_in_as(tx, by, user_id, "user.signed_in")


def join(tx: Transaction, by: Principal, text: str, password_hash: str) -> str:
    """Accept an invitation as a new user; return the new user's id.

    An existing account uses `accept_as_user`, because a link alone must neither take over an
    account nor allow guesses at its password. Raises `InvalidLink`, `AccountExists`,
    `AccountNotSetUp`.
    """
    pending = find_invitation(tx, text)
    require_new_account(pending)
    user_id = add_invited_member(tx, by, pending)
    set_password(tx, by, user_id, password_hash)
    return user_id


def require_new_account(pending: PendingInvitation) -> None:
    """Raise `AccountExists` or `AccountNotSetUp` if the invited address has an account."""
    if pending.has_password:
        raise AccountExists
    if pending.has_account:
        raise AccountNotSetUp


def accept_as_user(tx: Transaction, by: Principal, text: str) -> None:
    """Accept an invitation as the caller, a signed-in user.

    Raises `InvalidLink`, `AlreadyMember`, and `SignInNotAllowed` if another address is invited.
    """
    pending = find_invitation(tx, text)
    if by.kind is not PrincipalKind.USER or not is_for(pending, by.label):
        raise SignInNotAllowed(
            f"The invitation is for {pending.invitation.email}, and you are signed in as "
            f"{by.label}; sign in with the invited address."
        )
    add_invited_member(tx, by, pending)


def is_for(pending: PendingInvitation, email: str) -> bool:
    """Return whether an invitation is for the account with this address."""
    return pending.invitation.email.lower() == email.strip().lower()


def add_invited_member(tx: Transaction, by: Principal, pending: PendingInvitation) -> str:
    """Add the invited user, whom the caller has authenticated, as a member; return the user's id.

    Raises `InvalidLink`, `AlreadyMember`.
    """
    invitation = pending.invitation
    accepted = tx.connection.execute(
        update(invitations)
        .where(invitations.c.id == invitation.id, invitations.c.accepted_at.is_(None))
        .values(accepted_at=tx.now)
    )
    if not accepted.rowcount:
        raise InvalidLink
    user_id = ensure_user(tx, invitation.email)
    member = tx.connection.execute(
        select(members.c.role).where(
            members.c.org_id == pending.org_id, members.c.user_id == user_id
        )
    ).one_or_none()
    if member is not None:
        raise AlreadyMember
    tx.connection.execute(
        insert(members).values(
            org_id=pending.org_id, user_id=user_id, role=invitation.role, created_at=tx.now
        )
    )
    target = Target("invitation", invitation.id)
    details = {"email": invitation.email, "role": invitation.role, "user": user_id}
    record(tx, by, "invitation.accepted", target, details, org_id=pending.org_id)
    return user_id


def _require_grantable(by: Principal, role: Role) -> None:
    if role is Role.OWNER:
        raise OwnerOnly("The role owner can't be assigned; the owner can transfer ownership.")
    beyond = sorted(p for p in ROLE_TABLE[role] if not by.holds(p))
    if beyond:
        raise ExceedsOwnPermissions(
            f"The role {role} has permissions that you lack: {', '.join(beyond)}. Ask a member who "
            "has them, or choose another role.",
            needs=beyond[0],
        )


def _require_changeable(by: Principal, member: Member, role: Role) -> None:
    if member.role is Role.OWNER:
        raise LastOwner
    _require_grantable(by, member.role)
    _require_grantable(by, role)


def _select_members(org_id: str) -> Any:  # noqa: ANN401 - a select's row type cannot be written
    return (
        select(members.c.user_id, users.c.email, users.c.name, members.c.role, members.c.created_at)
        .join(users, users.c.id == members.c.user_id)
        .where(members.c.org_id == org_id)
    )


def _get(tx: Transaction, by: Principal, user_id: str) -> Member:
    row = tx.connection.execute(
        _select_members(by.org_id).where(members.c.user_id == user_id)
    ).one_or_none()
    if row is None:
        raise MemberNotFound
    return _member(row)


def _member(row: Row[Any]) -> Member:
    return Member(row.user_id, row.email, row.name, Role(row.role), row.created_at)


def _get_invitation(tx: Transaction, by: Principal, invitation_id: str) -> Invitation:
    row = tx.connection.execute(
        select(invitations).where(
            invitations.c.id == invitation_id, invitations.c.org_id == by.org_id
        )
    ).one_or_none()
    if row is None:
        raise InvitationNotFound
    return _read_invitation(row)


def _read_invitation(row: Row[Any]) -> Invitation:
    return Invitation(
        row.id,
        row.email,
        Role(row.role),
        row.created_at,
        row.created_by,
        row.expires_at,
        row.accepted_at,
        row.revoked_at,
    )
