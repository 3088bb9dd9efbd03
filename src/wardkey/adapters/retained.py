"""Retained messages of an account, read from the stream in which the broker keeps them."""

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
_ANSWER_S = 2.0
_AT_ONCE, _TOPICS_AT_ONCE = 16, 500
# A page ends after the message that reaches this.
_MOST_BYTES = 4_194_304
# All that reading takes of the broker, for a minute.
_ASKED = tuple(
    f"$JS.API.CONSUMER.{name}" for name in (f"CREATE.{_STREAM}", f"MSG.NEXT.{_STREAM}.>")
)


@dataclass(frozen=True, slots=True)
class Retained:
    """A retained message; `place` orders them by when they came, `at` in epoch milliseconds."""

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
    found: list[Retained] = []
    size = 0
    async with aclosing(_read(link, account, pattern, after, payloads=True)) as messages:
        async for message in messages:
            if len(found) == limit or size >= _MOST_BYTES:
                return found, True
            flags = int((message.headers or {}).get("Nmqtt-RFlags", "0"))
            found.append(
                Retained(
                    message.metadata.sequence.stream,
                    _topic(message),
                    message.data,
                    flags >> 1 & 3,
                    int(message.metadata.timestamp.timestamp() * 1000),
                )
            )
            size += len(message.data)
    return found, False


async def retained_topics(
    link: BrokerLink, account: Account, pattern: str, limit: int
) -> tuple[list[str], bool]:
    """Return the topics of retained messages that a filter matches, and whether there are more.

    Raises `BrokerUnreachable`.
    """
    found: list[str] = []
    async with aclosing(_read(link, account, pattern, 0, payloads=False)) as messages:
        async for message in messages:
            if len(found) == limit:
                return found, True
            topic = _topic(message)
            # A client may have published to `a/*`, whose subject reads like `a/+`; to publish to
            # that would end the bridge's connection.
            if not set("+#") & set(topic):
                found.append(topic)
    return found, False


async def _read(
    link: BrokerLink, account: Account, pattern: str, after: int, *, payloads: bool
) -> AsyncGenerator[Msg]:
    """Yield what the stream holds, through a consumer that the broker forgets by itself."""
    wanted = {
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
        async with link.account_client(account, _ASKED) as client:
            made = await _asked(client, f"$JS.API.CONSUMER.CREATE.{_STREAM}", wanted)
            if made.get("error", {}).get("err_code") == _NO_STREAM:
                # Nobody of this account has used MQTT yet.
                return
            if "name" not in made:
                raise BrokerUnreachable
            inbox = client.new_inbox()
            waiting = await client.subscribe(inbox)
            batch = _AT_ONCE if payloads else _TOPICS_AT_ONCE
            ask = json.dumps({"batch": batch, "no_wait": True}).encode()
            while True:
                subject = f"$JS.API.CONSUMER.MSG.NEXT.{_STREAM}.{made['name']}"
                await client.publish(subject, ask, reply=inbox)
                for _ in range(batch):
                    message = await waiting.next_msg(_ANSWER_S)
                    if "Status" in (message.headers or {}):
                        return
                    yield message


async def _asked(client: Client, subject: str, wanted: dict[str, Any]) -> dict[str, Any]:
    told = await client.request(subject, json.dumps(wanted).encode(), timeout=_ANSWER_S)
    answer: dict[str, Any] = json.loads(told.data)
    return answer


def _topic(message: Msg) -> str:
    return from_subject(message.subject.removeprefix(_SUBJECT))
