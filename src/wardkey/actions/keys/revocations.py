"""Revoking keys and single secrets, with receipts as proof."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, insert, select, update

from wardkey.actions.core.audit import Target, record
from wardkey.actions.core.session_impact import end_invitations, mark_affected_sessions
from wardkey.actions.keys.keys import clean_reason
from wardkey.db.engine import Transaction
from wardkey.db.schema import keys, receipts, secrets
from wardkey.db.scoped import in_scope
from wardkey.domain.errors import KeyNotFound, ReceiptNotFound, SecretNotFound
from wardkey.domain.ids import new_id
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of a revocation: the change-feed revision from which no verifier accepts the key.

    `kid` is empty if the whole key was revoked; `revoked_at` in epoch milliseconds.
    """

    id: str
    key_id: str
    kid: str
    epoch: str
    revision: int
    revoked_at: int
    reason: str


def revoke(tx: Transaction, by: Principal, key_id: str, reason: str, comment: str = "") -> Receipt:
    """Revoke a key and all its secrets permanently; repeating it returns the same receipt.

    Raises `KeyNotFound`, `InvalidReason`, `InvalidText`.
    """
    by.require(Permission.KEYS_WRITE)
    reason, comment = clean_reason(reason, comment)
    revoked = tx.connection.execute(
        update(keys)
        .where(keys.c.id == key_id, in_scope(keys, by.scope), keys.c.revoked_at.is_(None))
        .values(
            revoked_at=tx.now,
            revoke_reason=reason,
            revoke_comment=comment,
            live_name=None,
            updated_at=tx.now,
        )
        .returning(keys.c.name)
    ).one_or_none()
    if revoked is None:
        return _find_or_issue_receipt(tx, by, key_id, "")
    receipt = _issue_receipt(tx, by, key_id, "", reason)
    mark_affected_sessions(tx, by.org_id, key_id)
    end_invitations(tx, by, key_id)
    record(
        tx,
        by,
        "key.revoked",
        Target("key", key_id),
        {"name": revoked.name, "reason": reason, "comment": comment, "receipt": receipt.id},
    )
    return receipt


def revoke_secret(  # noqa: PLR0917 - an action's arguments
    tx: Transaction, by: Principal, key_id: str, kid: str, reason: str, comment: str = ""
) -> Receipt:
    """Revoke one secret of a key permanently; its other secrets stay valid.

    Raises `KeyNotFound`, `SecretNotFound`, `InvalidReason`, `InvalidText`.
    """
    by.require(Permission.KEYS_WRITE)
    reason, comment = clean_reason(reason, comment)
    revoked = tx.connection.execute(
        update(secrets)
        .where(
            secrets.c.kid == kid,
            secrets.c.key_id == key_id,
            in_scope(secrets, by.scope),
            secrets.c.revoked_at.is_(None),
        )
        .values(revoked_at=tx.now, revoke_reason=reason, revoke_comment=comment)
        .returning(secrets.c.kid)
    ).one_or_none()
    if revoked is None:
        return _find_or_issue_receipt(tx, by, key_id, kid)
    receipt = _issue_receipt(tx, by, key_id, kid, reason)
    mark_affected_sessions(tx, by.org_id, key_id)
    record(
        tx,
        by,
        "secret.revoked",
        Target("key", key_id),
        {"kid": kid, "reason": reason, "comment": comment, "receipt": receipt.id},
    )
    return receipt


def get_receipt(tx: Transaction, by: Principal, receipt_id: str) -> Receipt:
    """Return a stored receipt; raises `ReceiptNotFound`."""
    by.require(Permission.KEYS_READ)
    row = tx.connection.execute(
        select(receipts).where(
            receipts.c.id == receipt_id,
            in_scope(receipts, by.scope),
        )
    ).one_or_none()
    if row is None:
        raise ReceiptNotFound
    return _receipt(row)


def _find_or_issue_receipt(tx: Transaction, by: Principal, key_id: str, kid: str) -> Receipt:
    """Return the receipt of a key or secret revoked earlier, issuing one if it has none.

    A rotation without grace revokes old secrets, and a restore keeps later revocations, without
    receipts.
    """
    key = tx.connection.execute(
        select(keys.c.revoke_reason).where(keys.c.id == key_id, in_scope(keys, by.scope))
    ).one_or_none()
    if key is None:
        raise KeyNotFound
    reason = key.revoke_reason
    if kid:
        reason = tx.connection.execute(
            select(secrets.c.revoke_reason).where(
                secrets.c.kid == kid,
                secrets.c.key_id == key_id,
                in_scope(secrets, by.scope),
            )
        ).scalar_one_or_none()
        if reason is None:
            raise SecretNotFound
    row = tx.connection.execute(
        select(receipts).where(
            receipts.c.key_id == key_id,
            receipts.c.kid == kid,
            in_scope(receipts, by.scope),
        )
    ).one_or_none()
    if row is not None:
        return _receipt(row)
    receipt = _issue_receipt(tx, by, key_id, kid, reason)
    record(tx, by, "receipt.issued", Target("key", key_id), {"kid": kid, "receipt": receipt.id})
    return receipt


def _receipt(row: Row[Any]) -> Receipt:
    return Receipt(row.id, row.key_id, row.kid, row.epoch, row.revision, row.revoked_at, row.reason)


def _issue_receipt(tx: Transaction, by: Principal, key_id: str, kid: str, reason: str) -> Receipt:
    receipt = Receipt(
        new_id("rcpt", tx.now), key_id, kid, tx.epoch, tx.revision, tx.now, str(reason)
    )
    tx.connection.execute(
        insert(receipts).values(
            id=receipt.id,
            org_id=by.org_id,
            environment=by.environment,
            key_id=key_id,
            kid=kid,
            epoch=receipt.epoch,
            revision=receipt.revision,
            revoked_at=receipt.revoked_at,
            reason=receipt.reason,
        )
    )
    return receipt
