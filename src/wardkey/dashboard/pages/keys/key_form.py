"""The form of a new or edited key: its options, and reading it into a KeySpec."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from wardkey.dashboard.shell import strings
from wardkey.dashboard.shell.auth import Fields
from wardkey.domain.errors import InvalidRateLimit, InvalidRequest, InvalidTime
from wardkey.domain.keys import KeyRecord, KeySpec, Rate
from wardkey.domain.permissions import (
    TICKED_EXPLICITLY,
    TYPE_TABLE,
    KeyType,
    Permission,
    default_permissions,
    is_scope,
)
from wardkey.domain.principal import Principal
from wardkey.domain.times import DAY_MS

_LONGEST_NUMBER = 12
# A key that holds them keeps them when it is edited.
UNLISTED = frozenset(Permission).difference(*(names for _, _, names in strings.PERMISSIONS))
PERIODS = {"1": "second", "60": "minute", "3600": "hour", "86400": "day"}


@dataclass(frozen=True, slots=True)
class PermissionBox:
    """A permission's checkbox; `held`: the member can grant it, `usual`: it is a default."""

    name: str
    label: str
    held: bool
    usual: bool


@dataclass(frozen=True, slots=True)
class PermissionRow:
    """The permissions for one kind of resource."""

    label: str
    hint: str
    boxes: tuple[PermissionBox, ...]


def permission_rows(by: Principal, key_type: KeyType) -> list[PermissionRow]:
    """Return the permissions that a key of this type can hold, by kind of resource."""
    possible = TYPE_TABLE[key_type]
    rows = []
    for label, hint, permissions in strings.PERMISSIONS:
        boxes = tuple(
            PermissionBox(
                str(name),
                name.partition(":")[2].capitalize() or name.capitalize(),
                by.holds(name),
                name not in TICKED_EXPLICITLY,
            )
            for name in permissions
            if name in possible
        )
        if boxes:
            rows.append(PermissionRow(label, hint, boxes))
    return rows


def read_spec(fields: Fields, by: Principal, now: int) -> KeySpec:
    """Return the spec of a new key from the form; the action validates the rest.

    Raises `InvalidRequest`, `InvalidTime`, `InvalidRateLimit`.
    """
    if fields.text("type") not in set(KeyType):
        raise InvalidRequest("Choose a type.", errors=(("type", "Choose one."),))
    key_type = KeyType(fields.text("type"))
    publishable = key_type is KeyType.PUBLISHABLE
    return KeySpec(
        name=fields.text("name"),
        type=key_type,
        environment=by.environment,
        permissions=_new_permissions(fields, by, key_type),
        expires_at=_expiry(fields, now),
        description=fields.text("description"),
        allowed_addresses=fields.lines("allowed_addresses"),
        allowed_origins=fields.lines("allowed_origins") if publishable else (),
        allow_native=publishable and fields.text("allow_native") == "1",
        rate_limit=read_rate(fields),
    )


def read_changes(fields: Fields, key: KeyRecord, now: int) -> dict[str, Any]:
    """Return a key's changes from the form; raises the same errors as `read_spec`."""
    changes: dict[str, Any] = {
        "name": fields.text("name"),
        "description": fields.text("description"),
        "allowed_addresses": fields.lines("allowed_addresses"),
        "rate_limit": read_rate(fields),
        "permissions": (*_permissions(fields, key.type), *_kept(key)),
    }
    if key.type is KeyType.PUBLISHABLE:
        changes["allowed_origins"] = fields.lines("allowed_origins")
        changes["allow_native"] = fields.text("allow_native") == "1"
    if fields.text("expires") != "keep":
        changes["expires_at"] = _expiry(fields, now)
    return changes


def read_new_scopes(fields: Fields) -> tuple[str, ...]:
    """Return the scopes that the member confirmed to add to the catalogue."""
    return tuple(" ".join(fields.texts("create_scopes")).split())


def _new_permissions(fields: Fields, by: Principal, key_type: KeyType) -> tuple[str, ...] | None:
    """Return the permissions of a new key; None for the defaults of its type.

    A secret key's scopes are independent of its Wardkey permissions, which can be none, chosen
    ones or the defaults.
    """
    chosen, access = _permissions(fields, key_type), fields.text("access")
    if access == "chosen":
        return chosen
    scopes = tuple(filter(is_scope, chosen))
    if key_type is KeyType.PUBLISHABLE or (access != "none" and not scopes):
        return None
    if access == "none":
        # Keep typed text that isn't a scope, so that the action rejects it.
        return tuple(name for name in chosen if name not in set(Permission))
    held = frozenset(p for p in Permission if by.holds(p))
    return (*scopes, *sorted(default_permissions(key_type, held)))


def _permissions(fields: Fields, key_type: KeyType) -> tuple[str, ...]:
    """Return the ticked permissions of this key type, and the typed scopes."""
    ticked = [
        name.partition("/")[2]
        for name in fields.texts("permissions")
        if name.startswith(f"{key_type}/")
    ]
    typed = fields.text("scopes").replace(",", " ").split() if key_type is KeyType.SECRET else []
    return tuple(dict.fromkeys([*ticked, *typed]))


def _kept(key: KeyRecord) -> tuple[str, ...]:
    """Return Wardkey's own permissions that a key holds and the form has no box for."""
    return tuple(name for name in key.permissions if name in UNLISTED)


def _expiry(fields: Fields, now: int) -> int | None:
    choice = fields.text("expires")
    if choice == "never":
        return None
    if choice == "date":
        try:
            day = datetime.strptime(fields.text("expires_on"), "%Y-%m-%d").replace(tzinfo=UTC)
            # The key works until the end of its last day.
            return int((day + timedelta(days=1)).timestamp() * 1000)
        except (ValueError, OverflowError):
            raise InvalidTime("Enter the last day as a date.", field="expires_on") from None
    if choice in {value for value, _ in strings.EXPIRIES}:
        return now + int(choice) * DAY_MS
    raise InvalidRequest("Choose when the key expires.", errors=(("expires", "Choose one."),))


def read_rate(fields: Fields) -> Rate | None:
    """Return the form's rate limit, or None; raises `InvalidRateLimit`."""
    limit = fields.text("limit").strip()
    if not limit:
        return None
    period, burst = fields.text("period"), fields.text("burst").strip() or limit
    numbers = (limit, burst)
    if period not in PERIODS or not all(
        text.isascii() and text.isdecimal() and len(text) <= _LONGEST_NUMBER for text in numbers
    ):
        raise InvalidRateLimit(field="limit")
    return Rate(int(limit), int(period), int(burst))
