"""Plans a restore: what it carries over from the replaced database, and what it loses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, Table, func, select

from wardkey.actions.core.audit import Target
from wardkey.actions.operations.restore_diff import (
    CarriedRestriction,
    Fields,
    KeptRules,
    LostRecord,
    RestorePlan,
    ends_earlier,
    missing_rows,
    paired_rows,
    set_after_backup,
)
from wardkey.db.backup import Backup, find
from wardkey.db.engine import Transaction
from wardkey.db.schema import (
    acl_rules,
    auth_providers,
    clients,
    hook_tokens,
    import_prefixes,
    invitations,
    keys,
    members,
    organization_slugs,
    organizations,
    passkeys,
    receipts,
    scopes,
    secrets,
    service_keys,
    setup_links,
    users,
)
from wardkey.db.scoped import in_scope
from wardkey.domain.permissions import Role
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope

# The columns of a provider that a restore keeps.
_PROVIDER_COLUMNS = ("name", "enabled", "settings", "sealed", "pepper_version")
# Edits of these columns of a key are undone and reported; an earlier expiry is carried over.
_KEY_COLUMNS = (
    "name",
    "permissions",
    "allowed_addresses",
    "allowed_origins",
    "allow_native",
    "rate_limit",
    "metadata",
)
_RANKS = (Role.VIEWER, Role.MEMBER, Role.ADMIN, Role.OWNER)


def plan_restore(tx: Transaction, backup: Backup) -> RestorePlan:
    """Compare all rows of the database and the backup, keeping only the differences in memory."""
    plan = RestorePlan()
    lost_orgs = _compare_organizations(tx, backup, plan)
    _compare_users(tx, backup, plan)
    _compare_members(tx, backup, plan, lost_orgs)
    prefixes = _compare_secrets(tx, backup, plan, lost_orgs)
    _compare_keys(tx, backup, plan, prefixes)
    _compare_tokens(tx, backup, plan, service_keys, "service_key")
    _compare_tokens(tx, backup, plan, hook_tokens, "hook_token")
    _compare_clients(tx, backup, plan, lost_orgs)
    _compare_rules(tx, backup, plan, lost_orgs)
    _compare_providers(tx, backup, plan, lost_orgs)
    _compare_invitations(tx, backup, plan, lost_orgs)
    _compare_setup_links(tx, backup, plan)
    _compare_passkeys(tx, backup, plan)
    _compare_import_prefixes(tx, backup, plan)
    _compare_scopes(tx, backup, plan, lost_orgs)
    plan.receipts = _added_rows(tx, backup, receipts)
    plan.slugs = _added_rows(tx, backup, organization_slugs)
    return plan


def _added_rows(tx: Transaction, backup: Backup, table: Table) -> list[Fields]:
    """Return the rows that the backup lacks."""
    return [dict(row._mapping) for row, old in paired_rows(tx, backup, table) if old is None]  # noqa: SLF001


def _compare_organizations(tx: Transaction, backup: Backup, plan: RestorePlan) -> set[str]:
    lost = set()
    for current, old in paired_rows(tx, backup, organizations):
        target = Target("organization", current.id)
        if old is None:
            lost.add(current.id)
            plan.lost.append(LostRecord("organization", current.id, current.name, current.id))
        elif set_after_backup(current, old, organizations.c.deleted_at):
            values = {"deleted_at": current.deleted_at, "slug": current.slug}
            action = "organization.deleted"
            plan.restrictions.append(
                CarriedRestriction(organizations, (current.id,), values, action, target, current.id)
            )
        else:
            if set_after_backup(current, old, organizations.c.suspended_at):
                values = {"suspended_at": current.suspended_at}
                action = "organization.suspended"
                plan.restrictions.append(
                    CarriedRestriction(
                        organizations, (current.id,), values, action, target, current.id
                    )
                )
            changed = tuple(n for n in ("name", "slug") if getattr(current, n) != getattr(old, n))
            if changed:
                plan.widened.append(
                    LostRecord("organization", current.id, current.name, current.id, fields=changed)
                )
    return lost


def _compare_users(tx: Transaction, backup: Backup, plan: RestorePlan) -> None:
    for current, old in paired_rows(tx, backup, users):
        if old is None:
            plan.lost.append(LostRecord("user", current.id, current.email))
        elif current.password_hash not in (None, old.password_hash):
            values = {"password_hash": current.password_hash}
            target = Target("user", current.id)
            plan.restrictions.append(
                CarriedRestriction(users, (current.id,), values, "user.password_set", target)
            )


def _compare_members(
    tx: Transaction, backup: Backup, plan: RestorePlan, lost_orgs: set[str]
) -> None:
    ownerless = set()
    for current, old in paired_rows(tx, backup, members):
        target, name = Target("member", current.user_id), (current.org_id, current.user_id)
        if old is None:
            if current.org_id not in lost_orgs:
                plan.lost.append(
                    LostRecord(
                        "member", current.user_id, _email(tx, current.user_id), current.org_id
                    )
                )
        elif _RANKS.index(current.role) < _RANKS.index(old.role):
            details = {"role": current.role, "old_role": old.role}
            plan.restrictions.append(
                CarriedRestriction(
                    members,
                    name,
                    {"role": current.role},
                    "member.role_changed",
                    target,
                    current.org_id,
                    details=details,
                )
            )
            if old.role == Role.OWNER:
                ownerless.add(current.org_id)
        elif current.role != old.role:
            email = _email(tx, current.user_id)
            plan.widened.append(
                LostRecord("member", current.user_id, email, current.org_id, fields=("role",))
            )
    ownerless |= _compare_removed_members(tx, backup, plan)
    for org_id in sorted(ownerless):
        plan.owners += _current_owners(tx, org_id)


def _compare_removed_members(tx: Transaction, backup: Backup, plan: RestorePlan) -> set[str]:
    """Plan to remove the members removed since; return organizations whose owner was removed."""
    ownerless = set()
    exists: dict[str, bool] = {}
    for old in missing_rows(tx, backup, members):
        if old.org_id not in exists:
            exists[old.org_id] = bool(find(tx.connection, organizations, [(old.org_id,)]))
        if exists[old.org_id]:
            target, name = Target("member", old.user_id), (old.org_id, old.user_id)
            plan.restrictions.append(
                CarriedRestriction(members, name, None, "member.removed", target, old.org_id)
            )
            if old.role == Role.OWNER:
                ownerless.add(old.org_id)
    return ownerless


def _current_owners(tx: Transaction, org_id: str) -> list[tuple[Fields, Fields]]:
    rows = tx.connection.execute(
        select(members).where(members.c.org_id == org_id, members.c.role == Role.OWNER)
    ).all()
    owners = find(tx.connection, users, [(row.user_id,) for row in rows])
    return [(dict(owners[row.user_id,]._mapping), dict(row._mapping)) for row in rows]  # noqa: SLF001


def _email(tx: Transaction, user_id: str) -> str:
    return str(
        tx.connection.execute(select(users.c.email).where(users.c.id == user_id)).scalar_one()
    )


def _compare_secrets(
    tx: Transaction, backup: Backup, plan: RestorePlan, lost_orgs: set[str]
) -> dict[str, list[str]]:
    """Compare secrets; return the prefixes of lost ones, by key id."""
    lost: dict[str, list[str]] = {}
    for current, old in paired_rows(tx, backup, secrets):
        if old is None:
            lost.setdefault(current.key_id, []).append(current.prefix)
            if current.org_id not in lost_orgs:
                loss = LostRecord(
                    "secret", current.kid, current.key_id, current.org_id, (current.prefix,)
                )
                plan.lost.append(loss)
            continue
        changes: list[tuple[str, dict[str, Any]]] = []
        if set_after_backup(current, old, secrets.c.revoked_at):
            changes.append(("secret.revoked", _revocation_columns(current)))
        if ends_earlier(current.expires_at, old.expires_at):
            changes.append(("secret.ended", {"expires_at": current.expires_at}))
        for action, values in changes:
            target = Target("key", current.key_id)
            plan.restrictions.append(
                CarriedRestriction(
                    secrets,
                    (current.kid,),
                    values,
                    action,
                    target,
                    current.org_id,
                    current.environment,
                    {**values, "kid": current.kid},
                )
            )
    return lost


def _revocation_columns(current: Row[Any]) -> dict[str, Any]:
    return {
        "revoked_at": current.revoked_at,
        "revoke_reason": current.revoke_reason,
        "revoke_comment": current.revoke_comment,
    }


def _compare_keys(
    tx: Transaction, backup: Backup, plan: RestorePlan, prefixes: Mapping[str, list[str]]
) -> None:
    lost = set()
    for current, old in paired_rows(tx, backup, keys):
        if old is None:
            lost.add(current.id)
            own_prefixes = tuple(prefixes.get(current.id, ()))
            plan.lost.append(
                LostRecord("key", current.id, current.name, current.org_id, own_prefixes)
            )
            continue
        changes: list[tuple[str, dict[str, Any]]] = []
        if set_after_backup(current, old, keys.c.revoked_at):
            changes.append(("key.revoked", {**_revocation_columns(current), "live_name": None}))
        if set_after_backup(current, old, keys.c.disabled_at):
            changes.append(("key.disabled", {"disabled_at": current.disabled_at}))
        if ends_earlier(current.expires_at, old.expires_at):
            changes.append(("key.updated", {"expires_at": current.expires_at}))
        for action, values in changes:
            target, details = Target("key", current.id), {"name": old.name, **values}
            details.pop("live_name", None)
            where = (current.org_id, current.environment, details)
            row = {**values, "updated_at": tx.now}
            plan.restrictions.append(
                CarriedRestriction(keys, (current.id,), row, action, target, *where)
            )
        if current.revoked_at is None and old.revoked_at is None:
            fields = _undone_edits(current, old)
            if fields:
                plan.widened.append(
                    LostRecord("key", current.id, old.name, current.org_id, fields=fields)
                )
    # A lost key's record already lists its secrets.
    plan.lost = [
        record for record in plan.lost if not (record.kind == "secret" and record.label in lost)
    ]


def _undone_edits(current: Row[Any], old: Row[Any]) -> tuple[str, ...]:
    """Return the names of a key's columns whose edits the restore undoes."""
    fields = [name for name in _KEY_COLUMNS if getattr(current, name) != getattr(old, name)]
    if current.expires_at != old.expires_at and not ends_earlier(
        current.expires_at, old.expires_at
    ):
        fields.append("expires_at")
    if current.disabled_at is None and old.disabled_at is not None:
        fields.append("disabled_at")
    return tuple(fields)


