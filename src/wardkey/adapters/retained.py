"""Reads an account's retained messages from the stream in which the broker stores them."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from wardkey.adapters.broker_link import BrokerLink, broker_errors
from wardkey.adapters.publishers import Account
from wardkey.domain.errors import BrokerUnreachable
from wardkey.domain.topics import from_subject, to_subjects

_STREAM = "$MQTT_rmsgs"
_SUBJECT = "$MQTT.rmsgs."
_NO_STREAM = 10_059
_REQUEST_TIMEOUT_S = 2.0
_MESSAGE_BATCH, _TOPIC_BATCH = 16, 500
# A page ends after the message that reaches this size.
_MAX_BYTES = 4_194_304
# The only subjects to which reading has to publish.
_API_SUBJECTS = tuple(
    f"$JS.API.CONSUMER.{name}" for name in (f"CREATE.{_STREAM}", f"MSG.NEXT.{_STREAM}.>")
)


@dataclass(frozen=True, slots=True)
class Retained:
    """A retained message; `place` is its position in the stream, `at` is in epoch milliseconds."""

    place: int
    topic: str
    payload: bytes = field(repr=False)
    qos: int
    at: int


async def list_retained(
    link: BrokerLink, account: Account, pattern: str, after: int, limit: int
) -> tuple[list[Retained], bool]:
    """Return retained messages that a filter matches, oldest first, and whether there are more.

    Raises `BrokerUnreachable`.
    """
    page: list[Retained] = []
    size = 0
    async with aclosing(_read(link, account, pattern, after, payloads=True)) as messages:
        async for message in messages:
            if len(page) == limit or size >= _MAX_BYTES:
                return page, True
            flags = int((message.headers or {}).get("Nmqtt-RFlags", "0"))
            page.append(
                Retained(
                    message.metadata.sequence.stream,
                    _topic(message),
                    message.data,
                    flags >> 1 & 3,
                    int(message.metadata.timestamp.timestamp() * 1000),
                )
            )
            size += len(message.data)
    return page, False


async def retained_topics(
    link: BrokerLink, account: Account, pattern: str, limit: int
) -> tuple[list[str], bool]:
    """Return the topics of retained messages that a filter matches, and whether there are more.

    Raises `BrokerUnreachable`.
    """
    topics: list[str] = []
    async with aclosing(_read(link, account, pattern, 0, payloads=False)) as messages:
        async for message in messages:
            if len(topics) == limit:
                return topics, True
            topic = _topic(message)
            # A client may have published to `a/*`, whose subject reads like `a/+`; publishing to
            # `a/+` would end the bridge's connection.
            if not set("+#") & set(topic):
                topics.append(topic)
    return topics, False


async def _read(
    link: BrokerLink, account: Account, pattern: str, after: int, *, payloads: bool
) -> AsyncGenerator[Msg]:
    """Yield the stream's messages, through a consumer that the broker removes when idle."""
    consumer_request = {
        "stream_name": _STREAM,
        "config": {
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": after + 1,
            "ack_policy": "none",
            "mem_storage": True,
            "headers_only": not payloads,
            "filter_subjects": [_SUBJECT + subject for subject in to_subjects(pattern)],
            "inactive_threshold": 5_000_000_000,
        },
    }
    with broker_errors():
        async with link.account_client(account, _API_SUBJECTS) as client:
            consumer = await _request(
                client, f"$JS.API.CONSUMER.CREATE.{_STREAM}", consumer_request
            )
            if consumer.get("error", {}).get("err_code") == _NO_STREAM:
                # MQTT was never used in this account.
                return
            if "name" not in consumer:
                raise BrokerUnreachable
            inbox = client.new_inbox()
            subscription = await client.subscribe(inbox)
            batch = _MESSAGE_BATCH if payloads else _TOPIC_BATCH
            next_request = json.dumps({"batch": batch, "no_wait": True}).encode()
            while True:
                subject = f"$JS.API.CONSUMER.MSG.NEXT.{_STREAM}.{consumer['name']}"
                await client.publish(subject, next_request, reply=inbox)
                for _ in range(batch):
                    message = await subscription.next_msg(_REQUEST_TIMEOUT_S)
                    if "Status" in (message.headers or {}):
                        return
                    yield message


async def _request(client: Client, subject: str, body: dict[str, Any]) -> dict[str, Any]:
    message = await client.request(subject, json.dumps(body).encode(), timeout=_REQUEST_TIMEOUT_S)
    response: dict[str, Any] = json.loads(message.data)
    return response


def _topic(message: Msg) -> str:
    return from_subject(message.subject.removeprefix(_SUBJECT))
