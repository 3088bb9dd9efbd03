"""Persistent MQTT sessions at the broker, removed with all that is queued for them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from wardkey.adapters.broker_link import broker_errors
from wardkey.adapters.publishers import BRIDGE, Account, Publishers
from wardkey.domain.errors import BrokerUnreachable

_PURGE = "$JS.API.STREAM.PURGE.$MQTT_qos2in"
_RECEIVED = "$MQTT.qos2.in."
_NO_STREAM = 10_059
_ANSWER_S = 2.0
# A process that stands still meanwhile must not end a session that is another's by then.
_LASTS_S = 3
# The broker takes no client id with one of these; here they would name more than one session.
_NEVER = set(".*> \t\r\n\f")


@asynccontextmanager
async def discarding(
    publishers: Publishers, account: Account
) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Open what removes the session of a client id, and ends a live one.

    The broker itself removes what it has of a client that asks for a clean session, so this logs
    in as that client. Messages of QoS 2 that were not released yet stay then, so they are purged.
    Raises `BrokerUnreachable`.
    """
    link = publishers.link
    with broker_errors():
        async with link.account_client(account, (_PURGE,)) as client:

            async def discard(mqtt_id: str) -> None:
                if _NEVER & set(mqtt_id):
                    return
                asked = json.dumps({"filter": f"{_RECEIVED}{mqtt_id}.>"}).encode()
                told = await client.request(_PURGE, asked, timeout=_ANSWER_S)
                answer = json.loads(told.data)
                if answer.get("error", {}).get("err_code") == _NO_STREAM:
                    # MQTT was never used in this account.
                    return
                if not answer.get("success"):
                    raise BrokerUnreachable
                token = link.bridge_token(*account, BRIDGE, _LASTS_S)
                (await publishers.connect(mqtt_id, token)).close()

            yield discard