def _compare_tokens(
    tx: Transaction, backup: Backup, plan: RestorePlan, table: Table, kind: str
) -> None:
    for current, old in paired_rows(tx, backup, table):
        if old is None:
            label = current.name if kind == "service_key" else current.kind
            plan.lost.append(LostRecord(kind, current.kid, label, prefixes=(current.prefix,)))
        elif set_after_backup(current, old, table.c.revoked_at):
            values, target = {"revoked_at": current.revoked_at}, Target(kind, current.kid)
            plan.restrictions.append(
                CarriedRestriction(table, (current.kid,), values, f"{kind}.revoked", target)
            )


def _compare_clients(
    tx: Transaction, backup: Backup, plan: RestorePlan, lost_orgs: set[str]
) -> None:
    for current, old in paired_rows(tx, backup, clients):
        if old is None:
            if current.org_id not in lost_orgs:
                plan.lost.append(LostRecord("client", current.id, current.username, current.org_id))
            continue
        changes: list[tuple[str, dict[str, Any]]] = []
        if _has_new_password(_password_columns(current), _password_columns(old)):
            changes.append(("client.password_set", _password_columns(current)))
        if old.enabled and not current.enabled:
            changes.append(("client.disabled", {"enabled": False}))
        for action, values in changes:
            where = (Target("client", current.id), current.org_id, current.environment)
            row, details = {**values, "updated_at": tx.now}, {"username": current.username}
            plan.restrictions.append(
                CarriedRestriction(clients, (current.id,), row, action, *where, details)
            )
        if current.enabled and not old.enabled:
            fields = ("enabled",)
            plan.widened.append(
                LostRecord("client", current.id, current.username, current.org_id, fields=fields)
            )
    for old in missing_rows(tx, backup, clients):
        # An organization that the database never had is restored as the backup has it.
        if find(tx.connection, organizations, [(old.org_id,)]):
            where = (Target("client", old.id), old.org_id, old.environment)
            details = {"username": old.username}
            plan.restrictions.append(
                CarriedRestriction(clients, (old.id,), None, "client.deleted", *where, details)
            )


