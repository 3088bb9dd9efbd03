"""Ends the grants and invitations of a key or user, and marks the MQTT sessions affected."""

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
_GRANT_OF_KEY = (
    select(grants.c.kid)
    .where(
        grants.c.key_id == bindparam("of_key"),
        grants.c.org_id == bindparam("of_org"),
        grants.c.expires_at > bindparam("at"),
    )
    .limit(1)
)


def has_live_grants(tx: Transaction, org_id: str, key_id: str) -> bool:
    """Return whether a key made grants that have not expired."""
    parameters = {"of_org": org_id, "of_key": key_id, "at": tx.now}
    return tx.connection.execute(_GRANT_OF_KEY, parameters).first() is not None


def mark_affected_sessions(tx: Transaction, org_id: str, key_id: str) -> None:
    """Have live sessions checked before the change returns, if the key has live grants."""
    if has_live_grants(tx, org_id, key_id):
        tx.affected_subjects.add(ALL_SUBJECTS)


def cut_off(tx: Transaction, by: Principal, kind: CutoffKind, subject: str, revision: int) -> None:
    """End a subject's grants up to a revision; the caller checks permissions and records it."""
    name = {
        "org_id": by.org_id,
        "environment": by.environment,
        "kind": kind,
        "subject": subject,
    }
    values = {"revision": revision, "at": tx.now}
    conditions = [grant_cutoffs.c[column] == value for column, value in name.items()]
    changed = tx.connection.execute(update(grant_cutoffs).where(*conditions).values(values))
    if not changed.rowcount:
        tx.connection.execute(insert(grant_cutoffs).values(name | values))


def end_grants_of_key(tx: Transaction, by: Principal, key_id: str) -> None:
    """End all grants made with a key that lost the permission to make them."""
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
    """End the grants that a user made, for example for live topics.

    They end in `org_id`, or if it is empty in every organization of the user. `keeps_topics` keeps
    the grants for the user's own address.
    """
    own_orgs = select(members.c.org_id).where(members.c.user_id == user_id)
    # Grants older than the column `member_id` count if they are for the user's own address.
    without_maker = and_(
        grants.c.member_id == "",
        grants.c.user_email == email.lower(),
        grants.c.key_id == "",
        grants.c.provider_id == "",
    )
    conditions = [
        or_(grants.c.member_id == user_id, without_maker),
        grants.c.revoked_at.is_(None),
        or_(grants.c.expires_at > tx.now, grants.c.refreshable_until > tx.now),
    ]
    conditions.append(grants.c.org_id == org_id if org_id else grants.c.org_id.in_(own_orgs))
    if keeps_topics:
        conditions.append(grants.c.user_email != email.lower())
    ended = tx.connection.execute(
        update(grants)
        .where(*conditions)
        .values(revoked_at=tx.now)
        .returning(grants.c.org_id, grants.c.environment)
    ).all()
    for (grant_org_id, environment), count in Counter(map(tuple, ended)).items():
        details = {"of": "person", "subject": email.lower(), "live": count}
        target = Target("grant", email.lower()[:64])
        record(tx, by, "grants.revoked", target, details, org_id=grant_org_id)
        tx.affected_scopes.add(TenantScope(grant_org_id, Environment(environment)))


def end_invitations(tx: Transaction, by: Principal, created_by: str) -> None:
    """Revoke the pending invitations of a member or key, who could use them to come back."""
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
