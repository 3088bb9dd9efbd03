"""The cases of Eclipse Paho's interoperability suite, run against our broker."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from struct import pack
from typing import NamedTuple

import pytest

from tests.support.mqtt import MqttClient, connected
from tests.support.mqtt_wire import DISCONNECT, PUBREC, PUBREL, wired
from tests.support.server import Server, running, wait_until
from wardkey.domain.ids import new_id


class Login(NamedTuple):
    username: str
    password: str


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Run a deployment in which everyone may do anything except publish below forbidden/."""
    with running(tmp_path_factory.mktemp("interop") / "data", no_messaging=0) as server:
        with server.owner() as owner:
            everyone = {"subject": {"kind": "everyone"}}
            for rule in (
                {"priority": 1, "filter": "forbidden/#", "action": "publish", "effect": "deny"},
                {"priority": 10, "filter": "#", "action": "both", "effect": "allow"},
            ):
                assert owner.post("/v2/acl/rules", json=everyone | rule).status_code == 201
            wait_until(lambda: owner.get("/v2/sessions").status_code == 200)
        yield server


def made(server: Server) -> Login:
    with server.owner() as owner:
        created = owner.post("/v2/clients", json={"username": new_id("a", 0)}).json()
    return Login(created["client"]["mqtt_username"], created["password"])


@pytest.fixture
def one(broker: Server) -> Login:
    return made(broker)


@pytest.fixture
def other(broker: Server) -> Login:
    return made(broker)


@pytest.fixture
def sender(broker: Server, other: Login) -> Iterator[MqttClient]:
    with connected(broker, *other, "") as client:
        yield client


def arrived_until(client: MqttClient, payload: str) -> list[tuple[str, str, int, bool]]:
    """Return topic, payload, QoS and retain flag of each message, once `payload` has arrived."""
    wait_until(lambda: any(m.payload == payload.encode() for m in list(client.arrived)))
    return [(m.topic, m.payload.decode(), m.qos, m.retain) for m in client.arrived]


@pytest.mark.parametrize("subscribed", [0, 1, 2])
def test_a_message_is_delivered_at_the_lower_qos(
    broker: Server, one: Login, sender: MqttClient, subscribed: int
) -> None:
    with connected(broker, *one, "") as client:
        assert client.subscribe(f"basic/{subscribed}/#", subscribed) == subscribed
        for sent in (0, 1, 2):
            sender.publish(f"basic/{subscribed}/{sent}", "m", sent)
        wait_until(lambda: len(client.arrived) >= 3)
        assert sorted((m.topic, m.qos) for m in client.arrived) == [
            (f"basic/{subscribed}/{sent}", min(subscribed, sent)) for sent in (0, 1, 2)
        ]
        assert client.paho.unsubscribe("basic/#")[0] == 0


def test_a_client_can_have_hundreds_of_qos_1_subscriptions(
    broker: Server, one: Login, sender: MqttClient
) -> None:
    with connected(broker, *one, "") as client:
        assert [client.subscribe(f"many/{n}") for n in range(255)] == [1] * 255
        assert [client.subscribe(f"deep/{n}/#") for n in range(200)] == [1] * 200
        # The sum of all windows is used up: the next QoS 1 is refused, while QoS 0 never is.
        assert client.subscribe("many/beyond") == 128
        assert client.subscribe("many/beyond", 0) == 0
        sender.publish("many/254", "wide")
        sender.publish("deep/199/a/b", "deep")
        wait_until(lambda: len(client.arrived) == 2)
        client.paho.unsubscribe("deep/0/#")
        assert client.subscribe("many/freed") == 1


def test_mosquitto_subscribes_to_hundreds_of_filters_at_once(
    broker: Server, one: Login, sender: MqttClient
) -> None:
    command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(broker.mqtt_port), "-q", "1", "-d"]
    command += ["-u", one.username, "-P", one.password, "-C", "1", "-W", "20"]
    for n in range(320):
        command += ["-t", f"at-once/{n}/#"]
    with subprocess.Popen(["stdbuf", "-oL", *command], stdout=subprocess.PIPE, text=True) as taker:
        assert taker.stdout is not None
        granted = next(line for line in taker.stdout if line.startswith("Subscribed"))
        assert granted.split(": ")[-1].strip() == ", ".join(["1"] * 320)
        sender.publish("at-once/319/a", "here")
        assert "here" in taker.stdout.read()


