"""What a key may do to keys: nothing that works from where, when or how often it does not itself.

Members and keys with `keys:admin` are free of these rules.
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


def require_within(tx: Transaction, by: Principal, wanted: Limits) -> None:
    """Raise `ExceedsOwnLimits` if a usable key with these limits exceeds the calling key's."""
    if _is_free(by):
        return
    field = wanted.find_exceeding_field(_own_limits(tx, by))
    if field:
        raise _exceeds(
            f"The {_NAMES[field]} would allow more than the calling key's; stay within these.",
            field,
        )


def require_changeable(tx: Transaction, by: Principal, before: KeyRecord, after: KeyRecord) -> None:
    """Raise `ExceedsOwnLimits` unless the calling key may change `before` to `after`.

    It may narrow other keys that hold no more than it does. To give one more permissions, that key
    must be within its own limits.
    """
    if _is_free(by):
        return
    changed = next((name for name in _NAMES if getattr(before, name) != getattr(after, name)), "")
    if not changed:
        return
    if before.id == by.id:
        raise _exceeds(f"A key never changes its own {_NAMES[changed]}.", changed)
    if not all(by.may_grant(permission) for permission in before.permissions):
        raise _exceeds(
            f"The {_NAMES[changed]} of a key that holds more than the calling key stay.", changed
        )
    widened = limits_of(after).find_exceeding_field(limits_of(before))
    if widened:
        raise _exceeds(f"The {_NAMES[widened]} can only be narrowed.", widened)
    if not set(after.permissions) <= set(before.permissions):
        require_within(tx, by, limits_of(after))


def require_enabling(tx: Transaction, by: Principal, key_id: str) -> None:
    """Raise `ExceedsOwnLimits` if another than the calling key disabled that key last."""
    if not _is_free(by) and find_disabler(tx, by, key_id) != (PrincipalKind.KEY, by.id):
        raise _exceeds("The calling key did not disable that key, so it can't enable it.")


def find_disabler(tx: Transaction, by: Principal, key_id: str) -> tuple[str, str]:
    """Return kind and id of the actor that disabled a key last; empty if there was none."""
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


def _is_free(by: Principal) -> bool:
    return by.kind is not PrincipalKind.KEY or by.holds(Permission.KEYS_ADMIN)


def _own_limits(tx: Transaction, by: Principal) -> Limits:
    """Return the calling key's limits now; a secret in its grace ends sooner than its key."""
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


def _exceeds(why: str, field: str | None = None) -> ExceedsOwnLimits:
    detail = f"{why} Only a member, or a key with keys:admin, can do that."
    return ExceedsOwnLimits(detail, field=field, needs=Permission.KEYS_ADMIN)
