"""Refreshing grants: once per password, and again if the response to the refresh was lost."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Row, update

from wardkey.actions.core.audit import Target, record
from wardkey.actions.core.session_impact import cut_off
from wardkey.actions.grants.grants import (
    ENDED,
    SELECT_BY_KID,
    MintedGrant,
    grant_principal,
    inactive_reason,
    insert_grants,
)
from wardkey.db.engine import Database, Transaction, storage_errors
from wardkey.db.schema import grants
from wardkey.domain.errors import InvalidToken
from wardkey.domain.grants import (
    OVERLAP_MS,
    RETRY_MS,
    CutoffKind,
    NewGrant,
    kid_of_token,
    token_id_of,
)
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.secret import Malformed, parse


def check_refresh(tx: Transaction, _by: Principal, token_id: str, password: str) -> None:
    """Raise `InvalidToken` for a grant that can't be refreshed, without waiting for a write.

    A password that was refreshed before passes, because `refresh` has to end its family.
    """
    row = _find_grant(tx, token_id, password)
    if row.replaced_by is None or row.cut_off:
        _require_refreshable(row, tx.now)


def refresh(tx: Transaction, by: Principal, token_id: str, password: str) -> MintedGrant | None:
    """Replace a grant with a new one of the same length; the old password stops working soon.

    `by` has the address; the password authenticates as the grant. Repeating a recent refresh
    replaces the new grant if that is still unused. Otherwise two parties have the password: this
    ends the family and returns None. Raises `InvalidToken` if the grant can't be refreshed.
    """
    row = _find_grant(tx, token_id, password)
    by = grant_principal(row, by)
    if row.replaced_by is None or row.cut_off:
        _require_refreshable(row, tx.now)
        return _renew(tx, by, row, {"refreshed_at": tx.now})
    if not _can_retry(row, tx.now) or not _supersede(tx, row.replaced_by, {"expires_at": tx.now}):
        _end_family(tx, by, row)
        return None
    _require_refreshable(row, tx.now)
    minted = _renew(tx, by, row, {}, instead_of=row.replaced_by)
    tx.connection.execute(
        update(grants).where(grants.c.kid == row.replaced_by).values(replaced_by=minted.grant.kid)
    )
    return minted


def note_use(database: Database, row: Row[Any]) -> bool:
    """Record the first use of an active grant; return whether it can be used.

    While the refresh that created it could still be repeated, the use is stored before it counts.
    """
    if row.family == row.kid or row.used_at is not None:
        return True
    now = database.clock()
    if now >= row.created_at + RETRY_MS:
        return True
    with storage_errors(), database.writer.begin() as connection:
        mark_used = update(grants).where(*_unused(row.kid)).values(used_at=now)
        if connection.execute(mark_used).rowcount:
            return True
        # Meanwhile it was used, refreshed, revoked or superseded.
        current = connection.execute(SELECT_BY_KID, {"of_kid": row.kid}).one()
    return not _is_superseded(current) and current.revoked_at is None


def end_if_superseded(database: Database, row: Row[Any], address: str = "") -> None:
    """End the family of a superseded grant that was used.

    Its use shows that both responses to the refresh arrived, at two places.
    """
    if not _is_superseded(row) or row.cut_off:
        return
    origin = Principal(PrincipalKind.USER, "", "", address=address)
    with database.write() as tx:
        _end_family(tx, grant_principal(row, origin), row)


def _find_grant(tx: Transaction, token_id: str, password: str) -> Row[Any]:
    """Return the grant with that id and password; raises `InvalidToken`."""
    text = parse(password, brand=tx.brand)
    row = None
    if not isinstance(text, Malformed) and text.kid == kid_of_token(token_id):
        row = tx.connection.execute(SELECT_BY_KID, {"of_kid": text.kid}).one_or_none()
    if (
        row is None
        or row.pepper_version not in tx.vault.peppers
        or not tx.vault.matches(password, bytes(row.digest), row.pepper_version)
    ):
        raise InvalidToken("No grant has this id and password; repeat the token exchange.")
    return row


def _require_refreshable(row: Row[Any], now: int) -> None:
    reason = inactive_reason(row, now, refreshing=True)
    if reason:
        raise InvalidToken(
            f"This grant can't be refreshed because {reason}; repeat the token exchange."
        )


def _is_superseded(row: Row[Any]) -> bool:
    return row.replaced_by is not None and row.refreshed_at is None


def _can_retry(row: Row[Any], now: int) -> bool:
    return row.refreshed_at is not None and now < row.refreshed_at + RETRY_MS


def _unused(kid: str) -> tuple[ColumnElement[bool], ...]:
    return (
        grants.c.kid == kid,
        grants.c.used_at.is_(None),
        grants.c.replaced_by.is_(None),
        grants.c.revoked_at.is_(None),
    )


def _supersede(tx: Transaction, kid: str, values: dict[str, Any]) -> bool:
    """End a grant unless it has been used; return whether it ended."""
    statement = update(grants).where(*_unused(kid)).values(values)
    return tx.connection.execute(statement).rowcount == 1


def _renew(
    tx: Transaction, by: Principal, row: Row[Any], values: dict[str, Any], instead_of: str = ""
) -> MintedGrant:
    new_grant = NewGrant(
        row.provider_id,
        row.user_id,
        row.user_email,
        row.user_key,
        row.username,
        row.claims,
        row.ttl_s,
    )
    [minted] = insert_grants(tx, by, [new_grant], row.key_id, row.key_kid, row, row.key_expires_at)
    overlap_end = min(row.expires_at, tx.now + OVERLAP_MS)
    tx.connection.execute(
        update(grants)
        .where(grants.c.kid == row.kid)
        .values(replaced_by=minted.grant.kid, expires_at=overlap_end, **values)
    )
    details = {"to": minted.grant.token_id}
    if instead_of:
        details["instead_of"] = token_id_of(instead_of)
    record(tx, by, "grant.refreshed", Target(ENDED, token_id_of(row.kid)), details)
    return minted


def _end_family(tx: Transaction, by: Principal, row: Row[Any]) -> None:
    cut_off(tx, by, CutoffKind.FAMILY, row.family, tx.revision)
    tx.affected_subjects.add(row.user_key)
    details = {"family": token_id_of(row.family)}
    record(tx, by, "grant.replayed", Target(ENDED, token_id_of(row.kid)), details)
