"""The demo's steps over MQTT: a device subscribes, a page publishes, and both lose access."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2 as httpx
import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from demo.steps import PASSWORD, Step, claim

TOPIC = "agents/agent-01/state"


def messaging(url: str, port: int) -> Iterator[Step]:
    """Yield the title and the outcome of each step when it is done."""
    anonymous = httpx.Client(base_url=url, timeout=20)
    signed = anonymous.post(
        "/v2/user-tokens", json={"email": "owner@acme.example", "password": PASSWORD}
    ).json()
    owner = httpx.Client(
        base_url=url, timeout=20, headers={"Authorization": f"Bearer {signed['token']}"}
    )
    for rule in (
        {"priority": 10, "subject": {"kind": "everyone"}, "action": "subscribe"},
        {"priority": 20, "subject": {"kind": "publishable"}, "action": "publish"},
    ):
        made = owner.post("/v2/acl/rules", json={**rule, "filter": "agents/#", "effect": "allow"})
        claim(made.status_code == 201, made.text)
    made = owner.post("/v2/clients", json={"username": "screen"})
    claim(made.status_code == 201, made.text)
    client = made.json()["client"]
    yield "create two ACL rules and a client", client["mqtt_username"]

    # The broker may still be starting.
    wait(lambda: owner.get("/v2/sessions").status_code == 200, "the broker did not answer")
    screen = Screen(port, client["mqtt_username"], made.json()["password"])
    claim(screen.code == 0, f"the login was refused: {screen.code}")
    screen.subscribe("agents/#")
    yield "log in over MQTT and subscribe", "agents/#"

    key = owner.post("/v2/keys", json={"name": "live-agent-page", "type": "publishable"}).json()
    page = httpx.Client(
        base_url=url, timeout=20, headers={"Authorization": f"Bearer {key['secret']}"}
    )
    sent = page.post("/publish", json={"topic": TOPIC, "payload": {"status": "idle", "load": 0.12}})
    claim(sent.status_code == 200, sent.text)
    wait(lambda: screen.messages, "no message arrived")
    yield "publish with a publishable key", f"{TOPIC} received {screen.messages[0].decode()}"

    refused = page.post("/publish", json={"topic": "admin/reset", "payload": 1})
    claim(refused.json()["code"] == "publish_denied", refused.text)
    yield "publish where no rule allows it", refused.json()["detail"]

    done = owner.post(f"/v2/keys/{key['key']['id']}/revoke")
    claim(done.status_code == 200, done.text)
    again = page.post("/publish", json={"topic": TOPIC, "payload": 1})
    claim(again.json()["code"] == "revoked", again.text)
    yield "revoke the publishable key", "publishing is refused immediately"

    began = time.perf_counter()
    owner.patch(f"/v2/clients/{client['id']}", json={"enabled": False})
    wait(lambda: screen.ended_at, "the session did not end")
    took = (screen.ended_at - began) * 1000
    yield "disable the client", f"its MQTT session ended after {took:.0f} ms"


class Screen:
    """An MQTT client that stores the messages it receives."""

    def __init__(
        self, port: int, username: str, password: str, client_id: str = "screen-1"
    ) -> None:
        self.messages: list[bytes] = []
        self.code: int | None = None
        self.ended_at = 0.0
        self.granted: bool | None = None
        self.paho = paho.Client(
            CallbackAPIVersion.VERSION2, client_id=client_id, reconnect_on_failure=False
        )
        self.paho.username_pw_set(username, password)
        self.paho.on_connect = self._connected
        self.paho.on_disconnect = self._ended
        self.paho.on_message = self._received
        self.paho.on_subscribe = self._subscribed
        self.paho.connect("127.0.0.1", port)
        self.paho.loop_start()
        wait(lambda: self.code is not None, "no answer to the login")

    def subscribe(self, pattern: str) -> None:
        """Subscribe, or stop the demo if the subscription is not granted."""
        claim(self.may_subscribe(pattern), f"{pattern} was not granted")

    def may_subscribe(self, pattern: str) -> bool:
        """Subscribe; return whether the subscription was granted."""
        self.granted = None
        self.paho.subscribe(pattern, 1)
        wait(lambda: self.granted is not None, "no answer to the subscription")
        return bool(self.granted)

    def _connected(self, _c: Any, _u: Any, _f: Any, code: Any, _p: Any) -> None:  # noqa: ANN401
        self.code = int(code.value)

    def _ended(self, _c: Any, _u: Any, _f: Any, _code: Any, _p: Any) -> None:  # noqa: ANN401
        self.ended_at = time.perf_counter()

    def _received(self, _c: Any, _u: Any, message: paho.MQTTMessage) -> None:  # noqa: ANN401
        self.messages.append(bytes(message.payload))

    def _subscribed(self, _c: Any, _u: Any, _m: int, codes: Any, _p: Any) -> None:  # noqa: ANN401
        self.granted = all(code.value < 128 for code in codes)


def wait(condition: Callable[[], object], message: str, within_s: float = 15) -> None:
    """Wait until `condition` is true, or stop the demo with `message`."""
    end = time.monotonic() + within_s
    while not condition():
        claim(time.monotonic() < end, message)
        time.sleep(0.005)
