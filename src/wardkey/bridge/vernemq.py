"""Routes for VerneMQ: its webhooks for logins, publishing and subscribing, in MQTT 3 and 5."""

from __future__ import annotations

from typing import Any

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from wardkey.bridge.hooks import NO_STORE, BrokerQuery, Hooks, HooksHere, read_json, scope_of
from wardkey.domain.acl import Action
from wardkey.domain.hooks import Hook, HookKind

router = APIRouter(include_in_schema=False)

_MQTT_5 = "_m5"
# The granted QoS of a refused topic: failure in MQTT 3, "not authorized" in MQTT 5.
_FAILURE = 128
_NOT_AUTHORIZED = 135
_OK: dict[str, Any] = {"result": "ok"}
_REFUSED: dict[str, Any] = {"result": {"error": "not_allowed"}}


class Register(msgspec.Struct, frozen=True):
    """A login."""

    username: str
    password: str
    client_id: str
    peer_addr: str = ""


class Publish(msgspec.Struct, frozen=True):
    """A publication; the mountpoint is the one that the login was given."""

    username: str
    client_id: str
    topic: str
    mountpoint: str = ""


class Subscribe(msgspec.Struct, frozen=True):
    """A subscription; MQTT 5 options are returned unchanged."""

    username: str
    client_id: str
    topics: list[dict[str, Any]]
    mountpoint: str = ""


@router.post("/hooks/vernemq/{token}")
async def answer(token: str, request: Request, hooks: HooksHere) -> Response:
    """Answer the hook named in the `vernemq-hook` header."""
    body = await request.body()
    result = await run_in_threadpool(_answer, token, request, body, hooks)
    return JSONResponse(result, headers=NO_STORE)


def _answer(token: str, request: Request, body: bytes, hooks: Hooks) -> dict[str, Any]:
    hook = hooks.identify(HookKind.VERNEMQ, token)
    name = request.headers.get("vernemq-hook", "")
    match name.removesuffix(_MQTT_5):
        case "auth_on_register":
            register = read_json(request, body, Register)
            return _REFUSED if register is None else _register(hook, hooks, register)
        case "auth_on_publish":
            publish = read_json(request, body, Publish)
            return _REFUSED if publish is None else _publish(hook, hooks, publish)
        case "auth_on_subscribe":
            subscribe = read_json(request, body, Subscribe)
            if subscribe is None:
                return _REFUSED
            return _subscribe(hook, hooks, subscribe, mqtt_5=name.endswith(_MQTT_5))
    return _REFUSED


def _register(hook: Hook, hooks: Hooks, login: Register) -> dict[str, Any]:
    client = BrokerQuery(login.username, login.client_id, login.peer_addr)
    if hooks.log_in(hook, client, login.password) is None:
        return _REFUSED
    if hook.org_id is not None:
        return _OK
    # VerneMQ accepts a mountpoint only together with the client id.
    modifiers = {"client_id": login.client_id, "mountpoint": scope_of(login.username)}
    return {**_OK, "modifiers": modifiers}


def _publish(hook: Hook, hooks: Hooks, query: Publish) -> dict[str, Any]:
    client = BrokerQuery(query.username, query.client_id)
    (allowed,) = hooks.decide(hook, client, [(Action.PUBLISH, query.topic)])
    return _OK if allowed and _is_separated(hook, query) else _REFUSED


def _subscribe(hook: Hook, hooks: Hooks, query: Subscribe, *, mqtt_5: bool) -> dict[str, Any]:
    topics = [item.get("topic") for item in query.topics]
    filters = [topic if isinstance(topic, str) else "" for topic in topics]
    client = BrokerQuery(query.username, query.client_id)
    allowed = hooks.decide(hook, client, [(Action.SUBSCRIBE, pattern) for pattern in filters])
    if not filters or not any(allowed) or not _is_separated(hook, query):
        return _REFUSED
    if all(allowed):
        return _OK
    refused = _NOT_AUTHORIZED if mqtt_5 else _FAILURE
    granted = [
        item if may else {"topic": pattern, "qos": refused}
        for item, pattern, may in zip(query.topics, filters, allowed, strict=True)
    ]
    return {**_OK, "modifiers": {"topics": granted}} if mqtt_5 else {**_OK, "topics": granted}


def _is_separated(hook: Hook, query: Publish | Subscribe) -> bool:
    return hook.org_id is not None or query.mountpoint == scope_of(query.username)
