"""Dashboard sessions: signing in, listing, confirming and ending a user's browser sessions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Row, insert, select, update

from wardkey.actions.accounts import members, people
from wardkey.actions.core.audit import Target, client_of, record
from wardkey.actions.core.session_impact import end_own_grants
from wardkey.db.engine import Transaction
from wardkey.db.schema import browser_sessions, spent_forms, users
from wardkey.domain.errors import (
    BrowserSessionNotFound,
    FormSentBefore,
    SignedOut,
    WrongPassword,
)
from wardkey.domain.ids import new_id
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.secret import random_text
from wardkey.domain.times import DAY_MS, HOUR_MS, SESSION_IDLE_MS

T = TypeVar("T")

LONGEST_MS = 30 * DAY_MS
# The maximum age of a sign-in for creating and revoking keys.
FRESH_MS = 12 * HOUR_MS
_COOKIE_LENGTH = 43


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """A user's sign-in with a browser; times in epoch milliseconds.

    `signed_in_at` is when the user last authenticated; `expires_at` is never extended.
    """

    id: str
    user_id: str
    email: str
    created_at: int
    signed_in_at: int
    seen_at: int
    expires_at: int
    address: str
    user_agent: str

    def is_recent(self, now: int) -> bool:
        """Return whether the sign-in is recent enough to create and revoke keys."""
        return now - self.signed_in_at < FRESH_MS


@dataclass(frozen=True, slots=True)
class NewSession:
    """A new session with the text of its cookie, which is stored nowhere."""

    id: str
    user_id: str
    text: str = field(repr=False)


def begin_with_password(
    tx: Transaction, by: Principal, user_id: str, checked_hash: str, previous_cookie: str
) -> NewSession:
    """Sign in a user whose password matched `checked_hash`.

    The session of `previous_cookie`, the browser's cookie so far, ends. Raises `WrongPassword` if
    the password has changed since it was checked.
    """
    _check_unchanged(tx, user_id, checked_hash)
    return create_session(tx, by, user_id, "password", previous_cookie)


def begin_with_setup_link(
    tx: Transaction, by: Principal, text: str, password_hash: str, previous_cookie: str
) -> NewSession:
    """Set the password of a set-up link's user and sign them in; raises `InvalidLink`."""
    user_id = people.spend_setup_link(tx, by, text, password_hash)
    return create_session(tx, by, user_id, "set-up link", previous_cookie, "user.set_up")


def begin_with_invitation(
    tx: Transaction, by: Principal, text: str, password_hash: str, previous_cookie: str
) -> NewSession:
    """Accept an invitation as a new user and sign in; raises what `members.join` raises."""
    user_id = members.join(tx, by, text, password_hash)
    return create_session(tx, by, user_id, "invitation", previous_cookie)


def create_session(  # noqa: PLR0917 - the user, the method and the previous cookie
    tx: Transaction,
    by: Principal,
    user_id: str,
    method: str,
    previous_cookie: str,
    action: str = "user.signed_in",
) -> NewSession:
    """Create and record a session for a user whom the caller has authenticated with `method`."""
    if previous_cookie:
        tx.connection.execute(
            update(browser_sessions)
            .where(
                browser_sessions.c.digest.in_(_digests(tx, previous_cookie)),
                browser_sessions.c.ended_at.is_(None),
            )
            .values(ended_at=tx.now)
        )
    email = tx.connection.execute(select(users.c.email).where(users.c.id == user_id)).scalar_one()
    session_id, text = new_id("bses", tx.now), random_text(_COOKIE_LENGTH)
    address, agent = client_of(tx, by)
    tx.connection.execute(
        insert(browser_sessions).values(
            id=session_id,
            user_id=user_id,
            digest=tx.vault.digest(text),
            pepper_version=tx.vault.version,
            created_at=tx.now,
            signed_in_at=tx.now,
            seen_at=tx.now,
            expires_at=tx.now + LONGEST_MS,
            address=address,
            user_agent=agent,
        )
    )
    actor = Principal(
        PrincipalKind.USER, user_id, email, address=by.address, user_agent=by.user_agent
    )
    record(tx, actor, action, Target("browser_session", session_id), {"way": method})
    return NewSession(session_id, user_id, text)


def find(tx: Transaction, text: str) -> BrowserSession:
    """Return the open session of a cookie's text; raises `SignedOut` if there is none."""
    if len(text) != _COOKIE_LENGTH or not text.isascii():
        raise SignedOut
    row = tx.connection.execute(
        select(browser_sessions, users.c.email)
        .join(users, users.c.id == browser_sessions.c.user_id)
        .where(browser_sessions.c.digest.in_(_digests(tx, text)), *_open_conditions(tx))
    ).one_or_none()
    if row is None:
        raise SignedOut
    return _session(row)


