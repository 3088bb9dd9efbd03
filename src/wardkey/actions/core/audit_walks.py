"""Walks along whole audit chains, a page at a time, so that no transaction stays open."""

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
    """Yield the organization's events that fit `query`, oldest first, in pages; some are empty.

    All events are there that were recorded when the first page is asked for, and no later ones.
    Between pages no transaction is open: events are only ever added, so nothing is missed. An
    export may take minutes, so each page is only for a caller who may still read it.
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
    """Check every link of one chain; return how many events it has, and each break found.

    The chain is checked up to where it ends at the beginning. `signed_head` is an earlier
    `export_head`: with it, a chain cut off at its end shows too. Raises `InvalidRequest` if that
    head was not signed by this deployment for this chain, `Overloaded` if the walk takes longer
    than `within_s` seconds.
    """
    with database.read() as tx:
        extent = find_extent(tx, by, org_id)
        differing = compare_head(tx, by, org_id, signed_head) if signed_head else []
    ends = None if within_s is None else time.monotonic() + within_s
    links = _links(database, by, org_id, extent, ends)
    breaks = check(links, database.vault.audit_keys, extent.head)
    return (extent.head[0] if extent.head else 0), breaks + differing


def _links(
    database: Database, by: Principal, org_id: str, extent: ChainExtent, ends: float | None
) -> Iterator[ChainLink]:
    after = extent.first - 1
    while after < extent.last:
        if ends is not None and time.monotonic() > ends:
            raise Overloaded(
                "The chain is too long to be checked in one call; `wardkey audit verify` on the "
                "server takes the time that it needs."
            )
        with database.read() as tx:
            page = read_links(tx, by, org_id, after, extent.last)
        if not page:
            return
        yield from page
        after = page[-1][0]
