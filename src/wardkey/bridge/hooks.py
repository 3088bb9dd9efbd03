"""What the doors of foreign brokers share: whose token it is, and the one judge of their asking."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, cast
from urllib.parse import parse_qsl

import msgspec
from fastapi import Depends, Request

from wardkey.actions.grants.logins import newest_grant
from wardkey.actions.messaging.client_logins import find_client
from wardkey.actions.messaging.hook_tokens import identify_hook
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

# What is asked once is not to be answered from a broker's memory.
NO_STORE = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class BrokerQuery:
    """Who asks about himself at a foreign broker; the address is empty where none is told."""

    username: str
    client_id: str
    address: str = ""


@dataclass(slots=True)
class Hooks:
    """Judges for foreign brokers as for the one beside this process, with the same judge."""

    ctx: AppContext
    logins: MqttLogins

    def of(self, kind: HookKind, token: str) -> Hook:
        """Return whom a broker's token may ask about; raises `InvalidHookToken`."""
        with self.ctx.runner.database.read() as tx:
            return identify_hook(tx, kind, trim(token))

    def log_in(self, hook: Hook, asked: BrokerQuery, password: str) -> Admitted | None:
        """Return who may log in, or None."""
        if not hook.serves(asked.username):
            return None
        return self.logins.judged(
            Login(
                username=asked.username,
                password=password,
                client_id=asked.client_id,
                address=_address(asked.address),
                is_mqtt=True,
            )
        )

    def knows(self, hook: Hook, username: str) -> bool:
        """Tell whether a user name is somebody's who may be logged in."""
        with self.ctx.runner.database.read() as tx:
            return self._actor(tx, hook, BrokerQuery(username, "")) is not None

    def decide(
        self, hook: Hook, asked: BrokerQuery, wanted: list[tuple[Action, str]]
    ) -> list[bool]:
        """Tell of each action and topic whether somebody who is logged in may."""
        with self.ctx.runner.database.read() as tx:
            found = self._actor(tx, hook, asked)
        if found is None:
            return [False] * len(wanted)
        later = hook.kind.checks_deliveries
        return [
            is_allowed(found[1], found[0], action, topic, deliveries_checked=later)
            for action, topic in wanted
        ]

    def rules_for(self, hook: Hook, asked: BrokerQuery) -> list[ListedRule]:
        """Return what somebody may do as a list for a broker to keep."""
        with self.ctx.runner.database.read() as tx:
            found = self._actor(tx, hook, asked)
        actor, rules = found or (Actor(ActorKind.CLIENT, ""), RuleSet(()))
        return list_rules(rules, actor)

    def _actor(
        self, tx: Transaction, hook: Hook, asked: BrokerQuery
    ) -> tuple[Actor, RuleSet] | None:
        if not hook.serves(asked.username):
            return None
        # Who asks of a topic shows no password, so a person is judged by his newest grant.
        known = find_client(tx, asked.username) or newest_grant(tx, asked.username)
        if known is None:
            return None
        rules = self.logins.rights.rules(tx, TenantScope(known.org_id, known.environment))
        return known.actor(asked.client_id), rules


def scope_of(username: str) -> str:
    """Return the room of a user name, as the broker is to call it; empty if it is none of ours."""
    name = parse_username(username)
    return "" if name is None else name.scope_suffix


def _hooks(request: Request) -> Hooks:
    return cast("Hooks", request.app.state.hooks)


HooksHere = Annotated[Hooks, Depends(_hooks)]


def read_json(request: Request, body: bytes, shape: type[T]) -> T | None:
    """Return a body of the shape, or None for anything else; what is not asked for is left out."""
    if _content_type(request) != "application/json":
        return None
    try:
        return decode_body(msgspec.json.Decoder(shape), body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def read_form(request: Request, body: bytes, shape: type[T]) -> T | None:
    """Return a form of the shape, or None for anything else."""
    if _content_type(request) != "application/x-www-form-urlencoded":
        return None
    try:
        pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=64)
        named: Mapping[str, Any] = dict(pairs)
        # A field that comes twice could be read one way here and another way there.
        if len(named) != len(pairs):
            return None
        return msgspec.convert(named, shape, strict=False)
    except (ValueError, msgspec.ValidationError):
        return None


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def _address(text: str) -> str:
    try:
        return str(ipaddress.ip_address(bare_address(text)))
    except ValueError:
        return ""
