"""Finishing rotations: listing the callers of each secret, and revoking the old secrets."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from wardkey.actions.core.audit import Target, record
from wardkey.actions.keys import keys
from wardkey.actions.keys.revocations import Receipt, revoke_secret
from wardkey.db.engine import Transaction
from wardkey.db.schema import callers, hours
from wardkey.domain.callers import CallerRecord
from wardkey.domain.errors import KeyRevoked, SecretNotFound, StillInUse
from wardkey.domain.keys import Reason, SecretRecord
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.times import HOUR_MS, MINUTE_MS

_VERDICT_HOURS = 24


@dataclass(frozen=True, slots=True)
class HourCounts:
    """The number of verdicts by code in the hour that began at `at` (epoch ms)."""

    at: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SecretCallers:
    """The callers of one secret, most recent first, and its verdicts of the last 24 hours."""

    secret: SecretRecord
    callers: tuple[CallerRecord, ...]
    hours: tuple[HourCounts, ...]


@dataclass(frozen=True, slots=True)
class FinishedRotation:
    """The kid of the secret that stays valid ("" if none is live), and receipts of the others."""

    kept: str
    receipts: tuple[Receipt, ...]


def list_callers(
    tx: Transaction, by: Principal, key_id: str, kid: str = ""
) -> tuple[SecretCallers, ...]:
    """Return the callers of each secret of a key, or of only `kid`, whatever their verdicts.

    The newest secret comes first. Raises `KeyNotFound`, `SecretNotFound`.
    """
    by.require(Permission.KEYS_READ)
    all_secrets = keys.get(tx, by, key_id).secrets
    secrets = [secret for secret in all_secrets if kid in ("", secret.kid)]
    if not secrets:
        raise SecretNotFound
    kids = [secret.kid for secret in secrets]
    callers_by_kid, verdicts = _list_callers(tx, kids), _count_verdicts(tx, kids)
    return tuple(
        SecretCallers(secret, tuple(callers_by_kid[secret.kid]), tuple(verdicts[secret.kid]))
        for secret in secrets
    )


def callers_to_finish(
    tx: Transaction, by: Principal, key_id: str
) -> Mapping[str, Sequence[CallerRecord]]:
    """Return the last hour's callers of each live secret of a key, as input for `finish`.

    This is a separate read because write transactions on SQLite can't read usage. Raises
    `KeyNotFound`.
    """
    by.require(Permission.KEYS_WRITE)
    secrets = keys.get(tx, by, key_id).secrets
    kids = [secret.kid for secret in secrets if secret.live(tx.now)]
    callers_by_kid = _list_callers(tx, kids, since=tx.now - HOUR_MS)
    return {kid: callers_by_kid[kid] for kid in kids}


def finish(
    tx: Transaction, by: Principal, key_id: str, used: Mapping[str, Sequence[CallerRecord]]
) -> FinishedRotation:
    """Finish a rotation: revoke every live secret of a key except the newest.

    `used` is the result of `callers_to_finish`; a secret added since then is kept. Without old
    secrets, nothing changes. Raises `KeyNotFound`, `KeyRevoked`, and `StillInUse` if an old secret
    was used within the last hour.
    """
    by.require(Permission.KEYS_WRITE)
    key = keys.get(tx, by, key_id)
    if key.revoked_at is not None:
        raise KeyRevoked
    live = [secret for secret in key.secrets if secret.live(tx.now)]
    live.sort(key=lambda secret: secret.created_at, reverse=True)
    old = [secret for secret in live[1:] if secret.kid in used]
    old_callers = [caller for secret in old for caller in used[secret.kid]]
    if old_callers:
        raise _still_in_use(old_callers, tx.now)
    receipts = tuple(revoke_secret(tx, by, key_id, secret.kid, Reason.SUPERSEDED) for secret in old)
    kept = live[0].kid if live else ""
    if receipts:
        details = {"kept": kept, "revoked": [receipt.kid for receipt in receipts]}
        record(tx, by, "rotation.finished", Target("key", key_id), details)
    return FinishedRotation(kept, receipts)


def _still_in_use(old_callers: list[CallerRecord], now: int) -> StillInUse:
    old_callers.sort(key=lambda caller: caller.last_at, reverse=True)
    minutes = max(0, now - old_callers[0].last_at) // MINUTE_MS
    ago = f"{minutes} minute{'' if minutes == 1 else 's'} ago" if minutes else "just now"
    count = f"{len(old_callers)} callers" if len(old_callers) > 1 else "one caller"
    return StillInUse(
        f"An old secret was last used {ago}; {count} used it in the last hour. Move them to the "
        "new secret and finish an hour later, or revoke the old secret itself, which always works.",
        callers=tuple(old_callers),
    )


def _list_callers(
    tx: Transaction, kids: Sequence[str], since: int = 0
) -> Mapping[str, list[CallerRecord]]:
    """Return the callers of each secret after `since`, most recent first."""
    callers_by_kid: defaultdict[str, list[CallerRecord]] = defaultdict(list)
    for row in tx.connection.execute(
        select(
            callers.c.kid,
            callers.c.address,
            callers.c.product,
            callers.c.route,
            callers.c.first_at,
            callers.c.last_at,
            callers.c["count"],
        )
        .where(callers.c.kid.in_(kids), callers.c.last_at > since)
        .order_by(callers.c.last_at.desc(), callers.c["count"].desc())
    ):
        callers_by_kid[row.kid].append(CallerRecord(*row))
    return callers_by_kid


def _count_verdicts(tx: Transaction, kids: Sequence[str]) -> Mapping[str, list[HourCounts]]:
    """Return each secret's verdicts by hour for the last 24 hours, most recent first."""
    rows = tx.connection.execute(
        select(hours.c.kid, hours.c.hour, hours.c.code, hours.c["count"])
        .where(hours.c.kid.in_(kids), hours.c.hour > tx.now // HOUR_MS - _VERDICT_HOURS)
        .order_by(hours.c.hour.desc(), hours.c.code)
    )
    counts_by_hour: defaultdict[tuple[str, int], dict[str, int]] = defaultdict(dict)
    for kid, hour, code, count in rows:
        counts_by_hour[kid, hour][code] = count
    verdicts: defaultdict[str, list[HourCounts]] = defaultdict(list)
    for (kid, hour), counts in counts_by_hour.items():
        verdicts[kid].append(HourCounts(hour * HOUR_MS, counts))
    return verdicts
