"""Users: set-up links, passwords, user tokens and memberships."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, insert, select, update

from wardkey.actions.core import hashing
from wardkey.actions.core.audit import Target, client_of, record
from wardkey.actions.core.common_passwords import is_common
from wardkey.actions.core.session_impact import end_own_grants
from wardkey.db.engine import Transaction
from wardkey.db.schema import (
    browser_sessions,
    identities,
    members,
    organizations,
    passkeys,
    setup_links,
    user_tokens,
    users,
)
from wardkey.domain.errors import (
    InvalidLink,
    InvalidUserToken,
    OrganizationNotFound,
    OrganizationRequired,
    OrganizationSuspended,
    UserNotFound,
    WeakPassword,
    WrongPassword,
)
from wardkey.domain.ids import new_id
from wardkey.domain.permissions import Role
from wardkey.domain.principal import Principal, PrincipalKind, member
from wardkey.domain.secret import (
    Environment,
    Malformed,
    SecretKind,
    SecretText,
    generate,
    parse,
    random_text,
)
from wardkey.domain.times import DAY_MS, HOUR_MS

LINK_MS = 7 * DAY_MS
TOKEN_MS = 12 * HOUR_MS
_MIN_LENGTH, _MAX_LENGTH = 12, 256


@dataclass(frozen=True, slots=True)
class NewUserToken:
    """A new user token, whose text is stored nowhere, and its expiry in epoch milliseconds."""

    token: SecretText
    expires_at: int
    user_id: str
    email: str


@dataclass(frozen=True, slots=True)
class Membership:
    """A user's role in one organization."""

    org_id: str
    slug: str
    name: str
    role: Role


def create_setup_link(tx: Transaction, by: Principal, email: str) -> str:
    """Create a one-time link to set a user's password, valid for 7 days; return its text.

    Earlier links of the same user end. Raises `UserNotFound`.
    """
    by.require_operator()
    user_id = tx.connection.execute(
        select(users.c.id).where(users.c.email_folded == email.strip().lower())
    ).scalar_one_or_none()
    if user_id is None:
        raise UserNotFound
    tx.connection.execute(
        update(setup_links)
        .where(setup_links.c.user_id == user_id, setup_links.c.used_at.is_(None))
        .values(used_at=tx.now)
    )
    text = random_text(43)
    tx.connection.execute(
        insert(setup_links).values(
            id=new_id("link", tx.now),
            user_id=user_id,
            digest=tx.vault.digest(text),
            pepper_version=tx.vault.version,
            created_at=tx.now,
            expires_at=tx.now + LINK_MS,
        )
    )
    record(tx, by, "setup_link.created", Target("user", user_id))
    return text


def link_email(tx: Transaction, text: str) -> str:
    """Return the user's address of an unused set-up link; raises `InvalidLink`."""
    email = tx.connection.execute(
        select(users.c.email)
        .join(setup_links, setup_links.c.user_id == users.c.id)
        .where(
            setup_links.c.digest.in_(_digests(tx, text)),
            setup_links.c.used_at.is_(None),
            setup_links.c.expires_at > tx.now,
        )
    ).scalar_one_or_none()
    if email is None:
        raise InvalidLink
    return str(email)


def use_setup_link(tx: Transaction, by: Principal, text: str, password_hash: str) -> NewUserToken:
    """Set the password of a set-up link's user; return a user token. The link works once.

    `by` contributes only the client's address and user agent. Raises `InvalidLink`.
    """
    user_id = spend_setup_link(tx, by, text, password_hash)
    return sign_in_as(tx, by, user_id, "user.set_up")


def spend_setup_link(tx: Transaction, by: Principal, text: str, password_hash: str) -> str:
    """Set the password of a set-up link's user; return the user id. The caller records the sign-in.

    The user's tokens, sessions, passkeys and linked identities are removed: a set-up link recovers
    an account, and an attacker may have added any of them. Raises `InvalidLink`.
    """
    link = tx.connection.execute(
        update(setup_links)
        .where(
            setup_links.c.digest.in_(_digests(tx, text)),
            setup_links.c.used_at.is_(None),
            setup_links.c.expires_at > tx.now,
        )
        .values(used_at=tx.now)
        .returning(setup_links.c.user_id)
    ).one_or_none()
    if link is None:
        raise InvalidLink
    set_password(tx, by, link.user_id, password_hash)
    # Keep their rows, marked as removed, so a restore does not bring them back.
    tx.connection.execute(
        update(passkeys)
        .where(passkeys.c.user_id == link.user_id, passkeys.c.removed_at.is_(None))
        .values(removed_at=tx.now)
    )
    tx.connection.execute(delete(identities).where(identities.c.user_id == link.user_id))
    return str(link.user_id)


