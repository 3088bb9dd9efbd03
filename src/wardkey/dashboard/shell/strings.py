"""The English sentences that Python chooses; what stands still is in the templates."""

from __future__ import annotations

from dataclasses import dataclass

from wardkey.domain.keys import Reason
from wardkey.domain.permissions import Permission, Role

# Shown once after a redirect, by the name in `?done=`.
DONE = {
    "signed-out": "You are signed out.",
    "signed-out-everywhere": "You are signed out everywhere. Your user tokens, live topics and "
    "the MQTT grants that you made ended too.",
    "signed-out-midway": "Your session ended before the form was sent. Nothing was changed.",
    "session-ended": "The session is ended.",
    "password-changed": "The password is changed, and your other sessions are ended.",
    "key-changed": "The key is changed.",
    "key-disabled": "The key is disabled: it is refused everywhere until it is enabled again.",
    "key-enabled": "The key is enabled again.",
    "client-created": "The client is created.",
    "client-changed": "The client is changed.",
    "client-disabled": "The client is disabled: it logs in no more until it is enabled again.",
    "client-enabled": "The client is enabled again.",
    "client-deleted": "The client is deleted, and its user name is free again.",
    "client-password": "The client has the new password; the old one opens nothing any more.",
    "client-sent-before": "This form was sent before. What it made is here; a generated password "
    "was shown then and is not shown again. If nobody saved it, set a new one.",
    "rule-created": "The rule is added.",
    "rule-changed": "The rule is changed.",
    "rule-deleted": "The rule is deleted.",
    "preset-applied": "The preset's rules are in place.",
    "provider-created": "The provider is trusted now. Test it with a token.",
    "provider-changed": "The provider is changed.",
    "provider-enabled": "The provider is enabled: its tokens are exchanged again.",
    "provider-disabled": "The provider is disabled: its tokens are exchanged no more.",
    "provider-deleted": "The provider is deleted, and every grant that it stood for has ended.",
    "grant-revoked": "The grant is revoked.",
    "grants-revoked": "The grants are revoked.",
    "live-session-ended": "The session is ended. The client may log in again unless it is "
    "disabled.",
    "client-id-freed": "The client id is free. A program that still uses it takes it again.",
    "sent-before": "This form was sent before. What it made is here; its secret was shown then "
    "and is not shown again. If nobody saved it, rotate the key.",
    "invited-before": "This form was sent before. The invitation is here; its link was shown then "
    "and is not shown again. If nobody saved it, invite the address again.",
    "role-changed": "The role is changed.",
    "ownership-transferred": "The organization has another owner, and you are an admin of it.",
    "member-removed": "The member is removed.",
    "invitation-accepted": "The invitation is accepted.",
    "invitation-revoked": "The invitation is revoked; its link does not work any more.",
    "organization-changed": "The organization is changed.",
    "rotation-policy-changed": "The rotation policy is changed.",
    "organization-deleted": "The organization is deleted, and its keys are revoked.",
    "scope-created": "Scope added. You can grant it to keys now.",
    "scope-changed": "Scope changed.",
    "scope-deleted": "Scope deleted.",
    "passkey-added": "The passkey is added; you can sign in with it.",
    "passkey-renamed": "The passkey is renamed.",
    "passkey-removed": "The passkey is removed: it signs nobody in any more.",
    "confirmed": "It is confirmed that it is you. Go on in the tab that you came from.",
    "identity-unlinked": "It is unlinked. The next sign-in there by your address links it anew.",
    "left": "You have left the organization.",
}

# What a page says that somebody's role keeps from him.
REFUSED = {
    "title": "Not allowed",
    "role": "Your role in {name} is {role}.",
    "change": "An admin or the owner can give you another role.",
    "nothing": "Nothing was changed.",
}

ROLES = {
    Role.OWNER: "Everything, billing and the organization's end too; there is one",
    Role.ADMIN: "Everything but billing: keys, members, settings",
    Role.MEMBER: "Sees it all; writes clients, ACL rules and previews, makes no keys",
    Role.VIEWER: "Sees it all and changes nothing",
}

