"""UI text chosen by Python code; fixed text is in the templates."""

from __future__ import annotations

from dataclasses import dataclass

from wardkey.domain.keys import Reason
from wardkey.domain.permissions import Permission, Role

# Shown once after a redirect, keyed by the name in `?done=`.
DONE = {
    "signed-out": "You're signed out.",
    "signed-out-everywhere": "You're signed out on every device. Your user tokens, live topics and "
    "the MQTT grants that you made were ended too.",
    "signed-out-midway": "Your session ended before the form was sent. Nothing was changed.",
    "session-ended": "Session ended.",
    "password-changed": "Password changed. Your other sessions were ended.",
    "key-changed": "Key updated.",
    "key-disabled": "Key disabled. Every request with it is refused until you enable it again.",
    "key-enabled": "Key enabled.",
    "client-created": "Client created.",
    "client-changed": "Client updated.",
    "client-disabled": "Client disabled. It can't sign in until you enable it again.",
    "client-enabled": "Client enabled.",
    "client-deleted": "Client deleted. Its user name is free again.",
    "client-password": "Password set. The old one no longer works.",
    "client-sent-before": "This form was already sent, and this is the client it created. A "
    "generated password is shown only once; if you didn't save it, set a new one.",
    "rule-created": "Rule added.",
    "rule-changed": "Rule updated.",
    "rule-deleted": "Rule deleted.",
    "preset-applied": "Preset applied.",
    "provider-created": "Provider added. Test it with a token.",
    "provider-changed": "Provider updated.",
    "provider-enabled": "Provider enabled. Its tokens can be exchanged again.",
    "provider-disabled": "Provider disabled. Its tokens can't be exchanged until you enable it "
    "again.",
    "provider-deleted": "Provider deleted. All its grants were ended.",
    "grant-revoked": "Grant revoked.",
    "grants-revoked": "Grants revoked.",
    "client-id-freed": "Client id freed. A program that still uses it takes it again.",
    "live-session-ended": "Session ended. The client can sign in again unless you disable it.",
    "sent-before": "This form was already sent, and this is the key it created. The secret is "
    "shown only once; if you didn't save it, rotate the key.",
    "invited-before": "This form was already sent, and the invitation is listed below. Its link is "
    "shown only once; if you didn't save it, invite the address again.",
    "role-changed": "Role changed.",
    "ownership-transferred": "Ownership transferred. You're now an admin of this organization.",
    "member-removed": "Member removed.",
    "invitation-accepted": "Invitation accepted.",
    "invitation-revoked": "Invitation revoked. Its link no longer works.",
    "organization-changed": "Organization updated.",
    "rotation-policy-changed": "Rotation policy updated.",
    "organization-deleted": "Organization deleted. All its keys were revoked.",
    "scope-created": "Scope added. You can grant it to keys now.",
    "scope-changed": "Scope updated.",
    "scope-deleted": "Scope deleted.",
    "passkey-added": "Passkey added. You can sign in with it now.",
    "passkey-renamed": "Passkey renamed.",
    "passkey-removed": "Passkey removed. It can't be used to sign in anymore.",
    "confirmed": "Identity confirmed. Return to the previous tab to continue.",
    "identity-unlinked": "Account unlinked. Signing in there with your address links it again.",
    "left": "You left the organization.",
}

# Shown on the page that refuses a request because of the member's role.
REFUSED = {
    "title": "Not allowed",
    "role": "Your role in {name} is {role}.",
    "change": "An admin or the owner can give you another role.",
    "nothing": "Nothing was changed.",
}

ROLES = {
    Role.OWNER: "Full access, including billing and deleting the organization. There is one owner.",
    Role.ADMIN: "Everything except billing: keys, members, settings.",
    Role.MEMBER: "Can view everything and edit clients, ACL rules and previews, but not keys.",
    Role.VIEWER: "Can view everything, but can't change anything.",
}

# Previews and billing do not exist yet, so their permissions are not offered.
PERMISSIONS = (
    ("Publish", "Send messages over HTTP", (Permission.PUBLISH,)),
    (
        "Organization",
        "Public profile and settings",
        (
            Permission.ORGANIZATION_PUBLIC,
            Permission.ORGANIZATION_READ,
            Permission.ORGANIZATION_WRITE,
        ),
    ),
    (
        "Tokens",
        "Exchange an identity provider's token or create one; list and end grants",
        (
            Permission.TOKENS_EXCHANGE,
            Permission.TOKENS_CREATE,
            Permission.TOKENS_READ,
            Permission.TOKENS_REVOKE,
        ),
    ),
    (
        "API keys",
        "Write can create more keys; admin can lift key limits. Grant these only where needed",
        (
            Permission.KEYS_VERIFY,
            Permission.KEYS_READ,
            Permission.KEYS_WRITE,
            Permission.KEYS_ADMIN,
        ),
    ),
    (
        "Scopes",
        "Can grant any scope of your services. Grant it only where needed",
        (Permission.SCOPES_GRANT,),
    ),
    ("Clients", "MQTT clients", (Permission.CLIENTS_READ, Permission.CLIENTS_WRITE)),
    ("ACL rules", "Who can publish and subscribe", (Permission.ACL_READ, Permission.ACL_WRITE)),
    (
        "Retained messages",
        "What the broker keeps for later subscribers; write can clear it",
        (Permission.RETAINED_READ, Permission.RETAINED_WRITE),
    ),
    (
        "Auth providers",
        "Trusted token issuers",
        (Permission.PROVIDERS_READ, Permission.PROVIDERS_WRITE),
    ),
    (
        "Members",
        "Write can invite people. Grant it only where needed",
        (Permission.MEMBERS_READ, Permission.MEMBERS_WRITE),
    ),
    ("Audit log", "Who did what", (Permission.AUDIT_READ,)),
    ("Usage", "Request counts", (Permission.USAGE_READ,)),
)

