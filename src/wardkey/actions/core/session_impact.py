"""Ends what a key or a person made, and live sessions with it, when either ends."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import and_, bindparam, insert, or_, select, update

from wardkey.actions.core.audit import Target, record
from wardkey.db.engine import Transaction
from wardkey.db.schema import grant_cutoffs, grants, invitations, members
from wardkey.domain.grants import CutoffKind
from wardkey.domain.principal import Principal
from wardkey.domain.receipts import ALL_SUBJECTS
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope

# Built once: constructing a statement costs more than running it.
_OF_KEY = (
    select(grants.c.kid)
    .where(
        grants.c.key_id == bindparam("of_key"),
        grants.c.org_id == bindparam("of_org"),
        grants.c.expires_at > bindparam("at"),
    )
    .limit(1)
)


def has_live_grants(tx: Transaction, org_id: str, key_id: str) -> bool:
    """Tell whether a key made grants that have not expired."""
    asked = {"of_org": org_id, "of_key": key_id, "at": tx.now}
    return tx.connection.execute(_OF_KEY, asked).first() is not None


def mark_affected_sessions(tx: Transaction, org_id: str, key_id: str) -> None:
    """Have live sessions looked at before the change returns, if the key may have opened some."""
    if has_live_grants(tx, org_id, key_id):
        tx.affected_subjects.add(ALL_SUBJECTS)


def cut_off(tx: Transaction, by: Principal, kind: CutoffKind, subject: str, revision: int) -> None:
    """End every grant of a subject up to a revision; the caller has asked and records it."""
    name = {
        "org_id": by.org_id,
        "environment": by.environment,
        "kind": kind,
        "subject": subject,
    }
    values = {"revision": revision, "at": tx.now}
    there = [grant_cutoffs.c[column] == value for column, value in name.items()]
    changed = tx.connection.execute(update(grant_cutoffs).where(*there).values(values))
    if not changed.rowcount:
        tx.connection.execute(insert(grant_cutoffs).values(name | values))


def end_grants_of_key(tx: Transaction, by: Principal, key_id: str) -> None:
    """End all grants that a key made, because it may no longer make them."""
    cut_off(tx, by, CutoffKind.KEY, key_id, tx.revision)
    mark_affected_sessions(tx, by.org_id, key_id)


def end_own_grants(
    tx: Transaction,
    by: Principal,
    user_id: str,
    email: str,
    org_id: str = "",
    *,
    keeps_topics: bool = False,
) -> None:
    """End the grants that a person made, such as the ones of live topics.

    In one organization, or in all in which that person is a member if `org_id` is empty;
    `keeps_topics` leaves the grants for the person's own address.
    """
    own = select(members.c.org_id).where(members.c.user_id == user_id)
    # Grants older than the column name no maker; those for the person's own address count.
    older = and_(
        grants.c.member_id == "",
        grants.c.user_email == email.lower(),
        grants.c.key_id == "",
        grants.c.provider_id == "",
    )
    conditions = [
        or_(grants.c.member_id == user_id, older),
        grants.c.revoked_at.is_(None),
        or_(grants.c.expires_at > tx.now, grants.c.refreshable_until > tx.now),
    ]
    conditions.append(grants.c.org_id == org_id if org_id else grants.c.org_id.in_(own))
    if keeps_topics:
        conditions.append(grants.c.user_email != email.lower())
    ended = tx.connection.execute(
        update(grants)
        .where(*conditions)
        .values(revoked_at=tx.now)
        .returning(grants.c.org_id, grants.c.environment)
    ).all()
    for (of_org, environment), count in Counter(map(tuple, ended)).items():
        details = {"of": "person", "subject": email.lower(), "live": count}
        record(
            tx, by, "grants.revoked", Target("grant", email.lower()[:64]), details, org_id=of_org
        )
        tx.affected_scopes.add(TenantScope(of_org, Environment(environment)))


def end_invitations(tx: Transaction, by: Principal, created_by: str) -> None:
    """Revoke the pending invitations that a member or a key sent: each is a way back in."""
    ended = tx.connection.execute(
        update(invitations)
        .where(
            invitations.c.org_id == by.org_id,
            invitations.c.created_by == created_by,
            invitations.c.accepted_at.is_(None),
            invitations.c.revoked_at.is_(None),
            invitations.c.expires_at > tx.now,
        )
        .values(revoked_at=tx.now)
        .returning(invitations.c.id, invitations.c.email)
    ).all()
    for row in ended:
        target = Target("invitation", row.id)
        record(tx, by, "invitation.revoked", target, {"email": row.email})
