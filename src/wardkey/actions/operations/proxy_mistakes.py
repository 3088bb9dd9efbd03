"""Reports forward-auth URLs whose organization is unknown, or missing where required."""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import select

from wardkey.actions.core.audit import DEPLOYMENT
from wardkey.db.engine import Transaction
from wardkey.db.schema import audit_events
from wardkey.domain.principal import Principal

MISTAKE = "forward_auth.misconfigured"
_MAX_MISTAKES = 5


@dataclass(frozen=True, slots=True)
class ProxyMistake:
    """One kind of mistake; `at` is the latest event's time (epoch ms), `address` the proxy's."""

    what: str
    address: str
    at: int


def list_mistakes(tx: Transaction, by: Principal, since: int) -> list[ProxyMistake]:
    """Return distinct mistakes of proxies since a time (epoch ms), latest first, at most five."""
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
    mistakes: dict[tuple[str, str], ProxyMistake] = {}
    for row in tx.connection.execute(statement):
        what = str(json.loads(row.details).get("what", ""))
        mistakes.setdefault((what, row.address), ProxyMistake(what, row.address, row.at))
    return list(mistakes.values())[:_MAX_MISTAKES]
