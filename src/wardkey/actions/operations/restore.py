"""Restores a backup without undoing the revocations made since."""

from __future__ import annotations

import json
import os
import secrets as randomness
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TextIO

from sqlalchemy import Connection, Row, delete, func, insert, select, update

from wardkey.actions.core.audit import DEPLOYMENT, Target, record
from wardkey.actions.operations.master_keys import rotate
from wardkey.actions.operations.restore_diff import (
    CarriedRestriction,
    KeptRules,
    LostRecord,
    RestorePlan,
)
from wardkey.actions.operations.restore_plan import plan_restore
from wardkey.db.backup import COPIED, Backup
from wardkey.db.engine import Transaction
from wardkey.db.master_key import vault_of
from wardkey.db.schema import (
    acl_rules,
    audit_events,
    audit_heads,
    browser_sessions,
    changes,
    feed,
    keys,
    master_keys,
    members,
    metadata,
    organization_slugs,
    organizations,
    receipts,
    user_tokens,
    users,
)
from wardkey.domain.errors import RevocationsUnknown
from wardkey.domain.permissions import Role
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment

# Not copied: the feed continues from the higher of the two counters, under a new epoch.
_NOT_COPIED = (feed, changes)


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a restore; times in epoch milliseconds.

    `carried` are the restrictions carried over, `kept_rules` the rules left unchanged, `lost` the
    objects created since, `widened` the objects whose edits since are undone, and `lost_events` the
    number of audit events written to the file.
    """

    created_at: int
    epoch: str
    revision: int
    carried: tuple[CarriedRestriction, ...]
    kept_rules: tuple[KeptRules, ...]
    lost: tuple[LostRecord, ...]
    widened: tuple[LostRecord, ...]
    lost_events: int


def restore(
    tx: Transaction,
    by: Principal,
    backup: Backup,
    lost_events: TextIO,
    *,
    accept_lost_revocations: bool = False,
) -> Restored:
    """Replace all rows with the backup's under a new epoch; carry over restrictions made since.

    Audit events that the backup lacks are written to `lost_events` as JSON lines, and are on disk
    before this returns. Raises `RevocationsUnknown` for an empty database, unless accepted.
    """
    by.require_operator()
    org_count = tx.connection.execute(select(func.count()).select_from(organizations)).scalar_one()
    if not org_count and not accept_lost_revocations:
        raise RevocationsUnknown(
            "The database is empty, so revocations made since the backup are unknown. To restore "
            "anyway, use --accept-lost-revocations and revoke those keys again."
        )
    plan = plan_restore(tx, backup)
    lost_count = _write_lost(tx, backup, lost_events)
    current_keys = tx.connection.execute(select(master_keys)).all()
    _replace(tx, backup)
    _renew_feed(tx, backup)
    _keep_master_key(tx, by, backup, current_keys)
    ended = tx.connection.execute(
        update(user_tokens).where(user_tokens.c.ended_at.is_(None)).values(ended_at=tx.now)
    ).rowcount
    tx.connection.execute(
        update(browser_sessions)
        .where(browser_sessions.c.ended_at.is_(None))
        .values(ended_at=tx.now)
    )
    for restriction in plan.restrictions:
        _apply_restriction(tx, by, restriction)
    for kept in plan.kept_rules:
        _keep_rules(tx, by, kept)
    _keep_owners(tx, by, plan)
    _keep_receipts(tx, plan)
    # A slug taken since the backup stays reserved, even if its organization is lost.
    if plan.slugs:
        tx.connection.execute(insert(organization_slugs), plan.slugs)
    details = {
        "backup_created_at": backup.head.created_at,
        "backup_epoch": backup.head.epoch,
        "backup_revision": backup.head.revision,
        "carried_over": len(plan.restrictions),
        "acl_rules_kept": sum(len(kept.rules) for kept in plan.kept_rules),
        "lost": len(plan.lost),
        "lost_audit_events": lost_count,
        "user_tokens_ended": ended,
        "revocations_known": bool(org_count),
    }
    record(tx, by, "deployment.restored", Target("deployment", DEPLOYMENT), details)
    return Restored(
        backup.head.created_at,
        tx.epoch,
        tx.revision,
        tuple(plan.restrictions),
        tuple(plan.kept_rules),
        tuple(plan.lost),
        tuple(plan.widened),
        lost_count,
    )


def _replace(tx: Transaction, backup: Backup) -> None:
    for table in reversed(metadata.sorted_tables):
        if table is not feed:
            tx.connection.execute(delete(table))
    for table in COPIED:
        if table in _NOT_COPIED:
            continue
        for rows in backup.batches(table):
            tx.connection.execute(insert(table), [dict(row._mapping) for row in rows])  # noqa: SLF001


def _keep_master_key(
    tx: Transaction, by: Principal, backup: Backup, current_keys: Sequence[Row[Any]]
) -> None:
    """Keep the deployment's current master key, whatever key the backup was made under.

    If the backup's key is an earlier one of this deployment, its derived keys are already stored
    here, sealed under the current one. Otherwise rotate from the backup's key to the current one.
    """
    restored = tx.connection.execute(select(master_keys)).all()
    newest = max(restored, key=lambda row: row.version)
    if (newest.version, bytes(newest.tag)) in {
        (row.version, bytes(row.tag)) for row in current_keys
    }:
        tx.connection.execute(delete(master_keys))
        tx.connection.execute(insert(master_keys), [dict(row._mapping) for row in current_keys])  # noqa: SLF001
        return
    master = tx.vault.master
    tx.vault = vault_of(backup.master, restored)
    if master.tag != backup.master.tag:
        rotate(tx, by, master)


def _renew_feed(tx: Transaction, backup: Backup) -> None:
    """Start a new epoch at a revision above both, so that every cache is discarded."""
    # The transaction's revision is already the current one plus 1.
    tx.revision = max(backup.head.revision + 1, tx.revision)
    tx.epoch = randomness.token_hex(12)
    tx.connection.execute(update(feed).values(epoch=tx.epoch, revision=tx.revision))


def _apply_restriction(tx: Transaction, by: Principal, restriction: CarriedRestriction) -> None:
    columns = restriction.table.primary_key.columns
    where = [
        column == value for column, value in zip(columns, restriction.primary_key, strict=True)
    ]
    if restriction.values is None:
        tx.connection.execute(delete(restriction.table).where(*where))
    else:
        tx.connection.execute(update(restriction.table).where(*where).values(restriction.values))
    actor = replace(by, environment=Environment(restriction.environment or by.environment))
    details = {**restriction.details, "carried_over_restore": True}
    record(tx, actor, restriction.action, restriction.target, details, org_id=restriction.org_id)


def _keep_rules(tx: Transaction, by: Principal, kept: KeptRules) -> None:
    """Replace a tenant scope's restored rules with its current ones, which are newer."""
    tx.connection.execute(
        delete(acl_rules).where(
            acl_rules.c.org_id == kept.org_id, acl_rules.c.environment == kept.environment
        )
    )
    if kept.rules:
        tx.connection.execute(insert(acl_rules), list(kept.rules))
    actor = replace(by, environment=Environment(kept.environment))
    target = Target("acl", kept.environment)
    counts = {"rules": len(kept.rules), "old_rules": kept.replaced}
    details = {**counts, "carried_over_restore": True}
    record(tx, actor, "acl_rules.replaced", target, details, org_id=kept.org_id)