def change_password(
    tx: Transaction, by: Principal, checked_hash: str, password_hash: str, kept_session: str
) -> None:
    """Change the caller's password after the old one matched `checked_hash`.

    All tokens, and all sessions except `kept_session`, end. Raises `WrongPassword` if the password
    has changed since it was checked.
    """
    current_hash = tx.connection.execute(
        select(users.c.password_hash).where(users.c.id == by.id)
    ).scalar_one_or_none()
    if current_hash != checked_hash:
        raise WrongPassword
    set_password(tx, by, by.id, password_hash, kept_session)
    record(tx, by, "user.password_changed", Target("user", by.id))


def set_password(
    tx: Transaction, by: Principal, user_id: str, password_hash: str, kept_session: str = ""
) -> None:
    """Store a password's hash and end the user's tokens, sessions and own grants.

    Sessions end except `kept_session`. The caller records the change.
    """
    email = tx.connection.execute(
        update(users)
        .where(users.c.id == user_id)
        .values(password_hash=password_hash)
        .returning(users.c.email)
    ).scalar_one()
    end_user_tokens(tx, user_id)
    end_own_grants(tx, by, user_id, email)
    tx.connection.execute(
        update(browser_sessions)
        .where(
            browser_sessions.c.user_id == user_id,
            browser_sessions.c.ended_at.is_(None),
            browser_sessions.c.id != kept_session,
        )
        .values(ended_at=tx.now)
    )


def end_user_tokens(tx: Transaction, user_id: str) -> int:
    """End a user's tokens; return the number of those that were live."""
    return tx.connection.execute(
        update(user_tokens)
        .where(
            user_tokens.c.user_id == user_id,
            user_tokens.c.ended_at.is_(None),
            user_tokens.c.expires_at > tx.now,
        )
        .values(ended_at=tx.now)
    ).rowcount


def hash_password(password: str, address: str) -> str:
    """Return the Argon2id hash of a strong enough password, sent from `address`.

    Hashing takes tens of milliseconds and may wait in a queue, so call it before opening a
    transaction. Raises `WeakPassword`, `Overloaded`.
    """
    if not _MIN_LENGTH <= len(password) <= _MAX_LENGTH:
        raise WeakPassword(
            f"The password has {len(password)} characters; choose one of {_MIN_LENGTH} to "
            f"{_MAX_LENGTH} characters.",
            field="password",
        )
    if len(set(password)) < 5:  # noqa: PLR2004 - "aaaaaaaaaaaa"
        raise WeakPassword("The password repeats itself; choose a different one.", field="password")
    if is_common(password):
        raise WeakPassword(
            "The password is a very common one, apart from any digits and symbols around it; "
            "choose a few words of your own.",
            field="password",
        )
    return hashing.hash_password(password, address)


def has_password(tx: Transaction, by: Principal) -> bool:
    """Return whether the caller has a password."""
    return password_hash_by_id(tx, by.id) is not None


def password_hash_by_id(tx: Transaction, user_id: str) -> str | None:
    """Return the hash of a user's password, or None if there is no password."""
    statement = select(users.c.password_hash).where(users.c.id == user_id)
    password_hash: str | None = tx.connection.execute(statement).scalar_one_or_none()
    return password_hash


def password_hash_of(tx: Transaction, email: str) -> tuple[str, str | None]:
    """Return the user id ("" if unknown) and the password hash for an e-mail address."""
    row = tx.connection.execute(
        select(users.c.id, users.c.password_hash).where(
            users.c.email_folded == email.strip().lower()
        )
    ).one_or_none()
    return (row.id, row.password_hash) if row else ("", None)


def sign_in(tx: Transaction, by: Principal, user_id: str, checked_hash: str) -> NewUserToken:
    """Create a user token for a user whose password matched `checked_hash`.

    Raises `WrongPassword` if the password has changed since it was checked.
    """
    current_hash = tx.connection.execute(
        select(users.c.password_hash).where(users.c.id == user_id)
    ).scalar_one_or_none()
    if current_hash != checked_hash:
        raise WrongPassword
    return sign_in_as(tx, by, user_id, "user.signed_in")


