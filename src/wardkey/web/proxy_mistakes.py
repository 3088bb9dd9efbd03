"""Says when the URL of a proxy is wrong: in the log and the audit, not for each request."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, field

from wardkey.actions.core.runner import MINUTE_MS, Runner
from wardkey.actions.operations.proxy_mistakes import MISTAKE
from wardkey.domain.errors import WardkeyError
from wardkey.domain.principal import Principal, PrincipalKind

log = logging.getLogger(__name__)

# Anyone who reaches Wardkey can make such a request, so the number of different ones is bounded.
_MOST = 10


@dataclass(slots=True)
class ProxyMistakes:
    """What was said in the last minute, by sentence and peer, with its time (epoch ms)."""

    said: dict[tuple[str, str], int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, runner: Runner, failure: WardkeyError, peer: str) -> None:
        """Log a mistake and note it for the audit, unless that was done in the last minute."""
        now, name = runner.database.clock(), (failure.detail, peer)
        with self.lock:
            self.said = {k: at for k, at in self.said.items() if 0 <= now - at < MINUTE_MS}
            if name in self.said or len(self.said) >= _MOST:
                return
            self.said[name] = now
        log.error("forward-auth refuses every request of %s: %s", peer, failure.detail)
        by = Principal(PrincipalKind.USER, "", "", address=peer)
        runner.aggregator.aggregate(by, MISTAKE, failure.detail)
