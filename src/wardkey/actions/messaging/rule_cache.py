"""What a client may do on MQTT now, by the rules of its organization and environment."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from sqlalchemy import select

from wardkey.db.engine import Transaction
from wardkey.db.schema import acl_rules, feed
from wardkey.db.scoped import in_scope
from wardkey.domain.acl import AclRule, Action, Actor, Effect, SubjectKind
from wardkey.domain.broker_acl import Subjects, compile_subjects
from wardkey.domain.rule_set import RuleSet
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope

_MOST_ROOMS = 1_000
_REVISION = select(feed.c.revision)


@dataclass(slots=True)
class Rights:
    """Reads rules once for each commit, however many clients log in in between."""

    _kept: dict[TenantScope, tuple[int, RuleSet]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, tx: Transaction, environment: Environment, actor: Actor) -> Subjects:
        """Return what an actor may do in his session."""
        return compile_subjects(self.rules(tx, TenantScope(actor.org_id, environment)).rules, actor)

    def kept(self, scope: TenantScope, revision: int) -> RuleSet | None:
        """Return the rules as of a revision, if they were read since; no query."""
        kept = self._kept.get(scope)
        return kept[1] if kept is not None and kept[0] == revision else None

    def rules(self, tx: Transaction, scope: TenantScope) -> RuleSet:
        """Return what decides in an organization's environment."""
        revision = int(tx.connection.execute(_REVISION).scalar_one())
        with self._lock:
            kept = self._kept.get(scope)
        if kept is not None and kept[0] == revision:
            return kept[1]
        rows = tx.connection.execute(select(acl_rules).where(in_scope(acl_rules, scope)))
        rules = RuleSet(
            AclRule(
                row.id,
                row.priority,
                SubjectKind(row.subject_kind),
                row.subject,
                row.filter,
                Action(row.action),
                Effect(row.effect),
            )
            for row in rows
        )
        with self._lock:
            if len(self._kept) >= _MOST_ROOMS:
                self._kept.clear()
            self._kept[scope] = (revision, rules)
        return rules
