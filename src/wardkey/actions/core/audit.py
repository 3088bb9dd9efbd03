"""The audit log: recording events with their change-feed rows, and querying them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Row, Select, bindparam, func, insert, literal, or_, select, update

from wardkey.db.engine import Transaction
from wardkey.db.schema import audit_events, audit_heads, changes, import_prefixes, organizations
from wardkey.domain.audit_chain import GENESIS, Break, Head, link, open_head, sign_head
from wardkey.domain.callers import MOST_ADDRESS, MOST_AGENT, storable
from wardkey.domain.errors import InvalidRequest
from wardkey.domain.ids import new_id
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.secret import may_hold_secret

DEPLOYMENT = "deployment"
# Targets that belong to one environment. Events about other targets are hidden from test keys, even
# if they were recorded while a member worked in test.
_ENVIRONMENT_TARGETS = (
    *("key", "client", "acl", "provider", "grant", "exchange", "session", "retained"),
)
# Events read from a chain in one short transaction.
PAGE = 500

# Built once: constructing a statement costs more than running it.
_ADD_CHANGE = insert(changes)
_ADD_EVENT = insert(audit_events)
_HEAD = select(audit_heads.c.seq, audit_heads.c.mac).where(
    audit_heads.c.org_id == bindparam("of_org")
)
_FIRST_HEAD = insert(audit_heads).values(
    org_id=bindparam("of_org"), seq=bindparam("to_seq"), mac=bindparam("to_mac")
)
_MOVE_HEAD = (
    update(audit_heads)
    .where(audit_heads.c.org_id == bindparam("of_org"))
    .values(seq=bindparam("to_seq"), mac=bindparam("to_mac"))
)

Details = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Target:
    """The object of an action; `kind` is also the subject in the change feed."""

    kind: str
    id: str


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One link of an organization's chain; `at` in epoch milliseconds, `mac` 32 bytes in hex."""

    org_id: str
    seq: int
    id: str
    at: int
    environment: str
    actor_kind: str
    actor_id: str
    actor_label: str
    action: str
    target_kind: str
    target_id: str
    address: str
    user_agent: str
    details: Mapping[str, Any]
    mac: str


# A link as `check` expects it: number, key version, event and mac.
ChainLink = tuple[int, int, Mapping[str, object], bytes]


@dataclass(frozen=True, slots=True)
class ChainExtent:
    """The numbers of a chain's first and last events (1 and 0 if it is empty), and its head."""

    first: int
    last: int
    head: tuple[int, bytes] | None


@dataclass(frozen=True, slots=True)
class EventPage:
    """The matching events of one page; `end` is the number up to which the chain was read."""

    events: list[AuditEvent]
    end: int


@dataclass(frozen=True, slots=True)
class AuditQuery:
    """Filters for the organization's events, newest first, below `before_seq`.

    `actor` is an id, or the actor's label at the time of the event.
    """

    action: str = ""
    actor_id: str = ""
    target_id: str = ""
    since: int | None = None
    until: int | None = None
    before_seq: int | None = None
    limit: int = 50
    actor: str = ""


def client_of(tx: Transaction, by: Principal) -> tuple[str, str]:
    """Return the client's address and user agent, sanitized for storage."""
    prefixes: tuple[str, ...] = ()
    if may_hold_secret(by.user_agent) or may_hold_secret(by.address):
        registered = tx.connection.execute(select(import_prefixes.c.prefix)).scalars()
        prefixes = tuple(sorted(registered))
    return (
        storable(by.address, MOST_ADDRESS, tx.brand, prefixes),
        storable(by.user_agent, MOST_AGENT, tx.brand, prefixes),
    )


