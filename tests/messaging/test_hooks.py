"""Foreign brokers send requests as they document them, and get answers by the rules."""

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
        body: dict[str, Any] = made.json()
        return {**body["client"], "password": body["password"]}

    def change(self, client: dict[str, Any], **changes: object) -> None:
        with self.server.client(self.server.first_key) as key:
            done = key.patch(f"/v2/clients/{client['id']}", json=changes)
        assert done.status_code == 200, done.text

    def emqx(self, question: str, token: str = "", **body: object) -> Any:  # noqa: ANN401
        token = token or self.tokens["emqx"]
        url, headers = f"/hooks/emqx/{question}", {"Authorization": f"Bearer {token}"}
        response = self.http.post(url, json=body, headers=headers)
        assert response.status_code == 200, response.text
        assert response.headers["content-type"] == "application/json"
        assert response.headers["cache-control"] == "no-store"
        return response.json()

    def emqx_login(self, client: dict[str, Any], mqtt_id: str, **more: str) -> Any:  # noqa: ANN401
        body = {
            "username": client["mqtt_username"],
            "password": client["password"],
            "clientid": mqtt_id,
            "peerhost": "203.0.113.9",
        }
        return self.emqx("authentication", **{**body, **more})

    def emqx_may(self, client: dict[str, Any], action: str, topic: str, **more: str) -> str:
        body = {
            "username": client["mqtt_username"],
            "clientid": "any",
            "peerhost": "203.0.113.9",
            "action": action,
            "topic": topic,
            "mountpoint": f"{self.org_id}/",
        }
        result: str = self.emqx("authorization", **{**body, **more})["result"]
        return result

    def vernemq(self, hook: str, token: str = "", **body: object) -> Any:  # noqa: ANN401
        url = f"/hooks/vernemq/{token or self.tokens['vernemq']}"
        response = self.http.post(url, json=body, headers={"vernemq-hook": hook})
        assert response.status_code == 200, response.text
        return response.json()

    def rabbitmq(self, question: str, **form: str) -> str:
        url = f"/hooks/rabbitmq/{self.tokens['rabbitmq']}/{question}"
        response = self.http.post(url, data=form)
        assert response.status_code == 200, response.text
        return response.text

    def mosquitto(self, question: str, *, form: bool = False, **body: object) -> bool:
        url = f"/hooks/mosquitto/{self.tokens['mosquitto']}/{question}"
        content: Any = {"data": body} if form else {"json": body}
        response = self.http.post(url, **content)
        assert response.json()["ok"] is (response.status_code == 200)
        return response.status_code == 200


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """Run a deployment whose rules have variables, a denial below a wildcard, and a bare `+`."""
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
        # Three of four kinds send the token in the request path.
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
def test_401_without_a_live_token_of_the_same_kind(world: World, kind: str) -> None:
    bound = ("--organization", "acme", "--environment", "live")
    revoked = json.loads(world.server.cli_here("hook", "create", kind, *bound, "--json").stdout)
    assert world.server.cli_here("hook", "revoke", revoked["kid"]).exit_code == 0
    others = [token for other, token in world.tokens.items() if other != kind]
    edited = world.tokens[kind][:-1] + ("0" if world.tokens[kind][-1] != "0" else "1")
    for token in (*others, revoked["secret"], edited, world.server.first_key, "x"):
        for path in paths(kind, token):
            headers = {"Authorization": f"Bearer {token}"} if kind == "emqx" else {}
            response = world.http.post(path, headers=headers, json={})
            assert response.status_code == 401
            assert response.json()["code"] == "invalid_hook_token"
            assert response.headers["content-type"] == "application/problem+json"
            assert token not in response.text or token == "x"
    without_token = world.http.post(paths("emqx", "")[0], json={})
    assert without_token.json()["code"] == "invalid_hook_token"


def test_404_an_unknown_kind(world: World) -> None:
    for path in ("/hooks/activemq/user", "/hooks/rabbitmq", f"/hooks/rabbitmq/{'x' * 9}/other"):
        response = world.http.post(path, json={})
        assert (response.status_code, response.json()["code"]) == (404, "route_not_found")


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
def test_bad_input_is_denied_in_the_brokers_own_format(
    world: World, kind: str, body: bytes, content_type: str
) -> None:
    token = world.tokens[kind]
    if content_type == "form":
        content_type = "application/x-www-form-urlencoded"
    headers = {"Content-Type": content_type, "Authorization": f"Bearer {token}"}
    for path in paths(kind, token):
        response = world.http.post(path, content=body, headers=headers)
        result = (response.status_code, response.text if kind == "rabbitmq" else response.json())
        assert (
            result
            == {
                "emqx": (200, {"result": "deny"}),
                "vernemq": (200, NOT_ALLOWED),
                "rabbitmq": (200, "deny"),
                "mosquitto": (403, {"ok": False, "error": "denied"}),
            }[kind]
        )