def _password_columns(row: Row[Any]) -> dict[str, Any]:
    return {
        "password_hash": row.password_hash,
        "digest": None if row.digest is None else bytes(row.digest),
        "pepper_version": row.pepper_version,
        "password_set_at": row.password_set_at,
    }


def _has_new_password(current: Fields, old: Fields) -> bool:
    """Return whether a password was set since; rehashing under a new pepper doesn't count."""
    rehashed = current["pepper_version"] != old["pepper_version"]
    changed = {name for name in current if current[name] != old[name]}
    return bool(changed - ({"digest", "pepper_version"} if rehashed else set()))


def _compare_rules(tx: Transaction, backup: Backup, plan: RestorePlan, lost_orgs: set[str]) -> None:
    """Keep each tenant scope's current rules: two sets can't be compared for strictness."""
    scopes = {
        TenantScope(row.org_id, Environment(row.environment))
        for row in missing_rows(tx, backup, acl_rules)
    }
    for current, old in paired_rows(tx, backup, acl_rules):
        if old is None or tuple(current) != tuple(old):
            scopes.add(TenantScope(current.org_id, Environment(current.environment)))
    for scope in sorted(scopes):
        org_id, environment = scope
        if org_id in lost_orgs or not find(tx.connection, organizations, [(org_id,)]):
            continue
        of_scope = in_scope(acl_rules, scope)
        rows = tx.connection.execute(select(acl_rules).where(of_scope)).mappings()
        replaced = backup.connection.execute(
            select(func.count()).select_from(acl_rules).where(of_scope)
        ).scalar_one()
        rules = tuple(dict(row) for row in rows)
        plan.kept_rules.append(KeptRules(org_id, environment, rules, replaced))


