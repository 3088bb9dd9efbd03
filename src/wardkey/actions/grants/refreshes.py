"""Refreshes: a grant's password becomes a new grant once, and once more if its answer was lost."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Row, update

from wardkey.actions.core.audit import Target, record
from wardkey.actions.core.session_impact import cut_off
from wardkey.actions.grants.grants import (
    BY_KID,
    ENDED,
    MintedGrant,
    acting_as_grant,
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
    """Raise `InvalidToken` for what cannot be refreshed, without a turn among the writers.

    A password that was refreshed before passes, because `refresh` has to end its family.
    """
    row = _shown(tx, token_id, password)
    if row.replaced_by is None or row.cut_off:
        _require_refreshable(row, tx.now)


def refresh(tx: Transaction, by: Principal, token_id: str, password: str) -> MintedGrant | None:
    """Replace a grant by a new one for as long again; the old password stops soon afterwards.

    `by` says where the call came from; whoever shows the password acts as the grant. The same
    password again gives another new grant in place of the first, if that was not used and not
    long ago. Otherwise two have the password: the family of grants ends, and None is returned.
    Raises `InvalidToken` for whatever else does not refresh.
    """
    row = _shown(tx, token_id, password)
    by = acting_as_grant(row, by)
    if row.replaced_by is None or row.cut_off:
        _require_refreshable(row, tx.now)
        return _renewed(tx, by, row, {"refreshed_at": tx.now})
    if not _may_retry(row, tx.now) or not _supersede(tx, row.replaced_by, {"expires_at": tx.now}):
        _end_family(tx, by, row)
        return None
    _require_refreshable(row, tx.now)
    minted = _renewed(tx, by, row, {}, instead_of=row.replaced_by)
    tx.connection.execute(
        update(grants).where(grants.c.kid == row.replaced_by).values(replaced_by=minted.grant.kid)
    )
    return minted


def note_use(database: Database, row: Row[Any]) -> bool:
    """Note the first use of a grant that is live, and tell whether it may be used.

    As long as the refresh that it came of could be asked for again, the use is written down
    before it counts.
    """
    if row.family == row.kid or row.used_at is not None:
        return True
    now = database.clock()
    if now >= row.created_at + RETRY_MS:
        return True
    with storage_errors(), database.writer.begin() as connection:
        noted = update(grants).where(*_unused(row.kid)).values(used_at=now)
        if connection.execute(noted).rowcount:
            return True
        # Another use was first, or it was refreshed, or another answer was asked for just now.
        again = connection.execute(BY_KID, {"of_kid": row.kid}).one()
    return not _is_superseded(again) and again.revoked_at is None


def end_if_superseded(database: Database, row: Row[Any], address: str = "") -> None:
    """End the family of a grant in whose place another answer was given.

    It is used all the same, so both answers arrived, at two places.
    """
    if not _is_superseded(row) or row.cut_off:
        return
    origin = Principal(PrincipalKind.USER, "", "", address=address)
    with database.write() as tx:
        _end_family(tx, acting_as_grant(row, origin), row)


def _shown(tx: Transaction, token_id: str, password: str) -> Row[Any]:
    """Return the grant with that id and password; raises `InvalidToken`."""
    text = parse(password, brand=tx.brand)
    row = None
    if not isinstance(text, Malformed) and text.kid == kid_of_token(token_id):
        row = tx.connection.execute(BY_KID, {"of_kid": text.kid}).one_or_none()
    if (
        row is None
        or row.pepper_version not in tx.vault.peppers
        or not tx.vault.matches(password, bytes(row.digest), row.pepper_version)
    ):
        raise InvalidToken("There is no grant with that id and password; exchange anew.")
    return row


def _require_refreshable(row: Row[Any], now: int) -> None:
    why = inactive_reason(row, now, refreshing=True)
    if why:
        raise InvalidToken(f"This grant cannot be refreshed, because {why}; exchange anew.")


def _is_superseded(row: Row[Any]) -> bool:
    return row.replaced_by is not None and row.refreshed_at is None


def _may_retry(row: Row[Any], now: int) -> bool:
    return row.refreshed_at is not None and now < row.refreshed_at + RETRY_MS


def _unused(kid: str) -> tuple[ColumnElement[bool], ...]:
    return (
        grants.c.kid == kid,
        grants.c.used_at.is_(None),
        grants.c.replaced_by.is_(None),
        grants.c.revoked_at.is_(None),
    )


def _supersede(tx: Transaction, kid: str, values: dict[str, Any]) -> bool:
    """End a grant that was never used, unless its first use was noted just now."""
    ended = update(grants).where(*_unused(kid)).values(values)
    return tx.connection.execute(ended).rowcount == 1


def _renewed(
    tx: Transaction, by: Principal, row: Row[Any], more: dict[str, Any], instead_of: str = ""
) -> MintedGrant:
    again = NewGrant(
        row.provider_id,
        row.user_id,
        row.user_email,
        row.user_key,
        row.username,
        row.claims,
        row.ttl_s,
    )
    until = row.key_expires_at
    minted = insert_grants(tx, by, [again], row.key_id, row.key_kid, of=row, until=until)[0]
    overlap = min(row.expires_at, tx.now + OVERLAP_MS)
    tx.connection.execute(
        update(grants)
        .where(grants.c.kid == row.kid)
        .values(replaced_by=minted.grant.kid, expires_at=overlap, **more)
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