def test_null_in_an_optional_field_means_absent(world: World) -> None:
    client = world.client("nulls")
    login = {"username": client["mqtt_username"], "password": client["password"]}
    body: dict[str, Any] = {**login, "clientid": "n", "peerhost": None, "rules": None, "new": None}
    assert world.emqx("authentication", **body)["result"] == "allow"
    body = {**login, "client_id": "v", "peer_addr": None, "peer_port": None}
    assert world.vernemq("auth_on_register", **body)["result"] == "ok"
    # Without a mountpoint, tenant scopes are not kept apart.
    body = {"username": login["username"], "topic": "shared/x", "mountpoint": None}
    assert world.vernemq("auth_on_publish", **body, client_id="v") == NOT_ALLOWED
    assert world.emqx("authorization", **body, clientid="n", action="publish")["result"] == "deny"
    body = {"username": login["username"], "client_id": "v", "mountpoint": world.org_id}
    topics: list[Any] = [None, 7, ["shared/x"], {}]
    for topic in topics:
        response = world.vernemq("auth_on_subscribe", **body, topics=[{"topic": topic, "qos": 1}])
        assert response == NOT_ALLOWED


def test_emqx_gets_a_room_and_an_acl_that_denies_the_rest(world: World) -> None:
    client = world.client("lamp")
    response = world.emqx_login(client, "lamp-1")
    assert response["result"] == "allow"
    assert response["is_superuser"] is False
    assert response["client_attrs"] == {"room": world.org_id}
    # A client's access has no end, so there is no expiry.
    assert "expire_at" not in response
    assert [(r["permission"], r["action"], r["topic"]) for r in response["acl"]] == [
        ("deny", "all", "$SYS/#"),
        ("deny", "all", "shared/secret"),
        # EMQX would deliver the denied topic to a subscriber of shared/#.
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
    body: dict[str, Any] = made.json()
    return {**body, "password": body["mqtt_password"]}


def test_a_grant_logs_in_until_it_expires_and_is_authorized_by_its_claims(world: World) -> None:
    grant = grant_of(world, "ada@acme.example")
    name, password = grant["mqtt_username"], grant["password"]
    response = world.emqx_login(grant, "ada-1")
    assert response["result"] == "allow"
    # EMQX counts whole seconds; the last one counts in full.
    expires_at = datetime.fromisoformat(grant["expires_at"]).timestamp()
    assert response["expire_at"] == math.ceil(expires_at)
    own = "people/ada@acme.example/#"
    assert ("allow", "publish", own) in [
        (r["permission"], r["action"], r["topic"]) for r in response["acl"]
    ]
    register = {"username": name, "password": password, "client_id": "ada-1"}
    assert world.vernemq("auth_on_register", **register)["result"] == "ok"
    assert world.rabbitmq("user", **register, vhost=world.org_id) == "allow"
    assert world.mosquitto("user", username=name, password=password, clientid="ada-1")
    for user, is_allowed in (("ada@acme.example", True), ("grace@acme.example", False)):
        topic = f"people/{user}/x"
        assert world.emqx_may(grant, "publish", topic) == ("allow" if is_allowed else "deny")
        inside = {"username": name, "client_id": "any", "mountpoint": world.org_id}
        result = world.vernemq("auth_on_publish", **inside, topic=topic, qos=1)
        assert result == ({"result": "ok"} if is_allowed else NOT_ALLOWED)
        assert (
            world.mosquitto("acl", username=name, clientid="any", topic=topic, acc=2) is is_allowed
        )
    assert world.rabbitmq("vhost", username=name, vhost=world.org_id, ip="203.0.113.1") == "allow"


def test_a_user_is_authorized_by_their_newest_grant_until_the_last_ends(world: World) -> None:
    first = grant_of(world, "often@acme.example")
    second = grant_of(world, "often@acme.example")
    other = grant_of(world, "other@acme.example")
    assert first["mqtt_username"] == second["mqtt_username"] != other["mqtt_username"]
    own = "people/often@acme.example/x"
    with world.server.client(world.server.first_key) as key:
        for grant, result in ((second, "allow"), (first, "deny")):
            assert world.emqx_login(grant, "often-1")["result"] == "allow"
            assert key.delete(f"/v2/tokens/{grant['token_id']}").status_code == 200
            assert world.emqx_login(grant, "often-1") == {"result": "deny"}
            assert world.emqx_may(grant, "publish", own) == result
    assert world.emqx_login(other, "often-1") == {"result": "deny"}
    assert world.emqx_may(other, "publish", "people/other@acme.example/x") == "allow"
    hook = world.hook("emqx", "--organization", "acme", "--environment", "test")
    body = {"username": other["mqtt_username"], "clientid": "any", "action": "publish"}
    response = world.emqx("authorization", hook, **body, topic="people/other@acme.example/x")
    assert response == {"result": "deny"}


def test_a_wrong_login_is_denied_by_each_kind(world: World) -> None:
    client = world.client("wrong")
    name = client["mqtt_username"]
    assert world.emqx_login(client, "w", password="guess") == {"result": "deny"}
    assert world.emqx_login(client, "w", username="nobody") == {"result": "deny"}
    assert world.emqx_login(client, "", clientid="") == {"result": "deny"}
    assert world.emqx_login(client, "x" * 257) == {"result": "deny"}
    body = {"username": name, "password": "guess", "client_id": "w"}
    for hook in ("auth_on_register", "auth_on_register_m5"):
        assert world.vernemq(hook, **body, peer_addr="203.0.113.8") == NOT_ALLOWED
    assert world.rabbitmq("user", **body, vhost=world.org_id) == "deny"
    assert not world.mosquitto("user", username=name, password="guess", clientid="w")


def test_a_disabled_client_is_denied_logins_and_topics(world: World) -> None:
    client = world.client("gone")
    assert world.emqx_login(client, "gone-1")["result"] == "allow"
    assert world.emqx_may(client, "publish", "shared/x") == "allow"
    world.change(client, enabled=False)
    assert world.emqx_login(client, "gone-1") == {"result": "deny"}
    assert world.emqx_may(client, "publish", "shared/x") == "deny"


def test_a_client_id_belongs_to_its_first_client(world: World) -> None:
    first, second = world.client("first"), world.client("second")
    assert world.emqx_login(first, "one-id")["result"] == "allow"
    assert world.emqx_login(second, "one-id") == {"result": "deny"}
    login = {"username": second["mqtt_username"], "password": second["password"]}
    assert not world.mosquitto("user", **login, clientid="one-id")
    assert world.mosquitto("user", **login, clientid="another-id")


def test_password_guessing_is_throttled_per_name_and_address(world: World) -> None:
    guessed, other = world.client("guessed"), world.client("bystander")
    for _ in range(10):
        world.emqx_login(guessed, "g", password="guess", peerhost="203.0.113.66")
    assert world.emqx_login(guessed, "g", peerhost="203.0.113.66") == {"result": "deny"}
    assert world.emqx_login(guessed, "g", peerhost="203.0.113.67")["result"] == "allow"
    assert world.emqx_login(other, "b", peerhost="203.0.113.66")["result"] == "allow"
    # Without an address, many wrong names do not lock out all clients.
    for number in range(101):
        world.mosquitto("user", username=f"n{number}@org_x", password="x", clientid="x")
    login = {"username": other["mqtt_username"], "password": other["password"]}
    assert world.mosquitto("user", **login, clientid="b")


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
def test_each_kind_gets_the_decision_of_the_rules(
    world: World, action: str, topic: str, *, allowed: bool
) -> None:
    client = world.asking
    name = client["mqtt_username"]
    assert world.emqx_may(client, action, topic) == ("allow" if allowed else "deny")
    inside = {"username": name, "client_id": "any", "mountpoint": world.org_id}
    for version in ("", "_m5"):
        if action == "publish":
            response = world.vernemq(f"auth_on_publish{version}", **inside, topic=topic, qos=1)
        else:
            topics = [{"topic": topic, "qos": 1}]
            response = world.vernemq(f"auth_on_subscribe{version}", **inside, topics=topics)
        assert response == ({"result": "ok"} if allowed else NOT_ALLOWED)
    named = {"username": name, "vhost": world.org_id, "resource": "topic", "name": "amq.topic"}
    key = topic.replace("/", ".").replace("+", "*")
    permission = {"publish": "write", "subscribe": "read"}[action]
    more = {"routing_key": key, "permission": permission, "variable_map.client_id": "any"}
    assert world.rabbitmq("topic", **named, **more) == ("allow" if allowed else "deny")
    acc = {"publish": 2, "subscribe": 4}[action]
    body = {"username": name, "clientid": "any", "topic": topic, "acc": acc}
    assert world.mosquitto("acl", **body) is allowed
    assert world.mosquitto("acl", form=True, **body) is allowed


def test_a_wildcard_over_a_denied_topic_is_granted_if_deliveries_are_checked(
    world: World,
) -> None:
    client = world.asking
    assert world.emqx_may(client, "subscribe", "shared/#") == "deny"
    body = {"username": client["mqtt_username"], "clientid": "any"}
    assert world.mosquitto("acl", **body, topic="shared/#", acc=4)
    assert world.mosquitto("acl", **body, topic="shared/x", acc=1)
    assert not world.mosquitto("acl", **body, topic="shared/secret", acc=1)
    assert not world.mosquitto("acl", **body, topic="one/x", acc=3)
    assert not world.mosquitto("superuser", username=client["mqtt_username"])


def test_vernemq_grants_each_topic_separately_and_keeps_its_options(world: World) -> None:
    body = {"username": world.asking["mqtt_username"], "client_id": "any"}
    body["mountpoint"] = world.org_id
    options = {"no_local": True, "rap": True, "retain_handling": "dont_send"}
    topics = [{"topic": "one/+", "qos": 2, **options}, {"topic": "private", "qos": 1}]
    assert world.vernemq("auth_on_subscribe_m5", **body, topics=topics) == {
        "result": "ok",
        "modifiers": {"topics": [topics[0], {"topic": "private", "qos": 135}]},
    }
    assert world.vernemq("auth_on_subscribe", **body, topics=topics) == {
        "result": "ok",
        "topics": [topics[0], {"topic": "private", "qos": 128}],
    }
    assert world.vernemq("on_register", **body) == NOT_ALLOWED


def test_organizations_are_kept_apart_by_mountpoint_and_vhost(world: World) -> None:
    client = world.asking
    name, password = client["mqtt_username"], client["password"]
    register = {"username": name, "password": password, "client_id": "apart"}
    for hook in ("auth_on_register", "auth_on_register_m5"):
        assert world.vernemq(hook, **register) == {
            "result": "ok",
            "modifiers": {"client_id": "apart", "mountpoint": world.org_id},
        }
    # A broker that does not use them is denied each topic.
    outside = {"username": name, "client_id": "apart", "mountpoint": ""}
    assert world.vernemq("auth_on_publish", **outside, topic="shared/x") == NOT_ALLOWED
    topics = [{"topic": "shared/x", "qos": 0}]
    assert world.vernemq("auth_on_subscribe", **outside, topics=topics) == NOT_ALLOWED
    for mountpoint in ("", "undefined", "org_other/"):
        assert world.emqx_may(client, "publish", "shared/x", mountpoint=mountpoint) == "deny"
    for vhost, result in ((world.org_id, "allow"), (f"{world.org_id}.test", "deny"), ("/", "deny")):
        assert world.rabbitmq("user", **register, vhost=vhost) == result
        assert world.rabbitmq("vhost", username=name, vhost=vhost, ip="203.0.113.1") == result
        used = {"username": name, "vhost": vhost, "permission": "write"}
        queue = {**used, "resource": "queue", "name": "mqtt-subscription-apartqos1"}
        assert world.rabbitmq("resource", **queue) == result
        exchange = {**used, "resource": "exchange", "name": "amq.topic"}
        assert world.rabbitmq("resource", **exchange) == result
        assert world.rabbitmq("resource", **{**exchange, "name": "amq.direct"}) == "deny"
        assert world.rabbitmq("resource", **{**exchange, "permission": "configure"}) == "deny"


def test_rabbitmq_refuses_logins_that_are_not_mqtt(world: World) -> None:
    client = world.asking
    login = {"username": client["mqtt_username"], "password": client["password"]}
    assert world.rabbitmq("user", **login) == "deny"
    assert world.rabbitmq("user", **login, vhost=world.org_id) == "deny"


def test_a_bound_hook_works_only_in_its_own_tenant_scope(world: World) -> None:
    client = world.asking
    other = world.server.cli_here(
        "org", "create", "Other", "--owner", "owner@acme.example", "--json"
    )
    other_id = json.loads(other.stdout)["id"]
    for scope in ((other_id, "live"), ("acme", "test")):
        bound = ("--organization", scope[0], "--environment", scope[1])
        token = world.hook("emqx", *bound)
        body = {
            "username": client["mqtt_username"],
            "password": client["password"],
            "clientid": "bound",
        }
        assert world.emqx("authentication", token, **body) == {"result": "deny"}
        request = {"action": "publish", "topic": "shared/x"}
        response = world.emqx("authorization", token, **body, **request)
        assert response == {"result": "deny"}
    token = world.hook("vernemq", "--organization", "acme", "--environment", "live")
    register = {"username": client["mqtt_username"], "password": client["password"]}
    response = world.vernemq("auth_on_register", token, **register, client_id="bound")
    assert response == {"result": "ok"}
