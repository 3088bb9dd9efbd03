"""The registry of pages: what the sidebar and the tabs of Settings list, in their order.

Whoever adds a page adds its line here; nothing is listed that has no page.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of the sidebar or a tab; `path` follows `/o/{slug}/{environment}/`.

    `group` is a heading in the sidebar over entries that belong together.
    """

    label: str
    path: str
    icon: str = ""
    group: str = ""

    def holds(self, path: str) -> bool:
        """Tell whether `path` is this page or one below it."""
        return path == self.path or path.startswith(f"{self.path}/")


USAGE = "usage"
AUDIT = "audit-log"

SIDEBAR = (
    Entry("Overview", "overview", "layout-dashboard"),
    Entry("Usage", USAGE, "chart-column"),
    Entry("Clients", "messaging/clients", "plug", "Messaging"),
    Entry("ACL rules", "messaging/acl", "list-checks", "Messaging"),
    Entry("Live topics", "messaging/topics", "radio", "Messaging"),
    Entry("Auth providers", "messaging/providers", "fingerprint", "Messaging"),
    Entry("Grants", "messaging/grants", "users", "Messaging"),
    Entry("Audit log", AUDIT, "scroll-text", "Organization"),
    Entry("Settings", "settings", "settings", "Organization"),
)

SETTINGS = (
    Entry("API keys", "settings/api-keys"),
    Entry("Members & roles", "settings/members"),
    Entry("General", "settings/general"),
    Entry("Security", "settings/security"),
    Entry("Rotation policy", "settings/rotation-policy"),
)

# Where somebody arrives in an organization.
HOME = "overview"
