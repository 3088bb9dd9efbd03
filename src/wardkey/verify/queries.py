"""The SQL queries for verification, the same on both storages."""

from __future__ import annotations

_COLUMNS = """
  s.kid, s.key_id, s.org_id, o.name AS org_name, o.slug AS org_slug,
  (SELECT string_agg(u.slug, ',') FROM organization_slugs u
    WHERE u.org_id = s.org_id) AS org_slugs, s.environment, k.type,
  k.name, s.prefix, s.digest, s.pepper_version, s.imported, k.permissions, k.metadata,
  k.allowed_addresses, k.allowed_origins, k.allow_native, k.rate_limit,
  s.expires_at AS secret_expires_at, s.revoked_at AS secret_revoked_at,
  (SELECT min(n.created_at) FROM secrets n
    WHERE n.key_id = s.key_id AND n.created_at > s.created_at) AS superseded_at,
  k.expires_at AS key_expires_at, k.disabled_at AS key_disabled_at,
  k.revoked_at AS key_revoked_at, o.suspended_at AS org_suspended_at,
  o.deleted_at AS org_deleted_at
"""
_FROM = "FROM secrets s JOIN keys k ON k.id = s.key_id JOIN organizations o ON o.id = s.org_id"

BY_KID = f"SELECT {_COLUMNS} {_FROM} WHERE s.kid = :value"
BY_DIGEST = f"""SELECT {_COLUMNS} {_FROM}
  JOIN imported i ON i.kid = s.kid WHERE i.digest = :value"""
SERVICE = """SELECT kid, name, prefix, digest, pepper_version, allowed_addresses, revoked_at
  FROM service_keys WHERE kid = :value"""
TWO_ORGANIZATIONS = "SELECT id FROM organizations WHERE deleted_at IS NULL LIMIT 2"
# Matches an id, a slug or a former slug; ids never look like slugs, and slugs are unique.
ORGANIZATION = """SELECT id FROM organizations WHERE id = :value OR slug = :value
  UNION SELECT org_id AS id FROM organization_slugs WHERE slug = :value"""
PREFIXES = "SELECT prefix FROM import_prefixes"
FEED = "SELECT epoch, revision FROM feed"
OLDEST = "SELECT min(revision) AS oldest FROM changes"
CHANGES = "SELECT subject, subject_id, org_id FROM changes WHERE revision > :value"
KIDS = "SELECT kid FROM secrets WHERE key_id = :value"