def _keep_owners(tx: Transaction, by: Principal, plan: RestorePlan) -> None:
    """Restore the current owners of organizations whose owner in the backup no longer is one."""
    for user, membership in plan.owners:
        org_id = membership["org_id"]
        existing_id = tx.connection.execute(
            select(users.c.id).where(users.c.email_folded == user["email_folded"])
        ).scalar_one_or_none()
        if existing_id is None:
            tx.connection.execute(insert(users).values(user))
        user_id = existing_id or user["id"]
        own_row = (members.c.org_id == org_id, members.c.user_id == user_id)
        promoted = tx.connection.execute(update(members).where(*own_row).values(role=Role.OWNER))
        if not promoted.rowcount:
            tx.connection.execute(insert(members).values({**membership, "user_id": user_id}))
        target, details = Target("member", user_id), {"carried_over_restore": True}
        record(tx, by, "ownership.transferred", target, details, org_id=org_id)


def _keep_receipts(tx: Transaction, plan: RestorePlan) -> None:
    """Restore the receipts of revocations that were issued after the backup."""
    for receipt in plan.receipts:
        same = (receipts.c.key_id == receipt["key_id"], receipts.c.kid == receipt["kid"])
        key = tx.connection.execute(select(keys.c.id).where(keys.c.id == receipt["key_id"]))
        if key.first() is None or tx.connection.execute(select(receipts.c.id).where(*same)).first():
            continue
        tx.connection.execute(insert(receipts).values(receipt))


def _write_lost(tx: Transaction, backup: Backup, out: TextIO) -> int:
    count = 0
    for row in _lost_events(tx, backup):
        event = {**row._mapping, "mac": bytes(row.mac).hex()}  # noqa: SLF001
        out.write(json.dumps(event, ensure_ascii=False) + "\n")
        count += 1
    out.flush()
    os.fsync(out.fileno())
    return count


def _lost_events(tx: Transaction, backup: Backup) -> Iterator[Row[Any]]:
    """Yield the audit events that the backup lacks: each chain's, from where the two diverge."""
    heads = tx.connection.execute(select(audit_heads).order_by(audit_heads.c.org_id)).all()
    for head in heads:
        backup_head = backup.find(audit_heads, [(head.org_id,)]).get((head.org_id,))
        shared_length = min(head.seq, backup_head.seq) if backup_head is not None else 0
        # Each link covers all earlier ones, so the chains are equal up to exactly one place.
        last_equal = bisect_right(
            range(1, shared_length + 1),
            False,
            key=lambda seq: not _is_equal(tx, backup, head.org_id, seq),
        )
        yield from tx.connection.execute(
            select(audit_events)
            .where(audit_events.c.org_id == head.org_id, audit_events.c.seq > last_equal)
            .order_by(audit_events.c.seq),
            execution_options={"yield_per": 500},
        )


def _is_equal(tx: Transaction, backup: Backup, org_id: str, seq: int) -> bool:
    def mac(connection: Connection) -> bytes | None:
        return connection.execute(
            select(audit_events.c.mac).where(
                audit_events.c.org_id == org_id, audit_events.c.seq == seq
            )
        ).scalar_one_or_none()

    return mac(tx.connection) == mac(backup.connection)
