"""Reports mistakes in a proxy's forward-auth URL, in the log and the audit, once a minute."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

from wardkey.actions.core.runner import Runner
from wardkey.actions.operations.proxy_mistakes import MISTAKE
from wardkey.domain.errors import WardkeyError
from wardkey.domain.principal import Principal, PrincipalKind
from wardkey.domain.times import MINUTE_MS

log = logging.getLogger(__name__)

# Anyone who reaches Wardkey can send such requests, so the number of reports is limited.
_MAX_REPORTS = 10


@dataclass(slots=True)
class ProxyMistakes:
    """The times of the last minute's reports (epoch ms), by sentence and peer."""

    reported: dict[tuple[str, str], int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, runner: Runner, error: WardkeyError, peer: str) -> None:
        """Log and audit a mistake, unless it was reported in the last minute."""
        now, report = runner.database.clock(), (error.detail, peer)
        with self.lock:
            self.reported = {k: at for k, at in self.reported.items() if 0 <= now - at < MINUTE_MS}
            if report in self.reported or len(self.reported) >= _MAX_REPORTS:
                return
            self.reported[report] = now
        log.error("forward auth rejects every request from %s: %s", peer, error.detail)
        by = Principal(PrincipalKind.USER, "", "", address=peer)
        runner.aggregator.aggregate(by, MISTAKE, error.detail)
