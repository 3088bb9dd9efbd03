"""The one runner of actions: transaction, commit, and the minute notes of what was refused."""

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

MINUTE_MS = 60_000

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(slots=True)
class AuditAggregator:
    """What known callers do too often for an audit event each: refusals, uses of service keys.

    One event a minute stands for all that are alike, so that the audit cannot flood the disk.
    """

    pending: dict[tuple[str, str, str, str], tuple[Principal, int]] = field(default_factory=dict)
    written_at: dict[tuple[str, str, str, str], int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def aggregate(self, by: Principal, action: str, what: str) -> None:
        """Count one; where the first came from stands for the others of its minute."""
        name = (by.id, by.org_id, action, what)
        with self.lock:
            first, count = self.pending.get(name, (by, 0))
            self.pending[name] = (first, count + 1)

    def take(self, now: int, *, everything: bool = False) -> list[tuple[Principal, str, str, int]]:
        """Return what is due: the first of its kind at once, the rest when its minute is over."""
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
        """Keep for the next time what could not be written."""
        with self.lock:
            for by, action, what, count in taken:
                name = (by.id, by.org_id, action, what)
                self.written_at.pop(name, None)
                newer = self.pending[name][1] if name in self.pending else 0
                self.pending[name] = (by, count + newer)


@dataclass(slots=True)
class Runner:
    """Runs an action as somebody: in one transaction, and its refusal noted for the audit.

    `confirm` waits after a commit until every verifier knows it; before, `end_sessions` ends what
    is live on MQTT of those whom the change concerned. It is None without messaging.
    """

    database: Database
    confirm: Callable[[str, int], Confirmation]
    end_sessions: Callable[[SessionImpact], EndedSessions] | None = None
    notes: AuditAggregator = field(default_factory=AuditAggregator)

    def write(
        self,
        action: Callable[Concatenate[Transaction, Principal, P], R],
        by: Principal,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run an action that writes; when this returns, what it did binds every verifier.

        Who calls is looked at again first: raises what `CallerAuthority.recheck` raises.
        """
        return self.write_confirmed(action, by, *args, **kwargs)[0]

    def write_confirmed(
        self,
        action: Callable[Concatenate[Transaction, Principal, P], R],
        by: Principal,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> tuple[R, Confirmation]:
        """Run an action as `change` does, and tell how far it has reached."""
        with self.audit_refusals(action.__name__, by), self.database.write() as tx:
            done = action(tx, CallerAuthority(tx).recheck(by), *args, **kwargs)
        # What changed nothing is confirmed too: an earlier caller may still be waiting for it.
        revision = tx.revision - (not tx.position)
        sessions = None if self.end_sessions is None else EndedSessions()
        if self.end_sessions is not None:
            for other in sorted(tx.affected_scopes):
                everyone = frozenset({ALL_SUBJECTS})
                self.end_sessions(SessionImpact(other, tx.epoch, revision, everyone))
        if self.end_sessions is not None and tx.affected_subjects:
            sessions = self.end_sessions(
                SessionImpact(by.scope, tx.epoch, revision, frozenset(tx.affected_subjects))
            )
        return done, replace(self.confirm(tx.epoch, revision), sessions=sessions)

    def read(
        self,
        action: Callable[Concatenate[Transaction, Principal, P], R],
        by: Principal,
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> R:
        """Run an action that only reads, on one snapshot."""
        with self.audit_refusals(action.__name__, by), self.database.read() as tx:
            return action(tx, by, *args, **kwargs)

    def write_notes(self, *, everything: bool = False) -> None:
        """Write what is due as audit events, each with its count; what fails is kept for later."""
        due = self.notes.take(self.database.clock(), everything=everything)
        if not due:
            return
        try:
            with self.database.write() as tx:
                for by, action, what, count in due:
                    details = {"what": what, "count": count}
                    record(tx, by, action, Target(by.kind, by.id), details)
        except Exception:
            self.notes.put_back(due)
            raise

    @contextmanager
    def audit_refusals(self, attempt: str, by: Principal) -> Iterator[None]:
        """Note a refusal of `by` in the block for the audit, and let it go on."""
        try:
            yield
        except Forbidden as failure:
            self.note_refusal(attempt, by, failure)
            raise

    def note_refusal(self, attempt: str, by: Principal, failure: Forbidden) -> None:
        """Note a refusal of `by` for the audit."""
        if by.kind is not PrincipalKind.OPERATOR:
            self.notes.aggregate(by, "attempt.refused", f"{attempt}: {failure.code}")
