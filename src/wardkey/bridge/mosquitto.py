"""Routes for mosquitto-go-auth: password checks and topic decisions.

Its protocol carries no client address, so failed logins count by user name alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from wardkey.bridge.hooks import (
    NO_STORE,
    BrokerQuery,
    Hooks,
    HooksHere,
    judge,
    read_form,
    read_json,
)
from wardkey.domain.acl import Action
from wardkey.domain.hooks import Hook, HookKind

router = APIRouter(include_in_schema=False)

T = TypeVar("T")

_READ, _WRITE, _READ_WRITE, _SUBSCRIBE = 1, 2, 3, 4
# The broker asks about reading before it delivers each message.
_ACTIONS = {
    _READ: (Action.SUBSCRIBE,),
    _WRITE: (Action.PUBLISH,),
    _READ_WRITE: (Action.SUBSCRIBE, Action.PUBLISH),
    _SUBSCRIBE: (Action.SUBSCRIBE,),
}


class User(msgspec.Struct, frozen=True):
    """A login."""

    username: str
    password: str
    clientid: str


class Superuser(msgspec.Struct, frozen=True):
    """A superuser query; there are none."""

    username: str


class Acl(msgspec.Struct, frozen=True):
    """An action on a topic."""

    username: str
    clientid: str
    topic: str
    acc: Literal[1, 2, 3, 4]


@router.post("/hooks/mosquitto/{token}/user")
async def user(token: str, request: Request, hooks: HooksHere) -> Response:
    """Return whether the client may log in."""
    return await _answer(token, request, hooks, User, _user)


@router.post("/hooks/mosquitto/{token}/superuser")
async def superuser(token: str, request: Request, hooks: HooksHere) -> Response:
    """Refuse: no user is above the rules."""
    return await _answer(token, request, hooks, Superuser, lambda *_: False)


@router.post("/hooks/mosquitto/{token}/acl")
async def acl(token: str, request: Request, hooks: HooksHere) -> Response:
    """Return whether the client may publish, subscribe, or receive a message."""
    return await _answer(token, request, hooks, Acl, _acl)


async def _answer(
    token: str,
    request: Request,
    hooks: Hooks,
    shape: type[T],
    allows: Callable[[Hook, Hooks, T], bool],
) -> Response:
    def read(request: Request, body: bytes) -> T | None:
        return read_json(request, body, shape) or read_form(request, body, shape)

    allowed = await judge(request, hooks, HookKind.MOSQUITTO, token, read=read, allows=allows)
    # Each of the plugin's response modes checks the status first.
    verdict = {"ok": allowed, "error": "" if allowed else "denied"}
    return JSONResponse(verdict, 200 if allowed else 403, NO_STORE)


def _user(hook: Hook, hooks: Hooks, login: User) -> bool:
    client = BrokerQuery(login.username, login.clientid)
    return hooks.log_in(hook, client, login.password) is not None


def _acl(hook: Hook, hooks: Hooks, query: Acl) -> bool:
    client = BrokerQuery(query.username, query.clientid)
    topics = [(action, query.topic) for action in _ACTIONS[query.acc]]
    return all(hooks.decide(hook, client, topics))
