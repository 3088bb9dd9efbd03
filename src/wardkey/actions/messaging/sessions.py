"""MQTT sessions: whose client id it is, what changes for them, the audit of what is ended."""

from __future__ import annotations

import threading
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from sqlalchemy import Connection, bindparam, delete, select, text

from wardkey.actions.core.audit import Target, record
from wardkey.actions.core.session_impact import has_live_grants
from wardkey.db.engine import Database, Transaction
from wardkey.db.schema import changes, clients, feed, mqtt_ids, organizations, session_receipts
from wardkey.db.scoped import bind_scope, in_bound_scope, in_scope
from wardkey.domain.acl import Actor, ActorKind
from wardkey.domain.errors import WardkeyError
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope

# A client id is its first user's until nobody has shown it for so long.
KEPT_MS = 7 * 86_400_000
_MOST_EACH = 100
# What the change feed calls changes that may end sessions, beside those of keys with grants.
_ENDING = frozenset({"client", "acl", "grant", "provider"})
# Of so many client ids that are new to a subject, one looks for what it has too many of.
_LOOK_EACH = 50
_MOST_COUNTED = 100_000

# The broker's node and its number for a connection, which no other ever has; a foreign broker
# tells neither, and no session of ours is called so.
Connected = tuple[str, int]

# Built once: constructing a statement costs more than running it.
_IN_SCOPE = in_bound_scope(mqtt_ids)
_OWNED = _IN_SCOPE & (mqtt_ids.c.subject_id == bindparam("subject"))
_OWNERS = select(mqtt_ids).where(
    _IN_SCOPE, mqtt_ids.c.mqtt_id.in_(bindparam("wanted", expanding=True))
)
# Both storages read these words; SQLAlchemy has a construct of its own for each.
_KEEP = text(
    """INSERT INTO usage.mqtt_ids
         (org_id, environment, mqtt_id, subject_id, rights, grant_kid, server, cid, seen_at)
       VALUES (:of_org, :of_environment, :wanted, :subject, :may, :grant, :server, :cid, :at)
       ON CONFLICT (org_id, environment, mqtt_id) DO UPDATE SET
         subject_id = excluded.subject_id, rights = excluded.rights,
         grant_kid = excluded.grant_kid, server = excluded.server, cid = excluded.cid,
         seen_at = excluded.seen_at"""
)
_LAST_KEPT = (
    select(mqtt_ids.c.seen_at)
    .where(_OWNED)
    .order_by(mqtt_ids.c.seen_at.desc())
    .offset(_MOST_EACH)
    .limit(1)
)
_FORGET_OLD = delete(mqtt_ids).where(_OWNED, mqtt_ids.c.seen_at <= bindparam("oldest"))


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
    the grant that was shown. `rights` and `grant_kid` are of the connection `(server, cid)` alone:
    another login may have been judged since a session with this client id began.
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


@dataclass(frozen=True, slots=True)
class IdClaim:
    """A session that somebody wants to have under an MQTT client id, and what it may do."""

    scope: TenantScope
    mqtt_id: str
    subject_id: str
    rights: bytes
    connection: Connected
    grant_kid: str | None = None

    @property
    def row(self) -> dict[str, object]:
        """The columns of its row, the time apart."""
        return {
            **bind_scope(self.scope),
            "wanted": self.mqtt_id,
            "subject": self.subject_id,
            "may": self.rights,
            "grant": self.grant_kid,
            "server": self.connection[0],
            "cid": self.connection[1],
        }


@dataclass(slots=True)
class _Turn:
    claim: IdClaim
    answer: bool | None = None
    fault: WardkeyError | None = None


@dataclass(slots=True)
class ClientIds:
    """Gives MQTT client ids to who asks first; what is asked at once shares a transaction.

    Of each subject about a hundred that were seen last are kept: ids may be drawn anew each time.
    """

    database: Database
    _asked: list[_Turn] = field(default_factory=list)
    _new: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _writing: threading.Lock = field(default_factory=threading.Lock)

    def take(self, claim: IdClaim) -> bool:
        """Tell whether a session with this client id is for the subject to have.

        It is its own then. Raises the storage's failure.
        """
        turn = _Turn(claim)
        with self._lock:
            self._asked.append(turn)
        with self._writing:
            if turn.answer is None and turn.fault is None:
                with self._lock:
                    turns, self._asked = self._asked, []
                self._write_all(turns)
        if turn.fault is not None:
            raise turn.fault
        return bool(turn.answer)

    def _write_all(self, turns: Sequence[_Turn]) -> None:
        try:
            answers = self._write([turn.claim for turn in turns])
        except WardkeyError as error:
            # Each who asked raises it.
            for turn in turns:
                turn.fault = error
            return
        for turn, answer in zip(turns, answers, strict=True):
            turn.answer = answer

    def _write(self, claims: Sequence[IdClaim]) -> list[bool]:
        """Decide in the order in which they were asked, and write what is to be kept."""
        now = self.database.clock()
        answers, kept, new = [], dict[tuple[TenantScope, str], IdClaim](), list[IdClaim]()
        with self.database.counting() as connection:
            found = _find_rows(connection, claims)
            for claim in claims:
                name = claim.scope, claim.mqtt_id
                owner = found.get(name)
                mine = owner is None or owner[0] == claim.subject_id or now - owner[1] >= KEPT_MS
                answers.append(mine)
                if mine:
                    if owner is None or owner[0] != claim.subject_id:
                        new.append(claim)
                    found[name] = claim.subject_id, now
                    kept[name] = claim
            rows = [{**claim.row, "at": now} for claim in kept.values()]
            if rows:
                connection.execute(_KEEP, rows)
            for claim in new:
                self._keep_few(connection, claim)
        return answers

    def _keep_few(self, connection: Connection, claim: IdClaim) -> None:
        """Now and then delete what a subject has too many of; it takes a look at the whole room."""
        if len(self._new) >= _MOST_COUNTED:
            self._new.clear()
        self._new[claim.subject_id] += 1
        if self._new[claim.subject_id] % _LOOK_EACH:
            return
        oldest = connection.execute(_LAST_KEPT, claim.row).scalar_one_or_none()
        if oldest is not None:
            connection.execute(_FORGET_OLD, {**claim.row, "oldest": oldest})


def _find_rows(
    connection: Connection, claims: Sequence[IdClaim]
) -> dict[tuple[TenantScope, str], tuple[str, int]]:
    """Return whose these client ids are, and when they were seen."""
    found = {}
    by_scope: defaultdict[TenantScope, set[str]] = defaultdict(set)
    for claim in claims:
        by_scope[claim.scope].add(claim.mqtt_id)
    for scope, ids in by_scope.items():
        asked = {**bind_scope(scope), "wanted": list(ids)}
        for row in connection.execute(_OWNERS, asked):
            found[scope, row.mqtt_id] = row.subject_id, row.seen_at
    return found


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
            client = None
            if row.enabled:
                client = ConnectedClient(row.subject_id, *scope, row.username, row.password_set_at)
            connection = row.server or "", row.cid or 0
            found[row.mqtt_id] = Owner(
                row.subject_id, row.grant_kid, client, bytes(row.rights), connection
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
