"""All tables of a deployment; times are in epoch milliseconds."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB

NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_N_name)s",
    "uq": "uq_%(table_name)s_%(column_0_N_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}
metadata = MetaData(naming_convention=NAMING)
Json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

# Tables without rowid store rows in the primary key's tree, which saves SQLite a page write each.

# --- the deployment ------------------------------------------------------------------------

# One row: the change feed's counter. A restore sets a new epoch, so readers discard everything
# they know from the old one.
feed = Table(
    "feed",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("epoch", String(24), nullable=False),
    Column("revision", BigInteger, nullable=False),
)

changes = Table(
    "changes",
    metadata,
    Column("revision", BigInteger, primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("epoch", String(24), nullable=False),
    Column("org_id", String(40), nullable=False),
    Column("subject", String(32), nullable=False),
    Column("subject_id", String(64), nullable=False),
    Column("at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# The current master key is recognized by its tag; keys derived from earlier ones are sealed.
master_keys = Table(
    "master_keys",
    metadata,
    Column("version", Integer, primary_key=True),
    Column("tag", LargeBinary, nullable=False),
    Column("sealed_pepper", LargeBinary),
    Column("sealed_audit_key", LargeBinary),
    # Only in the newest version's row; null if its master key derives the root.
    Column("sealed_broker_root", LargeBinary),
    Column("created_at", BigInteger, nullable=False),
)

service_keys = Table(
    "service_keys",
    metadata,
    Column("kid", String(12), primary_key=True),
    Column("name", String(100), nullable=False),
    Column("prefix", String(64), nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("pepper_version", Integer, nullable=False),
    Column("allowed_addresses", Json, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
)

# --- organizations and people --------------------------------------------------------------

organizations = Table(
    "organizations",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("slug", String(48), nullable=False, unique=True),
    Column("name", String(100), nullable=False),
    # The age in days at which a secret key's newest secret is due for rotation.
    Column("rotation_days", Integer, nullable=False, server_default="90"),
    Column("created_at", BigInteger, nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("suspended_at", BigInteger),
    Column("deleted_at", BigInteger),
)

# Every slug an organization ever had stays reserved, even after a deletion or a restore.
# No foreign key, because a restore keeps the slugs of organizations that the backup lacks.
organization_slugs = Table(
    "organization_slugs",
    metadata,
    Column("slug", String(48), primary_key=True),
    Column("org_id", String(40), nullable=False, index=True),
    Column("taken_at", BigInteger, nullable=False),
)

users = Table(
    "users",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("email", String(254), nullable=False),
    Column("email_folded", String(254), nullable=False, unique=True),
    Column("name", String(100), nullable=False),
    Column("password_hash", Text),
    Column("created_at", BigInteger, nullable=False),
)

members = Table(
    "members",
    metadata,
    Column("org_id", ForeignKey("organizations.id"), primary_key=True),
    Column("user_id", ForeignKey("users.id"), primary_key=True, index=True),
    Column("role", String(16), nullable=False),
    Column("created_at", BigInteger, nullable=False),
)

invitations = Table(
    "invitations",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("org_id", ForeignKey("organizations.id"), nullable=False, index=True),
    Column("email", String(254), nullable=False),
    Column("role", String(16), nullable=False),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("pepper_version", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("accepted_at", BigInteger),
    Column("revoked_at", BigInteger),
)

setup_links = Table(
    "setup_links",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("pepper_version", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("used_at", BigInteger),
)

user_tokens = Table(
    "user_tokens",
    metadata,
    Column("kid", String(12), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("digest", LargeBinary, nullable=False),
    Column("pepper_version", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("address", String(64), nullable=False),
    Column("user_agent", String(200), nullable=False),
    sqlite_with_rowid=False,
)

# Signed-in browsers; the text of the session cookie is stored only in the browser.
browser_sessions = Table(
    "browser_sessions",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("digest", LargeBinary, nullable=False, unique=True),
    Column("pepper_version", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("signed_in_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("address", String(64), nullable=False),
    Column("user_agent", String(200), nullable=False),
)

# Forms that create a secret are accepted once; `made` is the id of what the form created.
spent_forms = Table(
    "spent_forms",
    metadata,
    Column("session_id", String(40), primary_key=True),
    Column("nonce", String(64), primary_key=True),
    Column("made", String(64), nullable=False),
    Column("at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Removed passkeys stay, so a restore does not bring them back.
passkeys = Table(
    "passkeys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("credential_id", LargeBinary, nullable=False, unique=True),
    Column("public_key", LargeBinary, nullable=False),
    Column("sign_count", BigInteger, nullable=False),
    Column("name", String(100), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("last_used_at", BigInteger),
    Column("removed_at", BigInteger),
)

# The user of each OIDC issuer's subject, linked at their first sign-in through it.
identities = Table(
    "identities",
    metadata,
    Column("issuer", String(500), primary_key=True),
    Column("subject", String(255), primary_key=True),
    Column("user_id", ForeignKey("users.id"), nullable=False, index=True),
    Column("email", String(254), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("last_used_at", BigInteger, nullable=False),
)

# Challenges that a passkey has answered, until they expire: each is valid once. `subject` is the
# user it was for, or empty.
challenges = Table(
    "challenges",
    metadata,
    Column("challenge", LargeBinary, primary_key=True),
    Column("subject", String(64), nullable=False),
    Column("expires_at", BigInteger, nullable=False, index=True),
)

# --- keys ----------------------------------------------------------------------------------

keys = Table(
    "keys",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("org_id", ForeignKey("organizations.id"), nullable=False),
    Column("environment", String(8), nullable=False),
    Column("type", String(16), nullable=False),
    Column("name", String(100), nullable=False),
    # The case-folded name while the key is live, else null; unique in its scope.
    Column("live_name", String(400)),
    Column("description", String(500), nullable=False),
    Column("permissions", Json, nullable=False),
    Column("allowed_addresses", Json, nullable=False),
    Column("allowed_origins", Json, nullable=False),
    Column("allow_native", Boolean, nullable=False),
    Column("rate_limit", Json),
    Column("metadata", Json, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("rotated_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger),
    Column("disabled_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("revoke_reason", String(32)),
    Column("revoke_comment", String(500)),
    UniqueConstraint("org_id", "environment", "live_name"),
    Index("ix_keys_room", "org_id", "environment", "created_at", "id"),
    sqlite_with_rowid=False,
)

secrets = Table(
    "secrets",
    metadata,
    Column("kid", String(12), primary_key=True),
    Column("key_id", ForeignKey("keys.id"), nullable=False, index=True),
    Column("org_id", String(40), nullable=False),
    Column("environment", String(8), nullable=False),
    Column("prefix", String(64), nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("pepper_version", Integer, nullable=False),
    Column("imported", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("expires_at", BigInteger),
    Column("revoked_at", BigInteger),
    Column("revoke_reason", String(32)),
    Column("revoke_comment", String(500)),
    sqlite_with_rowid=False,
)

# Imported secrets have no kid in their text, so they are found by digest. One row each is
# enough, because it contains the pepper version.
imported = Table(
    "imported",
    metadata,
    Column("digest", LargeBinary, primary_key=True),
    Column("pepper_version", Integer, nullable=False),
    Column("kid", ForeignKey("secrets.kid"), nullable=False, unique=True),
    sqlite_with_rowid=False,
)

import_prefixes = Table(
    "import_prefixes",
    metadata,
    Column("prefix", String(32), primary_key=True),
    Column("org_id", ForeignKey("organizations.id"), nullable=False, index=True),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(64), nullable=False),
)

# The scope catalogue for an organization's own services, shared by its environments.
scopes = Table(
    "scopes",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("org_id", ForeignKey("organizations.id"), nullable=False),
    Column("name", String(98), nullable=False),
    Column("description", String(200), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(64), nullable=False),
    UniqueConstraint("org_id", "name"),
)

receipts = Table(
    "receipts",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("org_id", ForeignKey("organizations.id"), nullable=False),
    Column("environment", String(8), nullable=False),
    Column("key_id", ForeignKey("keys.id"), nullable=False, index=True),
    # Empty for the whole key, else one secret.
    Column("kid", String(12), nullable=False),
    Column("epoch", String(24), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("revoked_at", BigInteger, nullable=False),
    Column("reason", String(32), nullable=False),
    UniqueConstraint("key_id", "kid"),
    sqlite_with_rowid=False,
)

# --- messaging -----------------------------------------------------------------------------

acl_rules = Table(
    "acl_rules",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("org_id", ForeignKey("organizations.id"), nullable=False),
    Column("environment", String(8), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("subject_kind", String(16), nullable=False),
    # Empty for everyone and for publishable keys.
    Column("subject", String(64), nullable=False),
    Column("filter", String(1024), nullable=False),
    Column("action", String(16), nullable=False),
    Column("effect", String(8), nullable=False),
    Column("description", String(500), nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("ix_acl_rules_room", "org_id", "environment"),
    sqlite_with_rowid=False,
)

# A chosen password has an Argon2id hash, a generated one a digest.
clients = Table(
    "clients",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("org_id", ForeignKey("organizations.id"), nullable=False),
    Column("environment", String(8), nullable=False),
    Column("username", String(64), nullable=False),
    Column("display_name", String(100), nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("tags", Json, nullable=False),
    Column("password_hash", Text),
    Column("digest", LargeBinary),
    Column("pepper_version", Integer),
    Column("password_set_at", BigInteger, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Column("last_connected_at", BigInteger),
    UniqueConstraint("org_id", "environment", "username"),
    Index("ix_clients_room", "org_id", "environment", "created_at", "id"),
    sqlite_with_rowid=False,
)

# Tokens for the hooks of the operator's own brokers; without an organization, valid for all.
hook_tokens = Table(
    "hook_tokens",
    metadata,
    Column("kid", String(12), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("org_id", ForeignKey("organizations.id")),
    Column("environment", String(8)),
    Column("prefix", String(64), nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("pepper_version", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("revoked_at", BigInteger),
    sqlite_with_rowid=False,
)

# `sealed` contains the provider's shared secret, if any, encrypted under a key derived from the
# pepper of `pepper_version`.
auth_providers = Table(
    "auth_providers",
    metadata,
    Column("id", String(40), primary_key=True),
    Column("org_id", ForeignKey("organizations.id"), nullable=False),
    Column("environment", String(8), nullable=False),
    Column("name", String(100), nullable=False),
    Column("kind", String(16), nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("settings", Json, nullable=False),
    Column("sealed", LargeBinary),
    Column("pepper_version", Integer),
    Column("created_at", BigInteger, nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("updated_at", BigInteger, nullable=False),
    Index("ix_auth_providers_room", "org_id", "environment", "created_at", "id"),
    sqlite_with_rowid=False,
)

# `user_key` identifies the user across grants, `revision` is that of the commit that inserted
# the row, and `replaced_by` is the kid of the grant that a refresh created.
grants = Table(
    "grants",
    metadata,
    Column("kid", String(12), primary_key=True),
    Column("org_id", ForeignKey("organizations.id"), nullable=False),
    Column("environment", String(8), nullable=False),
    # Empty for a grant that a server created for one of its own users.
    Column("provider_id", String(40), nullable=False),
    Column("user_id", String(255), nullable=False),
    Column("user_email", String(254), nullable=False),
    Column("user_key", String(32), nullable=False),
    Column("username", String(64), nullable=False),
    Column("claims", Json, nullable=False),
    Column("digest", LargeBinary, nullable=False),
    Column("pepper_version", Integer, nullable=False),
    # The key and secret used to request the grant; empty without a key.
    Column("key_id", String(40), nullable=False),
    Column("key_kid", String(12), nullable=False),
    # The member who created it; empty for other creators, and for grants older than the column.
    Column("member_id", String(40), nullable=False, server_default=""),
    Column("family", String(12), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("ttl_s", Integer, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("refreshable_until", BigInteger, nullable=False),
    Column("replaced_by", String(12)),
    # When it was first refreshed; null with a `replaced_by` if its response was lost (superseded).
    Column("refreshed_at", BigInteger),
    # The first use of a grant from a refresh, recorded while the refresh can be repeated.
    Column("used_at", BigInteger),
    Column("revoked_at", BigInteger),
    Index("ix_grants_room", "org_id", "environment", "created_at", "kid"),
    Index("ix_grants_user", "org_id", "environment", "user_id"),
    Index("ix_grants_username", "org_id", "environment", "username"),
    Index("ix_grants_user_key", "org_id", "environment", "user_key"),
    Index("ix_grants_key_id", "key_id", "expires_at"),
    Index("ix_grants_refreshable_until", "refreshable_until"),
    Index(
        "ix_grants_member_id",
        "member_id",
        sqlite_where=text("member_id <> ''"),
        postgresql_where=text("member_id <> ''"),
    ),
    sqlite_with_rowid=False,
)

# One row ends every grant of a user, a provider, a key or a family up to `revision`, regardless
# of the number of grants.
grant_cutoffs = Table(
    "grant_cutoffs",
    metadata,
    Column("org_id", ForeignKey("organizations.id"), primary_key=True),
    Column("environment", String(8), primary_key=True),
    Column("kind", String(8), primary_key=True),
    Column("subject", String(255), primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# --- responses stored for retries ----------------------------------------------------------

idempotency = Table(
    "idempotency",
    metadata,
    Column("id", LargeBinary, primary_key=True),
    Column("body_digest", LargeBinary, nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False, index=True),
    sqlite_with_rowid=False,
)

# --- audit ---------------------------------------------------------------------------------

# One chain per organization; the deployment's own has the id `deployment`.
audit_heads = Table(
    "audit_heads",
    metadata,
    Column("org_id", String(40), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

audit_events = Table(
    "audit_events",
    metadata,
    Column("org_id", String(40), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("id", String(40), nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("environment", String(8), nullable=False),
    Column("actor_kind", String(16), nullable=False),
    Column("actor_id", String(64), nullable=False),
    Column("actor_label", String(254), nullable=False),
    Column("action", String(64), nullable=False),
    Column("target_kind", String(32), nullable=False),
    Column("target_id", String(64), nullable=False),
    Column("address", String(64), nullable=False),
    Column("user_agent", String(200), nullable=False),
    # Text, not JSON: the chain's MAC covers these exact bytes.
    Column("details", Text, nullable=False),
    Column("key_version", Integer, nullable=False),
    Column("mac", LargeBinary, nullable=False),
    Index("ix_audit_events_target", "org_id", "target_id", "seq"),
    sqlite_with_rowid=False,
)

# --- usage: a database file, or a schema, of its own -----------------------------------------

usage = MetaData(naming_convention=NAMING, schema="usage")

last_used = Table(
    "last_used",
    usage,
    Column("kid", String(12), primary_key=True),
    Column("key_id", String(40), nullable=False, index=True),
    Column("at", BigInteger, nullable=False),
    Column("address", String(64), nullable=False),
    Column("user_agent", String(200), nullable=False),
    Column("verifications", BigInteger, nullable=False),
)

# Rejected unknown credentials, counted by hour and code; never one row each.
refused = Table(
    "refused",
    usage,
    Column("hour", BigInteger, primary_key=True),
    Column("code", String(32), primary_key=True),
    Column("count", BigInteger, nullable=False),
)

# Verdict counts by secret and hour (`at // 3_600_000`). This table and the next have no index
# besides their key: they are written for each use and cleaned up only once an hour.
hours = Table(
    "hours",
    usage,
    Column("kid", String(12), primary_key=True),
    Column("hour", BigInteger, primary_key=True),
    Column("code", String(32), primary_key=True),
    Column("key_id", String(40), nullable=False),
    Column("count", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# The heaviest callers of each secret, bounded by a Space-Saving sketch.
callers = Table(
    "callers",
    usage,
    Column("kid", String(12), primary_key=True),
    Column("address", String(64), primary_key=True),
    Column("product", String(64), primary_key=True),
    Column("route", String(100), primary_key=True),
    Column("key_id", String(40), nullable=False),
    Column("first_at", BigInteger, nullable=False),
    Column("last_at", BigInteger, nullable=False),
    Column("count", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Counts since the last merge, one row per flush, as JSON. Uses that differ only in their secret
# are grouped: `[code, address, user agent, route, product, hour,
# [[kid, key id, count, first, last], …]]`; unknown credentials are `[hour, code, count]`.
pending = Table(
    "pending",
    usage,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("at", BigInteger, nullable=False),
    Column("uses", Text, nullable=False),
    Column("refused", Text, nullable=False),
)

# Messages published with an Idempotency-Key: the stored response, or that it is unconfirmed.
publications = Table(
    "publications",
    usage,
    Column("id", LargeBinary, primary_key=True),
    Column("body_digest", LargeBinary, nullable=False),
    Column("answer", LargeBinary, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# The owner of each MQTT client id, so no client takes over another's session, and a digest of
# the rights granted at its last login.
mqtt_ids = Table(
    "mqtt_ids",
    usage,
    Column("org_id", String(40), primary_key=True),
    Column("environment", String(8), primary_key=True),
    Column("mqtt_id", String(256), primary_key=True),
    Column("subject_id", String(64), nullable=False),
    Column("rights", LargeBinary, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    # The grant presented at the login; the broker does not report it.
    Column("grant_kid", String(12)),
    # The connection of that login, as the broker lists it; the row describes only this one.
    Column("server", String(64)),
    Column("cid", BigInteger),
    # Null in rows older than the column.
    Column("taken_at", BigInteger),
    # When it lost its holder. The row is deleted once the broker has no session under it; the
    # process that removes that session has a lease until `leased_until`.
    Column("freed_at", BigInteger),
    Column("leased_until", BigInteger),
    Index("ix_mqtt_ids_subject_id", "org_id", "environment", "subject_id"),
    Index(
        "ix_mqtt_ids_freed_at",
        "freed_at",
        sqlite_where=text("freed_at IS NOT NULL"),
        postgresql_where=text("freed_at IS NOT NULL"),
    ),
    sqlite_with_rowid=False,
)

# The effect of a change on live sessions: the number it ended, once that is final.
session_receipts = Table(
    "session_receipts",
    usage,
    Column("id", String(40), primary_key=True),
    Column("org_id", String(40), nullable=False),
    Column("environment", String(8), nullable=False),
    Column("epoch", String(24), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("subjects", Text, nullable=False),
    Column("at", BigInteger, nullable=False),
    Column("reached", Boolean, nullable=False),
    Column("ended", Integer),
    Index("ix_session_receipts_revision", "epoch", "revision"),
    sqlite_with_rowid=False,
)

# Ended sessions, kept for an hour to be counted, with the revision that the decision was based
# on; several processes may end the same one.
ended_sessions = Table(
    "ended_sessions",
    usage,
    Column("server", String(64), primary_key=True),
    Column("cid", BigInteger, primary_key=True),
    Column("org_id", String(40), nullable=False),
    Column("environment", String(8), nullable=False),
    Column("epoch", String(24), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("subject_id", String(64), nullable=False),
    Column("at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# Verifier processes, each with its lease and last metrics snapshot.
verifiers = Table(
    "verifiers",
    usage,
    Column("id", String(40), primary_key=True),
    Column("node", String(100), nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", BigInteger, nullable=False),
    Column("seen_at", BigInteger, nullable=False),
    Column("released_at", BigInteger),
    Column("lease_seq", BigInteger, nullable=False),
    Column("epoch", String(24), nullable=False),
    Column("applied_revision", BigInteger, nullable=False),
    Column("max_staleness_ms", BigInteger, nullable=False),
    Column("metrics", Text, nullable=False),
)
