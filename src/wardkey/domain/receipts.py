"""What a revocation may claim of the verifiers."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from wardkey.domain.tenants import TenantScope

# Stands for every subject of a tenant scope.
ALL_SUBJECTS = "*"


@dataclass(frozen=True, slots=True)
class SessionImpact:
    """A committed change that may end live sessions of these subjects in a tenant scope."""

    scope: TenantScope
    epoch: str
    revision: int
    subjects: frozenset[str]


class Reach(StrEnum):
    """`everywhere`: nothing accepts it any more; `bounded`: some may, for a stated time."""

    EVERYWHERE = "everywhere"
    BOUNDED = "bounded"


@dataclass(frozen=True, slots=True)
class EndedSessions:
    """How many live sessions a change has ended; None while nobody could ask the broker.

    It is pending until a login that was in flight has been looked for, at `pending_until` (epoch
    milliseconds) if the broker can be asked. `receipt_id` is empty where no session is concerned.
    """

    receipt_id: str = ""
    ended: int | None = 0
    pending: bool = False
    pending_until: int | None = None


@dataclass(frozen=True, slots=True)
class Confirmation:
    """How far a change has reached when its call returns.

    `took_ms` is the time from the commit on. `late` verifiers, which chose to answer without the
    database for up to `staleness_s`, may not know it yet.
    """

    reach: Reach
    verifiers: int
    took_ms: float
    staleness_s: float = 0.0
    late: int = 0
    # None without messaging.
    sessions: EndedSessions | None = None
