"""A third-party MQTT client (paho) that records events."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

from tests.support.server import Server, wait_until


class MqttClient:
    """A connection with its received messages, granted QoS and end."""

    def __init__(
        self,
        port: int,
        username: str,
        password: str,
        mqtt_id: str,
        *,
        clean: bool = True,
        trust: ssl.SSLContext | None = None,
        websocket: bool = False,
    ) -> None:
        self.messages: list[tuple[str, bytes]] = []
        self.arrived: list[paho.MQTTMessage] = []
        self.granted: list[int] = []
        self.code: int | None = None
        # Whether the broker had a session of this client id.
        self.present = False
        self.ended_at = 0.0
        self._done = threading.Event()
        self.paho = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=mqtt_id,
            clean_session=clean,
            # Its thread would sleep a second before it checks whether to stop.
            reconnect_on_failure=False,
            protocol=MQTTProtocolVersion.MQTTv311,
            transport="websockets" if websocket else "tcp",
        )
        if trust is not None:
            self.paho.tls_set_context(trust)
        if websocket:
            self.paho.ws_set_options(path="/mqtt")
        self.paho.username_pw_set(username, password)
        self.paho.on_connect = self._connected
        self.paho.on_disconnect = self._ended
        self.paho.on_message = self._came
        self.paho.on_subscribe = self._subscribed
        self.paho.connect("127.0.0.1", port)
        self.paho.loop_start()
        wait_until(lambda: self.code is not None or self.ended_at)

    def subscribe(self, pattern: str, qos: int = 1) -> int:
        """Return the granted QoS, or 128."""
        before = len(self.granted)
        self.paho.subscribe(pattern, qos)
        wait_until(lambda: len(self.granted) > before)
        return self.granted[-1]

    def publish(self, topic: str, payload: str, qos: int = 1, *, retain: bool = False) -> None:
        self.paho.publish(topic, payload, qos, retain=retain).wait_for_publish(10)

    def close(self) -> None:
        self.paho.disconnect()
        self.paho.loop_stop()

    def _connected(self, _c: Any, _u: Any, flags: Any, code: Any, _p: Any) -> None:  # noqa: ANN401
        self.present = bool(flags.session_present)
        self.code = int(code.value)

    def _ended(self, _c: Any, _u: Any, _f: Any, _code: Any, _p: Any) -> None:  # noqa: ANN401
        self.ended_at = time.monotonic()

    def _came(self, _c: Any, _u: Any, message: paho.MQTTMessage) -> None:  # noqa: ANN401
        self.arrived.append(message)
        came = (message.topic, bytes(message.payload))
        # A redelivery is not a new message.
        if not message.dup or came not in self.messages:
            self.messages.append(came)

    def _subscribed(self, _c: Any, _u: Any, _m: int, codes: Any, _p: Any) -> None:  # noqa: ANN401
        self.granted += [int(code.value) for code in codes]


@contextmanager
def connected(
    broker: Server | int, username: str, password: str, mqtt_id: str, *, clean: bool = True
) -> Iterator[MqttClient]:
    """Connect until the block ends, to a deployment's broker or to the one at a port."""
    port = broker if isinstance(broker, int) else broker.mqtt_port
    client = MqttClient(port, username, password, mqtt_id, clean=clean)
    try:
        yield client
    finally:
        client.close()
