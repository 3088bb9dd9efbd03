"""Owners of MQTT sessions, changes that affect them, and the audit of ended ones."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from wardkey.actions.core.audit import Target, record
from wardkey.actions.core.session_impact import has_live_grants
from wardkey.actions.messaging.client_ids import ConnectionId
from wardkey.db.engine import Database, Transaction
from wardkey.db.schema import changes, clients, feed, mqtt_ids, organizations, session_receipts
from wardkey.db.scoped import in_scope
from wardkey.domain.acl import Actor, ActorKind
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope

# Change-feed subjects that may end sessions, besides keys with live grants.
_ENDING_SUBJECTS = frozenset({"client", "acl", "grant", "provider"})
_BATCH_SIZE = 500


@dataclass(frozen=True, slots=True)
class ConnectedClient:
    """The current state of a client that may be connected."""

    id: str
    org_id: str
    environment: Environment
    username: str
    password_set_at: int

    def actor(self, mqtt_id: str) -> Actor:
        """Return the actor that ACL rules apply to in a session with this client id."""
        return Actor(ActorKind.CLIENT, self.org_id, self.username, mqtt_id, self.id)


@dataclass(frozen=True, slots=True)
class Owner:
    """The current owner of an MQTT client id, and the rights granted at its last login.

    `client` is None if disabled or deleted, and for a user with a grant, whose kid is `grant_kid`;
    both are None once the client id is freed. `rights` and `grant_kid` apply only to `connection`:
    another login may have been accepted since an older session with this client id began.
    """

    subject_id: str
    grant_kid: str | None
    client: ConnectedClient | None
    rights: bytes
    connection: ConnectionId


@dataclass(frozen=True, slots=True)
class AffectedScopes:
    """Tenant scopes whose sessions may be affected by changes since a revision.

    `organizations` is true if an organization may have been suspended or deleted.
    """

    epoch: str
    revision: int
    scopes: frozenset[TenantScope]
    organizations: bool


def note_ended(tx: Transaction, by: Principal, mqtt_id: str, username: str) -> None:
    """Record in the audit log that a live session was ended."""
    by.require(Permission.CLIENTS_WRITE)
    record(tx, by, "session.ended", Target("session", mqtt_id[:64]), {"username": username})


def note_cleared(tx: Transaction, by: Principal, pattern: str, count: int) -> None:
    """Record in the audit log that retained messages are cleared."""
    by.require(Permission.RETAINED_WRITE)
    details = {"filter": pattern, "count": count}
    record(tx, by, "retained.cleared", Target("retained", pattern[:64]), details)


def find_owners(tx: Transaction, scope: TenantScope, ids: Sequence[str]) -> Mapping[str, Owner]:
    """Return the owners of MQTT client ids, by client id."""
    owners = {}
    for start in range(0, len(ids), _BATCH_SIZE):
        batch = ids[start : start + _BATCH_SIZE]
        for row in tx.connection.execute(
            select(mqtt_ids, clients.c.username, clients.c.enabled, clients.c.password_set_at)
            .select_from(
                mqtt_ids.outerjoin(
                    clients,
                    (clients.c.id == mqtt_ids.c.subject_id) & in_scope(clients, scope),
                )
            )
            .where(in_scope(mqtt_ids, scope), mqtt_ids.c.mqtt_id.in_(batch))
        ):
            client, is_held = None, row.freed_at is None
            if row.enabled and is_held:
                client = ConnectedClient(row.subject_id, *scope, row.username, row.password_set_at)
            connection = row.server or "", row.cid or 0
            grant_kid = row.grant_kid if is_held else None
            owners[row.mqtt_id] = Owner(
                row.subject_id, grant_kid, client, bytes(row.rights), connection
            )
    return owners


def feed_state(tx: Transaction) -> tuple[str, int]:
    """Return the change feed's epoch and revision."""
    row = tx.connection.execute(select(feed.c.epoch, feed.c.revision)).one()
    return row.epoch, row.revision


def changes_since(
    database: Database, revision: int, known: frozenset[int] = frozenset()
) -> AffectedScopes:
    """Return the scopes affected since `revision`, ignoring `known` revisions.

    After a truncated or rewound feed, and for a negative `revision` (a process that has read
    nothing), these are all scopes with a stored client id or an open receipt.
    """
    with database.read() as tx:
        epoch, current = feed_state(tx)
        if current == revision:
            return AffectedScopes(epoch, current, frozenset(), organizations=False)
        rows = tx.connection.execute(
            select(
                changes.c.subject, changes.c.subject_id, changes.c.org_id, changes.c.revision
            ).where(changes.c.revision > (current if revision < 0 else revision))
        ).all()
        if current < revision or len({row.revision for row in rows}) < current - revision:
            scopes = tx.connection.execute(
                select(mqtt_ids.c.org_id, mqtt_ids.c.environment).union(
                    select(session_receipts.c.org_id, session_receipts.c.environment).where(
                        session_receipts.c.ended.is_(None)
                    )
                )
            )
            all_scopes = frozenset(
                TenantScope(row.org_id, Environment(row.environment)) for row in scopes
            )
            return AffectedScopes(epoch, current, all_scopes, organizations=True)
        new_rows = [row for row in rows if row.revision not in known]
        org_ids = {row.org_id for row in new_rows if row.subject in _ENDING_SUBJECTS}
        keys = {(row.org_id, row.subject_id) for row in new_rows if row.subject == "key"}
        org_ids |= {org_id for org_id, key_id in keys if has_live_grants(tx, org_id, key_id)}
    return AffectedScopes(
        epoch,
        current,
        frozenset(
            TenantScope(org_id, environment) for org_id in org_ids for environment in Environment
        ),
        organizations=any(row.subject == "organization" for row in rows),
    )


def stopped_organizations(database: Database) -> frozenset[str]:
    """Return the ids of organizations that are suspended or deleted."""
    with database.read() as tx:
        rows = tx.connection.execute(
            select(organizations.c.id).where(
                organizations.c.suspended_at.is_not(None) | organizations.c.deleted_at.is_not(None)
            )
        )
        return frozenset(rows.scalars())
