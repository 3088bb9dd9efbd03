"""The route of presence: who would receive a topic now, and whether somebody is online."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from typing import Annotated

from anyio.from_thread import run
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from wardkey.adapters.broker_link import Session
from wardkey.adapters.publishers import BRIDGE
from wardkey.domain import errors
from wardkey.domain.permissions import Permission
from wardkey.domain.principal import Principal
from wardkey.domain.topics import clean_filter, clean_topic, covers, filters_of, overlaps
from wardkey.domain.usernames import with_organization
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.pagination import Cursor, read_cursor, write_cursor
from wardkey.web.problems import problem_responses

router = APIRouter(tags=["sessions"])

_LONGEST = 1_024


class PresentShape(BaseModel):
    """Somebody with live sessions; `since` is when the first of them began."""

    username: str
    client_ids: list[str]
    since: str
    subscriptions: list[str] = Field(
        description="The filters that receive the topic; all of them where a user was asked for."
    )


class PresencePage(BaseModel):
    """Whoever is there, by user name; `online` says whether anybody is."""

    online: bool
    users: list[PresentShape]
    next_cursor: str | None
    total: int


@router.get(
    "/v2/presence",
    responses=problem_responses(
        errors.InvalidTopic,
        errors.InvalidTopicFilter,
        errors.InvalidCursor,
        errors.MessagingOff,
        errors.BrokerUnreachable,
    ),
)
def get_presence(  # noqa: PLR0917 - FastAPI's parameters
    caller: CurrentCaller,
    ctx: CurrentContext,
    topic: Annotated[
        str, Query(max_length=_LONGEST, description="Whose subscriptions receive this topic.")
    ] = "",
    filter: Annotated[  # noqa: A002 - the parameter's name
        str,
        Query(
            max_length=_LONGEST,
            description="Whose subscriptions receive some topic that this filter matches.",
        ),
    ] = "",
    username: Annotated[
        str,
        Query(max_length=128, description="A client's user name, with or without what follows @."),
    ] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Cursor = "",
) -> PresencePage:
    """Tell who would receive a topic now, or whether a user is online: ask for one of the three."""
    by = caller.by
    with ctx.runner.audit_refusals("get_presence", by):
        by.require(Permission.CLIENTS_READ)
    name, receives = _wanted(by, topic, filter, username)
    vault = ctx.runner.database.vault
    bound = json.dumps(["presence", *by.scope, topic, filter, username])
    after = read_cursor(vault, bound, cursor)[0] if cursor else ""
    users = _users(run(ctx.broker.sessions, *by.scope, name), receives)
    rest = [one for one in users if one.username > after]
    shown = rest[:limit]
    return PresencePage(
        online=bool(users),
        users=shown,
        next_cursor=(
            write_cursor(vault, bound, [shown[-1].username]) if len(rest) > limit else None
        ),
        total=len(users),
    )


def _wanted(
    by: Principal, topic: str, pattern: str, username: str
) -> tuple[str, Callable[[str], bool]]:
    """Return the user name on the wire, if one was asked for, and which filters count."""
    if sum(map(bool, (topic, pattern, username))) != 1:
        raise errors.InvalidRequest("Ask for one of topic, filter and username.")
    if topic:
        try:
            clean_topic(topic)
        except ValueError as error:
            raise errors.InvalidTopic(str(error), field="topic") from None
        return "", lambda held: covers(held, topic)
    if pattern:
        try:
            clean_filter(pattern)
        except ValueError as error:
            raise errors.InvalidTopicFilter(str(error), field="filter") from None
        return "", lambda held: overlaps(held, pattern)
    return with_organization(username, *by.scope), bool


def _users(sessions: list[Session], receives: Callable[[str], bool]) -> list[PresentShape]:
    by_name: defaultdict[str, list[tuple[Session, list[str]]]] = defaultdict(list)
    everyone = receives is bool
    for one in sessions:
        filters = [held for held in filters_of(one.subscriptions) if receives(held)]
        if one.username != BRIDGE and (filters or everyone):
            by_name[one.username].append((one, filters))
    return [
        PresentShape(
            username=name,
            client_ids=sorted(one.client_id for one, _ in found),
            since=min(one.started_at for one, _ in found),
            subscriptions=sorted({held for _, filters in found for held in filters}),
        )
        for name, found in sorted(by_name.items())
    ]
