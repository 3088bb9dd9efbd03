"""Humans: set-up links, passwords, user tokens and who somebody is in which organization."""

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

LINK_MS = 7 * 86_400_000
TOKEN_MS = 12 * 3_600_000
_SHORTEST, _LONGEST = 12, 256


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A user token, whose text exists here alone, and its end in epoch milliseconds."""

    token: SecretText
    expires_at: int
    user_id: str
    email: str


@dataclass(frozen=True, slots=True)
class Membership:
    """What somebody is in one organization."""

    org_id: str
    slug: str
    name: str
    role: Role


def create_setup_link(tx: Transaction, by: Principal, email: str) -> str:
    """Return the text of a one-time link that lets somebody set a password, valid 7 days.

    Earlier links of the same person end. Raises `UserNotFound`.
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
    """Return whose address an unused set-up link is for; raises `InvalidLink`."""
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


def use_setup_link(tx: Transaction, by: Principal, text: str, password_hash: str) -> SignedIn:
    """Set the password of the link's owner and give him a user token; the link works once.

    `by` says where the call came from. Raises `InvalidLink`.
    """
    user_id = spend_setup_link(tx, by, text, password_hash)
    return sign_in_as(tx, by, user_id, "user.set_up")


def spend_setup_link(tx: Transaction, by: Principal, text: str, password_hash: str) -> str:
    """Set the password of the link's owner and return who that is; the caller records the sign-in.

    The person's tokens, sessions, passkeys and links to issuers' accounts end: this is how an
    account is recovered, and an attacker may have added any of them. Raises `InvalidLink`.
    """
    used = tx.connection.execute(
        update(setup_links)
        .where(
            setup_links.c.digest.in_(_digests(tx, text)),
            setup_links.c.used_at.is_(None),
            setup_links.c.expires_at > tx.now,
        )
        .values(used_at=tx.now)
        .returning(setup_links.c.user_id)
    ).one_or_none()
    if used is None:
        raise InvalidLink
    set_password(tx, by, used.user_id, password_hash)
    # They stay as removed, so that a restore does not bring them back.
    tx.connection.execute(
        update(passkeys)
        .where(passkeys.c.user_id == used.user_id, passkeys.c.removed_at.is_(None))
        .values(removed_at=tx.now)
    )
    tx.connection.execute(delete(identities).where(identities.c.user_id == used.user_id))
    return str(used.user_id)


def change_password(
    tx: Transaction, by: Principal, checked_hash: str, password_hash: str, kept_session: str
) -> None:
    """Give the caller, who showed the password behind `checked_hash`, another one.

    Every token and session but `kept_session` ends. Raises `WrongPassword` if it was changed since.
    """
    now_hash = tx.connection.execute(
        select(users.c.password_hash).where(users.c.id == by.id)
    ).scalar_one_or_none()
    if now_hash != checked_hash:
        raise WrongPassword
    set_password(tx, by, by.id, password_hash, kept_session)
    record(tx, by, "user.password_changed", Target("user", by.id))


def set_password(
    tx: Transaction, by: Principal, user_id: str, password_hash: str, kept_session: str = ""
) -> None:
    """Store a password's hash and end the person's tokens, sessions and own grants.

    The caller records it.
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
    """End every user token of a person; return how many had not ended."""
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
    """Return the Argon2id hash of a password that is good enough, sent from `address`.

    It takes tens of milliseconds and may wait for its turn, so it is called before a transaction
    is opened. Raises `WeakPassword`, `Overloaded`.
    """
    if not _SHORTEST <= len(password) <= _LONGEST:
        raise WeakPassword(
            f"A password has {_SHORTEST} to {_LONGEST} characters; this one has {len(password)}.",
            field="password",
        )
    if len(set(password)) < 5:  # noqa: PLR2004 - "aaaaaaaaaaaa"
        raise WeakPassword("The password repeats itself; take another.", field="password")
    if is_common(password):
        raise WeakPassword(
            "The password is, but for digits and signs around it, one that many people have; "
            "take a few words of your own.",
            field="password",
        )
    return hashing.hash_password(password, address)


def has_password(tx: Transaction, by: Principal) -> bool:
    """Tell whether the caller can show a password."""
    return password_hash_by_id(tx, by.id) is not None


def password_hash_by_id(tx: Transaction, user_id: str) -> str | None:
    """Return the hash of a user's password; None without a password."""
    known = select(users.c.password_hash).where(users.c.id == user_id)
    found: str | None = tx.connection.execute(known).scalar_one_or_none()
    return found


