"""The application context: the parts of a running process that routes use."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, cast

from fastapi import Depends, Request

from wardkey.actions.core.runner import Runner
from wardkey.actions.messaging.client_logins import VerifiedPasswords
from wardkey.actions.messaging.rule_cache import RuleCache
from wardkey.adapters.broker_link import BrokerLink
from wardkey.adapters.publishers import Publishers
from wardkey.adapters.single_sign_on import SignInIssuer
from wardkey.domain.addresses import Network
from wardkey.domain.errors import BrokerUnreachable, MessagingOff
from wardkey.domain.single_sign_on import SignInPolicy
from wardkey.services.session_removal import SessionRemover
from wardkey.services.throttle import Throttle
from wardkey.services.token_exchange import TokenExchange
from wardkey.services.work_slots import WorkSlots
from wardkey.verify.usage import Usage
from wardkey.verify.verifier import Verifier
from wardkey.web.exports import Exports
from wardkey.web.proxy_mistakes import ProxyMistakes

KEY_HEADER = b"wardkey-api-key"
# With the key headers, everything that a caller's identity and verdict depend on.
_IDENTITY_HEADERS = (
    b"authorization",
    b"x-forwarded-for",
    b"origin",
    b"sec-fetch-site",
    b"user-agent",
)


@dataclass(slots=True)
class AppContext:
    """The parts of one process, and the settings that routes read."""

    runner: Runner
    verifier: Verifier
    usage: Usage
    throttle: Throttle
    public_url: str
    proxies: tuple[Network, ...]
    key_headers: tuple[bytes, ...]
    metrics_token: str = field(repr=False)
    token_exchange: TokenExchange
    # The issuer for single sign-on to the dashboard, if configured.
    sign_in_issuer: SignInIssuer | None = None
    sign_in_policy: SignInPolicy = field(default_factory=SignInPolicy)
    # The URLs that clients connect to; empty if unknown.
    mqtt_url: str = ""
    access_log: bool = False
    websocket_url: str = ""
    # The next three are None without messaging.
    link: BrokerLink | None = None
    publishers: Publishers | None = None
    session_remover: SessionRemover | None = None
    verified: VerifiedPasswords = field(default_factory=VerifiedPasswords)
    rights: RuleCache = field(default_factory=RuleCache)
    proxy_mistakes: ProxyMistakes = field(default_factory=ProxyMistakes)
    exports: Exports = field(default_factory=Exports)
    # Limits checks of audit chains.
    checks: WorkSlots = field(default_factory=lambda: WorkSlots(total=2, per_organization=1))
    # Limits reads and clears of retained messages; each opens its own connection to the broker.
    retained: WorkSlots = field(default_factory=lambda: WorkSlots(total=8, per_organization=2))
    # Derived from `key_headers`: the headers that may contain a key, and those that identify a
    # caller.
    key_names: tuple[bytes, ...] = field(init=False)
    identity_headers: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Derive the header names."""
        self.key_names = (KEY_HEADER, *self.key_headers)
        self.identity_headers = (*_IDENTITY_HEADERS, *self.key_names)

    @property
    def waits_for_network(self) -> bool:
        """Whether a cache miss queries another machine."""
        return self.runner.database.kind != "sqlite"

    @property
    def broker(self) -> BrokerLink:
        """The connection to the broker; raises `MessagingOff`, `BrokerUnreachable`."""
        if self.link is None:
            raise MessagingOff
        if not self.link.is_connected:
            raise BrokerUnreachable
        return self.link


def _context(request: Request) -> AppContext:
    return cast("AppContext", request.app.state.context)


CurrentContext = Annotated[AppContext, Depends(_context)]
