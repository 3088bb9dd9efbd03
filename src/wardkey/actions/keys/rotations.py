"""The end of a rotation: who still uses which secret, and revoking the old ones."""

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
from wardkey.domain.callers import HOUR_MS, CallerRecord
from wardkey.domain.errors import KeyRevoked, SecretNotFound, StillInUse
from wardkey.domain.keys import Reason, SecretRecord
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal

SHOWN_HOURS = 24
_MINUTE_MS = 60_000


@dataclass(frozen=True, slots=True)
class HourCounts:
    """How many verdicts of each code there were in the hour that began at `at`."""

    at: int
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SecretCallers:
    """Who used one secret, the latest first, and its verdicts of the last 24 hours."""

    secret: SecretRecord
    callers: tuple[CallerRecord, ...]
    hours: tuple[HourCounts, ...]


@dataclass(frozen=True, slots=True)
class FinishedRotation:
    """The one secret that goes on (empty: none was live), and the receipts of the others."""

    kept: str
    receipts: tuple[Receipt, ...]


def list_callers(
    tx: Transaction, by: Principal, key_id: str, kid: str = ""
) -> tuple[SecretCallers, ...]:
    """Return who used each secret of a key, or the one `kid`, whatever the verdict was.

    The newest secret stands first. Raises `KeyNotFound`, `SecretNotFound`.
    """
    by.require(Permission.KEYS_READ)
    owned = keys.get(tx, by, key_id).secrets
    asked = [secret for secret in owned if kid in ("", secret.kid)]
    if not asked:
        raise SecretNotFound
    kids = [secret.kid for secret in asked]
    used, counted = _callers(tx, kids), _hours(tx, kids)
    return tuple(
        SecretCallers(secret, tuple(used[secret.kid]), tuple(counted[secret.kid]))
        for secret in asked
    )


def callers_to_finish(
    tx: Transaction, by: Principal, key_id: str
) -> Mapping[str, Sequence[CallerRecord]]:
    """Return for each live secret of a key who used it within the last hour, for `finish`.

    It is a read of its own because writers on SQLite do not see usage. Raises `KeyNotFound`.
    """
    by.require(Permission.KEYS_WRITE)
    owned = keys.get(tx, by, key_id).secrets
    kids = [secret.kid for secret in owned if secret.live(tx.now)]
    used = _callers(tx, kids, since=tx.now - HOUR_MS)
    return {kid: used[kid] for kid in kids}


def finish(
    tx: Transaction, by: Principal, key_id: str, used: Mapping[str, Sequence[CallerRecord]]
) -> FinishedRotation:
    """End a rotation: revoke every live secret of a key but the newest.

    `used` is what `callers_to_finish` returned; a secret made since then stays. Where nothing
    is old nothing changes. Raises `KeyNotFound`, `KeyRevoked`, and `StillInUse` if an old
    secret was used within the last hour.
    """
    by.require(Permission.KEYS_WRITE)
    key = keys.get(tx, by, key_id)
    if key.revoked_at is not None:
        raise KeyRevoked
    live = [secret for secret in key.secrets if secret.live(tx.now)]
    live.sort(key=lambda secret: secret.created_at, reverse=True)
    old = [secret for secret in live[1:] if secret.kid in used]
    using = [caller for secret in old for caller in used[secret.kid]]
    if using:
        raise _still_in_use(using, tx.now)
    receipts = tuple(revoke_secret(tx, by, key_id, secret.kid, Reason.SUPERSEDED) for secret in old)
    kept = live[0].kid if live else ""
    if receipts:
        details = {"kept": kept, "revoked": [receipt.kid for receipt in receipts]}
        record(tx, by, "rotation.finished", Target("key", key_id), details)
    return FinishedRotation(kept, receipts)


def _still_in_use(using: list[CallerRecord], now: int) -> StillInUse:
    using.sort(key=lambda caller: caller.last_at, reverse=True)
    minutes = max(0, now - using[0].last_at) // _MINUTE_MS
    ago = f"{minutes} minute{'' if minutes == 1 else 's'} ago" if minutes else "just now"
    by_whom = f"{len(using)} callers" if len(using) > 1 else "one caller"
    return StillInUse(
        f"An old secret was last used {ago}; {by_whom} used it in the last hour. Move them to the "
        "new secret and finish an hour later, or revoke the old secret, which nothing holds up.",
        callers=tuple(using),
    )


def _callers(
    tx: Transaction, kids: Sequence[str], since: int = 0
) -> Mapping[str, list[CallerRecord]]:
    """Return who used each secret after `since`, the latest first."""
    found: defaultdict[str, list[CallerRecord]] = defaultdict(list)
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
        found[row.kid].append(CallerRecord(*row))
    return found


def _hours(tx: Transaction, kids: Sequence[str]) -> Mapping[str, list[HourCounts]]:
    """Return the verdicts on each secret in each of the last hours, the latest first."""
    rows = tx.connection.execute(
        select(hours.c.kid, hours.c.hour, hours.c.code, hours.c["count"])
        .where(hours.c.kid.in_(kids), hours.c.hour > tx.now // HOUR_MS - SHOWN_HOURS)
        .order_by(hours.c.hour.desc(), hours.c.code)
    )
    counted: defaultdict[tuple[str, int], dict[str, int]] = defaultdict(dict)
    for kid, hour, code, count in rows:
        counted[kid, hour][code] = count
    found: defaultdict[str, list[HourCounts]] = defaultdict(list)
    for (kid, hour), counts in counted.items():
        found[kid].append(HourCounts(hour * HOUR_MS, counts))
    return found
