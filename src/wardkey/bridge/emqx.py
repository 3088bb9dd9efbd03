"""The door of EMQX 5: its HTTP authenticator and its HTTP authorizer."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.concurrency import run_in_threadpool

from wardkey.bridge.hooks import NO_STORE, BrokerQuery, Hooks, HooksHere, read_json, scope_of
from wardkey.domain.acl import Action
from wardkey.domain.credentials import authorization_texts
from wardkey.domain.hooks import HookKind, ListedRule
from wardkey.domain.secret import looks_like_ours

router = APIRouter(include_in_schema=False)

_ACTIONS = {Action.PUBLISH: "publish", Action.SUBSCRIBE: "subscribe", Action.BOTH: "all"}


class Authentication(msgspec.Struct, frozen=True):
    """Who wants to log in; with `rules` "ask" the answer has no list and each topic is asked."""

    username: str
    password: str
    clientid: str
    peerhost: str = ""
    rules: Literal["list", "ask"] = "list"


class Authorization(msgspec.Struct, frozen=True):
    """What somebody wants to do; the mountpoint shows that the listener keeps rooms apart."""

    username: str
    clientid: str
    action: Literal["publish", "subscribe"]
    topic: str
    mountpoint: str = ""


@router.post("/hooks/emqx/authentication")
async def authenticate(request: Request, hooks: HooksHere) -> Response:
    """Answer whether somebody may log in, in which room, and by which rules."""
    body = await request.body()
    return await run_in_threadpool(_authenticate, request, body, hooks)


@router.post("/hooks/emqx/authorization")
async def authorize(request: Request, hooks: HooksHere) -> Response:
    """Answer whether somebody may publish or subscribe."""
    body = await request.body()
    return await run_in_threadpool(_authorize, request, body, hooks)


def _authenticate(request: Request, body: bytes, hooks: Hooks) -> Response:
    hook = hooks.of(HookKind.EMQX, _token(request, hooks))
    wanted = read_json(request, body, Authentication)
    if wanted is None:
        return _said(result="deny")
    asked = BrokerQuery(wanted.username, wanted.clientid, wanted.peerhost)
    admitted = hooks.log_in(hook, asked, wanted.password)
    if admitted is None:
        return _said(result="deny")
    more: dict[str, Any] = {}
    if admitted.expires_at is not None:
        # EMQX counts in seconds; one that has begun is still the grant's.
        more["expire_at"] = -(-admitted.expires_at // 1000)
    if wanted.rules == "list":
        more["acl"] = [_told(rule) for rule in hooks.rules_for(hook, asked)]
    return _said(
        result="allow",
        is_superuser=False,
        client_attrs={"room": scope_of(wanted.username)},
        **more,
    )


def _authorize(request: Request, body: bytes, hooks: Hooks) -> Response:
    hook = hooks.of(HookKind.EMQX, _token(request, hooks))
    wanted = read_json(request, body, Authorization)
    if wanted is None:
        return _said(result="deny")
    apart = hook.org_id is not None or wanted.mountpoint == f"{scope_of(wanted.username)}/"
    asked = BrokerQuery(wanted.username, wanted.clientid)
    (allowed,) = hooks.decide(hook, asked, [(Action(wanted.action), wanted.topic)])
    return _said(result="allow" if allowed and apart else "deny")


def _token(request: Request, hooks: Hooks) -> str:
    brand = hooks.ctx.runner.database.brand
    shown = request.headers.get("authorization", "")
    texts = authorization_texts(shown, lambda text: looks_like_ours(text, brand=brand))
    return texts[0] if len(texts) == 1 else ""


def _told(rule: ListedRule) -> dict[str, str]:
    return {
        "permission": rule.effect,
        "action": _ACTIONS[rule.action],
        "topic": f"eq {rule.filter}" if rule.exact else rule.filter,
    }


def _said(**answer: Any) -> Response:  # noqa: ANN401 - JSON values
    return JSONResponse(answer, headers=NO_STORE)
