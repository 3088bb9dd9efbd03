"""What a restore carries over from the database that it replaces, table by table, and what not."""

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
    Survey,
    ends_earlier,
    missing_rows,
    pairs,
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

# What there is to decide about a provider.
_DECIDED = ("name", "enabled", "settings", "sealed", "pepper_version")
# Of an edited key only an earlier expiry is carried over; the operator is told of the rest.
_EDITED = (
    "name",
    "permissions",
    "allowed_addresses",
    "allowed_origins",
    "allow_native",
    "rate_limit",
    "metadata",
)
_RANKS = (Role.VIEWER, Role.MEMBER, Role.ADMIN, Role.OWNER)


def survey(tx: Transaction, backup: Backup) -> Survey:
    """Compare every row of the two; holds only what differs."""
    seen = Survey()
    lost_orgs = _organizations(tx, backup, seen)
    _users(tx, backup, seen)
    _members(tx, backup, seen, lost_orgs)
    prefixes = _secrets(tx, backup, seen, lost_orgs)
    _keys(tx, backup, seen, prefixes)
    _operators_own(tx, backup, seen, service_keys, "service_key")
    _operators_own(tx, backup, seen, hook_tokens, "hook_token")
    _clients(tx, backup, seen, lost_orgs)
    _rules(tx, backup, seen, lost_orgs)
    _providers(tx, backup, seen, lost_orgs)
    _invitations(tx, backup, seen, lost_orgs)
    _links(tx, backup, seen)
    _passkeys(tx, backup, seen)
    _prefixes(tx, backup, seen)
    _scopes(tx, backup, seen, lost_orgs)
    seen.receipts = [dict(now._mapping) for now, then in pairs(tx, backup, receipts) if not then]  # noqa: SLF001
    taken = pairs(tx, backup, organization_slugs)
    seen.slugs = [dict(now._mapping) for now, then in taken if then is None]  # noqa: SLF001
    return seen


def _organizations(tx: Transaction, backup: Backup, seen: Survey) -> set[str]:
    lost = set()
    for now, then in pairs(tx, backup, organizations):
        target = Target("organization", now.id)
        if then is None:
            lost.add(now.id)
            seen.lost.append(LostRecord("organization", now.id, now.name, now.id))
        elif set_after_backup(now, then, organizations.c.deleted_at):
            values = {"deleted_at": now.deleted_at, "slug": now.slug}
            action = "organization.deleted"
            seen.narrowed.append(
                CarriedRestriction(organizations, (now.id,), values, action, target, now.id)
            )
        else:
            if set_after_backup(now, then, organizations.c.suspended_at):
                values = {"suspended_at": now.suspended_at}
                action = "organization.suspended"
                seen.narrowed.append(
                    CarriedRestriction(organizations, (now.id,), values, action, target, now.id)
                )
            changed = tuple(n for n in ("name", "slug") if getattr(now, n) != getattr(then, n))
            if changed:
                seen.widened.append(
                    LostRecord("organization", now.id, now.name, now.id, fields=changed)
                )
    return lost


def _users(tx: Transaction, backup: Backup, seen: Survey) -> None:
    for now, then in pairs(tx, backup, users):
        if then is None:
            seen.lost.append(LostRecord("user", now.id, now.email))
        elif now.password_hash not in (None, then.password_hash):
            values = {"password_hash": now.password_hash}
            target = Target("user", now.id)
            seen.narrowed.append(
                CarriedRestriction(users, (now.id,), values, "user.password_set", target)
            )


def _members(tx: Transaction, backup: Backup, seen: Survey, lost_orgs: set[str]) -> None:
    ownerless = set()
    for now, then in pairs(tx, backup, members):
        target, name = Target("member", now.user_id), (now.org_id, now.user_id)
        if then is None:
            if now.org_id not in lost_orgs:
                seen.lost.append(
                    LostRecord("member", now.user_id, _email(tx, now.user_id), now.org_id)
                )
        elif _RANKS.index(now.role) < _RANKS.index(then.role):
            details = {"role": now.role, "old_role": then.role}
            seen.narrowed.append(
                CarriedRestriction(
                    members,
                    name,
                    {"role": now.role},
                    "member.role_changed",
                    target,
                    now.org_id,
                    details=details,
                )
            )
            if then.role == Role.OWNER:
                ownerless.add(now.org_id)
        elif now.role != then.role:
            email = _email(tx, now.user_id)
            seen.widened.append(
                LostRecord("member", now.user_id, email, now.org_id, fields=("role",))
            )
    ownerless |= _removed_members(tx, backup, seen)
    for org_id in sorted(ownerless):
        seen.owners += _owners(tx, org_id)


