"""Foreign brokers ask in the words of their documentation, and are told what the rules say."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.server import Server, running

ALLOW = {"action": "both", "effect": "allow"}
EVERYONE = {"kind": "everyone"}
KINDS = ("emqx", "vernemq", "rabbitmq", "mosquitto")
NOT_ALLOWED = {"result": {"error": "not_allowed"}}


@dataclass
class World:
    """A deployment without a broker, its hooks' tokens by kind, and a client."""

    server: Server
    http: httpx.Client
    org_id: str
    tokens: dict[str, str] = field(default_factory=dict)
    asking: dict[str, Any] = field(default_factory=dict)

    def hook(self, *args: str) -> str:
        done = self.server.cli_here("hook", "create", *args)
        assert done.exit_code == 0, done.stderr
        return done.stdout.strip()

    def client(self, username: str) -> dict[str, Any]:
        with self.server.client(self.server.first_key) as key:
            made = key.post("/v2/clients", json={"username": username})
        assert made.status_code == 201, made.text
        found: dict[str, Any] = made.json()
        return {**found["client"], "password": found["password"]}

    def change(self, client: dict[str, Any], **changes: object) -> None:
        with self.server.client(self.server.first_key) as key:
            done = key.patch(f"/v2/clients/{client['id']}", json=changes)
        assert done.status_code == 200, done.text

    def emqx(self, question: str, token: str = "", **asked: object) -> Any:  # noqa: ANN401
        token = token or self.tokens["emqx"]
        url, shown = f"/hooks/emqx/{question}", {"Authorization": f"Bearer {token}"}
        answer = self.http.post(url, json=asked, headers=shown)
        assert answer.status_code == 200, answer.text
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        return answer.json()

    def emqx_login(self, client: dict[str, Any], mqtt_id: str, **more: str) -> Any:  # noqa: ANN401
        asked = {
            "username": client["mqtt_username"],
            "password": client["password"],
            "clientid": mqtt_id,
            "peerhost": "203.0.113.9",
        }
        return self.emqx("authentication", **{**asked, **more})

    def emqx_may(self, client: dict[str, Any], action: str, topic: str, **more: str) -> str:
        asked = {
            "username": client["mqtt_username"],
            "clientid": "any",
            "peerhost": "203.0.113.9",
            "action": action,
            "topic": topic,
            "mountpoint": f"{self.org_id}/",
        }
        found: str = self.emqx("authorization", **{**asked, **more})["result"]
        return found

    def vernemq(self, hook: str, token: str = "", **asked: object) -> Any:  # noqa: ANN401
        url = f"/hooks/vernemq/{token or self.tokens['vernemq']}"
        answer = self.http.post(url, json=asked, headers={"vernemq-hook": hook})
        assert answer.status_code == 200, answer.text
        return answer.json()

    def rabbitmq(self, question: str, **asked: str) -> str:
        url = f"/hooks/rabbitmq/{self.tokens['rabbitmq']}/{question}"
        answer = self.http.post(url, data=asked)
        assert answer.status_code == 200, answer.text
        return answer.text

    def mosquitto(self, question: str, *, form: bool = False, **asked: object) -> bool:
        url = f"/hooks/mosquitto/{self.tokens['mosquitto']}/{question}"
        sent: Any = {"data": asked} if form else {"json": asked}
        answer = self.http.post(url, **sent)
        assert answer.json()["ok"] is (answer.status_code == 200)
        return answer.status_code == 200


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Run it with rules that have a variable, a denial below a wildcard, and a bare `+`."""
    rules = [
        {"effect": "deny", "action": "both", "filter": "shared/secret", "subject": EVERYONE},
        {**ALLOW, "filter": "shared/#", "subject": EVERYONE},
        {**ALLOW, "filter": "agents/{username}/{client_id}", "subject": EVERYONE},
        {**ALLOW, "filter": "people/{claim.user_id}/#", "subject": EVERYONE},
        {**ALLOW, "filter": "one/+", "subject": EVERYONE, "action": "subscribe"},
    ]
    with running(tmp_path_factory.mktemp("hooks") / "data") as server, server.client() as http:
        with server.client(server.first_key) as key:
            org_id = key.get("/v2/organization").json()["id"]
            for number, rule in enumerate(rules):
                made = key.post("/v2/acl/rules", json={**rule, "priority": number})
                assert made.status_code == 201, made.text
        world = World(server, http, org_id)
        for kind in KINDS:
            bound = ("--organization", org_id, "--environment", "live")
            world.tokens[kind] = world.hook(kind, *(bound if kind == "mosquitto" else ()))
        world.asking = world.client("asking")
        yield world
        # Three of four kinds have the token in the path of each request.
        for token in world.tokens.values():
            assert token not in server.output


def paths(kind: str, token: str) -> list[str]:
    if kind == "emqx":
        return ["/hooks/emqx/authentication", "/hooks/emqx/authorization"]
    if kind == "vernemq":
        return [f"/hooks/vernemq/{token}"]
    ends = {
        "rabbitmq": ("user", "vhost", "resource", "topic"),
        "mosquitto": ("user", "superuser", "acl"),
    }[kind]
    return [f"/hooks/{kind}/{token}/{end}" for end in ends]


@pytest.mark.parametrize("kind", KINDS)
def test_401_without_a_live_token_of_that_very_kind(world: World, kind: str) -> None:
    bound = ("--organization", "acme", "--environment", "live")
    revoked = json.loads(world.server.cli_here("hook", "create", kind, *bound, "--json").stdout)
    assert world.server.cli_here("hook", "revoke", revoked["kid"]).exit_code == 0
    others = [token for other, token in world.tokens.items() if other != kind]
    edited = world.tokens[kind][:-1] + ("0" if world.tokens[kind][-1] != "0" else "1")
    for token in (*others, revoked["secret"], edited, world.server.first_key, "x"):
        for path in paths(kind, token):
            shown = {"Authorization": f"Bearer {token}"} if kind == "emqx" else {}
            answer = world.http.post(path, headers=shown, json={})
            assert answer.status_code == 401
            assert answer.json()["code"] == "invalid_hook_token"
            assert answer.headers["content-type"] == "application/problem+json"
            assert token not in answer.text or token == "x"
    unshown = world.http.post(paths("emqx", "")[0], json={})
    assert unshown.json()["code"] == "invalid_hook_token"


def test_404_a_kind_that_there_is_not(world: World) -> None:
    for path in ("/hooks/activemq/user", "/hooks/rabbitmq", f"/hooks/rabbitmq/{'x' * 9}/other"):
        answer = world.http.post(path, json={})
        assert (answer.status_code, answer.json()["code"]) == (404, "route_not_found")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"{", b"[]", b"null", b"{}", b'{"username": 1}', b'{"username": null}', b"\xff"),
        b'{"x": ' + b"[" * 5_000 + b"]" * 5_000 + b"}",
    ],
    ids=lambda body: str(body[:20]),
)
@pytest.mark.parametrize("content_type", ["application/json", "text/plain", "", "form"])
def test_bad_input_is_denied_in_the_brokers_own_form(
    world: World, kind: str, body: bytes, content_type: str
) -> None:
    token = world.tokens[kind]
    if content_type == "form":
        content_type = "application/x-www-form-urlencoded"
    headers = {"Content-Type": content_type, "Authorization": f"Bearer {token}"}
    for path in paths(kind, token):
        answer = world.http.post(path, content=body, headers=headers)
        said = (answer.status_code, answer.text if kind == "rabbitmq" else answer.json())
        assert (
            said
            == {
                "emqx": (200, {"result": "deny"}),
                "vernemq": (200, NOT_ALLOWED),
                "rabbitmq": (200, "deny"),
                "mosquitto": (403, {"ok": False, "error": "denied"}),
            }[kind]
        )


def test_null_in_an_optional_field_is_as_if_it_were_absent(world: World) -> None:
    client = world.client("nulls")
    login = {"username": client["mqtt_username"], "password": client["password"]}
    asked: dict[str, Any] = {**login, "clientid": "n", "peerhost": None, "rules": None, "new": None}
    assert world.emqx("authentication", **asked)["result"] == "allow"
    asked = {**login, "client_id": "v", "peer_addr": None, "peer_port": None}
    assert world.vernemq("auth_on_register", **asked)["result"] == "ok"
    # A mountpoint that is not told keeps no rooms apart.
    asked = {"username": login["username"], "topic": "shared/x", "mountpoint": None}
    assert world.vernemq("auth_on_publish", **asked, client_id="v") == NOT_ALLOWED
    assert world.emqx("authorization", **asked, clientid="n", action="publish")["result"] == "deny"
    asked = {"username": login["username"], "client_id": "v", "mountpoint": world.org_id}
    topics: list[Any] = [None, 7, ["shared/x"], {}]
    for topic in topics:
        told = world.vernemq("auth_on_subscribe", **asked, topics=[{"topic": topic, "qos": 1}])
        assert told == NOT_ALLOWED


def test_emqx_lets_in_with_a_room_and_a_list_that_denies_the_rest(world: World) -> None:
    client = world.client("lamp")
    told = world.emqx_login(client, "lamp-1")
    assert told["result"] == "allow"
    assert told["is_superuser"] is False
    assert told["client_attrs"] == {"room": world.org_id}
    # Nothing ends a client's right to be there, so no time is told.
    assert "expire_at" not in told
    assert [(r["permission"], r["action"], r["topic"]) for r in told["acl"]] == [
        ("deny", "all", "$SYS/#"),
        ("deny", "all", "shared/secret"),
        # EMQX would deliver the denied topic to who subscribed to all of them.
        ("allow", "publish", "shared/#"),
        ("allow", "publish", "agents/lamp/lamp-1"),
        ("allow", "subscribe", "agents/lamp/lamp-1"),
        # EMQX lets one/+ match one/#.
        ("deny", "subscribe", "eq one/#"),
        ("allow", "subscribe", "one/+"),
        ("deny", "all", "#"),
    ]
    assert "acl" not in world.emqx_login(client, "lamp-1", rules="ask")


def grant_of(world: World, email: str) -> dict[str, Any]:
    with world.server.client(world.server.first_key) as key:
        made = key.post("/v2/tokens/create", json={"user_email": email, "ttl": 60})
    assert made.status_code == 200, made.text
    told: dict[str, Any] = made.json()
    return {**told, "password": told["mqtt_password"]}


def test_a_grant_logs_in_for_as_long_as_it_lasts_and_is_judged_by_its_claims(world: World) -> None:
    grant = grant_of(world, "ada@acme.example")
    name, password = grant["mqtt_username"], grant["password"]
    told = world.emqx_login(grant, "ada-1")
    assert told["result"] == "allow"
    # EMQX counts whole seconds; the one that has begun is still the grant's.
    expires_at = datetime.fromisoformat(grant["expires_at"]).timestamp()
    assert told["expire_at"] == math.ceil(expires_at)
    own = "people/ada@acme.example/#"
    assert ("allow", "publish", own) in [
        (r["permission"], r["action"], r["topic"]) for r in told["acl"]
    ]
    register = {"username": name, "password": password, "client_id": "ada-1"}
    assert world.vernemq("auth_on_register", **register)["result"] == "ok"
    assert world.rabbitmq("user", **register, vhost=world.org_id) == "allow"
    assert world.mosquitto("user", username=name, password=password, clientid="ada-1")
    for who, said in (("ada@acme.example", True), ("grace@acme.example", False)):
        topic = f"people/{who}/x"
        assert world.emqx_may(grant, "publish", topic) == ("allow" if said else "deny")
        inside = {"username": name, "client_id": "any", "mountpoint": world.org_id}
        asked = world.vernemq("auth_on_publish", **inside, topic=topic, qos=1)
        assert asked == ({"result": "ok"} if said else NOT_ALLOWED)
        assert world.mosquitto("acl", username=name, clientid="any", topic=topic, acc=2) is said
    assert world.rabbitmq("vhost", username=name, vhost=world.org_id, ip="203.0.113.1") == "allow"


def test_somebody_is_judged_by_his_newest_grant_until_the_last_has_ended(world: World) -> None:
    first = grant_of(world, "often@acme.example")
    second = grant_of(world, "often@acme.example")
    other = grant_of(world, "other@acme.example")
    assert first["mqtt_username"] == second["mqtt_username"] != other["mqtt_username"]
    own = "people/often@acme.example/x"
    with world.server.client(world.server.first_key) as key:
        for grant, said in ((second, "allow"), (first, "deny")):
            assert world.emqx_login(grant, "often-1")["result"] == "allow"
            assert key.delete(f"/v2/tokens/{grant['token_id']}").status_code == 200
            assert world.emqx_login(grant, "often-1") == {"result": "deny"}
            assert world.emqx_may(grant, "publish", own) == said
    assert world.emqx_login(other, "often-1") == {"result": "deny"}
    assert world.emqx_may(other, "publish", "people/other@acme.example/x") == "allow"
    hook = world.hook("emqx", "--organization", "acme", "--environment", "test")
    asked = {"username": other["mqtt_username"], "clientid": "any", "action": "publish"}
    told = world.emqx("authorization", hook, **asked, topic="people/other@acme.example/x")
    assert told == {"result": "deny"}


def test_a_wrong_login_is_denied_by_each_kind(world: World) -> None:
    client = world.client("wrong")
    name = client["mqtt_username"]
    assert world.emqx_login(client, "w", password="guess") == {"result": "deny"}
    assert world.emqx_login(client, "w", username="nobody") == {"result": "deny"}
    assert world.emqx_login(client, "", clientid="") == {"result": "deny"}
    assert world.emqx_login(client, "x" * 257) == {"result": "deny"}
    asked = {"username": name, "password": "guess", "client_id": "w"}
    for hook in ("auth_on_register", "auth_on_register_m5"):
        assert world.vernemq(hook, **asked, peer_addr="203.0.113.8") == NOT_ALLOWED
    assert world.rabbitmq("user", **asked, vhost=world.org_id) == "deny"
    assert not world.mosquitto("user", username=name, password="guess", clientid="w")


def test_a_disabled_client_is_denied_its_login_and_each_topic(world: World) -> None:
    client = world.client("gone")
    assert world.emqx_login(client, "gone-1")["result"] == "allow"
    assert world.emqx_may(client, "publish", "shared/x") == "allow"
    world.change(client, enabled=False)
    assert world.emqx_login(client, "gone-1") == {"result": "deny"}
    assert world.emqx_may(client, "publish", "shared/x") == "deny"


def test_a_client_id_is_its_first_users(world: World) -> None:
    first, second = world.client("first"), world.client("second")
    assert world.emqx_login(first, "one-id")["result"] == "allow"
    assert world.emqx_login(second, "one-id") == {"result": "deny"}
    asked = {"username": second["mqtt_username"], "password": second["password"]}
    assert not world.mosquitto("user", **asked, clientid="one-id")
    assert world.mosquitto("user", **asked, clientid="another-id")


def test_guessing_is_slowed_down_for_that_name_at_that_address(world: World) -> None:
    guessed, other = world.client("guessed"), world.client("bystander")
    for _ in range(10):
        world.emqx_login(guessed, "g", password="guess", peerhost="203.0.113.66")
    assert world.emqx_login(guessed, "g", peerhost="203.0.113.66") == {"result": "deny"}
    assert world.emqx_login(guessed, "g", peerhost="203.0.113.67")["result"] == "allow"
    assert world.emqx_login(other, "b", peerhost="203.0.113.66")["result"] == "allow"
    # Where no address is told, many wrong names do not lock everybody out.
    for number in range(101):
        world.mosquitto("user", username=f"n{number}@org_x", password="x", clientid="x")
    asked = {"username": other["mqtt_username"], "password": other["password"]}
    assert world.mosquitto("user", **asked, clientid="b")


@pytest.mark.parametrize(
    ("action", "topic", "allowed"),
    [
        ("publish", "shared/x", True),
        ("publish", "shared/secret", False),
        ("publish", "agents/asking/any", True),
        ("publish", "agents/asking/other", False),
        ("publish", "one/x", False),
        ("publish", "shared/+", False),
        ("publish", "$SYS/x", False),
        ("subscribe", "one/+", True),
        ("subscribe", "one/#", False),
        ("subscribe", "shared/x/#", True),
        ("subscribe", "$share/group/shared/x", False),
        ("subscribe", "#", False),
    ],
)
def test_each_kind_is_told_what_the_rules_say(
    world: World, action: str, topic: str, *, allowed: bool
) -> None:
    client = world.asking
    name = client["mqtt_username"]
    assert world.emqx_may(client, action, topic) == ("allow" if allowed else "deny")
    inside = {"username": name, "client_id": "any", "mountpoint": world.org_id}
    for version in ("", "_m5"):
        if action == "publish":
            told = world.vernemq(f"auth_on_publish{version}", **inside, topic=topic, qos=1)
        else:
            wanted = [{"topic": topic, "qos": 1}]
            told = world.vernemq(f"auth_on_subscribe{version}", **inside, topics=wanted)
        assert told == ({"result": "ok"} if allowed else NOT_ALLOWED)
    named = {"username": name, "vhost": world.org_id, "resource": "topic", "name": "amq.topic"}
    key = topic.replace("/", ".").replace("+", "*")
    permission = {"publish": "write", "subscribe": "read"}[action]
    more = {"routing_key": key, "permission": permission, "variable_map.client_id": "any"}
    assert world.rabbitmq("topic", **named, **more) == ("allow" if allowed else "deny")
    acc = {"publish": 2, "subscribe": 4}[action]
    asked = {"username": name, "clientid": "any", "topic": topic, "acc": acc}
    assert world.mosquitto("acl", **asked) is allowed
    assert world.mosquitto("acl", form=True, **asked) is allowed


def test_a_wildcard_that_reaches_a_denied_topic_is_granted_where_deliveries_are_checked(
    world: World,
) -> None:
    client = world.asking
    assert world.emqx_may(client, "subscribe", "shared/#") == "deny"
    asked = {"username": client["mqtt_username"], "clientid": "any"}
    assert world.mosquitto("acl", **asked, topic="shared/#", acc=4)
    assert world.mosquitto("acl", **asked, topic="shared/x", acc=1)
    assert not world.mosquitto("acl", **asked, topic="shared/secret", acc=1)
    assert not world.mosquitto("acl", **asked, topic="one/x", acc=3)
    assert not world.mosquitto("superuser", username=client["mqtt_username"])


def test_vernemq_grants_topic_by_topic_with_the_options_as_they_came(world: World) -> None:
    asked = {"username": world.asking["mqtt_username"], "client_id": "any"}
    asked["mountpoint"] = world.org_id
    options = {"no_local": True, "rap": True, "retain_handling": "dont_send"}
    wanted = [{"topic": "one/+", "qos": 2, **options}, {"topic": "private", "qos": 1}]
    assert world.vernemq("auth_on_subscribe_m5", **asked, topics=wanted) == {
        "result": "ok",
        "modifiers": {"topics": [wanted[0], {"topic": "private", "qos": 135}]},
    }
    assert world.vernemq("auth_on_subscribe", **asked, topics=wanted) == {
        "result": "ok",
        "topics": [wanted[0], {"topic": "private", "qos": 128}],
    }
    assert world.vernemq("on_register", **asked) == NOT_ALLOWED


def test_organizations_are_kept_apart_by_mountpoint_and_vhost(world: World) -> None:
    client = world.asking
    name, password = client["mqtt_username"], client["password"]
    register = {"username": name, "password": password, "client_id": "apart"}
    for hook in ("auth_on_register", "auth_on_register_m5"):
        assert world.vernemq(hook, **register) == {
            "result": "ok",
            "modifiers": {"client_id": "apart", "mountpoint": world.org_id},
        }
    # A broker that was not told to use them is told no for each topic.
    outside = {"username": name, "client_id": "apart", "mountpoint": ""}
    assert world.vernemq("auth_on_publish", **outside, topic="shared/x") == NOT_ALLOWED
    topics = [{"topic": "shared/x", "qos": 0}]
    assert world.vernemq("auth_on_subscribe", **outside, topics=topics) == NOT_ALLOWED
    for mountpoint in ("", "undefined", "org_other/"):
        assert world.emqx_may(client, "publish", "shared/x", mountpoint=mountpoint) == "deny"
    for vhost, said in ((world.org_id, "allow"), (f"{world.org_id}.test", "deny"), ("/", "deny")):
        assert world.rabbitmq("user", **register, vhost=vhost) == said
        assert world.rabbitmq("vhost", username=name, vhost=vhost, ip="203.0.113.1") == said
        used = {"username": name, "vhost": vhost, "permission": "write"}
        queue = {**used, "resource": "queue", "name": "mqtt-subscription-apartqos1"}
        assert world.rabbitmq("resource", **queue) == said
        exchange = {**used, "resource": "exchange", "name": "amq.topic"}
        assert world.rabbitmq("resource", **exchange) == said
        assert world.rabbitmq("resource", **{**exchange, "name": "amq.direct"}) == "deny"
        assert world.rabbitmq("resource", **{**exchange, "permission": "configure"}) == "deny"


def test_rabbitmq_lets_nobody_in_who_does_not_come_over_mqtt(world: World) -> None:
    client = world.asking
    asked = {"username": client["mqtt_username"], "password": client["password"]}
    assert world.rabbitmq("user", **asked) == "deny"
    assert world.rabbitmq("user", **asked, vhost=world.org_id) == "deny"


def test_a_bound_hook_is_for_its_own_room_alone(world: World) -> None:
    client = world.asking
    other = world.server.cli_here(
        "org", "create", "Other", "--owner", "owner@acme.example", "--json"
    )
    other_id = json.loads(other.stdout)["id"]
    for scope in ((other_id, "live"), ("acme", "test")):
        bound = ("--organization", scope[0], "--environment", scope[1])
        token = world.hook("emqx", *bound)
        asked = {
            "username": client["mqtt_username"],
            "password": client["password"],
            "clientid": "bound",
        }
        assert world.emqx("authentication", token, **asked) == {"result": "deny"}
        wanted = {"action": "publish", "topic": "shared/x"}
        told = world.emqx("authorization", token, **asked, **wanted)
        assert told == {"result": "deny"}
    token = world.hook("vernemq", "--organization", "acme", "--environment", "live")
    register = {"username": client["mqtt_username"], "password": client["password"]}
    told = world.vernemq("auth_on_register", token, **register, client_id="bound")
    assert told == {"result": "ok"}
