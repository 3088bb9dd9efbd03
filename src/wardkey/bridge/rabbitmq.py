"""The door of RabbitMQ: the four questions of rabbitmq_auth_backend_http, for its MQTT plugin."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from wardkey.bridge.hooks import NO_STORE, BrokerQuery, Hooks, HooksHere, read_form, scope_of
from wardkey.domain.acl import Action
from wardkey.domain.hooks import Hook, HookKind

router = APIRouter(include_in_schema=False)

T = TypeVar("T")

_ACTIONS = {"write": Action.PUBLISH, "read": Action.SUBSCRIBE}
# Through which all of MQTT goes, and how the plugin's queues begin.
_EXCHANGE = "amq.topic"
_QUEUES = "mqtt-"


class User(msgspec.Struct, frozen=True):
    """Who wants to log in; only MQTT tells a client id."""

    username: str
    password: str
    client_id: str
    vhost: str


class Vhost(msgspec.Struct, frozen=True):
    """Which virtual host somebody wants to use."""

    username: str
    vhost: str


class Resource(msgspec.Struct, frozen=True):
    """Which exchange or queue the plugin uses for somebody."""

    username: str
    vhost: str
    resource: str
    name: str
    permission: str


class Topic(msgspec.Struct, frozen=True):
    """What somebody wants to publish or subscribe to, in the words of AMQP."""

    username: str
    vhost: str
    name: str
    permission: str
    routing_key: str
    client_id: str = msgspec.field(name="variable_map.client_id")


@router.post("/hooks/rabbitmq/{token}/user")
async def user(token: str, request: Request, hooks: HooksHere) -> Response:
    """Answer whether somebody may log in."""
    return await _answer(token, request, hooks, User, _user)


@router.post("/hooks/rabbitmq/{token}/vhost")
async def vhost(token: str, request: Request, hooks: HooksHere) -> Response:
    """Answer whether a virtual host is somebody's room."""
    return await _answer(token, request, hooks, Vhost, _vhost)


@router.post("/hooks/rabbitmq/{token}/resource")
async def resource(token: str, request: Request, hooks: HooksHere) -> Response:
    """Answer whether an exchange or queue is one that MQTT uses."""
    return await _answer(token, request, hooks, Resource, _resource)


@router.post("/hooks/rabbitmq/{token}/topic")
async def topic(token: str, request: Request, hooks: HooksHere) -> Response:
    """Answer whether somebody may publish or subscribe."""
    return await _answer(token, request, hooks, Topic, _topic)


async def _answer(
    token: str,
    request: Request,
    hooks: Hooks,
    shape: type[T],
    allows: Callable[[Hook, Hooks, T], bool],
) -> Response:
    body = await request.body()

    def judge() -> bool:
        hook = hooks.of(HookKind.RABBITMQ, token)
        wanted = read_form(request, body, shape)
        return wanted is not None and allows(hook, hooks, wanted)

    allowed = await run_in_threadpool(judge)
    return Response("allow" if allowed else "deny", media_type="text/plain", headers=NO_STORE)


def _user(hook: Hook, hooks: Hooks, wanted: User) -> bool:
    if scope_of(wanted.username) != wanted.vhost:
        return False
    asked = BrokerQuery(wanted.username, wanted.client_id)
    return hooks.log_in(hook, asked, wanted.password) is not None


def _vhost(hook: Hook, hooks: Hooks, wanted: Vhost) -> bool:
    return scope_of(wanted.username) == wanted.vhost and hooks.knows(hook, wanted.username)


def _resource(hook: Hook, hooks: Hooks, wanted: Resource) -> bool:
    if scope_of(wanted.username) != wanted.vhost:
        return False
    if wanted.resource == "exchange":
        used = wanted.name == _EXCHANGE and wanted.permission in _ACTIONS
    else:
        used = wanted.resource == "queue" and wanted.name.startswith(_QUEUES)
    return used and hooks.knows(hook, wanted.username)


def _topic(hook: Hook, hooks: Hooks, wanted: Topic) -> bool:
    action = _ACTIONS.get(wanted.permission)
    if action is None or wanted.name != _EXCHANGE:
        return False
    if scope_of(wanted.username) != wanted.vhost:
        return False
    # As the plugin translated it; a dot and a slash are one to it, so they are one to the rules.
    name = wanted.routing_key.replace(".", "/").replace("*", "+")
    asked = BrokerQuery(wanted.username, wanted.client_id)
    return hooks.decide(hook, asked, [(action, name)])[0]
