"""Putting a backup in the database's place so that nothing that was revoked comes back."""

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
    Survey,
)
from wardkey.actions.operations.restore_plan import survey
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

# The feed goes on from the higher of the two counters, under a new epoch.
_KEPT = (feed, changes)


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did; times in epoch milliseconds.

    `carried` narrows as it did before; `kept_rules` are as before; `lost` is gone; `widened` is as
    at the time of the backup though it was edited since; `lost_events` counts the audit events
    written to the file beside.
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
    """Replace everything by the backup's rows, but for what narrowed since, under a new epoch.

    Audit events that the backup lacks are written to `lost_events`, a line of JSON each, and are
    on the disk before this returns. Raises `RevocationsUnknown` for an empty database.
    """
    by.require_operator()
    known = tx.connection.execute(select(func.count()).select_from(organizations)).scalar_one()
    if not known and not accept_lost_revocations:
        raise RevocationsUnknown(
            "The database is empty, so what was revoked since the backup is not known here. "
            "--accept-lost-revocations restores all the same; revoke again what must stay dead."
        )
    seen = survey(tx, backup)
    events = _write_lost(tx, backup, lost_events)
    present = tx.connection.execute(select(master_keys)).all()
    _replace(tx, backup)
    _renew_feed(tx, backup)
    _keep_master_key(tx, by, backup, present)
    ended = tx.connection.execute(
        update(user_tokens).where(user_tokens.c.ended_at.is_(None)).values(ended_at=tx.now)
    ).rowcount
    tx.connection.execute(
        update(browser_sessions)
        .where(browser_sessions.c.ended_at.is_(None))
        .values(ended_at=tx.now)
    )
    for narrowing in seen.narrowed:
        _narrow(tx, by, narrowing)
    for kept in seen.kept_rules:
        _keep_rules(tx, by, kept)
    _keep_owners(tx, by, seen)
    _keep_receipts(tx, seen)
    # A slug taken since the backup stays reserved, though its organization may be lost.
    if seen.slugs:
        tx.connection.execute(insert(organization_slugs), seen.slugs)
    details = {
        "backup_created_at": backup.head.created_at,
        "backup_epoch": backup.head.epoch,
        "backup_revision": backup.head.revision,
        "carried_over": len(seen.narrowed),
        "acl_rules_kept": sum(len(kept.rules) for kept in seen.kept_rules),
        "lost": len(seen.lost),
        "lost_audit_events": events,
        "user_tokens_ended": ended,
        "revocations_known": bool(known),
    }
    record(tx, by, "deployment.restored", Target("deployment", DEPLOYMENT), details)
    return Restored(
        backup.head.created_at,
        tx.epoch,
        tx.revision,
        tuple(seen.narrowed),
        tuple(seen.kept_rules),
        tuple(seen.lost),
        tuple(seen.widened),
        events,
    )


def _replace(tx: Transaction, backup: Backup) -> None:
    for table in reversed(metadata.sorted_tables):
        if table is not feed:
            tx.connection.execute(delete(table))
    for table in COPIED:
        if table in _KEPT:
            continue
        for rows in backup.batches(table):
            tx.connection.execute(insert(table), [dict(row._mapping) for row in rows])  # noqa: SLF001


def _keep_master_key(
    tx: Transaction, by: Principal, backup: Backup, present: Sequence[Row[Any]]
) -> None:
    """Leave the deployment under its present master key, whichever one the backup was made under.

    Where the backup's key is an earlier one of this deployment, all that it derived is kept here
    already, sealed under the present one. Otherwise the present key follows the backup's.
    """
    restored = tx.connection.execute(select(master_keys)).all()
    newest = max(restored, key=lambda row: row.version)
    if (newest.version, bytes(newest.tag)) in {(row.version, bytes(row.tag)) for row in present}:
        tx.connection.execute(delete(master_keys))
        tx.connection.execute(insert(master_keys), [dict(row._mapping) for row in present])  # noqa: SLF001
        return
    master = tx.vault.master
    tx.vault = vault_of(backup.master, restored)
    if master.tag != backup.master.tag:
        rotate(tx, by, master)


def _renew_feed(tx: Transaction, backup: Backup) -> None:
    """Take a new epoch and a revision above both, so that no reader trusts what it knew."""
    # The transaction's own revision is the present one plus 1 already.
    tx.revision = max(backup.head.revision + 1, tx.revision)
    tx.epoch = randomness.token_hex(12)
    tx.connection.execute(update(feed).values(epoch=tx.epoch, revision=tx.revision))


def _narrow(tx: Transaction, by: Principal, narrowing: CarriedRestriction) -> None:
    columns = narrowing.table.primary_key.columns
    where = [column == value for column, value in zip(columns, narrowing.name, strict=True)]
    if narrowing.values is None:
        tx.connection.execute(delete(narrowing.table).where(*where))
    else:
        tx.connection.execute(update(narrowing.table).where(*where).values(narrowing.values))
    actor = replace(by, environment=Environment(narrowing.environment or by.environment))
    details = {**narrowing.details, "carried_over_restore": True}
    record(tx, actor, narrowing.action, narrowing.target, details, org_id=narrowing.org_id)


def _keep_rules(tx: Transaction, by: Principal, kept: KeptRules) -> None:
    """Put a room's rules back in the place of the backup's: they are what was decided last."""
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


def _keep_owners(tx: Transaction, by: Principal, seen: Survey) -> None:
    """Leave no organization without an owner where the backup's owner is no longer theirs."""
    for person, membership in seen.owners:
        org_id = membership["org_id"]
        known = tx.connection.execute(
            select(users.c.id).where(users.c.email_folded == person["email_folded"])
        ).scalar_one_or_none()
        if known is None:
            tx.connection.execute(insert(users).values(person))
        user_id = known or person["id"]
        mine = (members.c.org_id == org_id, members.c.user_id == user_id)
        raised = tx.connection.execute(update(members).where(*mine).values(role=Role.OWNER))
        if not raised.rowcount:
            tx.connection.execute(insert(members).values({**membership, "user_id": user_id}))
        target, details = Target("member", user_id), {"carried_over_restore": True}
        record(tx, by, "ownership.transferred", target, details, org_id=org_id)


def _keep_receipts(tx: Transaction, seen: Survey) -> None:
    """Put back proofs of revocations that were handed out after the backup."""
    for receipt in seen.receipts:
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
    """Yield the events that the backup lacks: each chain's, from where the two part."""
    heads = tx.connection.execute(select(audit_heads).order_by(audit_heads.c.org_id)).all()
    for head in heads:
        then = backup.find(audit_heads, [(head.org_id,)]).get((head.org_id,))
        both = min(head.seq, then.seq) if then is not None else 0
        # A link covers all links before it, so the chains are alike up to one place.
        parted = bisect_right(
            range(1, both + 1), False, key=lambda seq: not _alike(tx, backup, head.org_id, seq)
        )
        yield from tx.connection.execute(
            select(audit_events)
            .where(audit_events.c.org_id == head.org_id, audit_events.c.seq > parted)
            .order_by(audit_events.c.seq),
            execution_options={"yield_per": 500},
        )


def _alike(tx: Transaction, backup: Backup, org_id: str, seq: int) -> bool:
    def mac(connection: Connection) -> bytes | None:
        return connection.execute(
            select(audit_events.c.mac).where(
                audit_events.c.org_id == org_id, audit_events.c.seq == seq
            )
        ).scalar_one_or_none()

    return mac(tx.connection) == mac(backup.connection)
