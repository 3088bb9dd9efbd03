"""Runs actions: transaction, commit, confirmation, and aggregated audit events for refusals."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Concatenate, ParamSpec, TypeVar

from wardkey.actions.core.audit import Target, record
from wardkey.actions.core.authority import CallerAuthority
from wardkey.db.engine import Database, Transaction
from wardkey.domain.errors import Forbidden
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.receipts import ALL_SUBJECTS, Confirmation, EndedSessions, SessionImpact
from wardkey.domain.times import MINUTE_MS

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True)
class AuditAggregator:
    """Counts refused attempts and uses of service keys, too frequent for an audit event each.

    One aggregated event per minute covers all alike, so the audit log can't fill the disk.
    """

    pending: dict[tuple[str, str, str, str], tuple[Principal, int]] = field(default_factory=dict)
    written_at: dict[tuple[str, str, str, str], int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def aggregate(self, by: Principal, action: str, what: str) -> None:
        """Count an occurrence; the event has the client address of the minute's first one."""
        name = (by.id, by.org_id, action, what)
        with self.lock:
            first, count = self.pending.get(name, (by, 0))
            self.pending[name] = (first, count + 1)

    def take(self, now: int, *, everything: bool = False) -> list[tuple[Principal, str, str, int]]:
        """Return the counts that are due: the first of a kind at once, more after a minute."""
        with self.lock:
            self.written_at = {k: at for k, at in self.written_at.items() if now - at < MINUTE_MS}
            due = [name for name in self.pending if everything or name not in self.written_at]
            taken = []
            for name in due:
                by, count = self.pending.pop(name)
                self.written_at[name] = now
                taken.append((by, name[2], name[3], count))
            return taken

    def put_back(self, taken: list[tuple[Principal, str, str, int]]) -> None:
        """Take back the counts that could not be written, for the next attempt."""
        with self.lock:
            for by, action, what, count in taken:
                name = (by.id, by.org_id, action, what)
                self.written_at.pop(name, None)
                newer = self.pending[name][1] if name in self.pending else 0
                self.pending[name] = (by, count + newer)


@dataclass(slots=True)
class Runner:
    """Runs an action for a principal in one transaction, and counts refusals for the audit.

    After a commit, `end_sessions` ends the affected MQTT sessions (None without messaging); then
    `confirm` waits until every verifier has applied the change.
    """

    database: Database
    confirm: Callable[[str, int], Confirmation]
    end_sessions: Callable[[SessionImpact], EndedSessions] | None = None
    aggregator: AuditAggregator = field(default_factory=AuditAggregator)

    def write(
        self,
        action: Callable[Concatenate[Transaction, Principal, P], R],
        by: Principal,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run an action that writes; once this returns, its change has reached every verifier.

        The caller is judged again first, so this raises what `CallerAuthority.recheck` raises.
        """
        return self.write_confirmed(action, by, *args, **kwargs)[0]

    def write_confirmed(
        self,
        action: Callable[Concatenate[Transaction, Principal, P], R],
        by: Principal,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> tuple[R, Confirmation]:
        """Run an action as `write` does; also return the confirmed reach of the change."""
        with self.audit_refusals(action.__name__, by), self.database.write() as tx:
            result = action(tx, CallerAuthority(tx).recheck(by), *args, **kwargs)
        # Confirm even if nothing changed: the earlier change that did may not be confirmed yet.
        revision = tx.revision - (not tx.position)
        sessions = None if self.end_sessions is None else EndedSessions()
        if self.end_sessions is not None:
            for scope in sorted(tx.affected_scopes):
                everyone = frozenset({ALL_SUBJECTS})
                self.end_sessions(SessionImpact(scope, tx.epoch, revision, everyone))
        if self.end_sessions is not None and tx.affected_subjects:
            sessions = self.end_sessions(
                SessionImpact(by.scope, tx.epoch, revision, frozenset(tx.affected_subjects))
            )
        return result, replace(self.confirm(tx.epoch, revision), sessions=sessions)

    def read(
        self,
        action: Callable[Concatenate[Transaction, Principal, P], R],
        by: Principal,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run an action that only reads, in one snapshot."""
        with self.audit_refusals(action.__name__, by), self.database.read() as tx:
            return action(tx, by, *args, **kwargs)

    def write_aggregated_events(self, *, everything: bool = False) -> None:
        """Write the due counts as audit events; after a failure they are kept for later."""
        due = self.aggregator.take(self.database.clock(), everything=everything)
        if not due:
            return
        try:
            with self.database.write() as tx:
                for by, action, what, count in due:
                    details = {"what": what, "count": count}
                    record(tx, by, action, Target(by.kind, by.id), details)
        except Exception:
            self.aggregator.put_back(due)
            raise

    @contextmanager
    def audit_refusals(self, attempt: str, by: Principal) -> Iterator[None]:
        """Count a refusal of `by` within the block for the audit; the error propagates."""
        try:
            yield
        except Forbidden as error:
            self.note_refusal(attempt, by, error)
            raise

    def note_refusal(self, attempt: str, by: Principal, error: Forbidden) -> None:
        """Count a refusal of `by` for the audit; the operator's are not counted."""
        if by.kind is not PrincipalKind.OPERATOR:
            self.aggregator.aggregate(by, "attempt.refused", f"{attempt}: {error.code}")
