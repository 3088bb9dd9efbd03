"""Routes of retained messages: list them, and clear one or all that match a filter."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Annotated, Literal

from anyio.from_thread import run
from fastapi import APIRouter, Query
from pydantic import BaseModel, Field

from wardkey.actions.messaging import sessions
from wardkey.adapters.publishers import Account, Publishers
from wardkey.adapters.retained import Retained, list_retained, retained_topics
from wardkey.domain import errors
from wardkey.domain.permissions import Permission
from wardkey.domain.times import iso
from wardkey.domain.topics import clean_filter, clean_topic
from wardkey.web.caller import CurrentCaller
from wardkey.web.context import CurrentContext
from wardkey.web.pagination import Cursor, read_cursor, write_cursor
from wardkey.web.problems import problem_responses

router = APIRouter(tags=["retained"])

_MAX_LENGTH = 1_024
MAX_CLEARED = 10_000


class RetainedShape(BaseModel):
    """A retained message; `retained_at` is when the broker stored it."""

    topic: str
    payload: str
    payload_encoding: Literal["plain", "base64"] = Field(
        description="`plain` for UTF-8, `base64` for anything else, as in `POST /publish`."
    )
    size: int
    qos: int
    retained_at: str


class RetainedPage(BaseModel):
    """A page of retained messages, oldest first; it ends early after 4 MiB of payloads."""

    messages: list[RetainedShape]
    next_cursor: str | None


class ClearedShape(BaseModel):
    """The number of cleared messages; if `more` is true, call again."""

    cleared: int
    more: bool


@router.get(
    "/v2/retained",
    responses=problem_responses(
        errors.InvalidTopicFilter,
        errors.InvalidCursor,
        errors.MessagingOff,
        errors.BrokerUnreachable,
        errors.Overloaded,
    ),
)
def list_retained_messages(
    caller: CurrentCaller,
    ctx: CurrentContext,
    filter: Annotated[str, Query(max_length=_MAX_LENGTH)] = "#",  # noqa: A002 - the parameter's name
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    cursor: Cursor = "",
) -> RetainedPage:
    """List the retained messages that match a topic filter, with their payloads."""
    with ctx.runner.audit_refusals("list_retained", caller.by):
        caller.by.require(Permission.RETAINED_READ)
    _check_filter(filter)
    vault = ctx.runner.database.vault
    binding = json.dumps(["retained", *caller.by.scope, filter])
    after = int(read_cursor(vault, binding, cursor)[0]) if cursor else 0
    with ctx.retained.reserve(caller.by.org_id):
        messages, more = run(list_retained, ctx.broker, caller.by.scope, filter, after, limit)
    return RetainedPage(
        messages=[_render_message(message) for message in messages],
        next_cursor=write_cursor(vault, binding, [messages[-1].place]) if more else None,
    )


@router.delete(
    "/v2/retained",
    responses=problem_responses(
        errors.InvalidTopic,
        errors.InvalidTopicFilter,
        errors.MessagingOff,
        errors.BrokerUnreachable,
        errors.PublishUnconfirmed,
        errors.Overloaded,
    ),
)
def clear_retained_messages(
    caller: CurrentCaller,
    ctx: CurrentContext,
    topic: Annotated[str, Query(max_length=_MAX_LENGTH, description="The topic to clear.")] = "",
    filter: Annotated[  # noqa: A002 - the parameter's name
        str, Query(max_length=_MAX_LENGTH, description="The topics to clear.")
    ] = "",
) -> ClearedShape:
    """Clear the retained message of a topic, or up to 10,000 that match a filter.

    Current subscribers of each topic receive an empty message, as MQTT specifies.
    """
    by = caller.by
    with ctx.runner.audit_refusals("clear_retained", by):
        by.require(Permission.RETAINED_WRITE)
    if bool(topic) is bool(filter):
        raise errors.InvalidRequest("Send either topic or filter.")
    if topic:
        try:
            clean_topic(topic)
        except ValueError as error:
            raise errors.InvalidTopic(str(error), field="topic") from None
    else:
        _check_filter(filter)
    publishers = ctx.publishers
    if publishers is None:
        raise errors.MessagingOff
    with ctx.retained.reserve(by.org_id):
        topics, more = run(retained_topics, ctx.broker, by.scope, topic or filter, MAX_CLEARED)
        if topics:
            ctx.runner.write(sessions.note_cleared, by, topic or filter, len(topics))
            run(_clear, publishers, by.scope, topics)
    return ClearedShape(cleared=len(topics), more=more)


def _check_filter(pattern: str) -> None:
    try:
        clean_filter(pattern)
    except ValueError as error:
        raise errors.InvalidTopicFilter(str(error), field="filter") from None


async def _clear(publishers: Publishers, account: Account, topics: list[str]) -> None:
    # An empty retained message makes the broker delete the previous message.
    await asyncio.gather(
        *(publishers.publish(account, topic, b"", 1, retain=True) for topic in topics)
    )


def _render_message(message: Retained) -> RetainedShape:
    encoding: Literal["plain", "base64"] = "plain"
    try:
        payload = message.payload.decode()
    except UnicodeDecodeError:
        encoding, payload = "base64", base64.b64encode(message.payload).decode()
    return RetainedShape(
        topic=message.topic,
        payload=payload,
        payload_encoding=encoding,
        size=len(message.payload),
        qos=message.qos,
        retained_at=iso(message.at),
    )
