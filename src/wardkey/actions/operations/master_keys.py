"""Actions that rotate the master key, and that count the rows hashed under each version."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import delete, func, insert, select, update

from wardkey.actions.core.audit import DEPLOYMENT, Target, record
from wardkey.actions.grants.providers import reseal
from wardkey.db.engine import Transaction
from wardkey.db.master_key import PEPPERED, sealing_key
from wardkey.db.schema import idempotency, master_keys
from wardkey.db.vault import MasterKey, Vault, seal
from wardkey.domain.errors import InvalidMasterKey
from wardkey.domain.principal import Principal


@dataclass(frozen=True, slots=True)
class MasterKeyVersion:
    """One master key; `created_at` in epoch milliseconds, `rows` under its pepper by table."""

    version: int
    created_at: int
    current: bool
    rows: dict[str, int]


def rotate(
    tx: Transaction, by: Principal, new_key: MasterKey, *, new_broker_keys: bool = False
) -> int:
    """Make `new_key` the database's master key; return its version.

    Keys derived from earlier master keys are kept, sealed under the new one: secrets and audit
    chains still verify, and the broker keeps its messages and sessions unless `new_broker_keys`.
    Stored idempotent responses are deleted, since only the old key opens them. Raises
    `InvalidMasterKey` for a key that was used before.
    """
    by.require_operator()
    earlier_tags = tx.connection.execute(select(master_keys.c.tag)).scalars()
    if new_key.tag in {bytes(tag) for tag in earlier_tags}:
        raise InvalidMasterKey("This master key was used before; use a new one.")
    sealing, old = sealing_key(new_key), tx.vault
    for version, pepper in old.peppers.items():
        tx.connection.execute(
            update(master_keys)
            .where(master_keys.c.version == version)
            .values(
                sealed_pepper=seal(sealing, pepper),
                sealed_audit_key=seal(sealing, old.audit_keys[version]),
                sealed_broker_root=None,
            )
        )
    version = old.version + 1
    root = None if new_broker_keys else old.broker_root
    tx.connection.execute(
        insert(master_keys).values(
            version=version,
            tag=new_key.tag,
            sealed_broker_root=root and seal(sealing, root),
            created_at=tx.now,
        )
    )
    tx.connection.execute(delete(idempotency))
    tx.vault = Vault.of(new_key, version, old.peppers, old.audit_keys, root)
    reseal(tx)
    target = Target("deployment", DEPLOYMENT)
    details = {"version": version, "new_broker_keys": new_broker_keys}
    record(tx, by, "master_key.rotated", target, details)
    return version


def versions(tx: Transaction, by: Principal) -> list[MasterKeyVersion]:
    """Return every master key that the deployment had, oldest first."""
    by.require_operator()
    rows = tx.connection.execute(select(master_keys).order_by(master_keys.c.version)).all()
    counts: dict[int, dict[str, int]] = {row.version: {} for row in rows}
    for table in PEPPERED:
        counted = tx.connection.execute(
            select(table.c.pepper_version, func.count())
            .where(table.c.pepper_version.is_not(None))
            .group_by(table.c.pepper_version)
        )
        for version, count in counted:
            counts.setdefault(version, {})[table.name] = count
    return [
        MasterKeyVersion(
            row.version, row.created_at, row.version == tx.vault.version, counts[row.version]
        )
        for row in rows
    ]
