"""The door of mosquitto-go-auth: whether a password fits, and what a client may do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from wardkey.bridge.hooks import NO_STORE, BrokerQuery, Hooks, HooksHere, read_form, read_json
from wardkey.domain.acl import Action
from wardkey.domain.hooks import Hook, HookKind

router = APIRouter(include_in_schema=False)

T = TypeVar("T")

_READ, _WRITE, _READ_WRITE, _SUBSCRIBE = 1, 2, 3, 4
# Reading is asked for each message before it is delivered, by its topic.
_ACTIONS = {
    _READ: (Action.SUBSCRIBE,),
    _WRITE: (Action.PUBLISH,),
    _READ_WRITE: (Action.SUBSCRIBE, Action.PUBLISH),
    _SUBSCRIBE: (Action.SUBSCRIBE,),
}


class User(msgspec.Struct, frozen=True):
    """Who wants to log in."""

    username: str
    password: str
    clientid: str


class Superuser(msgspec.Struct, frozen=True):
    """Who might be above all rules, which nobody is."""

    username: str


class Acl(msgspec.Struct, frozen=True):
    """What somebody wants to do with a topic."""

    username: str
    clientid: str
    topic: str
    acc: Literal[1, 2, 3, 4]


@router.post("/hooks/mosquitto/{token}/user")
async def user(token: str, request: Request, hooks: HooksHere) -> Response:
    """Answer whether somebody may log in."""
    return await _answer(token, request, hooks, User, _user)


@router.post("/hooks/mosquitto/{token}/superuser")
async def superuser(token: str, request: Request, hooks: HooksHere) -> Response:
    """Answer that nobody is a superuser."""
    return await _answer(token, request, hooks, Superuser, lambda *_: False)


@router.post("/hooks/mosquitto/{token}/acl")
async def acl(token: str, request: Request, hooks: HooksHere) -> Response:
    """Answer whether somebody may publish, subscribe, or be given a message."""
    return await _answer(token, request, hooks, Acl, _acl)


async def _answer(
    token: str,
    request: Request,
    hooks: Hooks,
    shape: type[T],
    allows: Callable[[Hook, Hooks, T], bool],
) -> Response:
    body = await request.body()

    def judge() -> bool:
        hook = hooks.of(HookKind.MOSQUITTO, token)
        wanted = read_json(request, body, shape) or read_form(request, body, shape)
        return wanted is not None and allows(hook, hooks, wanted)

    allowed = await run_in_threadpool(judge)
    # Its three ways to read an answer look at the status first.
    told = {"ok": allowed, "error": "" if allowed else "denied"}
    return JSONResponse(told, 200 if allowed else 403, NO_STORE)


def _user(hook: Hook, hooks: Hooks, wanted: User) -> bool:
    asked = BrokerQuery(wanted.username, wanted.clientid)
    return hooks.log_in(hook, asked, wanted.password) is not None


def _acl(hook: Hook, hooks: Hooks, wanted: Acl) -> bool:
    asked = BrokerQuery(wanted.username, wanted.clientid)
    topics = [(action, wanted.topic) for action in _ACTIONS[wanted.acc]]
    return all(hooks.decide(hook, asked, topics))
