"""The actions that service keys and hook tokens, the operator's credentials, share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Row, Table, select, update

from wardkey.actions.core.audit import Target, record
from wardkey.db.engine import Transaction
from wardkey.domain.principal import Principal


def list_tokens(tx: Transaction, by: Principal, table: Table) -> Sequence[Row[Any]]:
    """Return every token in the table, oldest first."""
    by.require_operator()
    return tx.connection.execute(select(table).order_by(table.c.created_at, table.c.kid)).all()


def revoke_token(
    tx: Transaction, by: Principal, table: Table, kind: str, kid: str
) -> Row[Any] | None:
    """Revoke a token; return its row, or None if unknown. A second call changes nothing."""
    by.require_operator()
    revoked = tx.connection.execute(
        update(table)
        .where(table.c.kid == kid, table.c.revoked_at.is_(None))
        .values(revoked_at=tx.now)
        .returning(table.c.kid)
    ).one_or_none()
    if revoked is not None:
        record(tx, by, f"{kind}.revoked", Target(kind, kid))
    return tx.connection.execute(select(table).where(table.c.kid == kid)).one_or_none()
