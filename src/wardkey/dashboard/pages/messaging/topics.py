"""Messaging > Live topics: messages as they come, through a short grant of the member's own."""

from __future__ import annotations

import secrets
from dataclasses import replace

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from wardkey.actions.grants import grants
from wardkey.actions.messaging import acl
from wardkey.dashboard.shell.auth import VerifiedForm, Visiting
from wardkey.dashboard.shell.rendering import page_router, render, see_other
from wardkey.db.engine import Transaction
from wardkey.domain.acl import Action, Actor, ActorKind, Effect, fill_filter, is_for
from wardkey.domain.grants import NewGrant
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.services.token_exchange import native_grant
from wardkey.web.context import CurrentContext

router = page_router()
PATH = "messaging/topics"
_ROUTE = f"/o/{{slug}}/{{environment}}/{PATH}"

_LASTS_S = 600


@router.get(_ROUTE)
def watch_topics(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Show the page, which asks for its grant when somebody begins to watch."""
    own = _own_grant(current.by)
    rules = ctx.runner.read(acl.list_rules, current.by)
    return render(
        request,
        "topics.html",
        current=current,
        url=current.url(PATH),
        socket=ctx.websocket_url,
        why_not=current.why_not(Permission.CLIENTS_WRITE),
        username=own.username,
        filters=_readable(rules, current.by, own),
        lasts_minutes=_LASTS_S // 60,
    )


@router.get(f"{_ROUTE}/grant")
def back_to_topics(current: Visiting) -> Response:
    """Go to the page from the address at which its grants are made."""
    return see_other(current.url(PATH))


@router.post(f"{_ROUTE}/grant")
def make_own_grant(current: Visiting, _fields: VerifiedForm, ctx: CurrentContext) -> Response:
    """Make a grant of ten minutes for the member himself, and hand it to the page's script."""

    def create_own(tx: Transaction, by: Principal) -> grants.MintedGrant:
        return grants.create_own(tx, by, _own_grant(by))

    minted = ctx.runner.write(create_own, current.by)
    told = {
        "username": minted.grant.mqtt_username,
        "password": minted.password.text,
        "client_id": f"watch-{secrets.token_hex(8)}",
    }
    return JSONResponse(told, headers={"Cache-Control": "no-store"})


def _own_grant(by: Principal) -> NewGrant:
    grant = native_grant(by.org_id, by.label.lower(), "", _LASTS_S)
    return replace(grant, refreshable_s=_LASTS_S)


def _readable(rules: list[acl.SavedRule], by: Principal, own: NewGrant) -> list[str]:
    """Return the filters that rules let the member subscribe to, to choose from."""
    actor = Actor(ActorKind.GRANT, by.org_id, own.username, claims=own.claims)
    found = []
    for saved in rules:
        rule = saved.spec.rule(saved.id)
        if (
            rule.effect is Effect.ALLOW
            and rule.action is not Action.PUBLISH
            and is_for(rule, actor)
        ):
            found.append(fill_filter(rule, actor))
    return list(dict.fromkeys(pattern for pattern in found if pattern))