def test_retained_messages_are_sent_to_new_subscribers_until_they_are_cleared(
    broker: Server, one: Login, sender: MqttClient
) -> None:
    with connected(broker, *one, "") as live:
        live.subscribe("kept/#")
        for qos in (0, 1, 2):
            sender.publish(f"kept/{qos}", "old", qos, retain=True)
            sender.publish(f"kept/{qos}", "new", qos, retain=True)
        sender.publish("kept/end", "end")
        # An existing subscriber receives ordinary messages (§3.3.1.3).
        assert not any(retained for *_, retained in arrived_until(live, "end"))

    def later() -> list[tuple[str, str, int, bool]]:
        with connected(broker, *one, "") as late:
            late.subscribe("kept/+", 2)
            # Retained messages are sent before those published after the SUBACK.
            sender.publish("kept/end", "end", 2)
            return sorted(m for m in arrived_until(late, "end") if m[1] != "end")

    def all_three() -> bool:
        return later() == [(f"kept/{qos}", "new", qos, True) for qos in (0, 1, 2)]

    # The broker stores a retained QoS 0 message with a short delay.
    wait_until(all_three)
    for qos in (0, 1, 2):
        sender.publish(f"kept/{qos}", "", qos, retain=True)
    wait_until(lambda: later() == [])


def test_messages_for_a_disconnected_session_are_queued(
    broker: Server, one: Login, sender: MqttClient
) -> None:
    with connected(broker, *one, "away", clean=False) as client:
        client.subscribe("away/#", 2)
    for qos in (0, 1, 2):
        sender.publish("away/x", f"qos {qos}", qos)
    with connected(broker, *one, "away", clean=False) as client:
        # Without subscribing again. Messages sent while the session was ending arrive five
        # seconds later; QoS 0 is not queued, which MQTT allows.
        wait_until(lambda: {p for _, p in client.messages} >= {b"qos 1", b"qos 2"})
        assert ("away/x", b"qos 0") not in client.messages
    with wired(broker) as clean:
        assert clean.login(*one, "away", clean=True) == (0, False)
        clean.send(DISCONNECT)
    with connected(broker, *one, "away", clean=False) as client:
        client.subscribe("away/end")
        sender.publish("away/x", "late")
        sender.publish("away/end", "end")
        assert [payload for _, payload, *_ in arrived_until(client, "end")] == ["end"]


def test_each_matching_subscription_receives_a_message_once(
    broker: Server, one: Login, sender: MqttClient
) -> None:
    with connected(broker, *one, "") as client:
        assert client.subscribe("over/#", 2) == 2
        assert client.subscribe("over/+", 1) == 1
        sender.publish("over/lap", "m", 2)
        wait_until(lambda: len(client.arrived) >= 2)
        sender.publish("over/lap", "end", 2)
        wait_until(lambda: len(client.arrived) >= 4)
        assert sorted((m.payload, m.qos) for m in client.arrived) == [
            (b"end", 1), (b"end", 2), (b"m", 1), (b"m", 2)
        ]  # fmt: skip


def test_an_unsubscribed_topic_is_no_longer_delivered(
    broker: Server, one: Login, sender: MqttClient
) -> None:
    done: list[int] = []
    with connected(broker, *one, "") as client:
        client.paho.on_unsubscribe = lambda *_: done.append(1)
        client.subscribe("un/a")
        client.subscribe("un/b")
        client.paho.unsubscribe("un/a")
        wait_until(lambda: done)
        sender.publish("un/a", "no")
        sender.publish("un/b", "yes")
        assert [topic for topic, *_ in arrived_until(client, "yes")] == ["un/b"]


def test_each_filter_of_a_subscription_is_answered_separately(broker: Server, one: Login) -> None:
    with connected(broker, *one, "") as client:
        client.paho.subscribe([("a/b", 1), ("$SYS/#", 1), ("a/c", 0)])
        wait_until(lambda: len(client.granted) == 3)
        assert client.granted == [1, 128, 0]


def test_a_silent_client_is_closed_and_its_will_is_sent(
    broker: Server, one: Login, other: Login
) -> None:
    with (
        connected(broker, *made(broker), "") as watcher,
        wired(broker) as silent,
        wired(broker) as pinging,
    ):
        watcher.subscribe("wills/silent")
        began = time.monotonic()
        assert pinging.login(*other, "", keep_alive=2) == (0, False)
        will = ("wills/silent", "gone")
        assert silent.login(*one, "", keep_alive=2, will=will) == (0, False)
        wait_until(lambda: time.monotonic() - began > 1.5)
        assert pinging.is_alive()
        assert watcher.arrived == []
        assert silent.read() is None
        assert time.monotonic() - began > 2.9
        arrived_until(watcher, "gone")
        assert pinging.is_alive()


