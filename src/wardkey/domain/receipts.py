"""The confirmed effect of a committed change on verifiers and live sessions."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wardkey.domain.tenants import TenantScope

# Means every subject in a tenant scope.
ALL_SUBJECTS = "*"


@dataclass(frozen=True, slots=True)
class SessionImpact:
    """A committed change that may end live sessions of these subjects in a tenant scope."""

    scope: TenantScope
    epoch: str
    revision: int
    subjects: frozenset[str]


class Reach(StrEnum):
    """`everywhere`: all verifiers apply the change; `bounded`: some may not, for a stated time."""

    EVERYWHERE = "everywhere"
    BOUNDED = "bounded"


@dataclass(frozen=True, slots=True)
class EndedSessions:
    """The number of live sessions that a change ended; None while the broker is unreachable.

    It is pending until logins in flight have been checked, at `pending_until` (epoch milliseconds)
    if the broker is reachable. `receipt_id` is empty if the change can't affect any session.
    """

    receipt_id: str = ""
    ended: int | None = 0
    pending: bool = False
    pending_until: int | None = None


@dataclass(frozen=True, slots=True)
class Confirmation:
    """The reach of a change when its call returns.

    `took_ms` is the time since the commit. `late` verifiers, which are configured to answer for up
    to `staleness_s` without the database, may not have applied it yet.
    """

    reach: Reach
    verifiers: int
    took_ms: float
    staleness_s: float = 0.0
    late: int = 0
    # None without messaging.
    sessions: EndedSessions | None = None