def list_sessions(tx: Transaction, by: Principal) -> list[BrowserSession]:
    """Return the caller's own open sessions, most recently used first."""
    return [
        _session(row)
        for row in tx.connection.execute(
            select(browser_sessions, users.c.email)
            .join(users, users.c.id == browser_sessions.c.user_id)
            .where(browser_sessions.c.user_id == by.id, *_open_conditions(tx))
            .order_by(browser_sessions.c.seen_at.desc(), browser_sessions.c.id)
        )
    ]


def renew(tx: Transaction, by: Principal, session_id: str, checked_hash: str) -> None:
    """Record that the caller entered the password again and it matched `checked_hash`.

    Raises `BrowserSessionNotFound`, and `WrongPassword` if the password has changed since then.
    """
    _check_unchanged(tx, by.id, checked_hash)
    refresh(tx, by, session_id)


def refresh(tx: Transaction, by: Principal, session_id: str) -> None:
    """Record that the caller just authenticated again; raises `BrowserSessionNotFound`."""
    updated = tx.connection.execute(
        update(browser_sessions)
        .where(
            browser_sessions.c.id == session_id,
            browser_sessions.c.user_id == by.id,
            *_open_conditions(tx),
        )
        .values(signed_in_at=tx.now)
    )
    if not updated.rowcount:
        raise BrowserSessionNotFound
    record(tx, by, "user.confirmed", Target("browser_session", session_id))


def end(tx: Transaction, by: Principal, session_id: str) -> None:
    """End one of the caller's sessions; raises `BrowserSessionNotFound`."""
    ended = tx.connection.execute(
        update(browser_sessions)
        .where(
            browser_sessions.c.id == session_id,
            browser_sessions.c.user_id == by.id,
            *_open_conditions(tx),
        )
        .values(ended_at=tx.now)
    )
    if not ended.rowcount:
        raise BrowserSessionNotFound
    record(tx, by, "user.signed_out", Target("browser_session", session_id))


def end_all(tx: Transaction, by: Principal) -> int:
    """End all of the caller's sessions, including this one, and their user tokens and grants.

    Returns the number of sessions ended. Passkeys are kept and can sign in again.
    """
    ended = tx.connection.execute(
        update(browser_sessions)
        .where(browser_sessions.c.user_id == by.id, *_open_conditions(tx))
        .values(ended_at=tx.now)
    ).rowcount
    tokens = people.end_user_tokens(tx, by.id)
    end_own_grants(tx, by, by.id, by.label)
    if ended or tokens:
        details = {"sessions": ended, "tokens": tokens}
        record(tx, by, "user.signed_out_everywhere", Target("user", by.id), details)
    return ended


def consume_form_nonce(
    tx: Transaction, session_id: str, nonce: str, create: Callable[[], tuple[str, T]]
) -> T:
    """Run `create`, which returns (id, result), unless this form was submitted before.

    Only the id is stored, no secret. Raises `FormSentBefore` with the id created then.
    """
    conditions = (spent_forms.c.session_id == session_id, spent_forms.c.nonce == nonce)
    earlier_id = tx.connection.execute(
        select(spent_forms.c.made).where(*conditions)
    ).scalar_one_or_none()
    if earlier_id is not None:
        raise FormSentBefore(made=earlier_id)
    created_id, result = create()
    tx.connection.execute(
        insert(spent_forms).values(session_id=session_id, nonce=nonce, made=created_id, at=tx.now)
    )
    return result


def _check_unchanged(tx: Transaction, user_id: str, checked_hash: str) -> None:
    current_hash = tx.connection.execute(
        select(users.c.password_hash).where(users.c.id == user_id)
    ).scalar_one_or_none()
    if current_hash != checked_hash:
        raise WrongPassword


def _open_conditions(tx: Transaction) -> tuple[Any, ...]:
    return (
        browser_sessions.c.ended_at.is_(None),
        browser_sessions.c.expires_at > tx.now,
        browser_sessions.c.seen_at > tx.now - SESSION_IDLE_MS,
    )


def _session(row: Row[Any]) -> BrowserSession:
    return BrowserSession(
        id=row.id,
        user_id=row.user_id,
        email=row.email,
        created_at=row.created_at,
        signed_in_at=row.signed_in_at,
        seen_at=row.seen_at,
        expires_at=row.expires_at,
        address=row.address,
        user_agent=row.user_agent,
    )


def _digests(tx: Transaction, text: str) -> list[bytes]:
    return [tx.vault.digest(text, version) for version in tx.vault.peppers]