def record(
    tx: Transaction,
    by: Principal,
    action: str,
    target: Target,
    details: Details | None = None,
    *,
    org_id: str = "",
) -> None:
    """Append one change's audit event and change-feed row, together so neither is forgotten.

    The event goes to the chain of `org_id`, by default of the actor's organization, or of the
    deployment if the actor has none.
    """
    org_id = org_id or by.org_id or DEPLOYMENT
    tx.position += 1
    tx.connection.execute(
        _ADD_CHANGE,
        {
            "revision": tx.revision,
            "position": tx.position,
            "epoch": tx.epoch,
            "org_id": org_id,
            "subject": target.kind,
            "subject_id": target.id,
            "at": tx.now,
        },
    )
    head = tx.connection.execute(_HEAD, {"of_org": org_id}).one_or_none()
    address, agent = client_of(tx, by)
    event = {
        "org_id": org_id,
        "seq": head.seq + 1 if head else 1,
        "id": new_id("evt", tx.now),
        "at": tx.now,
        "environment": str(by.environment),
        "actor_kind": str(by.kind),
        "actor_id": by.id,
        "actor_label": by.label,
        "action": action,
        "target_kind": target.kind,
        "target_id": target.id,
        "address": address,
        "user_agent": agent,
        "details": json.dumps(details or {}, sort_keys=True, ensure_ascii=False),
        "key_version": tx.vault.version,
    }
    mac = link(tx.vault.audit_keys[tx.vault.version], head.mac if head else GENESIS, event)
    tx.connection.execute(_ADD_EVENT, {**event, "mac": mac})
    new_head = {"of_org": org_id, "to_seq": event["seq"], "to_mac": mac}
    tx.connection.execute(_MOVE_HEAD if head else _FIRST_HEAD, new_head)


def list_events(tx: Transaction, by: Principal, query: AuditQuery) -> list[AuditEvent]:
    """Return the events that match `query` and that the caller may see, newest first.

    Members and live keys see both environments; a test key sees only events of test.
    """
    by.require(Permission.AUDIT_READ)
    statement = _select_events(by, query).order_by(audit_events.c.seq.desc()).limit(query.limit)
    return [_event(row) for row in tx.connection.execute(statement)]


def find_extent(tx: Transaction, by: Principal, org_id: str) -> ChainExtent:
    """Return where a chain begins and ends, read in one statement and therefore consistent."""
    _require_reader(by, org_id)
    events = select(func.min(audit_events.c.seq), func.max(audit_events.c.seq)).where(
        audit_events.c.org_id == org_id
    )
    head = select(audit_heads).where(audit_heads.c.org_id == org_id).subquery()
    extent = events.subquery()
    row = tx.connection.execute(
        select(extent, head.c.seq, head.c.mac).select_from(
            extent.outerjoin(head, literal(value=True))
        )
    ).one()
    first, last, head_seq, head_mac = row
    known_head = None if head_seq is None else (head_seq, bytes(head_mac))
    return ChainExtent(first or 1, last or 0, known_head)


def read_events(
    tx: Transaction, by: Principal, query: AuditQuery, after: int, last: int
) -> EventPage:
    """Return the events that match `query` among the next 500 after `after`, up to `last`.

    A page can be empty although matches follow, because each call reads at most 500 events.
    """
    by.require(Permission.AUDIT_READ)
    end = min(after + PAGE, last)
    seq = audit_events.c.seq
    statement = _select_events(by, query).where(seq > after, seq <= end).order_by(seq)
    events = [_event(row) for row in tx.connection.execute(statement)]
    if not events and end < last:
        # Skip to the next existing number: a large gap would take far too many pages.
        next_query = select(func.min(seq)).where(
            audit_events.c.org_id == by.org_id, seq > end, seq <= last
        )
        next_seq = tx.connection.execute(next_query).scalar_one()
        end = last if next_seq is None else next_seq - 1
    return EventPage(events, end)


def list_chains(tx: Transaction, by: Principal) -> list[tuple[str, str]]:
    """Return (name, organization id) of every chain, including those of deleted organizations."""
    by.require_operator()
    slugs = select(organizations.c.id, organizations.c.slug).order_by(organizations.c.slug)
    names = {row.id: row.slug for row in tx.connection.execute(slugs)}
    # A head without an organization: its row was deleted by hand.
    heads = tx.connection.execute(select(audit_heads.c.org_id).order_by(audit_heads.c.org_id))
    for org_id in heads.scalars():
        names.setdefault(org_id, org_id)
    names.pop(DEPLOYMENT, None)
    return [(DEPLOYMENT, DEPLOYMENT), *((name, org_id) for org_id, name in names.items())]