def _removed_members(tx: Transaction, backup: Backup, seen: Survey) -> set[str]:
    """Take out again who is gone since; return whose owner that was."""
    ownerless = set()
    known: dict[str, bool] = {}
    for then in missing_rows(tx, backup, members):
        if then.org_id not in known:
            known[then.org_id] = bool(find(tx.connection, organizations, [(then.org_id,)]))
        if known[then.org_id]:
            target, name = Target("member", then.user_id), (then.org_id, then.user_id)
            seen.narrowed.append(
                CarriedRestriction(members, name, None, "member.removed", target, then.org_id)
            )
            if then.role == Role.OWNER:
                ownerless.add(then.org_id)
    return ownerless


def _owners(tx: Transaction, org_id: str) -> list[tuple[Fields, Fields]]:
    found = tx.connection.execute(
        select(members).where(members.c.org_id == org_id, members.c.role == Role.OWNER)
    ).all()
    people = find(tx.connection, users, [(row.user_id,) for row in found])
    return [(dict(people[row.user_id,]._mapping), dict(row._mapping)) for row in found]  # noqa: SLF001


def _email(tx: Transaction, user_id: str) -> str:
    return str(
        tx.connection.execute(select(users.c.email).where(users.c.id == user_id)).scalar_one()
    )


def _secrets(
    tx: Transaction, backup: Backup, seen: Survey, lost_orgs: set[str]
) -> dict[str, list[str]]:
    """Compare secrets; return the prefixes of those that are lost, by key."""
    lost: dict[str, list[str]] = {}
    for now, then in pairs(tx, backup, secrets):
        if then is None:
            lost.setdefault(now.key_id, []).append(now.prefix)
            if now.org_id not in lost_orgs:
                loss = LostRecord("secret", now.kid, now.key_id, now.org_id, (now.prefix,))
                seen.lost.append(loss)
            continue
        changes: list[tuple[str, dict[str, Any]]] = []
        if set_after_backup(now, then, secrets.c.revoked_at):
            changes.append(("secret.revoked", _revocation(now)))
        if ends_earlier(now.expires_at, then.expires_at):
            changes.append(("secret.ended", {"expires_at": now.expires_at}))
        for action, values in changes:
            target = Target("key", now.key_id)
            seen.narrowed.append(
                CarriedRestriction(
                    secrets,
                    (now.kid,),
                    values,
                    action,
                    target,
                    now.org_id,
                    now.environment,
                    {**values, "kid": now.kid},
                )
            )
    return lost


def _revocation(now: Row[Any]) -> dict[str, Any]:
    return {
        "revoked_at": now.revoked_at,
        "revoke_reason": now.revoke_reason,
        "revoke_comment": now.revoke_comment,
    }


def _keys(tx: Transaction, backup: Backup, seen: Survey, prefixes: Mapping[str, list[str]]) -> None:
    lost = set()
    for now, then in pairs(tx, backup, keys):
        if then is None:
            lost.add(now.id)
            kids = tuple(prefixes.get(now.id, ()))
            seen.lost.append(LostRecord("key", now.id, now.name, now.org_id, kids))
            continue
        changes: list[tuple[str, dict[str, Any]]] = []
        if set_after_backup(now, then, keys.c.revoked_at):
            changes.append(("key.revoked", {**_revocation(now), "live_name": None}))
        if set_after_backup(now, then, keys.c.disabled_at):
            changes.append(("key.disabled", {"disabled_at": now.disabled_at}))
        if ends_earlier(now.expires_at, then.expires_at):
            changes.append(("key.updated", {"expires_at": now.expires_at}))
        for action, values in changes:
            target, details = Target("key", now.id), {"name": then.name, **values}
            details.pop("live_name", None)
            where = (now.org_id, now.environment, details)
            row = {**values, "updated_at": tx.now}
            seen.narrowed.append(CarriedRestriction(keys, (now.id,), row, action, target, *where))
        if now.revoked_at is None and then.revoked_at is None:
            fields = _edits(now, then)
            if fields:
                seen.widened.append(LostRecord("key", now.id, then.name, now.org_id, fields=fields))
    # The secrets of a lost key are named with it.
    seen.lost = [x for x in seen.lost if not (x.kind == "secret" and x.label in lost)]


