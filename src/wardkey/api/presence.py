"""The route of presence: the users who are online or would receive a topic now."""

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

_MAX_LENGTH = 1_024


class PresentShape(BaseModel):
    """A user with live sessions; `since` is the start of the first one."""

    username: str
    client_ids: list[str]
    since: str
    subscriptions: list[str] = Field(
        description="The filters that match the query; with `username`, all of them."
    )


class PresencePage(BaseModel):
    """The users who match, by user name; `online` is whether there are any."""

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
        str, Query(max_length=_MAX_LENGTH, description="Find users subscribed to this topic.")
    ] = "",
    filter: Annotated[  # noqa: A002 - the parameter's name
        str,
        Query(
            max_length=_MAX_LENGTH,
            description="Find users subscribed to a topic that this filter matches.",
        ),
    ] = "",
    username: Annotated[
        str,
        Query(max_length=128, description="A client's user name, with or without the @ part."),
    ] = "",
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    cursor: Cursor = "",
) -> PresencePage:
    """List the users who would receive a topic now, or whether a user is online.

    Send exactly one of `topic`, `filter` and `username`.
    """
    by = caller.by
    with ctx.runner.audit_refusals("get_presence", by):
        by.require(Permission.CLIENTS_READ)
    name, matches = _parse_query(by, topic, filter, username)
    vault = ctx.runner.database.vault
    binding = json.dumps(["presence", *by.scope, topic, filter, username])
    after = read_cursor(vault, binding, cursor)[0] if cursor else ""
    users = _group_sessions(run(ctx.broker.sessions, *by.scope, name), matches)
    rest = [user for user in users if user.username > after]
    page = rest[:limit]
    return PresencePage(
        online=bool(users),
        users=page,
        next_cursor=(
            write_cursor(vault, binding, [page[-1].username]) if len(rest) > limit else None
        ),
        total=len(users),
    )


def _parse_query(
    by: Principal, topic: str, pattern: str, username: str
) -> tuple[str, Callable[[str], bool]]:
    """Return the MQTT user name to find, if any, and a predicate for subscribed filters."""
    if sum(map(bool, (topic, pattern, username))) != 1:
        raise errors.InvalidRequest("Send exactly one of topic, filter and username.")
    if topic:
        try:
            clean_topic(topic)
        except ValueError as error:
            raise errors.InvalidTopic(str(error), field="topic") from None
        return "", lambda subscribed: covers(subscribed, topic)
    if pattern:
        try:
            clean_filter(pattern)
        except ValueError as error:
            raise errors.InvalidTopicFilter(str(error), field="filter") from None
        return "", lambda subscribed: overlaps(subscribed, pattern)
    return with_organization(username, *by.scope), bool


def _group_sessions(sessions: list[Session], matches: Callable[[str], bool]) -> list[PresentShape]:
    by_name: defaultdict[str, list[tuple[Session, list[str]]]] = defaultdict(list)
    any_session = matches is bool
    for session in sessions:
        filters = [
            topic_filter
            for topic_filter in filters_of(session.subscriptions)
            if matches(topic_filter)
        ]
        if session.username != BRIDGE and (filters or any_session):
            by_name[session.username].append((session, filters))
    return [
        PresentShape(
            username=username,
            client_ids=sorted(session.client_id for session, _ in entries),
            since=min(session.started_at for session, _ in entries),
            subscriptions=sorted({item for _, filters in entries for item in filters}),
        )
        for username, entries in sorted(by_name.items())
    ]
