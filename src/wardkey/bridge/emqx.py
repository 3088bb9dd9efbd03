"""Routes for EMQX 5: its HTTP authenticator and its HTTP authorizer."""

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
    """A login; with `rules` "ask" the response has no rule list, and EMQX asks about each topic."""

    username: str
    password: str
    clientid: str
    peerhost: str = ""
    rules: Literal["list", "ask"] = "list"


class Authorization(msgspec.Struct, frozen=True):
    """An action on a topic; the mountpoint proves that the listener separates tenant scopes."""

    username: str
    clientid: str
    action: Literal["publish", "subscribe"]
    topic: str
    mountpoint: str = ""


@router.post("/hooks/emqx/authentication")
async def authenticate(request: Request, hooks: HooksHere) -> Response:
    """Return whether the client may log in, in which tenant scope, and by which rules."""
    body = await request.body()
    return await run_in_threadpool(_authenticate, request, body, hooks)


@router.post("/hooks/emqx/authorization")
async def authorize(request: Request, hooks: HooksHere) -> Response:
    """Return whether the client may publish or subscribe."""
    body = await request.body()
    return await run_in_threadpool(_authorize, request, body, hooks)


def _authenticate(request: Request, body: bytes, hooks: Hooks) -> Response:
    hook = hooks.identify(HookKind.EMQX, _token(request, hooks))
    login = read_json(request, body, Authentication)
    if login is None:
        return _response(result="deny")
    client = BrokerQuery(login.username, login.clientid, login.peerhost)
    admitted = hooks.log_in(hook, client, login.password)
    if admitted is None:
        return _response(result="deny")
    extra: dict[str, Any] = {}
    if admitted.expires_at is not None:
        # EMQX counts in seconds; round up, so that it does not end the session early.
        extra["expire_at"] = -(-admitted.expires_at // 1000)
    if login.rules == "list":
        extra["acl"] = [_emqx_rule(rule) for rule in hooks.rules_for(hook, client)]
    return _response(
        result="allow",
        is_superuser=False,
        client_attrs={"room": scope_of(login.username)},
        **extra,
    )


def _authorize(request: Request, body: bytes, hooks: Hooks) -> Response:
    hook = hooks.identify(HookKind.EMQX, _token(request, hooks))
    query = read_json(request, body, Authorization)
    if query is None:
        return _response(result="deny")
    separated = hook.org_id is not None or query.mountpoint == f"{scope_of(query.username)}/"
    client = BrokerQuery(query.username, query.clientid)
    (allowed,) = hooks.decide(hook, client, [(Action(query.action), query.topic)])
    return _response(result="allow" if allowed and separated else "deny")


def _token(request: Request, hooks: Hooks) -> str:
    brand = hooks.ctx.runner.database.brand
    header = request.headers.get("authorization", "")
    texts = authorization_texts(header, lambda text: looks_like_ours(text, brand=brand))
    return texts[0] if len(texts) == 1 else ""


def _emqx_rule(rule: ListedRule) -> dict[str, str]:
    return {
        "permission": rule.effect,
        "action": _ACTIONS[rule.action],
        "topic": f"eq {rule.filter}" if rule.exact else rule.filter,
    }


def _response(**fields: Any) -> Response:  # noqa: ANN401 - JSON values
    return JSONResponse(fields, headers=NO_STORE)