def _edits(now: Row[Any], then: Row[Any]) -> tuple[str, ...]:
    """Name the fields of a key that are as before an edit again."""
    fields = [name for name in _EDITED if getattr(now, name) != getattr(then, name)]
    if now.expires_at != then.expires_at and not ends_earlier(now.expires_at, then.expires_at):
        fields.append("expires_at")
    if now.disabled_at is None and then.disabled_at is not None:
        fields.append("disabled_at")
    return tuple(fields)


def _operators_own(tx: Transaction, backup: Backup, seen: Survey, table: Table, kind: str) -> None:
    for now, then in pairs(tx, backup, table):
        if then is None:
            label = now.name if kind == "service_key" else now.kind
            seen.lost.append(LostRecord(kind, now.kid, label, prefixes=(now.prefix,)))
        elif set_after_backup(now, then, table.c.revoked_at):
            values, target = {"revoked_at": now.revoked_at}, Target(kind, now.kid)
            seen.narrowed.append(
                CarriedRestriction(table, (now.kid,), values, f"{kind}.revoked", target)
            )


def _clients(tx: Transaction, backup: Backup, seen: Survey, lost_orgs: set[str]) -> None:
    for now, then in pairs(tx, backup, clients):
        if then is None:
            if now.org_id not in lost_orgs:
                seen.lost.append(LostRecord("client", now.id, now.username, now.org_id))
            continue
        changes: list[tuple[str, dict[str, Any]]] = []
        if _is_another(_password(now), _password(then)):
            changes.append(("client.password_set", _password(now)))
        if then.enabled and not now.enabled:
            changes.append(("client.disabled", {"enabled": False}))
        for action, values in changes:
            where = (Target("client", now.id), now.org_id, now.environment)
            row, details = {**values, "updated_at": tx.now}, {"username": now.username}
            seen.narrowed.append(
                CarriedRestriction(clients, (now.id,), row, action, *where, details)
            )
        if now.enabled and not then.enabled:
            fields = ("enabled",)
            seen.widened.append(
                LostRecord("client", now.id, now.username, now.org_id, fields=fields)
            )
    for then in missing_rows(tx, backup, clients):
        # What an organization that the database never knew had is as the backup says.
        if find(tx.connection, organizations, [(then.org_id,)]):
            where = (Target("client", then.id), then.org_id, then.environment)
            details = {"username": then.username}
            seen.narrowed.append(
                CarriedRestriction(clients, (then.id,), None, "client.deleted", *where, details)
            )


def _password(row: Row[Any]) -> dict[str, Any]:
    return {
        "password_hash": row.password_hash,
        "digest": None if row.digest is None else bytes(row.digest),
        "pepper_version": row.pepper_version,
        "password_set_at": row.password_set_at,
    }


def _is_another(now: Fields, then: Fields) -> bool:
    """Tell whether a password was set since; one that was only hashed anew is the same."""
    anew = now["pepper_version"] != then["pepper_version"]
    changed = {name for name in now if now[name] != then[name]}
    return bool(changed - ({"digest", "pepper_version"} if anew else set()))


def _rules(tx: Transaction, backup: Backup, seen: Survey, lost_orgs: set[str]) -> None:
    """Keep the rules of each room as they are: which of two sets is the wider, nobody can tell."""
    scopes = {
        TenantScope(row.org_id, Environment(row.environment))
        for row in missing_rows(tx, backup, acl_rules)
    }
    for now, then in pairs(tx, backup, acl_rules):
        if then is None or tuple(now) != tuple(then):
            scopes.add(TenantScope(now.org_id, Environment(now.environment)))
    for scope in sorted(scopes):
        org_id, environment = scope
        if org_id in lost_orgs or not find(tx.connection, organizations, [(org_id,)]):
            continue
        of_scope = in_scope(acl_rules, scope)
        rows = tx.connection.execute(select(acl_rules).where(of_scope)).mappings()
        replaced = backup.connection.execute(
            select(func.count()).select_from(acl_rules).where(of_scope)
        ).scalar_one()
        kept = tuple(dict(row) for row in rows)
        seen.kept_rules.append(KeptRules(org_id, environment, kept, replaced))