# Those of previews and billing have no box, because there is nothing yet that asks for them.
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
        "Exchange an identity provider's token or make one, see and end grants",
        (
            Permission.TOKENS_EXCHANGE,
            Permission.TOKENS_CREATE,
            Permission.TOKENS_READ,
            Permission.TOKENS_REVOKE,
        ),
    ),
    (
        "API keys",
        "Write can make more keys, admin can lift the limits of keys: tick them only where needed",
        (
            Permission.KEYS_VERIFY,
            Permission.KEYS_READ,
            Permission.KEYS_WRITE,
            Permission.KEYS_ADMIN,
        ),
    ),
    (
        "Scopes",
        "Grant any scope of your services: tick it only where needed",
        (Permission.SCOPES_GRANT,),
    ),
    ("Clients", "MQTT clients", (Permission.CLIENTS_READ, Permission.CLIENTS_WRITE)),
    ("ACL rules", "Who may publish and subscribe", (Permission.ACL_READ, Permission.ACL_WRITE)),
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
        "Write can invite people: tick it only where it is needed",
        (Permission.MEMBERS_READ, Permission.MEMBERS_WRITE),
    ),
    ("Audit log", "Who did what", (Permission.AUDIT_READ,)),
    ("Usage", "Counts of requests", (Permission.USAGE_READ,)),
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

# What each action of the audit is called after the name of whoever did it.
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
    "grant.replayed": "showed a used refresh token again",
    "grant.revoked": "revoked a grant",
    "grants.revoked": "revoked grants",
    "import_prefix.registered": "registered a prefix for imported keys",
    "import_prefix.released": "released a prefix of imported keys",
    "invitation.accepted": "accepted an invitation",
    "invitation.created": "invited somebody",
    "invitation.revoked": "revoked an invitation",
    "key.disabled": "disabled the key",
    "key.enabled": "enabled the key",
    "key.exposed": "sent the secret key from a browser",
    "key.imported": "imported the key",
    "key.issued": "created the key",
    "key.revoked": "revoked the key",
    "key.rotated": "rotated the key",
    "key.updated": "edited the key",
    "member.joined": "joined by the sign-in",
    "member.removed": "removed a member",
    "member.role_changed": "changed a member's role",
    "organization.created": "created the organization",
    "organization.deleted": "deleted the organization",
    "organization.resumed": "resumed the organization",
    "organization.suspended": "suspended the organization",
    "organization.updated": "edited the organization",
    "ownership.transferred": "transferred the ownership",
    "provider.created": "added an auth provider",
    "provider.deleted": "deleted an auth provider",
    "provider.disabled": "disabled an auth provider",
    "provider.enabled": "enabled an auth provider",
    "provider.updated": "edited an auth provider",
    "receipt.issued": "asked for the receipt again",
    "retained.cleared": "cleared retained messages",
    "rotation.finished": "finished the rotation",
    "scope.created": "added a scope",
    "scope.deleted": "deleted a scope",
    "scope.updated": "edited a scope",
    "secret.ended": "ended one secret",
    "secret.revoked": "revoked one secret",
    "session.ended": "ended a session",
    "client_id.freed": "freed a client id",
}


@dataclass(frozen=True, slots=True)
class StepText:
    """What a step of the overview's list says, and where it is done: a path, or a page's label."""

    title: str
    more: str
    label: str = ""
    path: str = ""
    page: str = ""


STEPS = {
    "key": StepText(
        "Create an API key",
        "A key of its own for each service, so that each can be rotated and revoked alone.",
        "Create API key",
        "settings/api-keys?dialog=create",
    ),
    "use": StepText(
        "Use it once",
        "Put the key in WARDKEY_API_KEY and ask who it is; the answer names your organization.",
    ),
    "rule": StepText(
        "Add an ACL rule",
        "Over MQTT and with publishable keys nothing is allowed until a rule says so.",
        "Add a rule",
        page="ACL rules",
    ),
    "company": StepText(
        "Invite somebody",
        "With two people in the organization, the keys outlive one lost password.",
        "Invite somebody",
        page="Members & roles",
    ),
}

HEALTH = {
    "messaging_off": "This deployment was started without it.",
    "broker_reached": "The broker answers.",
    "broker_lost": "Nobody can log in or publish until it answers again.",
}

# What each verdict code means, for whoever reads the counts.
VERDICTS = {
    "valid": "Allowed",
    "revoked": "The key or its secret was revoked",
    "expired": "The key or its secret had expired",
    "disabled": "The key was disabled",
    "wrong_environment": "A live key in test, or the other way round",
    "not_permitted": "The key does not hold the permission",
    "address_not_allowed": "It came from an address that is not allowed",
    "origin_not_allowed": "It came from a page that is not allowed",
    "rate_limited": "The rate limit was reached",
    "quota_exceeded": "The quota was used up",
}
