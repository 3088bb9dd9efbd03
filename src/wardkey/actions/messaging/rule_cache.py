"""A cache of ACL rules by tenant scope, from which the rights of MQTT sessions are compiled."""

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

_MAX_SCOPES = 1_000
_REVISION = select(feed.c.revision)


@dataclass(slots=True)
class RuleCache:
    """Caches each tenant scope's rules until the next commit."""

    _cache: dict[TenantScope, tuple[int, RuleSet]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def compile(self, tx: Transaction, environment: Environment, actor: Actor) -> Subjects:
        """Return the subjects that an actor can use in a session."""
        return compile_subjects(self.rules(tx, TenantScope(actor.org_id, environment)).rules, actor)

    def get_cached(self, scope: TenantScope, revision: int) -> RuleSet | None:
        """Return the cached rules if they are those of a revision; runs no query."""
        cached = self._cache.get(scope)
        return cached[1] if cached is not None and cached[0] == revision else None

    def rules(self, tx: Transaction, scope: TenantScope) -> RuleSet:
        """Return the rules of a tenant scope as of the transaction's revision."""
        revision = int(tx.connection.execute(_REVISION).scalar_one())
        with self._lock:
            cached = self._cache.get(scope)
        if cached is not None and cached[0] == revision:
            return cached[1]
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
            if len(self._cache) >= _MAX_SCOPES:
                self._cache.clear()
            self._cache[scope] = (revision, rules)
        return rules
