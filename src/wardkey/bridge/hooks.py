"""What the routes for other brokers share: token checks, logins, topic decisions, parsing."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
from fastapi import Depends, Request
from starlette.concurrency import run_in_threadpool

from wardkey.actions.grants.logins import newest_grant
from wardkey.actions.messaging.client_logins import find_client
from wardkey.actions.operations.hook_tokens import identify_hook
from wardkey.adapters.broker_link import Admitted, Login
from wardkey.db.engine import Transaction
from wardkey.domain.acl import Action, Actor, ActorKind
from wardkey.domain.addresses import bare_address
from wardkey.domain.credentials import trim
from wardkey.domain.hooks import Hook, HookKind, ListedRule, is_allowed, list_rules
from wardkey.domain.rule_set import RuleSet
from wardkey.domain.tenants import TenantScope
from wardkey.domain.usernames import parse_username
from wardkey.services.mqtt_login import MqttLogins
from wardkey.verify.json_body import decode_body
from wardkey.web.context import AppContext

T = TypeVar("T")

# Brokers must ask again each time, because rules and credentials change.
NO_STORE = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class BrokerQuery:
    """The client that a broker asks about; the address is empty where the broker sends none."""

    username: str
    client_id: str
    address: str = ""


@dataclass(slots=True)
class Hooks:
    """Answers other brokers by the same logins and rules as our own broker."""

    ctx: AppContext
    logins: MqttLogins

    def identify(self, kind: HookKind, token: str) -> Hook:
        """Return the hook of a broker's token; raises `InvalidHookToken`."""
        with self.ctx.runner.database.read() as tx:
            return identify_hook(tx, kind, trim(token))

    def log_in(self, hook: Hook, query: BrokerQuery, password: str) -> Admitted | None:
        """Return the admitted client, or None if the login is refused."""
        if not hook.serves(query.username):
            return None
        return self.logins.judge_in_thread(
            Login(
                username=query.username,
                password=password,
                client_id=query.client_id,
                address=_address(query.address),
                is_mqtt=True,
            )
        )

    def knows(self, hook: Hook, username: str) -> bool:
        """Return whether a user name belongs to an active client or grant."""
        with self.ctx.runner.database.read() as tx:
            return self._actor(tx, hook, BrokerQuery(username, "")) is not None

    def decide(
        self, hook: Hook, query: BrokerQuery, topics: list[tuple[Action, str]]
    ) -> list[bool]:
        """Return for each action and topic whether the client may do it."""
        with self.ctx.runner.database.read() as tx:
            known = self._actor(tx, hook, query)
        if known is None:
            return [False] * len(topics)
        actor, rules = known
        later = hook.kind.checks_deliveries
        return [
            is_allowed(rules, actor, action, topic, deliveries_checked=later)
            for action, topic in topics
        ]

    def rules_for(self, hook: Hook, query: BrokerQuery) -> list[ListedRule]:
        """Return the client's rules as a list that a broker can evaluate itself."""
        with self.ctx.runner.database.read() as tx:
            known = self._actor(tx, hook, query)
        actor, rules = known or (Actor(ActorKind.CLIENT, ""), RuleSet(()))
        return list_rules(rules, actor)

    def _actor(
        self, tx: Transaction, hook: Hook, query: BrokerQuery
    ) -> tuple[Actor, RuleSet] | None:
        if not hook.serves(query.username):
            return None
        # A topic query carries no password, so a user is judged by their newest grant.
        known = find_client(tx, query.username) or newest_grant(tx, query.username)
        if known is None:
            return None
        rules = self.logins.rights.rules(tx, TenantScope(known.org_id, known.environment))
        return known.actor(query.client_id), rules


def scope_of(username: str) -> str:
    """Return the name of a user name's tenant scope, or "" if the user name is not valid."""
    name = parse_username(username)
    return "" if name is None else name.scope_suffix


def _hooks(request: Request) -> Hooks:
    return cast("Hooks", request.app.state.hooks)


HooksHere = Annotated[Hooks, Depends(_hooks)]


def read_json(request: Request, body: bytes, shape: type[T]) -> T | None:
    """Return the JSON body as `shape`, or None if it does not fit; other fields are ignored."""
    if _content_type(request) != "application/json":
        return None
    try:
        return decode_body(msgspec.json.Decoder(shape), body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def read_form(request: Request, body: bytes, shape: type[T]) -> T | None:
    """Return the form body as `shape`, or None if it does not fit."""
    if _content_type(request) != "application/x-www-form-urlencoded":
        return None
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=64)
        named: Mapping[str, Any] = dict(pairs)
        # Parsers disagree about which of two equal fields counts.
        if len(named) != len(pairs):
            return None
        return msgspec.convert(named, shape, strict=False)
    except (ValueError, msgspec.ValidationError):
        return None


async def judge(
    request: Request,
    hooks: Hooks,
    kind: HookKind,
    token: str,
    *,
    read: Callable[[Request, bytes], T | None],
    allows: Callable[[Hook, Hooks, T], bool],
) -> bool:
    """Return whether `allows` holds for the body that `read` returns, if any.

    Raises `InvalidHookToken`.
    """
    body = await request.body()

    def decide() -> bool:
        hook = hooks.identify(kind, token)
        query = read(request, body)
        return query is not None and allows(hook, hooks, query)

    return await run_in_threadpool(decide)


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(bare_address(text)))
    except ValueError:
        return ""