def _providers(tx: Transaction, backup: Backup, seen: Survey, lost_orgs: set[str]) -> None:
    """Keep what was decided last of a provider; of two settings nobody can tell the wider."""
    for now, then in pairs(tx, backup, auth_providers):
        if then is None:
            if now.org_id not in lost_orgs:
                seen.lost.append(LostRecord("provider", now.id, now.name, now.org_id))
            continue
        kept = {name: getattr(now, name) for name in _DECIDED}
        if kept != {name: getattr(then, name) for name in _DECIDED}:
            where = (Target("provider", now.id), now.org_id, now.environment)
            details = {"name": now.name, "enabled": now.enabled}
            row = {**kept, "updated_at": tx.now}
            seen.narrowed.append(
                CarriedRestriction(
                    auth_providers, (now.id,), row, "provider.updated", *where, details
                )
            )
    for then in missing_rows(tx, backup, auth_providers):
        if find(tx.connection, organizations, [(then.org_id,)]):
            where = (Target("provider", then.id), then.org_id, then.environment)
            details = {"name": then.name}
            seen.narrowed.append(
                CarriedRestriction(
                    auth_providers, (then.id,), None, "provider.deleted", *where, details
                )
            )


def _invitations(tx: Transaction, backup: Backup, seen: Survey, lost_orgs: set[str]) -> None:
    for now, then in pairs(tx, backup, invitations):
        if then is None:
            if now.org_id not in lost_orgs:
                seen.lost.append(LostRecord("invitation", now.id, now.email, now.org_id))
            continue
        for column in (invitations.c.accepted_at, invitations.c.revoked_at):
            if set_after_backup(now, then, column):
                seen.narrowed.append(
                    CarriedRestriction(
                        invitations,
                        (now.id,),
                        {column.name: getattr(now, column.name)},
                        f"invitation.{column.name.removesuffix('_at')}",
                        Target("invitation", now.id),
                        now.org_id,
                        details={"email": now.email},
                    )
                )


def _links(tx: Transaction, backup: Backup, seen: Survey) -> None:
    for now, then in pairs(tx, backup, setup_links):
        if then is not None and set_after_backup(now, then, setup_links.c.used_at):
            values = {"used_at": now.used_at}
            target = Target("user", now.user_id)
            seen.narrowed.append(
                CarriedRestriction(setup_links, (now.id,), values, "setup_link.used", target)
            )


def _passkeys(tx: Transaction, backup: Backup, seen: Survey) -> None:
    for now, then in pairs(tx, backup, passkeys):
        if then is None:
            seen.lost.append(LostRecord("passkey", now.id, now.name))
        elif set_after_backup(now, then, passkeys.c.removed_at):
            values = {"removed_at": now.removed_at}
            target = Target("user", now.user_id)
            seen.narrowed.append(
                CarriedRestriction(passkeys, (now.id,), values, "passkey.removed", target)
            )


def _prefixes(tx: Transaction, backup: Backup, seen: Survey) -> None:
    for now, then in pairs(tx, backup, import_prefixes):
        if then is None:
            seen.lost.append(LostRecord("import_prefix", now.prefix, now.prefix, now.org_id))
    for then in missing_rows(tx, backup, import_prefixes):
        fields = ("released",)
        seen.widened.append(
            LostRecord("import_prefix", then.prefix, then.prefix, then.org_id, fields=fields)
        )


def _scopes(tx: Transaction, backup: Backup, seen: Survey, lost_orgs: set[str]) -> None:
    """Name the scopes that the catalogue loses, and those that come back to it.

    A deleted scope comes back, because keys of the backup may hold it.
    """
    for now, then in pairs(tx, backup, scopes):
        if now.org_id in lost_orgs:
            continue
        if then is None:
            seen.lost.append(LostRecord("scope", now.id, now.name, now.org_id))
        elif now.description != then.description:
            fields = ("description",)
            seen.widened.append(LostRecord("scope", now.id, now.name, now.org_id, fields=fields))
    for then in missing_rows(tx, backup, scopes):
        if find(tx.connection, organizations, [(then.org_id,)]):
            fields = ("deleted",)
            seen.widened.append(LostRecord("scope", then.id, then.name, then.org_id, fields=fields))
