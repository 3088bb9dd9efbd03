"""Which keys have made grants: what ends such a key may end live sessions."""

from __future__ import annotations

from sqlalchemy import bindparam, select

from wardkey.db.engine import Transaction
from wardkey.db.schema import grants
from wardkey.domain.receipts import EVERYBODY

# Built once: constructing a statement costs more than running it.
_OF_KEY = (
    select(grants.c.kid)
    .where(
        grants.c.key_id == bindparam("of_key"),
        grants.c.org_id == bindparam("of_org"),
        grants.c.expires_at > bindparam("at"),
    )
    .limit(1)
)


def has_live_grants(tx: Transaction, org_id: str, key_id: str) -> bool:
    """Tell whether a key made grants that have not expired."""
    asked = {"of_org": org_id, "of_key": key_id, "at": tx.now}
    return tx.connection.execute(_OF_KEY, asked).first() is not None


def concern_sessions(tx: Transaction, org_id: str, key_id: str) -> None:
    """Have live sessions looked at before the change returns, if the key may have opened some."""
    if has_live_grants(tx, org_id, key_id):
        tx.concerned.add(EVERYBODY)