def password_hash_of(tx: Transaction, email: str) -> tuple[str, str | None]:
    """Return the user id (empty if unknown) and the password hash behind an address."""
    row = tx.connection.execute(
        select(users.c.id, users.c.password_hash).where(
            users.c.email_folded == email.strip().lower()
        )
    ).one_or_none()
    return (row.id, row.password_hash) if row else ("", None)


def sign_in(tx: Transaction, by: Principal, user_id: str, checked_hash: str) -> SignedIn:
    """Return a new user token for somebody whose password fitted `checked_hash`.

    Raises `WrongPassword` if it was changed since.
    """
    now_hash = tx.connection.execute(
        select(users.c.password_hash).where(users.c.id == user_id)
    ).scalar_one_or_none()
    if now_hash != checked_hash:
        raise WrongPassword
    return sign_in_as(tx, by, user_id, "user.signed_in")


def sign_in_as(tx: Transaction, by: Principal, user_id: str, action: str) -> SignedIn:
    """Write and record a new token of a person whom the caller has identified."""
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
    return SignedIn(token, tx.now + TOKEN_MS, user_id, email)


def sign_out(tx: Transaction, by: Principal, text: str) -> None:
    """End the user token with that text; ending it twice is no fault."""
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
    """Return who holds a user token, in no organization yet; raises `InvalidUserToken`."""
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


def token_end(tx: Transaction, text: str) -> int:
    """Return when a user token ends, in epoch milliseconds; raises `InvalidUserToken`."""
    token = parse(text, brand=tx.brand)
    if isinstance(token, Malformed):
        raise InvalidUserToken
    end = tx.connection.execute(
        select(user_tokens.c.expires_at).where(user_tokens.c.kid == token.kid)
    ).scalar_one_or_none()
    if end is None:
        raise InvalidUserToken
    return int(end)


def memberships(tx: Transaction, by: Principal) -> list[Membership]:
    """Return the organizations that the caller, a person, belongs to, by slug."""
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


def as_member(tx: Transaction, user: Principal, wanted: str, environment: Environment) -> Principal:
    """Return the person as a member of the organization with id or slug `wanted`.

    Empty takes the only one. Raises `OrganizationRequired`, `OrganizationNotFound`,
    `OrganizationSuspended`.
    """
    mine = memberships(tx, user)
    fitting = [m for m in mine if not wanted or wanted in (m.org_id, m.slug)]
    if not fitting:
        raise OrganizationNotFound
    if len(fitting) > 1:
        raise OrganizationRequired(
            "You belong to several organizations; name one in the Wardkey-Organization header: "
            f"{', '.join(m.slug for m in fitting)}."
        )
    chosen = fitting[0]
    suspended = tx.connection.execute(
        select(organizations.c.suspended_at).where(organizations.c.id == chosen.org_id)
    ).scalar_one()
    if suspended is not None:
        raise OrganizationSuspended
    return member(
        user_id=user.id,
        email=user.label,
        org_id=chosen.org_id,
        role=chosen.role,
        environment=environment,
        address=user.address,
        user_agent=user.user_agent,
        kid=user.kid,
        session_id=user.session_id,
    )


def _digests(tx: Transaction, text: str) -> list[bytes]:
    return [tx.vault.digest(text, version) for version in tx.vault.peppers]
