"""Reading whole audit chains page by page, so no transaction stays open for long."""

from __future__ import annotations

import time
from collections.abc import Iterator

from wardkey.actions.core.audit import (
    AuditEvent,
    AuditQuery,
    ChainExtent,
    ChainLink,
    compare_head,
    find_extent,
    read_events,
    read_links,
)
from wardkey.actions.core.authority import CallerAuthority
from wardkey.db.engine import Database
from wardkey.domain.audit_chain import Break, check
from wardkey.domain.errors import Overloaded
from wardkey.domain.principal import Principal


def export_events(
    database: Database, by: Principal, query: AuditQuery
) -> Iterator[list[AuditEvent]]:
    """Yield the organization's events that match `query`, oldest first, in pages; some are empty.

    Events recorded after the first page was requested are not included. No transaction is open
    between pages; the log is append-only, so no event is missed. An export can take minutes, so
    the caller's permissions are checked again for each page.
    """
    with database.read() as tx:
        extent = find_extent(tx, by, by.org_id)
    after = extent.first - 1
    while after < extent.last:
        with database.read() as tx:
            page = read_events(tx, CallerAuthority(tx).recheck(by), query, after, extent.last)
        after = page.end
        yield page.events


def verify_chain(
    database: Database,
    by: Principal,
    org_id: str,
    signed_head: str = "",
    within_s: float | None = None,
) -> tuple[int, list[Break]]:
    """Check every link of one chain; return the number of its events, and all breaks.

    Events added meanwhile are not checked. `signed_head` is a result of `export_head`; with it, a
    truncated chain is detected too. Raises `InvalidRequest` if this deployment did not sign that
    head for this chain, and `Overloaded` if the check takes longer than `within_s` seconds.
    """
    with database.read() as tx:
        extent = find_extent(tx, by, org_id)
        differences = compare_head(tx, by, org_id, signed_head) if signed_head else []
    deadline = None if within_s is None else time.monotonic() + within_s
    links = _iter_links(database, by, org_id, extent, deadline)
    breaks = check(links, database.vault.audit_keys, extent.head)
    return (extent.head[0] if extent.head else 0), breaks + differences


def _iter_links(
    database: Database, by: Principal, org_id: str, extent: ChainExtent, deadline: float | None
) -> Iterator[ChainLink]:
    after = extent.first - 1
    while after < extent.last:
        if deadline is not None and time.monotonic() > deadline:
            raise Overloaded(
                "The chain is too long to check in one call; run `wardkey audit verify` on the "
                "server, which has no time limit."
            )
        with database.read() as tx:
            page = read_links(tx, by, org_id, after, extent.last)
        if not page:
            return
        yield from page
        after = page[-1][0]
