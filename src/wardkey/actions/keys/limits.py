"""Limits on keys that manage keys: a key can't create or widen a key beyond its own limits.

Members, and keys with `keys:admin`, are exempt.
"""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import select

from wardkey.db.engine import Transaction
from wardkey.db.schema import audit_events, keys
from wardkey.db.scoped import in_scope
from wardkey.domain.errors import ExceedsOwnLimits
from wardkey.domain.keys import KeyRecord, Rate
from wardkey.domain.limits import Limits, limits_of
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal, PrincipalKind

_NAMES = {
    "allowed_addresses": "allowed addresses",
    "allowed_origins": "allowed origins",
    "allow_native": "clients without an origin",
    "rate_limit": "rate limit",
    "expires_at": "expiry",
    "permissions": "permissions",
    "metadata": "metadata",
}


def require_within(tx: Transaction, by: Principal, limits: Limits) -> None:
    """Raise `ExceedsOwnLimits` if these limits of a usable key exceed the calling key's."""
    if _is_exempt(by):
        return
    field = limits.find_exceeding_field(_own_limits(tx, by))
    if field:
        raise _exceeds(
            f"The {_NAMES[field]} would exceed the calling key's; stay within its limits.",
            field,
        )


def require_changeable(tx: Transaction, by: Principal, before: KeyRecord, after: KeyRecord) -> None:
    """Raise `ExceedsOwnLimits` unless the calling key may change `before` to `after`.

    The calling key may narrow other keys whose permissions it holds. It may add permissions to a
    key whose limits are within its own.
    """
    if _is_exempt(by):
        return
    changed = next((name for name in _NAMES if getattr(before, name) != getattr(after, name)), "")
    if not changed:
        return
    if before.id == by.id:
        raise _exceeds(f"A key can't change its own {_NAMES[changed]}.", changed)
    if not all(by.may_grant(permission) for permission in before.permissions):
        raise _exceeds(
            f"You can't change the {_NAMES[changed]} of a key with permissions that the calling "
            "key lacks.",
            changed,
        )
    widened = limits_of(after).find_exceeding_field(limits_of(before))
    if widened:
        raise _exceeds(f"A key can't widen the {_NAMES[widened]} of another key.", widened)
    if not set(after.permissions) <= set(before.permissions):
        require_within(tx, by, limits_of(after))


def require_enabling(tx: Transaction, by: Principal, key_id: str) -> None:
    """Raise `ExceedsOwnLimits` unless the calling key was the last to disable that key."""
    if not _is_exempt(by) and find_disabler(tx, by, key_id) != (PrincipalKind.KEY, by.id):
        raise _exceeds("The calling key did not disable that key, so it can't enable it.")


def find_disabler(tx: Transaction, by: Principal, key_id: str) -> tuple[str, str]:
    """Return the kind and id of the actor that last disabled a key; empty if there is none."""
    row = tx.connection.execute(
        select(audit_events.c.actor_kind, audit_events.c.actor_id)
        .where(
            audit_events.c.org_id == by.org_id,
            audit_events.c.target_id == key_id,
            audit_events.c.action == "key.disabled",
        )
        .order_by(audit_events.c.seq.desc())
        .limit(1)
    ).one_or_none()
    return ("", "") if row is None else (row.actor_kind, row.actor_id)


def _is_exempt(by: Principal) -> bool:
    return by.kind is not PrincipalKind.KEY or by.holds(Permission.KEYS_ADMIN)


def _own_limits(tx: Transaction, by: Principal) -> Limits:
    """Return the calling key's limits; `expires_at` is the end of its secret if that is earlier."""
    row = tx.connection.execute(
        select(keys.c.allowed_addresses, keys.c.rate_limit, keys.c.expires_at).where(
            keys.c.id == by.id, in_scope(keys, by.scope)
        )
    ).one()
    own = Limits(
        tuple(row.allowed_addresses),
        rate_limit=Rate(**row.rate_limit) if row.rate_limit else None,
        expires_at=row.expires_at,
    )
    ends = [end for end in (own.expires_at, by.expires_at) if end is not None]
    return replace(own, expires_at=min(ends, default=None))


def _exceeds(problem: str, field: str | None = None) -> ExceedsOwnLimits:
    detail = f"{problem} Only a member, or a key with keys:admin, can do that."
    return ExceedsOwnLimits(detail, field=field, needs=Permission.KEYS_ADMIN)
