"""Removes persistent MQTT sessions from the broker, with the messages queued for them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from wardkey.adapters.broker_link import broker_errors
from wardkey.adapters.publishers import BRIDGE, Account, Publishers
from wardkey.domain.errors import BrokerUnreachable

_PURGE = "$JS.API.STREAM.PURGE.$MQTT_qos2in"
_QOS2_SUBJECT = "$MQTT.qos2.in."
_NO_STREAM = 10_059
_REQUEST_TIMEOUT_S = 2.0
# Short, so that a process that was paused can't end a session that belongs to someone else by then.
_TOKEN_LIFETIME_S = 3
# The broker accepts no client id with these characters; in a filter they match several sessions.
_FORBIDDEN_CHARACTERS = set(".*> \t\r\n\f")


@asynccontextmanager
async def discarding(
    publishers: Publishers, account: Account
) -> AsyncIterator[Callable[[str], Awaitable[None]]]:
    """Yield a function that removes a client id's session; a live one is closed.

    It logs in as the client with a clean session, which makes the broker remove the stored one.
    That leaves unreleased QoS 2 messages, so they are purged first. Raises `BrokerUnreachable`.
    """
    link = publishers.link
    with broker_errors():
        async with link.account_client(account, (_PURGE,)) as client:

            async def discard(mqtt_id: str) -> None:
                if _FORBIDDEN_CHARACTERS & set(mqtt_id):
                    return
                request = json.dumps({"filter": f"{_QOS2_SUBJECT}{mqtt_id}.>"}).encode()
                message = await client.request(_PURGE, request, timeout=_REQUEST_TIMEOUT_S)
                response = json.loads(message.data)
                if response.get("error", {}).get("err_code") == _NO_STREAM:
                    # MQTT was never used in this account.
                    return
                if not response.get("success"):
                    raise BrokerUnreachable
                token = link.bridge_token(*account, BRIDGE, _TOKEN_LIFETIME_S)
                (await publishers.connect(mqtt_id, token)).close()

            yield discard
