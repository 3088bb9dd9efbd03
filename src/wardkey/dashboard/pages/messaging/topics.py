"""Messaging > Live topics: watches messages through a short-lived grant of the member."""

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

_GRANT_S = 600


@router.get(_ROUTE)
def watch_topics(request: Request, current: Visiting, ctx: CurrentContext) -> Response:
    """Show the page; its script requests a grant when the member starts watching."""
    grant = _own_grant(current.by)
    rules = ctx.runner.read(acl.list_rules, current.by)
    return render(
        request,
        "topics.html",
        current=current,
        url=current.url(PATH),
        socket=ctx.websocket_url,
        why_not=current.why_not(Permission.CLIENTS_WRITE),
        username=grant.username,
        filters=_readable_filters(rules, current.by, grant),
        lasts_minutes=_GRANT_S // 60,
    )


@router.get(f"{_ROUTE}/grant")
def back_to_topics(current: Visiting) -> Response:
    """Redirect to the page from the URL of its grants."""
    return see_other(current.url(PATH))


@router.post(f"{_ROUTE}/grant")
def make_own_grant(current: Visiting, _fields: VerifiedForm, ctx: CurrentContext) -> Response:
    """Create a ten-minute grant for the member, and return it to the page's script."""

    def create_own(tx: Transaction, by: Principal) -> grants.MintedGrant:
        return grants.create_own(tx, by, _own_grant(by))

    minted = ctx.runner.write(create_own, current.by)
    login = {
        "username": minted.grant.mqtt_username,
        "password": minted.password.text,
        "client_id": f"watch-{secrets.token_hex(8)}",
    }
    return JSONResponse(login, headers={"Cache-Control": "no-store"})


def _own_grant(by: Principal) -> NewGrant:
    grant = native_grant(by.org_id, by.label.lower(), "", _GRANT_S)
    return replace(grant, refreshable_s=_GRANT_S)


def _readable_filters(rules: list[acl.SavedRule], by: Principal, grant: NewGrant) -> list[str]:
    """Return the topic filters that the rules let the member subscribe to."""
    actor = Actor(ActorKind.GRANT, by.org_id, grant.username, claims=grant.claims)
    filters = []
    for saved in rules:
        rule = saved.spec.rule(saved.id)
        if (
            rule.effect is Effect.ALLOW
            and rule.action is not Action.PUBLISH
            and is_for(rule, actor)
        ):
            filters.append(fill_filter(rule, actor))
    return list(dict.fromkeys(pattern for pattern in filters if pattern))
