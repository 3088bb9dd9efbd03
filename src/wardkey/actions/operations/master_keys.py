"""The master keys that a deployment had: taking a new one, and what still stands under which."""

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
    tx: Transaction, by: Principal, following: MasterKey, *, new_broker_keys: bool = False
) -> int:
    """Make `following` the database's master key; return its version.

    What earlier master keys derived is kept, sealed under the new one, so that secrets go on and
    chains still verify, and the broker finds its messages and sessions unless it takes new keys,
    too. Kept answers go, since only the old key opens them. Raises `InvalidMasterKey` for a key
    that was in use before.
    """
    by.require_operator()
    used = tx.connection.execute(select(master_keys.c.tag)).scalars()
    if following.tag in {bytes(tag) for tag in used}:
        raise InvalidMasterKey("That master key was in use before; take a new one.")
    sealing, old = sealing_key(following), tx.vault
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
            tag=following.tag,
            sealed_broker_root=root and seal(sealing, root),
            created_at=tx.now,
        )
    )
    tx.connection.execute(delete(idempotency))
    tx.vault = Vault.of(following, version, old.peppers, old.audit_keys, root)
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
        found = tx.connection.execute(
            select(table.c.pepper_version, func.count())
            .where(table.c.pepper_version.is_not(None))
            .group_by(table.c.pepper_version)
        )
        for version, count in found:
            counts.setdefault(version, {})[table.name] = count
    return [
        MasterKeyVersion(r.version, r.created_at, r.version == tx.vault.version, counts[r.version])
        for r in rows
    ]
