"""Permissions, and the tables of those that key types and roles can have."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from enum import StrEnum

from wardkey.domain.errors import PermissionNotForType, UnknownPermission


class KeyType(StrEnum):
    """The type of a key: `publishable` for web pages, `secret` for servers only."""

    PUBLISHABLE = "publishable"
    SECRET = "secret"


class Role(StrEnum):
    """The roles of members, each a named set of permissions, strongest first."""

    OWNER = "owner"
    ADMIN = "admin"
    MEMBER = "member"
    VIEWER = "viewer"


class Permission(StrEnum):
    """The permissions that Wardkey itself checks; users' own services have scopes besides these."""

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
    SCOPES_GRANT = "scopes:grant"


_ALL = frozenset(Permission)
_PUBLIC = frozenset(
    {Permission.PUBLISH, Permission.ORGANIZATION_PUBLIC, Permission.TOKENS_EXCHANGE}
)
_READ = frozenset(p for p in Permission if p.endswith(":read")) | {Permission.ORGANIZATION_PUBLIC}
_OWNER_ONLY = frozenset({Permission.BILLING_READ, Permission.BILLING_WRITE})

# The most that a key of each type can hold; its own permissions narrow that further.
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

# A stolen key with these could create keys or members, lift the limits of keys, or grant scopes
# that it doesn't hold, so they are never granted by default.
TICKED_EXPLICITLY = frozenset(
    {
        Permission.KEYS_WRITE,
        Permission.KEYS_ADMIN,
        Permission.MEMBERS_WRITE,
        Permission.SCOPES_GRANT,
    }
)

# These manage what both environments share, so they have no effect in test keys.
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
# Longer texts are not compared with names, because that takes time quadratic in their length.
_LONGEST = 98
_MOST_SUGGESTIONS = 3
_LONGEST_QUOTE = 64


def default_permissions(key_type: KeyType, creator_permissions: frozenset[str]) -> frozenset[str]:
    """Return the permissions of a new key by default; at most those in `creator_permissions`."""
    return (TYPE_TABLE[key_type] - TICKED_EXPLICITLY) & creator_permissions


def is_permission(text: str) -> bool:
    """Return whether `text` is one of Wardkey's permissions or a valid scope name."""
    return text in _ALL or is_scope(text)


def is_scope(text: str) -> bool:
    """Return whether `text` is a valid scope for a user's own services: `resource:action`.

    A third part is allowed. The resource must not be one of Wardkey's own.
    """
    return _SCOPE.fullmatch(text) is not None and text.partition(":")[0] not in _RESERVED


def respell(text: str) -> str:
    """Return the scope that `text` (such as `Invoices-Read`) misspells, or ""."""
    if len(text) > _LONGEST:
        return ""
    spelled = re.sub(r"[^a-z0-9:]+", ":", text.strip().lower())
    return spelled if is_scope(spelled) and spelled != text else ""


def near_misses(text: str, scopes: Iterable[str] = ()) -> list[str]:
    """Return permissions and `scopes` that are similar to `text`, most similar first."""
    if len(text) > _LONGEST:
        return []
    folded = text.strip().lower()
    known = [*map(str, Permission), *scopes]
    matches = [name for name in known if name in {folded, re.sub(r"[^a-z0-9:]+", ":", folded)}]
    if not matches and not is_scope(text):
        matches = [spelled for spelled in [respell(text)] if spelled]
    matches += get_close_matches(folded, known, n=_MOST_SUGGESTIONS, cutoff=0.75)
    return list(dict.fromkeys(matches))[:_MOST_SUGGESTIONS]


def suggest(text: str, scopes: Iterable[str] = ()) -> str:
    """Return a question such as ` Did you mean usage:read?`, or "" if nothing is similar."""
    matches = near_misses(text, scopes)
    return f" Did you mean {' or '.join(matches)}?" if matches else ""


def unknown_permission(text: str, field: str) -> UnknownPermission:
    """Return the error for a text that is not a permission, with similar names."""
    quoted = text[:_LONGEST_QUOTE].encode("unicode_escape").decode("ascii")
    return UnknownPermission(
        f"There is no permission “{quoted}”.{suggest(text)} Use one of Wardkey's own, or a scope "
        "of your services: resource:action in lower case, such as invoices:read.",
        field=field,
    )


def check_permission_names(permissions: Iterable[str], field: str = "permissions") -> None:
    """Raise `UnknownPermission` if one of `permissions` is neither a permission nor a scope."""
    for index, text in enumerate(permissions):
        if not is_permission(text):
            raise unknown_permission(text, f"{field}.{index}")


def clean_permissions(key_type: KeyType, permissions: Iterable[str]) -> frozenset[str]:
    """Return the permissions, after checking that a key of this type can hold each of them.

    Scopes of a user's own services have the form `resource:action` (`invoices:read`), where the
    resource is not one of Wardkey's own.

    Raises `UnknownPermission`, `PermissionNotForType`.
    """
    allowed = TYPE_TABLE[key_type]
    clean = set()
    for index, item in enumerate(permissions):
        field = f"permissions.{index}"
        is_own = item in _ALL
        if not is_permission(item):
            raise unknown_permission(item, field)
        if item not in allowed and not (key_type is KeyType.SECRET and not is_own):
            detail = (
                f"A {key_type} key can't have {item}; leave it out, or issue a secret key and keep "
                "it on a server."
            )
            raise PermissionNotForType(detail, field=field)
        clean.add(item)
    return frozenset(clean)