def _compare_providers(
    tx: Transaction, backup: Backup, plan: RestorePlan, lost_orgs: set[str]
) -> None:
    """Keep each provider's current settings: two can't be compared for strictness."""
    for current, old in paired_rows(tx, backup, auth_providers):
        if old is None:
            if current.org_id not in lost_orgs:
                plan.lost.append(LostRecord("provider", current.id, current.name, current.org_id))
            continue
        values = {name: getattr(current, name) for name in _PROVIDER_COLUMNS}
        if values != {name: getattr(old, name) for name in _PROVIDER_COLUMNS}:
            where = (Target("provider", current.id), current.org_id, current.environment)
            details = {"name": current.name, "enabled": current.enabled}
            row = {**values, "updated_at": tx.now}
            plan.restrictions.append(
                CarriedRestriction(
                    auth_providers, (current.id,), row, "provider.updated", *where, details
                )
            )
    for old in missing_rows(tx, backup, auth_providers):
        if find(tx.connection, organizations, [(old.org_id,)]):
            where = (Target("provider", old.id), old.org_id, old.environment)
            details = {"name": old.name}
            plan.restrictions.append(
                CarriedRestriction(
                    auth_providers, (old.id,), None, "provider.deleted", *where, details
                )
            )


def _compare_invitations(
    tx: Transaction, backup: Backup, plan: RestorePlan, lost_orgs: set[str]
) -> None:
    for current, old in paired_rows(tx, backup, invitations):
        if old is None:
            if current.org_id not in lost_orgs:
                plan.lost.append(
                    LostRecord("invitation", current.id, current.email, current.org_id)
                )
            continue
        for column in (invitations.c.accepted_at, invitations.c.revoked_at):
            if set_after_backup(current, old, column):
                plan.restrictions.append(
                    CarriedRestriction(
                        invitations,
                        (current.id,),
                        {column.name: getattr(current, column.name)},
                        f"invitation.{column.name.removesuffix('_at')}",
                        Target("invitation", current.id),
                        current.org_id,
                        details={"email": current.email},
                    )
                )


def _compare_setup_links(tx: Transaction, backup: Backup, plan: RestorePlan) -> None:
    for current, old in paired_rows(tx, backup, setup_links):
        if old is not None and set_after_backup(current, old, setup_links.c.used_at):
            values = {"used_at": current.used_at}
            target = Target("user", current.user_id)
            plan.restrictions.append(
                CarriedRestriction(setup_links, (current.id,), values, "setup_link.used", target)
            )


def _compare_passkeys(tx: Transaction, backup: Backup, plan: RestorePlan) -> None:
    for current, old in paired_rows(tx, backup, passkeys):
        if old is None:
            plan.lost.append(LostRecord("passkey", current.id, current.name))
        elif set_after_backup(current, old, passkeys.c.removed_at):
            values = {"removed_at": current.removed_at}
            target = Target("user", current.user_id)
            plan.restrictions.append(
                CarriedRestriction(passkeys, (current.id,), values, "passkey.removed", target)
            )


def _compare_import_prefixes(tx: Transaction, backup: Backup, plan: RestorePlan) -> None:
    for current, old in paired_rows(tx, backup, import_prefixes):
        if old is None:
            plan.lost.append(
                LostRecord("import_prefix", current.prefix, current.prefix, current.org_id)
            )
    for old in missing_rows(tx, backup, import_prefixes):
        fields = ("released",)
        plan.widened.append(
            LostRecord("import_prefix", old.prefix, old.prefix, old.org_id, fields=fields)
        )


def _compare_scopes(
    tx: Transaction, backup: Backup, plan: RestorePlan, lost_orgs: set[str]
) -> None:
    """Record scopes that the catalogue loses, and scopes that return to it.

    A deleted scope returns, because keys of the backup may have it.
    """
    for current, old in paired_rows(tx, backup, scopes):
        if current.org_id in lost_orgs:
            continue
        if old is None:
            plan.lost.append(LostRecord("scope", current.id, current.name, current.org_id))
        elif current.description != old.description:
            fields = ("description",)
            plan.widened.append(
                LostRecord("scope", current.id, current.name, current.org_id, fields=fields)
            )
    for old in missing_rows(tx, backup, scopes):
        if find(tx.connection, organizations, [(old.org_id,)]):
            fields = ("deleted",)
            plan.widened.append(LostRecord("scope", old.id, old.name, old.org_id, fields=fields))
