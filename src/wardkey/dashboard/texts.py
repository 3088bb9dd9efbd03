"""The English sentences that Python chooses; what stands still is in the templates."""

from __future__ import annotations

from wardkey.domain.keys import Reason
from wardkey.domain.permissions import Permission

# Shown once after a redirect, by the name in `?done=`.
DONE = {
    "signed-out": "You are signed out.",
    "signed-out-everywhere": "You are signed out everywhere.",
    "signed-out-midway": "Your session ended before the form was sent. Nothing was changed.",
    "session-ended": "The session is ended.",
    "password-changed": "The password is changed, and your other sessions are ended.",
    "key-changed": "The key is changed.",
    "key-disabled": "The key is disabled: it is refused everywhere until it is enabled again.",
    "key-enabled": "The key is enabled again.",
    "sent-before": "This form was sent before. What it made is here; its secret was shown then "
    "and is not shown again. If nobody saved it, rotate the key.",
}

PERMISSIONS = (
    ("Publish", "Send messages over HTTP", (Permission.PUBLISH,)),
    (
        "Organization",
        "Its public part, its settings",
        (
            Permission.ORGANIZATION_PUBLIC,
            Permission.ORGANIZATION_READ,
            Permission.ORGANIZATION_WRITE,
        ),
    ),
    (
        "Tokens",
        "Exchange an identity provider's token, or make one",
        (Permission.TOKENS_EXCHANGE, Permission.TOKENS_CREATE),
    ),
    (
        "API keys",
        "Write can make more keys: tick it only where it is needed",
        (Permission.KEYS_VERIFY, Permission.KEYS_READ, Permission.KEYS_WRITE),
    ),
    ("Clients", "MQTT clients", (Permission.CLIENTS_READ, Permission.CLIENTS_WRITE)),
    ("ACL rules", "Who may publish and subscribe", (Permission.ACL_READ, Permission.ACL_WRITE)),
    (
        "Auth providers",
        "Trusted token issuers",
        (Permission.PROVIDERS_READ, Permission.PROVIDERS_WRITE),
    ),
    (
        "Preview URLs",
        "Protected previews",
        (Permission.PREVIEWS_READ, Permission.PREVIEWS_WRITE),
    ),
    (
        "Members",
        "Write can invite people: tick it only where it is needed",
        (Permission.MEMBERS_READ, Permission.MEMBERS_WRITE),
    ),
    ("Audit log", "Who did what", (Permission.AUDIT_READ,)),
    ("Usage", "Counts of requests", (Permission.USAGE_READ,)),
    ("Billing", "Plan and invoices", (Permission.BILLING_READ, Permission.BILLING_WRITE)),
)

REASONS = {
    Reason.UNSPECIFIED: "No particular reason",
    Reason.KEY_COMPROMISE: "The key has leaked",
    Reason.SUPERSEDED: "Another key took its place",
    Reason.CESSATION_OF_OPERATION: "What used it was shut down",
    Reason.AFFILIATION_CHANGED: "Whoever used it has left",
    Reason.PRIVILEGE_WITHDRAWN: "It may no longer be used",
}

GRACES = (
    ("24h", "24 hours", "Recommended"),
    ("1h", "1 hour", "Quick deploys"),
    ("7d", "7 days", "Many places to change"),
    ("until_revoked", "Until I finish", "Ended by hand, when nobody uses it"),
    ("now", "Stop now", "The secret has leaked"),
)

EXPIRIES = (("never", "Never"), ("30", "30 days"), ("90", "90 days"), ("365", "1 year"))

ACTIONS = {
    "key.issued": "created the key",
    "key.imported": "imported the key",
    "key.updated": "edited the key",
    "key.disabled": "disabled the key",
    "key.enabled": "enabled the key",
    "key.rotated": "rotated the key",
    "key.revoked": "revoked the key",
    "key.exposed": "sent the secret key from a browser",
    "secret.revoked": "revoked one secret",
    "rotation.finished": "finished the rotation",
    "receipt.issued": "asked for the receipt again",
}
