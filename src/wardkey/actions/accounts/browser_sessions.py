"""Browser sessions: signing in at the dashboard, the list of one's sessions, and their end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
from wardkey.domain.times import SESSION_IDLE_MS

LONGEST_MS = 30 * 86_400_000
# How old a sign-in may be when keys are made or revoked.
FRESH_MS = 12 * 3_600_000
_TEXT = 43


@dataclass(frozen=True, slots=True)
class BrowserSession:
    """Somebody signed in with a browser; times in epoch milliseconds.

    `signed_in_at` is when he last proved who he is, `expires_at` the end that nothing moves.
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

    def fresh(self, now: int) -> bool:
        """Tell whether the sign-in is young enough to make and revoke keys."""
        return now - self.signed_in_at < FRESH_MS


@dataclass(frozen=True, slots=True)
class NewSession:
    """A new session with the text of its cookie, which exists here alone."""

    id: str
    user_id: str
    text: str = field(repr=False)


def begin_with_password(
    tx: Transaction, by: Principal, user_id: str, checked_hash: str, replaced: str
) -> NewSession:
    """Sign in somebody whose password fitted `checked_hash`; raises `WrongPassword` if it changed.

    `replaced` is the text of the browser's cookie before, whose session ends.
    """
    _check_unchanged(tx, user_id, checked_hash)
    return create_session(tx, by, user_id, "password", replaced)


def begin_with_setup_link(
    tx: Transaction, by: Principal, text: str, password_hash: str, replaced: str
) -> NewSession:
    """Set the password of a set-up link's owner and sign him in; raises `InvalidLink`."""
    user_id = people.spend_setup_link(tx, by, text, password_hash)
    return create_session(tx, by, user_id, "set-up link", replaced, "user.set_up")


def begin_with_invitation(
    tx: Transaction, by: Principal, text: str, password_hash: str, replaced: str
) -> NewSession:
    """Take the place that an invitation offers and sign in; raises what `members.join` raises."""
    user_id = members.join(tx, by, text, password_hash)
    return create_session(tx, by, user_id, "invitation", replaced)


def create_session(  # noqa: PLR0917 - who, how, and the cookie before
    tx: Transaction,
    by: Principal,
    user_id: str,
    way: str,
    replaced: str,
    action: str = "user.signed_in",
) -> NewSession:
    """Write and record a new session of a person whom the caller has identified in some way."""
    if replaced:
        tx.connection.execute(
            update(browser_sessions)
            .where(
                browser_sessions.c.digest.in_(_digests(tx, replaced)),
                browser_sessions.c.ended_at.is_(None),
            )
            .values(ended_at=tx.now)
        )
    email = tx.connection.execute(select(users.c.email).where(users.c.id == user_id)).scalar_one()
    session_id, text = new_id("bses", tx.now), random_text(_TEXT)
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
    record(tx, actor, action, Target("browser_session", session_id), {"way": way})
    return NewSession(session_id, user_id, text)


def find(tx: Transaction, text: str) -> BrowserSession:
    """Return the session behind a cookie's text; raises `SignedOut` where none is open."""
    if len(text) != _TEXT or not text.isascii():
        raise SignedOut
    row = tx.connection.execute(
        select(browser_sessions, users.c.email)
        .join(users, users.c.id == browser_sessions.c.user_id)
        .where(browser_sessions.c.digest.in_(_digests(tx, text)), *_open(tx))
    ).one_or_none()
    if row is None:
        raise SignedOut
    return _session(row)


def list_sessions(tx: Transaction, by: Principal) -> list[BrowserSession]:
    """Return the caller's own open sessions, the last used first."""
    return [
        _session(row)
        for row in tx.connection.execute(
            select(browser_sessions, users.c.email)
            .join(users, users.c.id == browser_sessions.c.user_id)
            .where(browser_sessions.c.user_id == by.id, *_open(tx))
            .order_by(browser_sessions.c.seen_at.desc(), browser_sessions.c.id)
        )
    ]


def renew(tx: Transaction, by: Principal, session_id: str, checked_hash: str) -> None:
    """Note that the caller showed the password behind `checked_hash` again.

    Raises `WrongPassword` if it was changed since, `BrowserSessionNotFound`.
    """
    _check_unchanged(tx, by.id, checked_hash)
    refresh(tx, by, session_id)


def refresh(tx: Transaction, by: Principal, session_id: str) -> None:
    """Note that the caller proved just now who he is; raises `BrowserSessionNotFound`."""
    renewed = tx.connection.execute(
        update(browser_sessions)
        .where(browser_sessions.c.id == session_id, browser_sessions.c.user_id == by.id, *_open(tx))
        .values(signed_in_at=tx.now)
    )
    if not renewed.rowcount:
        raise BrowserSessionNotFound
    record(tx, by, "user.confirmed", Target("browser_session", session_id))


def end(tx: Transaction, by: Principal, session_id: str) -> None:
    """End one of the caller's sessions; raises `BrowserSessionNotFound`."""
    ended = tx.connection.execute(
        update(browser_sessions)
        .where(browser_sessions.c.id == session_id, browser_sessions.c.user_id == by.id, *_open(tx))
        .values(ended_at=tx.now)
    )
    if not ended.rowcount:
        raise BrowserSessionNotFound
    record(tx, by, "user.signed_out", Target("browser_session", session_id))


def end_all(tx: Transaction, by: Principal) -> int:
    """End every session of the caller, this one too, user tokens and own grants.

    Return how many sessions ended. Passkeys stay; they sign in again.
    """
    ended = tx.connection.execute(
        update(browser_sessions)
        .where(browser_sessions.c.user_id == by.id, *_open(tx))
        .values(ended_at=tx.now)
    ).rowcount
    tokens = people.end_user_tokens(tx, by.id)
    end_own_grants(tx, by, by.id, by.label)
    if ended or tokens:
        details = {"sessions": ended, "tokens": tokens}
        record(tx, by, "user.signed_out_everywhere", Target("user", by.id), details)
    return ended


def consume_form_nonce(
    tx: Transaction, session_id: str, nonce: str, act: Callable[[], tuple[str, Any]]
) -> Any:  # noqa: ANN401 - what `act` returns
    """Run `act` for a form that is sent for the first time; it names what it made, and returns it.

    Nothing secret is kept. Raises `FormSentBefore`, with the name of what was made then.
    """
    mine = (spent_forms.c.session_id == session_id, spent_forms.c.nonce == nonce)
    made = tx.connection.execute(select(spent_forms.c.made).where(*mine)).scalar_one_or_none()
    if made is not None:
        raise FormSentBefore(made=made)
    made, result = act()
    tx.connection.execute(
        insert(spent_forms).values(session_id=session_id, nonce=nonce, made=made, at=tx.now)
    )
    return result


def _check_unchanged(tx: Transaction, user_id: str, checked_hash: str) -> None:
    now_hash = tx.connection.execute(
        select(users.c.password_hash).where(users.c.id == user_id)
    ).scalar_one_or_none()
    if now_hash != checked_hash:
        raise WrongPassword


def _open(tx: Transaction) -> tuple[Any, ...]:
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
