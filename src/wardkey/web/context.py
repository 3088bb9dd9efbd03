"""What a door needs of the running deployment, handed to it by the composition root."""

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
_TELLING = (
    b"authorization",
    b"x-forwarded-for",
    b"origin",
    b"sec-fetch-site",
    b"user-agent",
)


@dataclass(slots=True)
class AppContext:
    """One process's parts and the settings that doors look at."""

    runner: Runner
    verifier: Verifier
    usage: Usage
    throttle: Throttle
    public_url: str
    proxies: tuple[Network, ...]
    key_headers: tuple[bytes, ...]
    metrics_token: str = field(repr=False)
    exchanges: TokenExchange
    # By which people sign in to the dashboard beside their passwords, if there is one.
    sign_in_issuer: SignInIssuer | None = None
    welcome: SignInPolicy = field(default_factory=SignInPolicy)
    # Where clients reach MQTT; empty where nothing tells.
    mqtt_url: str = ""
    access_log: bool = False
    websocket_url: str = ""
    # None without messaging.
    link: BrokerLink | None = None
    publishers: Publishers | None = None
    session_remover: SessionRemover | None = None
    verified: VerifiedPasswords = field(default_factory=VerifiedPasswords)
    rights: RuleCache = field(default_factory=RuleCache)
    proxy_mistakes: ProxyMistakes = field(default_factory=ProxyMistakes)
    exports: Exports = field(default_factory=Exports)
    # For checks of audit chains.
    checks: WorkSlots = field(default_factory=lambda: WorkSlots(most=2, most_each=1))
    # For reading and clearing retained messages, each over a connection to the broker of its own.
    retained: WorkSlots = field(default_factory=lambda: WorkSlots(most=8, most_each=2))
    # Made of `key_headers`: the fields that may hold a key, and those that a caller's identity
    # and verdict hang on.
    key_names: tuple[bytes, ...] = field(init=False)
    identity_headers: tuple[bytes, ...] = field(init=False)

    def __post_init__(self) -> None:
        """Put the names together."""
        self.key_names = (KEY_HEADER, *self.key_headers)
        self.identity_headers = (*_TELLING, *self.key_names)

    @property
    def waits_for_network(self) -> bool:
        """Tell whether what memory does not hold is asked of another machine."""
        return self.runner.database.kind != "sqlite"

    @property
    def broker(self) -> BrokerLink:
        """The line to the broker; raises `MessagingOff`, `BrokerUnreachable`."""
        if self.link is None:
            raise MessagingOff
        if not self.link.is_connected:
            raise BrokerUnreachable
        return self.link


def _context(request: Request) -> AppContext:
    return cast("AppContext", request.app.state.context)


CurrentContext = Annotated[AppContext, Depends(_context)]