@pytest.mark.parametrize("how", ["vanishes", "says goodbye"])
def test_a_will_is_sent_only_for_a_client_that_vanishes(
    broker: Server, one: Login, sender: MqttClient, how: str
) -> None:
    topic = f"wills/{how[:4]}"
    with connected(broker, *made(broker), "") as watcher, wired(broker) as dying:
        watcher.subscribe(topic)
        assert dying.login(*one, "", will=(topic, "gone")) == (0, False)
        if how == "vanishes":
            dying.socket.close()
            arrived_until(watcher, "gone")
        else:
            dying.send(DISCONNECT)
            assert dying.read() is None
            sender.publish(topic, "end")
            assert [payload for _, payload, *_ in arrived_until(watcher, "end")] == ["end"]


@pytest.mark.parametrize("topic", ["forbidden/x", "$JS/API/INFO"])
def test_a_will_on_a_forbidden_topic_is_not_sent(
    broker: Server, one: Login, sender: MqttClient, topic: str
) -> None:
    with connected(broker, *made(broker), "") as watcher:
        assert watcher.subscribe("#") == 1
        before = len(broker.output)
        with wired(broker) as dying:
            assert dying.login(*one, "", will=(topic, "gone")) == (0, False)
        wait_until(lambda: "Publish Violation" in broker.output[before:])
        sender.publish("end", "end")
        assert [payload for _, payload, *_ in arrived_until(watcher, "end")] == ["end"]


def test_a_login_with_a_wildcard_in_its_will_is_closed(broker: Server, one: Login) -> None:
    with wired(broker) as dying:
        assert dying.login(*one, "", will=("wills/+", "gone")) is None


def test_an_unacknowledged_message_is_resent_after_30_s_as_a_duplicate(
    broker: Server, one: Login, sender: MqttClient
) -> None:
    with wired(broker) as slow:
        assert slow.login(*one, "slow") == (0, False)
        assert slow.subscribe("slow", 1) == 1
        sender.publish("slow", "m", 1)
        assert slow.message() is not None
        began = time.monotonic()
        _leave_unacknowledged(broker, one, sender)
        message = slow.message(40)
        assert message is not None
        assert message.dup
        assert time.monotonic() - began > 29


def _leave_unacknowledged(broker: Server, one: Login, sender: MqttClient) -> None:
    # QoS 1 without PUBACK, QoS 2 without PUBREC, QoS 2 without PUBCOMP: all at once, because
    # the broker waits 30 seconds for each.
    names = ["again-1", "again-2", "released"]
    qos_by_name = dict(zip(names, (1, 2, 2), strict=True))
    for name, qos in qos_by_name.items():
        with wired(broker) as first:
            assert first.login(*one, name, clean=False) == (0, False)
            assert first.subscribe(name, qos) == qos
            sender.publish(name, "m", qos)
            message = first.message()
            assert message is not None
            assert (message.payload, message.qos, message.dup) == (b"m", qos, False)
            if name == "released":
                first.send(PUBREC, pack(">H", message.packet_id))
                answer = first.read()
                assert answer is not None
                assert answer.kind == PUBREL
    for name in names[:2]:
        with wired(broker) as again:
            assert again.login(*one, name, clean=False) == (0, True)
            message = again.message(40)
            assert message is not None
            assert (message.payload, message.qos, message.dup) == (b"m", qos_by_name[name], True)
    with wired(broker) as again:
        assert again.login(*one, "released", clean=False) == (0, True)
        again.socket.settimeout(40)
        answer = again.read()
        assert answer is not None
        assert answer.kind == PUBREL


def test_a_client_without_an_id_gets_one_if_its_session_is_clean(
    broker: Server, one: Login, other: Login
) -> None:
    with wired(broker) as first, wired(broker) as second, wired(broker) as keeping:
        assert first.login(*one, "") == (0, False)
        assert second.login(*other, "") == (0, False)
        assert keeping.login(*one, "", clean=False) == (2, False)
        assert first.is_alive()
        assert second.is_alive()