def sign_in_as(tx: Transaction, by: Principal, user_id: str, action: str) -> NewUserToken:
    """Create and record a user token for a user whom the caller has authenticated."""
    email = tx.connection.execute(select(users.c.email).where(users.c.id == user_id)).scalar_one()
    token = generate(SecretKind.USER, None, brand=tx.brand)
    address, agent = client_of(tx, by)
    tx.connection.execute(
        insert(user_tokens).values(
            kid=token.kid,
            user_id=user_id,
            digest=tx.vault.digest(token.text),
            pepper_version=tx.vault.version,
            created_at=tx.now,
            expires_at=tx.now + TOKEN_MS,
            address=address,
            user_agent=agent,
        )
    )
    actor = Principal(
        PrincipalKind.USER, user_id, email, address=by.address, user_agent=by.user_agent
    )
    record(tx, actor, action, Target("user", user_id), {"kid": token.kid})
    return NewUserToken(token, tx.now + TOKEN_MS, user_id, email)


def sign_out(tx: Transaction, by: Principal, text: str) -> None:
    """End the user token with this text; repeating it has no effect. Raises `InvalidUserToken`."""
    token = parse(text, brand=tx.brand)
    if isinstance(token, Malformed):
        raise InvalidUserToken
    ended = tx.connection.execute(
        update(user_tokens)
        .where(user_tokens.c.kid == token.kid, user_tokens.c.ended_at.is_(None))
        .values(ended_at=tx.now)
        .returning(user_tokens.c.user_id)
    ).one_or_none()
    if ended is not None:
        record(tx, by, "user.signed_out", Target("user", ended.user_id), {"kid": token.kid})


def identify(tx: Transaction, token: SecretText) -> Principal:
    """Return the user of a user token, without an organization; raises `InvalidUserToken`."""
    row = tx.connection.execute(
        select(user_tokens, users.c.email)
        .join(users, users.c.id == user_tokens.c.user_id)
        .where(user_tokens.c.kid == token.kid)
    ).one_or_none()
    if (
        row is None
        or not tx.vault.matches(token.text, bytes(row.digest), row.pepper_version)
        or row.ended_at is not None
        or row.expires_at <= tx.now
    ):
        raise InvalidUserToken
    return Principal(PrincipalKind.USER, row.user_id, row.email, kid=token.kid)


def find_token_expiry(tx: Transaction, text: str) -> int:
    """Return when a user token expires, in epoch milliseconds; raises `InvalidUserToken`."""
    token = parse(text, brand=tx.brand)
    if isinstance(token, Malformed):
        raise InvalidUserToken
    expires_at = tx.connection.execute(
        select(user_tokens.c.expires_at).where(user_tokens.c.kid == token.kid)
    ).scalar_one_or_none()
    if expires_at is None:
        raise InvalidUserToken
    return int(expires_at)


def memberships(tx: Transaction, by: Principal) -> list[Membership]:
    """Return the organizations of the caller, a user, by slug."""
    statement = (
        select(organizations.c.id, organizations.c.slug, organizations.c.name, members.c.role)
        .join(members, members.c.org_id == organizations.c.id)
        .where(members.c.user_id == by.id, organizations.c.deleted_at.is_(None))
        .order_by(organizations.c.slug)
    )
    return [
        Membership(row.id, row.slug, row.name, Role(row.role))
        for row in tx.connection.execute(statement)
    ]


def as_member(
    tx: Transaction, user: Principal, reference: str, environment: Environment
) -> Principal:
    """Return the user as a member of the organization with this id or slug.

    If `reference` is empty, the user's only organization is used. Raises `OrganizationRequired`,
    `OrganizationNotFound`, `OrganizationSuspended`.
    """
    candidates = [
        membership
        for membership in memberships(tx, user)
        if not reference or reference in (membership.org_id, membership.slug)
    ]
    if not candidates:
        raise OrganizationNotFound
    if len(candidates) > 1:
        raise OrganizationRequired(
            "You belong to several organizations; name one in the Wardkey-Organization header: "
            f"{', '.join(membership.slug for membership in candidates)}."
        )
    membership = candidates[0]
    suspended_at = tx.connection.execute(
        select(organizations.c.suspended_at).where(organizations.c.id == membership.org_id)
    ).scalar_one()
    if suspended_at is not None:
        raise OrganizationSuspended
    return member(
        user_id=user.id,
        email=user.label,
        org_id=membership.org_id,
        role=membership.role,
        environment=environment,
        address=user.address,
        user_agent=user.user_agent,
        kid=user.kid,
        session_id=user.session_id,
    )


def _digests(tx: Transaction, text: str) -> list[bytes]:
    return [tx.vault.digest(text, version) for version in tx.vault.peppers]
