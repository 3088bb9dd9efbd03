"""MQTT sessions: whose they are now, what changes for them, the audit of what is ended."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import select

from wardkey.actions.core.audit import Target, record
from wardkey.actions.core.session_impact import has_live_grants
from wardkey.actions.messaging.client_ids import Connected
from wardkey.db.engine import Database, Transaction
from wardkey.db.schema import changes, clients, feed, mqtt_ids, organizations, session_receipts
from wardkey.db.scoped import in_scope
from wardkey.domain.acl import Actor, ActorKind
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope

# What the change feed calls changes that may end sessions, beside those of keys with grants.
_ENDING = frozenset({"client", "acl", "grant", "provider"})


@dataclass(frozen=True, slots=True)
class ConnectedClient:
    """A client that may be connected, as it is now."""

    id: str
    org_id: str
    environment: Environment
    username: str
    password_set_at: int

    def actor(self, mqtt_id: str) -> Actor:
        """Return whom ACL rules see in a session with that client id."""
        return Actor(ActorKind.CLIENT, self.org_id, self.username, mqtt_id, self.id)


@dataclass(frozen=True, slots=True)
class Owner:
    """Whose an MQTT client id is, as he is now, and what the last login with it was allowed.

    `client` is None for one that is disabled or gone, and for people with grants; `grant_kid` is
    the grant that was shown. Neither is there once the client id was freed. `rights` and
    `grant_kid` are of the connection `(server, cid)` alone: another login may have been judged
    since a session with this client id began.
    """

    subject_id: str
    grant_kid: str | None
    client: ConnectedClient | None
    rights: bytes
    connection: Connected


@dataclass(frozen=True, slots=True)
class Changed:
    """What the change feed says since a revision: rooms whose sessions to look at."""

    epoch: str
    revision: int
    scopes: frozenset[TenantScope]
    organizations: bool


def note_ended(tx: Transaction, by: Principal, mqtt_id: str, username: str) -> None:
    """Say in the audit that a live session was ended."""
    by.require(Permission.CLIENTS_WRITE)
    record(tx, by, "session.ended", Target("session", mqtt_id[:64]), {"username": username})


def note_cleared(tx: Transaction, by: Principal, pattern: str, count: int) -> None:
    """Say in the audit that retained messages are cleared."""
    by.require(Permission.RETAINED_WRITE)
    details = {"filter": pattern, "count": count}
    record(tx, by, "retained.cleared", Target("retained", pattern[:64]), details)


def find_owners(tx: Transaction, scope: TenantScope, ids: Sequence[str]) -> Mapping[str, Owner]:
    """Return whose MQTT client ids these are."""
    found = {}
    for start in range(0, len(ids), 500):
        some = ids[start : start + 500]
        for row in tx.connection.execute(
            select(mqtt_ids, clients.c.username, clients.c.enabled, clients.c.password_set_at)
            .select_from(
                mqtt_ids.outerjoin(
                    clients,
                    (clients.c.id == mqtt_ids.c.subject_id) & in_scope(clients, scope),
                )
            )
            .where(in_scope(mqtt_ids, scope), mqtt_ids.c.mqtt_id.in_(some))
        ):
            client, is_held = None, row.freed_at is None
            if row.enabled and is_held:
                client = ConnectedClient(row.subject_id, *scope, row.username, row.password_set_at)
            connection = row.server or "", row.cid or 0
            grant_kid = row.grant_kid if is_held else None
            found[row.mqtt_id] = Owner(
                row.subject_id, grant_kid, client, bytes(row.rights), connection
            )
    return found


def feed_state(tx: Transaction) -> tuple[str, int]:
    """Return the change feed's epoch and revision."""
    row = tx.connection.execute(select(feed.c.epoch, feed.c.revision)).one()
    return row.epoch, row.revision


def changes_since(
    database: Database, revision: int, known: frozenset[int] = frozenset()
) -> Changed:
    """Return what changed for sessions since `revision`, but for revisions that are `known`.

    Where the feed was cut or rewound, and for a negative `revision`, which stands for a process
    that has seen nothing, every room with a known client id, or an open receipt, has changed.
    """
    with database.read() as tx:
        epoch, now = feed_state(tx)
        if now == revision:
            return Changed(epoch, now, frozenset(), organizations=False)
        rows = tx.connection.execute(
            select(
                changes.c.subject, changes.c.subject_id, changes.c.org_id, changes.c.revision
            ).where(changes.c.revision > (now if revision < 0 else revision))
        ).all()
        if now < revision or len({row.revision for row in rows}) < now - revision:
            scopes = tx.connection.execute(
                select(mqtt_ids.c.org_id, mqtt_ids.c.environment).union(
                    select(session_receipts.c.org_id, session_receipts.c.environment).where(
                        session_receipts.c.ended.is_(None)
                    )
                )
            )
            every = frozenset(
                TenantScope(row.org_id, Environment(row.environment)) for row in scopes
            )
            return Changed(epoch, now, every, organizations=True)
        told = [row for row in rows if row.revision not in known]
        touched = {row.org_id for row in told if row.subject in _ENDING}
        keys = {(row.org_id, row.subject_id) for row in told if row.subject == "key"}
        touched |= {org_id for org_id, key_id in keys if has_live_grants(tx, org_id, key_id)}
    return Changed(
        epoch,
        now,
        frozenset(
            TenantScope(org_id, environment) for org_id in touched for environment in Environment
        ),
        organizations=any(row.subject == "organization" for row in rows),
    )


def stopped_organizations(database: Database) -> frozenset[str]:
    """Return the ids of organizations that are suspended or deleted."""
    with database.read() as tx:
        found = tx.connection.execute(
            select(organizations.c.id).where(
                organizations.c.suspended_at.is_not(None) | organizations.c.deleted_at.is_not(None)
            )
        )
        return frozenset(found.scalars())