@pytest.mark.parametrize("mqtt_id", ["with.dot", "with space", "star*", "more>", "nul\0"])
def test_an_unsupported_client_id_is_refused(broker: Server, one: Login, mqtt_id: str) -> None:
    with wired(broker) as refused:
        assert refused.login(*one, mqtt_id) == (2, False)


def test_only_the_same_client_takes_over_a_client_id(
    broker: Server, one: Login, other: Login
) -> None:
    with wired(broker) as first, wired(broker) as second, wired(broker) as thief:
        assert first.login(*one, "shared-id") == (0, False)
        assert second.login(*one, "shared-id") == (0, False)
        assert first.read() is None
        assert thief.login(*other, "shared-id") == (5, False)
        assert second.is_alive()


def test_an_mqtt_5_client_gets_the_unsupported_version_code(broker: Server, one: Login) -> None:
    with wired(broker) as newer:
        assert newer.login(*one, "newer", level=5) == (1, False)
        assert newer.read() is None


def test_wildcards_never_match_dollar_topics_and_the_brokers_own_are_closed(
    broker: Server, one: Login, sender: MqttClient
) -> None:
    with connected(broker, *one, "") as client:
        for own in ("$SYS/#", "$JS/API/#", "$MQTT/#", "$KV/#"):
            assert client.subscribe(own) == 128
        for pattern in ("#", "+/x", "$SYS/x"):
            client.subscribe(pattern)
        for topic in ("$SYS/x", "$JS/API/INFO", "$MQTT/x", "$other/x"):
            sender.publish(topic, "no")
        sender.publish("end/x", "end")
        arrived_until(client, "end")
        wait_until(lambda: len(client.arrived) >= 2)
        assert {m.topic for m in client.arrived} == {"end/x"}


# These cases differ from MQTT; see "What the broker does differently" in the guide.


def test_another_dollar_topic_reaches_an_exact_subscription_under_a_wide_rule(
    broker: Server, one: Login, sender: MqttClient
) -> None:
    with connected(broker, *one, "") as client:
        assert client.subscribe("$other/x") == 1
        sender.publish("$other/x", "through")
        arrived_until(client, "through")


@pytest.mark.parametrize(
    ("first", "then", "comes"),
    [(0, 1, 1), (0, 2, 2), (1, 0, 0), (2, 0, 0), (1, 2, 1), (2, 1, 2)],
)
def test_subscribing_again_changes_the_qos_only_to_and_from_0(
    broker: Server, one: Login, sender: MqttClient, first: int, then: int, comes: int
) -> None:
    with connected(broker, *one, "") as client:
        assert client.subscribe("again/x", first) == first
        assert client.subscribe("again/x", then) == then
        sender.publish("again/x", "m", 2)
        assert [qos for *_, qos, _ in arrived_until(client, "m")] == [comes]


def test_a_shared_subscription_is_a_topic_like_any_other(
    broker: Server, one: Login, sender: MqttClient
) -> None:
    with connected(broker, *one, "") as client:
        assert client.subscribe("$share/group/shared/x") == 1
        client.subscribe("shared/end")
        sender.publish("shared/x", "no")
        sender.publish("$share/group/shared/x", "as it is called")
        sender.publish("shared/end", "end")
        arrived_until(client, "end")
        arrived_until(client, "as it is called")
        assert len(client.arrived) == 2


def test_a_star_is_a_wildcard_in_a_filter_and_a_letter_in_a_topic(
    broker: Server, one: Login, sender: MqttClient
) -> None:
    sender.publish("star/kept", "kept", retain=True)
    # It neither clears nor publishes to the topics that it would match as a wildcard.
    for topic in ("star/*", "star/>", "*/kept"):
        sender.publish(topic, "", retain=True)
    with connected(broker, *one, "") as client:
        assert client.subscribe("star/kept") == 1
        sender.publish("star/*", "to the star")
        sender.publish("star/kept", "end")
        assert [m[1] for m in arrived_until(client, "end")] == ["kept", "end"]
    with connected(broker, *one, "") as client:
        assert client.subscribe("star/*") == 1
        arrived_until(client, "kept")


def test_one_and_a_half_times_the_keep_alive_is_rounded_down(broker: Server, one: Login) -> None:
    def silence() -> float:
        with wired(broker) as hasty:
            assert hasty.login(*one, "", keep_alive=1) == (0, False)
            began = time.monotonic()
            assert hasty.read() is None
            return time.monotonic() - began

    # A busy machine may notice it late, but not each time.
    wait_until(lambda: 0.9 < silence() < 1.4)
