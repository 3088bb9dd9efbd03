"""Who may do what: the permissions, the table of key types and the table of roles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from enum import StrEnum

from wardkey.domain.errors import PermissionNotForType, UnknownPermission


class KeyType(StrEnum):
    """What a key is for: `publishable` may stand in a page, `secret` never leaves a server."""

    PUBLISHABLE = "publishable"
    SECRET = "secret"


class Role(StrEnum):
    """A named set of permissions that a member has, strongest first."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


class Permission(StrEnum):
    """What Wardkey itself asks for; scopes of users' own services live beside these."""

    PUBLISH = "publish"
    ORGANIZATION_PUBLIC = "organization:public"
    TOKENS_EXCHANGE = "tokens:exchange"
    TOKENS_CREATE = "tokens:create"
    TOKENS_READ = "tokens:read"
    TOKENS_REVOKE = "tokens:revoke"
    KEYS_READ = "keys:read"
    KEYS_WRITE = "keys:write"
    KEYS_ADMIN = "keys:admin"
    KEYS_VERIFY = "keys:verify"
    CLIENTS_READ = "clients:read"
    CLIENTS_WRITE = "clients:write"
    ACL_READ = "acl:read"
    ACL_WRITE = "acl:write"
    RETAINED_READ = "retained:read"
    RETAINED_WRITE = "retained:write"
    PROVIDERS_READ = "providers:read"
    PROVIDERS_WRITE = "providers:write"
    PREVIEWS_READ = "previews:read"
    PREVIEWS_WRITE = "previews:write"
    ORGANIZATION_READ = "organization:read"
    ORGANIZATION_WRITE = "organization:write"
    MEMBERS_READ = "members:read"
    MEMBERS_WRITE = "members:write"
    AUDIT_READ = "audit:read"
    USAGE_READ = "usage:read"
    BILLING_READ = "billing:read"
    BILLING_WRITE = "billing:write"


_ALL = frozenset(Permission)
_PUBLIC = frozenset(
    {Permission.PUBLISH, Permission.ORGANIZATION_PUBLIC, Permission.TOKENS_EXCHANGE}
)
_READ = frozenset(p for p in Permission if p.endswith(":read")) | {Permission.ORGANIZATION_PUBLIC}
_OWNER_ONLY = frozenset({Permission.BILLING_READ, Permission.BILLING_WRITE})

# What a key of each type can hold at the most; its own permissions narrow that further.
TYPE_TABLE: Mapping[KeyType, frozenset[Permission]] = {
    KeyType.PUBLISHABLE: _PUBLIC,
    KeyType.SECRET: _ALL,
}

ROLE_TABLE: Mapping[Role, frozenset[Permission]] = {
    Role.OWNER: _ALL,
    Role.ADMIN: _ALL - _OWNER_ONLY,
    Role.MEMBER: (_READ - _OWNER_ONLY)
    | {
        Permission.PUBLISH,
        Permission.CLIENTS_WRITE,
        Permission.ACL_WRITE,
        Permission.RETAINED_WRITE,
        Permission.PREVIEWS_WRITE,
    },
    Role.VIEWER: _READ - _OWNER_ONLY,
}

# A stolen key with these could make more keys or members, or lift the limits of keys, so they are
# ticked explicitly.
TICKED_EXPLICITLY = frozenset(
    {Permission.KEYS_WRITE, Permission.KEYS_ADMIN, Permission.MEMBERS_WRITE}
)

# What both environments share, live governs: keys of test hold these to no effect.
LIVE_ONLY = frozenset(
    {
        Permission.ORGANIZATION_WRITE,
        Permission.MEMBERS_READ,
        Permission.MEMBERS_WRITE,
        Permission.BILLING_READ,
        Permission.BILLING_WRITE,
    }
)

_SCOPE = re.compile(r"[a-z][a-z0-9_.-]{0,31}(?::[a-z0-9_.-]{1,32}){1,2}")
_RESERVED = frozenset(p.partition(":")[0] for p in Permission)


def default_permissions(key_type: KeyType, held: frozenset[str]) -> frozenset[str]:
    """Return what a new key holds when its maker, who holds `held`, names nothing."""
    return (TYPE_TABLE[key_type] - TICKED_EXPLICITLY) & held


def is_permission(text: str) -> bool:
    """Return whether `text` is one of Wardkey's permissions or has the form of a scope."""
    return text in _ALL or (
        _SCOPE.fullmatch(text) is not None and text.partition(":")[0] not in _RESERVED
    )


def clean_permissions(key_type: KeyType, wanted: Iterable[str]) -> frozenset[str]:
    """Check each permission's form and that a key of this type can hold it.

    Scopes of a user's own services have the form `resource:action` (`invoices:read`), where the
    resource is not one of Wardkey's own.

    Raises `UnknownPermission`, `PermissionNotForType`.
    """
    allowed = TYPE_TABLE[key_type]
    clean = set()
    for index, item in enumerate(wanted):
        field = f"permissions.{index}"
        known = item in _ALL
        if not is_permission(item):
            shown = item[:64].encode("unicode_escape").decode("ascii")
            detail = (
                f"There is no permission “{shown}”; take one of Wardkey's own, or a scope of "
                "your services such as invoices:read."
            )
            raise UnknownPermission(detail, field=field)
        if item not in allowed and not (key_type is KeyType.SECRET and not known):
            detail = (
                f"A {key_type} key can never hold {item}; leave it out, or issue a secret key "
                "and keep it on a server."
            )
            raise PermissionNotForType(detail, field=field)
        clean.add(item)
    return frozenset(clean)