def read_links(
    tx: Transaction, by: Principal, org_id: str, after: int, last: int
) -> list[ChainLink]:
    """Return the next 500 links of a chain after `after`, up to `last`.

    Raises `LiveKeyRequired` for a test key, because a chain spans both environments.
    """
    _require_reader(by, org_id)
    by.require_live()
    seq = audit_events.c.seq
    statement = (
        select(audit_events)
        .where(audit_events.c.org_id == org_id, seq > after, seq <= last)
        .order_by(seq)
        .limit(PAGE)
    )
    return [
        (row.seq, row.key_version, _linked_fields(row), bytes(row.mac))
        for row in tx.connection.execute(statement)
    ]


def export_head(tx: Transaction, by: Principal, org_id: str) -> str:
    """Return the chain's current head, signed, to be stored outside the deployment.

    Raises `LiveKeyRequired` for a test key.
    """
    _require_reader(by, org_id)
    by.require_live()
    row = tx.connection.execute(
        select(audit_heads.c.seq, audit_heads.c.mac).where(audit_heads.c.org_id == org_id)
    ).one_or_none()
    seq, mac = (row.seq, bytes(row.mac)) if row else (0, GENESIS)
    return sign_head(tx.vault.audit_keys[tx.vault.version], org_id, seq, mac, tx.now)


def _require_reader(by: Principal, org_id: str) -> None:
    by.require(Permission.AUDIT_READ)
    if by.org_id != org_id:
        by.require_operator()


def compare_head(tx: Transaction, by: Principal, org_id: str, signed_head: str) -> list[Break]:
    """Return how a chain differs from a head exported earlier with `export_head`.

    Raises `InvalidRequest` if this deployment did not sign that head for this chain, and
    `LiveKeyRequired` for a test key.
    """
    _require_reader(by, org_id)
    by.require_live()
    heads = (open_head(key, signed_head) for key in tx.vault.audit_keys.values())
    head: Head | None = next((head for head in heads if head is not None), None)
    if head is None or head.org_id != org_id:
        raise InvalidRequest(
            "This deployment did not sign that head for this chain; give the unchanged text of a "
            "head that was exported from it."
        )
    if head.seq == 0:
        return []
    mac = tx.connection.execute(
        select(audit_events.c.mac).where(
            audit_events.c.org_id == org_id, audit_events.c.seq == head.seq
        )
    ).scalar_one_or_none()
    if mac is None:
        return [Break(head.seq, "the exported head names an event that no longer exists")]
    if bytes(mac) != head.mac:
        return [Break(head.seq, "the event with this number differs from the exported head")]
    return []


def _select_events(by: Principal, query: AuditQuery) -> Select[Any]:
    statement = select(audit_events).where(audit_events.c.org_id == by.org_id)
    if by.sees_test_alone:
        statement = statement.where(
            audit_events.c.environment == by.environment,
            audit_events.c.target_kind.in_(_ENVIRONMENT_TARGETS),
        )
    if query.action:
        statement = statement.where(audit_events.c.action == query.action)
    if query.actor_id:
        statement = statement.where(audit_events.c.actor_id == query.actor_id)
    if query.actor:
        columns = (audit_events.c.actor_id, audit_events.c.actor_label)
        statement = statement.where(or_(*(column == query.actor for column in columns)))
    if query.target_id:
        statement = statement.where(audit_events.c.target_id == query.target_id)
    if query.since is not None:
        statement = statement.where(audit_events.c.at >= query.since)
    if query.until is not None:
        statement = statement.where(audit_events.c.at < query.until)
    if query.before_seq is not None:
        statement = statement.where(audit_events.c.seq < query.before_seq)
    return statement


def _linked_fields(row: Row[Any]) -> dict[str, str | int]:
    return {name: value for name, value in row._mapping.items() if name != "mac"}  # noqa: SLF001


def _event(row: Row[Any]) -> AuditEvent:
    values = dict(row._mapping)  # noqa: SLF001 - SQLAlchemy's documented accessor
    del values["key_version"]
    return AuditEvent(**{**values, "details": json.loads(row.details), "mac": bytes(row.mac).hex()})
