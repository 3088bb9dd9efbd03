"""Routes for RabbitMQ: the four requests of rabbitmq_auth_backend_http, for its MQTT plugin."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request, Response

from wardkey.bridge.hooks import NO_STORE, BrokerQuery, Hooks, HooksHere, judge, read_form, scope_of
from wardkey.domain.acl import Action
from wardkey.domain.hooks import Hook, HookKind

router = APIRouter(include_in_schema=False)

T = TypeVar("T")

_ACTIONS = {"write": Action.PUBLISH, "read": Action.SUBSCRIBE}
# The exchange that carries all MQTT messages, and the prefix of the plugin's queues.
_EXCHANGE = "amq.topic"
_QUEUES = "mqtt-"


class User(msgspec.Struct, frozen=True):
    """A login; only MQTT logins carry a client id."""

    username: str
    password: str
    client_id: str
    vhost: str


class Vhost(msgspec.Struct, frozen=True):
    """The virtual host that a user opens."""

    username: str
    vhost: str


class Resource(msgspec.Struct, frozen=True):
    """The exchange or queue that the plugin uses for a user."""

    username: str
    vhost: str
    resource: str
    name: str
    permission: str


class Topic(msgspec.Struct, frozen=True):
    """A topic that a user publishes or subscribes to, in AMQP terms."""

    username: str
    vhost: str
    name: str
    permission: str
    routing_key: str
    client_id: str = msgspec.field(name="variable_map.client_id")


@router.post("/hooks/rabbitmq/{token}/user")
async def user(token: str, request: Request, hooks: HooksHere) -> Response:
    """Return whether the user may log in."""
    return await _answer(token, request, hooks, User, _user)


@router.post("/hooks/rabbitmq/{token}/vhost")
async def vhost(token: str, request: Request, hooks: HooksHere) -> Response:
    """Return whether the virtual host is the user's tenant scope."""
    return await _answer(token, request, hooks, Vhost, _vhost)


@router.post("/hooks/rabbitmq/{token}/resource")
async def resource(token: str, request: Request, hooks: HooksHere) -> Response:
    """Return whether MQTT uses the exchange or queue."""
    return await _answer(token, request, hooks, Resource, _resource)


@router.post("/hooks/rabbitmq/{token}/topic")
async def topic(token: str, request: Request, hooks: HooksHere) -> Response:
    """Return whether the user may publish or subscribe."""
    return await _answer(token, request, hooks, Topic, _topic)


async def _answer(
    token: str,
    request: Request,
    hooks: Hooks,
    shape: type[T],
    allows: Callable[[Hook, Hooks, T], bool],
) -> Response:
    def read(request: Request, body: bytes) -> T | None:
        return read_form(request, body, shape)

    allowed = await judge(request, hooks, HookKind.RABBITMQ, token, read=read, allows=allows)
    return Response("allow" if allowed else "deny", media_type="text/plain", headers=NO_STORE)


def _user(hook: Hook, hooks: Hooks, login: User) -> bool:
    if scope_of(login.username) != login.vhost:
        return False
    client = BrokerQuery(login.username, login.client_id)
    return hooks.log_in(hook, client, login.password) is not None


def _vhost(hook: Hook, hooks: Hooks, query: Vhost) -> bool:
    return scope_of(query.username) == query.vhost and hooks.knows(hook, query.username)


def _resource(hook: Hook, hooks: Hooks, query: Resource) -> bool:
    if scope_of(query.username) != query.vhost:
        return False
    if query.resource == "exchange":
        used = query.name == _EXCHANGE and query.permission in _ACTIONS
    else:
        used = query.resource == "queue" and query.name.startswith(_QUEUES)
    return used and hooks.knows(hook, query.username)


def _topic(hook: Hook, hooks: Hooks, query: Topic) -> bool:
    action = _ACTIONS.get(query.permission)
    if action is None or query.name != _EXCHANGE:
        return False
    if scope_of(query.username) != query.vhost:
        return False
    # The plugin translates "/" to "."; the two are the same topic to it, and so to the rules.
    name = query.routing_key.replace(".", "/").replace("*", "+")
    client = BrokerQuery(query.username, query.client_id)
    return hooks.decide(hook, client, [(action, name)])[0]