REASONS = {
    Reason.UNSPECIFIED: "No specific reason",
    Reason.KEY_COMPROMISE: "The key was leaked",
    Reason.SUPERSEDED: "Replaced by another key",
    Reason.CESSATION_OF_OPERATION: "The service that used it was shut down",
    Reason.AFFILIATION_CHANGED: "The person who used it has left",
    Reason.PRIVILEGE_WITHDRAWN: "Its access was withdrawn",
}

GRACES = (
    ("24h", "24 hours", "Recommended"),
    ("1h", "1 hour", "Quick deploys"),
    ("7d", "7 days", "Key used in many places"),
    ("until_revoked", "Until I finish", "End it yourself once it's no longer used"),
    ("now", "Stop now", "The secret was leaked"),
)

EXPIRIES = (("never", "Never"), ("30", "30 days"), ("90", "90 days"), ("365", "1 year"))

# Verb phrases for audit actions; they follow the actor's name.
ACTIONS = {
    "acl_rule.created": "added an ACL rule",
    "acl_rule.deleted": "deleted an ACL rule",
    "acl_rule.updated": "edited an ACL rule",
    "acl_rules.replaced": "replaced all ACL rules",
    "attempt.refused": "was refused",
    "client.created": "created a client",
    "client.deleted": "deleted a client",
    "client.disabled": "disabled a client",
    "client.enabled": "enabled a client",
    "client.password_set": "set a client's password",
    "client.updated": "edited a client",
    "deployment.restored": "restored a backup",
    "grant.created": "created a grant",
    "grant.exchanged": "exchanged a token",
    "grant.refreshed": "refreshed a grant",
    "grant.replayed": "reused a spent refresh token",
    "grant.revoked": "revoked a grant",
    "grants.revoked": "revoked grants",
    "import_prefix.registered": "registered a prefix for imported keys",
    "import_prefix.released": "released a prefix for imported keys",
    "invitation.accepted": "accepted an invitation",
    "invitation.created": "invited a member",
    "invitation.revoked": "revoked an invitation",
    "key.disabled": "disabled the key",
    "key.enabled": "enabled the key",
    "key.exposed": "sent the secret key from a browser",
    "key.imported": "imported the key",
    "key.issued": "created the key",
    "key.revoked": "revoked the key",
    "key.rotated": "rotated the key",
    "key.updated": "edited the key",
    "member.joined": "joined by signing in",
    "member.removed": "removed a member",
    "member.role_changed": "changed a member's role",
    "organization.created": "created the organization",
    "organization.deleted": "deleted the organization",
    "organization.resumed": "resumed the organization",
    "organization.suspended": "suspended the organization",
    "organization.updated": "edited the organization",
    "ownership.transferred": "transferred ownership",
    "provider.created": "added an auth provider",
    "provider.deleted": "deleted an auth provider",
    "provider.disabled": "disabled an auth provider",
    "provider.enabled": "enabled an auth provider",
    "provider.updated": "edited an auth provider",
    "receipt.issued": "requested the receipt again",
    "retained.cleared": "cleared retained messages",
    "rotation.finished": "finished the rotation",
    "scope.created": "added a scope",
    "scope.deleted": "deleted a scope",
    "scope.updated": "edited a scope",
    "secret.ended": "ended a secret",
    "secret.revoked": "revoked a secret",
    "session.ended": "ended a session",
    "client_id.freed": "freed a client id",
}


@dataclass(frozen=True, slots=True)
class StepText:
    """Text of an overview step, and its target: a path or a page's label."""

    title: str
    more: str
    label: str = ""
    path: str = ""
    page: str = ""


STEPS = {
    "key": StepText(
        "Create an API key",
        "Give each service its own key, so you can rotate and revoke them separately.",
        "Create API key",
        "settings/api-keys?dialog=create",
    ),
    "use": StepText(
        "Use it once",
        "Put the key in WARDKEY_API_KEY and run this; the response names your organization.",
    ),
    "rule": StepText(
        "Add an ACL rule",
        "MQTT clients and publishable keys can't do anything until a rule allows it.",
        "Add a rule",
        page="ACL rules",
    ),
    "company": StepText(
        "Invite a teammate",
        "With a second member, one lost password can't lock you out of your keys.",
        "Invite a teammate",
        page="Members & roles",
    ),
}

HEALTH = {
    "messaging_off": "Messaging is turned off in this deployment.",
    "broker_reached": "The broker is responding.",
    "broker_lost": "Clients can't sign in or publish until it responds again.",
}

# Descriptions of verdict codes for the usage page.
VERDICTS = {
    "valid": "Allowed",
    "revoked": "The key or its secret was revoked",
    "expired": "The key or its secret had expired",
    "disabled": "The key was disabled",
    "wrong_environment": "A live key was used in test, or a test key in live",
    "not_permitted": "The key lacks the permission",
    "address_not_allowed": "The request came from an address that isn't allowed",
    "origin_not_allowed": "The request came from an origin that isn't allowed",
    "rate_limited": "The rate limit was reached",
    "quota_exceeded": "The quota is used up",
}
