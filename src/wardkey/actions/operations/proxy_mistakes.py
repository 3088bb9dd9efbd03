"""Forward-auth URLs that name an unknown organization, or none where they have to name one."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import select

from wardkey.actions.core.audit import DEPLOYMENT
from wardkey.db.engine import Transaction
from wardkey.db.schema import audit_events
from wardkey.domain.principal import Principal

MISTAKE = "forward_auth.misconfigured"
_MOST = 5


@dataclass(frozen=True, slots=True)
class ProxyMistake:
    """One kind of mistake; `at` is the latest event's time (epoch ms), `address` the proxy's."""

    what: str
    address: str
    at: int


def list_mistakes(tx: Transaction, by: Principal, since: int) -> list[ProxyMistake]:
    """Return the mistakes that proxies made since a time (epoch ms), each once, latest first."""
    by.require_operator()
    columns = audit_events.c.details, audit_events.c.address, audit_events.c.at
    statement = (
        select(*columns)
        .where(
            audit_events.c.org_id == DEPLOYMENT,
            audit_events.c.action == MISTAKE,
            audit_events.c.at >= since,
        )
        .order_by(audit_events.c.seq.desc())
        .limit(1000)
    )
    found: dict[tuple[str, str], ProxyMistake] = {}
    for row in tx.connection.execute(statement):
        what = str(json.loads(row.details).get("what", ""))
        found.setdefault((what, row.address), ProxyMistake(what, row.address, row.at))
    return list(found.values())[:_MOST]
