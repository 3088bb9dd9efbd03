"""The pages listed in the sidebar and in the tabs of Settings, in order.

A new page adds its entry here.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal


@dataclass(frozen=True, slots=True)
class Entry:
    """A sidebar entry or a tab; `path` is relative to `/o/{slug}/{environment}/`.

    `needs` lists the permissions the page reads with; the entry is hidden from members who lack
    one of them. `group` is the sidebar heading above the entry.
    """

    label: str
    path: str
    needs: tuple[Permission, ...] = ()
    icon: str = ""
    group: str = ""

    def holds(self, path: str) -> bool:
        """Return whether `path` is this page or one below it."""
        return path == self.path or path.startswith(f"{self.path}/")


def open_to(by: Principal, entries: Iterable[Entry]) -> list[Entry]:
    """Return the entries whose pages the principal can read."""
    return [entry for entry in entries if all(by.holds(need) for need in entry.needs)]


USAGE = "usage"
AUDIT = "audit-log"
MEMBERS = "settings/members"
SCOPES = "settings/scopes"

_MESSAGING, _ORGANIZATION = "Messaging", "Organization"
_KEYS, _RULES = (Permission.KEYS_READ,), (Permission.ACL_READ,)
_CLIENTS, _PROVIDERS = (Permission.CLIENTS_READ,), (Permission.PROVIDERS_READ,)
_PUBLIC = (Permission.ORGANIZATION_PUBLIC,)

SIDEBAR = (
    Entry("Overview", "overview", _KEYS, "layout-dashboard"),
    Entry("Usage", USAGE, (Permission.USAGE_READ,), "chart-column"),
    Entry("Clients", "messaging/clients", _CLIENTS, "plug", _MESSAGING),
    Entry("ACL rules", "messaging/acl", _RULES, "list-checks", _MESSAGING),
    Entry("Live topics", "messaging/topics", _RULES, "radio", _MESSAGING),
    Entry("Auth providers", "messaging/providers", _PROVIDERS, "fingerprint", _MESSAGING),
    Entry("Grants", "messaging/grants", (Permission.TOKENS_READ, *_PROVIDERS), "users", _MESSAGING),
    Entry("Audit log", AUDIT, (Permission.AUDIT_READ,), "scroll-text", _ORGANIZATION),
    Entry("Settings", "settings", (), "settings", _ORGANIZATION),
)

SETTINGS = (
    Entry("API keys", "settings/api-keys", _KEYS),
    Entry("Scopes", SCOPES, _KEYS),
    Entry("Members & roles", MEMBERS, (Permission.MEMBERS_READ,)),
    Entry("General", "settings/general", _PUBLIC),
    Entry("Security", "settings/security"),
    Entry("Rotation policy", "settings/rotation-policy", _PUBLIC),
)

# The first page of an organization.
HOME = "overview"
