"""Users log in over MQTT with exchanged grants, and their sessions end with those grants."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx2 as httpx
import pytest

from demo.issuer import Issuer
from tests.cli.test_backup import config_of
from tests.messaging.test_sessions import second_organization
from tests.support.mqtt import MqttClient
from tests.support.people import Json, People, is_let_in, online
from tests.support.server import Server, running, wait_until
from wardkey.actions.keys.revocations import revoke
from wardkey.actions.messaging.sessions import find_owners
from wardkey.deployment import open_existing
from wardkey.domain.grants import token_id_of
from wardkey.domain.permissions import Role
from wardkey.domain.principal import member
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope

RULES: list[Json] = [
    {"subject": {"kind": "everyone"}, "filter": "people/{claim.user_id}/#", "action": "both"},
    {"subject": {"kind": "everyone"}, "filter": "shouts/{claim.team}", "action": "both"},
    {"subject": {"kind": "everyone"}, "filter": "news/#", "action": "subscribe"},
]
# The promise is 100 ms; on a busy machine a closed socket reaches paho's threads later.
AT_ONCE_S = 0.5
# The shortest life of a grant, and the time that an old password stays valid after a refresh.
SHORT_S = 30
NOW_WALL = time.time() - time.monotonic()


@dataclass
class World:
    """A deployment with its broker, an issuer, and the users of one provider."""

    server: Server
    issuer: Issuer
    owner: httpx.Client
    people: People

    def key(self, name: str, **more: object) -> tuple[str, str]:
        """Return the id and the text of a new secret key."""
        made = self.owner.post("/v2/keys", json={"name": name, "type": "secret", **more}).json()
        return made["key"]["id"], made["secret"]

    def ended(self, sessions: Json) -> int:
        """Return how many sessions a change ended, once the count is final."""

        def final_count() -> Any:  # noqa: ANN401
            receipt = self.owner.get(f"/v2/sessions/receipts/{sessions['receipt_id']}").json()
            return None if receipt["pending"] else [receipt["ended"]]

        (count,) = wait_until(final_count)
        return int(count)


@dataclass
class Aging:
    """Grants that take half a minute to expire or to end their overlap, begun before all tests."""

    expiring: Json
    short: MqttClient
    first: Json
    second: Json
    old: MqttClient
    refreshed_at: float
    refreshing: MqttClient
    refreshes: Callable[[], Json]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    data, issuer = tmp_path_factory.mktemp("grants") / "data", Issuer()
    with (
        running(data, no_messaging=0, workers=2, private_issuers=1) as server,
        server.owner() as owner,
    ):
        people = People(server, issuer, "people")
        provider_rule = {
            "subject": {"kind": "provider", "value": people.provider_id},
            "filter": "teams/{claim.team}/#",
            "action": "both",
        }
        for number, rule in enumerate([*RULES, provider_rule]):
            made = owner.post(
                "/v2/acl/rules", json={**rule, "priority": number + 1, "effect": "allow"}
            )
            assert made.status_code == 201, made.text
        wait_until(lambda: owner.get("/v2/sessions").status_code == 200)
        yield World(server, issuer, owner, people)
    issuer.close()


@pytest.fixture(scope="module", autouse=True)
def aging(world: World) -> Iterator[Aging]:
    with ExitStack() as stack:
        expiring = world.people.grant("short", ttl=SHORT_S)
        short = stack.enter_context(online(world.server, expiring, "short-1"))
        first = world.people.grant("overlap")
        old = stack.enter_context(online(world.server, first, "overlap-1"))
        second = world.people.refresh(first).json()
        refreshed_at = time.monotonic()
        early = world.people.grant("refreshing", ttl=SHORT_S)
        refreshing = stack.enter_context(online(world.server, early, "refreshing-1"))
        assert (short.code, old.code, refreshing.code) == (0, 0, 0)
        later: list[Json] = []
        timer = threading.Timer(8, lambda: later.append(world.people.refresh(early).json()))
        timer.start()

        def refreshes() -> Json:
            timer.join()
            return later[0]

        yield Aging(expiring, short, first, second, old, refreshed_at, refreshing, refreshes)


def all_ended(clients: list[MqttClient]) -> bool:
    return all(client.ended_at for client in clients)


def test_users_receive_their_own_and_public_topics(world: World) -> None:
    ada = world.people.grant("ada", team="hall-b")
    grace = world.people.grant("grace", team="hall-a")
    with (
        online(world.server, ada, "ada-1") as ada_client,
        online(world.server, grace, "grace-1") as grace_client,
    ):
        assert (ada_client.code, grace_client.code) == (0, 0)
        for pattern, granted in (
            ("people/ada/#", 1),
            ("teams/hall-b/#", 1),
            ("news/#", 1),
            ("people/grace/#", 128),
            ("people/+/#", 128),
            ("teams/hall-a/#", 128),
            ("people/{claim.user_id}/#", 128),
            ("#", 128),
        ):
            assert (pattern, ada_client.subscribe(pattern)) == (pattern, granted)
        assert grace_client.subscribe("people/grace/#") == 1
        ada_client.publish("people/grace/x", "not hers", qos=0)
        ada_client.publish("news/x", "not his", qos=0)
        ada_client.publish("people/ada/x", "his")
        grace_client.publish("people/grace/x", "hers")
        wait_until(lambda: ada_client.messages and grace_client.messages)
        assert ada_client.messages == [("people/ada/x", b"his")]
        assert grace_client.messages == [("people/grace/x", b"hers")]


def test_a_providers_rules_apply_only_to_its_users(world: World) -> None:
    others = People(world.server, world.issuer, "others")
    with online(world.server, others.grant("ada", team="hall-b"), "other-ada") as ada:
        assert ada.code == 0
        assert ada.subscribe("teams/hall-b/#") == 128
        assert ada.subscribe("people/ada/#") == 1
    # A client has no claims, and so no topics with a claim in them.
    made = world.owner.post("/v2/clients", json={"username": "device"}).json()
    client = {
        "mqtt_username": made["client"]["mqtt_username"],
        "mqtt_password": made["password"],
    }
    with online(world.server, client, "device-1") as device:
        assert device.subscribe("people/device/#") == 128
        assert device.subscribe("news/#") == 1


@pytest.mark.parametrize(
    "value", ["/", "a/b", "+", "#", "*", ">", "a b", "a*", "a+", "a>", "a/#", "\u2003", " "]
)
def test_a_claim_that_would_widen_a_rule_allows_nothing(world: World, value: str) -> None:
    response = world.people.ask(f"u{value}", team=value)
    # An unprintable user id is refused before there is a grant.
    if response.status_code != 200:
        assert response.json()["code"] == "claim_missing"
        return
    with online(world.server, response.json(), f"wide-{value.encode().hex()}") as wide:
        assert wide.code == 0
        for pattern in (
            f"people/u{value}/#", "people/+/#", "people/#", "people/u/#", "people/ada/#",
            f"teams/{value}/#", "teams/+/#", "teams/#", f"shouts/{value}", "shouts/+", "shouts/a",
        ):  # fmt: skip
            try:
                granted = wide.subscribe(pattern)
            except ValueError:  # paho itself rejects the filter
                continue
            assert (pattern, granted) == (pattern, 128)


def test_a_dot_in_a_claim_is_a_dot(world: World) -> None:
    with online(world.server, world.people.grant("a.b"), "dotted") as dotted:
        assert dotted.subscribe("people/a.b/#") == 1
        assert dotted.subscribe("people/a/b/#") == 128


def test_a_password_works_only_with_its_own_username(world: World) -> None:
    ada, grace = world.people.grant("ada"), world.people.grant("grace")
    name: str = ada["mqtt_username"]
    for wrong in (
        grace["mqtt_username"], name.upper(), f"{name}.test", name.partition("@")[0], "",
    ):  # fmt: skip
        assert not is_let_in(world.server, ada, "named", mqtt_username=wrong)
    password: str = ada["mqtt_password"]
    for wrong in (password[:-1], f"{password}x", grace["mqtt_password"]):
        assert not is_let_in(world.server, ada, "named", mqtt_password=wrong)
    assert is_let_in(world.server, ada, "named")


def test_a_user_cannot_take_over_another_users_client_id(world: World) -> None:
    ada, grace = world.people.grant("ada"), world.people.grant("grace")
    with online(world.server, ada, "ones-own") as live:
        assert not is_let_in(world.server, grace, "ones-own")
        assert live.ended_at == 0
        # The same user takes the session over with another grant.
        assert is_let_in(world.server, world.people.grant("ada"), "ones-own")


def test_a_refreshed_password_receives_queued_messages(world: World) -> None:
    grant = world.people.grant("queued")
    with online(world.server, grant, "queued-1", clean=False) as first:
        assert first.subscribe("people/queued/#") == 1
    refreshed = world.people.refresh(grant).json()
    assert refreshed["mqtt_username"] == grant["mqtt_username"]
    assert refreshed["mqtt_password"] != grant["mqtt_password"]
    with world.server.client(world.server.first_key) as key:
        sent = key.post("/publish", json={"topic": "people/queued/x", "payload": "kept", "qos": 1})
    assert sent.status_code == 200, sent.text
    with online(world.server, refreshed, "queued-1", clean=False) as second:
        wait_until(lambda: second.messages)
        assert second.messages == [("people/queued/x", b"kept")]


def test_a_replayed_refresh_ends_every_session_of_the_family(world: World) -> None:
    first = world.people.grant("replayed")
    other = world.people.grant("replayed")
    second = world.people.refresh(first).json()
    third = world.people.refresh(second).json()
    with ExitStack() as stack:
        family = [
            stack.enter_context(online(world.server, grant, f"family-{number}"))
            for number, grant in enumerate((first, second, third))
        ]
        stays = stack.enter_context(online(world.server, other, "family-not"))
        assert [client.code for client in (*family, stays)] == [0, 0, 0, 0]
        refused = world.people.refresh(first)
        returned = time.monotonic()
        assert (refused.status_code, refused.json()["code"]) == (401, "refresh_replayed")
        wait_until(partial(all_ended, family))
        assert max(client.ended_at for client in family) - returned < AT_ONCE_S
        for grant in (first, second, third):
            assert not is_let_in(world.server, grant, "family-0")
        assert world.people.refresh(third).json()["code"] == "invalid_token"
        assert is_let_in(world.server, other, "family-not-2")
        assert stays.ended_at == 0


def test_a_login_with_a_superseded_refresh_ends_the_family(
    world: World,
) -> None:
    first, other = world.people.grant("lost-answer"), world.people.grant("lost-answer")
    stolen = world.people.refresh(first).json()
    newest = world.people.refresh(first).json()
    with (
        online(world.server, newest, "lost-answer-1") as live,
        online(world.server, other, "lost-answer-2") as stays,
    ):
        assert (live.code, stays.code) == (0, 0)
        assert world.people.refresh(first).json()["code"] == "refresh_replayed"
        wait_until(lambda: live.ended_at)
    another = world.people.grant("lost-answer")
    stolen = world.people.refresh(another).json()
    newest = world.people.refresh(another).json()
    with online(world.server, newest, "lost-answer-3") as live:
        assert live.code == 0
        assert not is_let_in(world.server, stolen, "lost-answer-4")
        wait_until(lambda: live.ended_at)
        assert not is_let_in(world.server, newest, "lost-answer-3")
        assert is_let_in(world.server, other, "lost-answer-2")


@dataclass
class Case:
    """A grant that is to end, with the provider and the key that it was made with."""

    people: People
    grant: Json
    key_id: str
    kid: str


def revoked_by(**whose: str) -> Callable[[World, Case], httpx.Response]:
    def revoke(world: World, case: Case) -> httpx.Response:
        values = {**case.grant, "provider": case.people.provider_id, "key": case.key_id}
        named = {name: values[value] for name, value in whose.items()}
        return world.owner.post("/v2/tokens/revoke", json=named)

    return revoke


ENDINGS: dict[str, Callable[[World, Case], httpx.Response]] = {
    "one": lambda world, case: world.owner.delete(f"/v2/tokens/{case.grant['token_id']}"),
    "user": revoked_by(user_id="user_id"),
    "email": revoked_by(user_email="user_email"),
    "provider": revoked_by(provider_id="provider"),
    "key": revoked_by(key_id="key"),
    "provider deleted": lambda world, case: world.owner.delete(
        f"/v2/auth-providers/{case.people.provider_id}"
    ),
    "key revoked": lambda world, case: world.owner.post(f"/v2/keys/{case.key_id}/revoke"),
    "key disabled": lambda world, case: world.owner.post(f"/v2/keys/{case.key_id}/disable"),
    "secret leaked": lambda world, case: world.owner.post(
        f"/v2/keys/{case.key_id}/secrets/{case.kid}/revoke", json={"reason": "keyCompromise"}
    ),
}


@pytest.mark.parametrize("how", ENDINGS)
def test_ending_a_grant_ends_and_counts_its_sessions(world: World, how: str) -> None:
    name = how.replace(" ", "-")
    people = People(world.server, world.issuer, f"of-{name}")
    key_id, key = world.key(f"live-{name}")
    kid = world.owner.get(f"/v2/keys/{key_id}").json()["secrets"][0]["kid"]
    grant = people.grant(f"u-{name}", key, email=f"{name}@acme.example")
    other = world.people.grant("bystander", email="bystander@acme.example")
    with (
        online(world.server, grant, f"{name}-1") as first,
        online(world.server, grant, f"{name}-2") as second,
        online(world.server, other, f"{name}-by") as stays,
    ):
        assert [client.code for client in (first, second, stays)] == [0, 0, 0]
        done = ENDINGS[how](world, Case(people, grant, key_id, kid))
        returned = time.monotonic()
        assert done.status_code == 200, done.text
        wait_until(partial(all_ended, [first, second]))
        assert max(first.ended_at, second.ended_at) - returned < AT_ONCE_S
        assert not is_let_in(world.server, grant, f"{name}-1")
        assert people.refresh(grant).json()["code"] == "invalid_token"
        assert is_let_in(world.server, other, f"{name}-by-2")
        if "sessions" in done.json():
            assert world.ended(done.json()["sessions"]) == 2
        else:
            assert how == "key disabled"
        assert stays.ended_at == 0
    if how in ("one", "user", "email", "provider", "key"):
        # Only existing grants end; a user who may sign in gets a new one.
        assert is_let_in(world.server, people.grant(f"u-{name}", key), f"{name}-1")


def test_disabling_a_provider_or_rotating_a_key_ends_no_session(world: World) -> None:
    people = People(world.server, world.issuer, "paused")
    key_id, key = world.key("live-rotated")
    grant = people.grant("paused", key)
    with online(world.server, grant, "paused-1") as live:
        assert live.code == 0
        path = f"/v2/auth-providers/{people.provider_id}"
        assert world.owner.post(f"{path}/disable").status_code == 200
        rotated = world.owner.post(f"/v2/keys/{key_id}/rotate", json={"grace": "now"})
        assert rotated.status_code == 200, rotated.text
        assert people.ask("paused").json()["code"] == "provider_disabled"
        assert people.refresh(grant).json()["code"] == "invalid_token"
        # This checks all sessions, also those of `aging`, whose overlap may end just now.
        revoked = world.owner.post("/v2/tokens/revoke", json={"user_id": "nobody"}).json()
        assert (revoked["revoked"], world.ended(revoked["sessions"]) <= 1) == (0, True)
        assert live.ended_at == 0
        assert is_let_in(world.server, grant, "paused-2")
        assert world.owner.post(f"{path}/enable").status_code == 200
        assert people.refresh(grant).status_code == 200


def test_a_login_in_flight_is_ended_by_the_second_check(world: World) -> None:
    for attempt in range(60):
        grant = world.people.grant(f"flight-{attempt}")
        with ThreadPoolExecutor(12) as pool:
            login = partial(
                MqttClient, world.server.mqtt_port, grant["mqtt_username"], grant["mqtt_password"]
            )
            logins = [pool.submit(login, f"flight-{attempt}-{number}") for number in range(12)]
            time.sleep(0.002 * (attempt % 30))
            sessions = world.owner.delete(f"/v2/tokens/{grant['token_id']}").json()["sessions"]
            returned = time.monotonic()
            clients = [future.result() for future in logins]
        let_in = [client for client in clients if client.code == 0]
        wait_until(partial(all_ended, let_in))
        assert all(client.ended_at - returned < 2.6 for client in let_in)
        for client in clients:
            client.close()
        if sessions["ended"] < len(let_in):
            assert world.ended(sessions) == len(let_in)
            return
    pytest.fail("no login was in flight while its grant was revoked")


def refused_too_late(world: World, grant: Json, mqtt_id: str) -> None:
    """Have a login decided after the broker has stopped waiting for it."""
    with open_existing(config_of(world.server)) as runner:
        # The broker gives up: the login cannot be stored while this lock is held.
        with runner.database.counting(), online(world.server, grant, mqtt_id) as late:
            assert late.code != 0
        scope = TenantScope(world.owner.get("/v2/organization").json()["id"], Environment.LIVE)

        def is_judged() -> bool:
            with runner.database.read() as tx:
                kid = find_owners(tx, scope, [mqtt_id])[mqtt_id].grant_kid
            return kid is not None and token_id_of(kid) == grant["token_id"]

        wait_until(is_judged)


def let_in_elsewhere(world: World, grant: Json, mqtt_id: str) -> None:
    """Log in at a foreign broker, which authenticates over HTTP."""
    hook = world.server.cli_here("hook", "create", "emqx")
    assert hook.exit_code == 0, hook.stderr
    body = {
        "username": grant["mqtt_username"],
        "password": grant["mqtt_password"],
        "clientid": mqtt_id,
        "peerhost": "203.0.113.9",
    }
    with world.server.client(hook.stdout.strip()) as broker:
        assert broker.post("/hooks/emqx/authentication", json=body).json()["result"] == "allow"


@pytest.mark.parametrize("judged", [refused_too_late, let_in_elsewhere])
def test_a_session_ends_with_its_own_grant_despite_later_logins(
    world: World, judged: Callable[[World, Json, str], None]
) -> None:
    name = judged.__name__
    # The second checks for other tests' changes are over when this one is.
    nothing = world.owner.post("/v2/tokens/revoke", json={"user_id": "nobody"}).json()
    world.ended(nothing["sessions"])
    older, newer = world.people.grant(name), world.people.grant(name)
    with online(world.server, older, name) as live:
        assert live.code == 0
        judged(world, newer, name)
        assert live.ended_at == 0
        sessions = world.owner.delete(f"/v2/tokens/{older['token_id']}").json()["sessions"]
        returned = time.monotonic()
        wait_until(lambda: live.ended_at, 3)
        assert live.ended_at - returned < AT_ONCE_S
        assert world.ended(sessions) == 1
    assert is_let_in(world.server, newer, name)


def test_a_suspended_organizations_users_are_disconnected_and_refused(world: World) -> None:
    slug, owner = second_organization(world.server)
    with owner:
        grant = owner.post("/v2/tokens/create", json={"user_email": "o@acme.example"}).json()
    with online(world.server, grant, "suspended-1") as live:
        assert live.code == 0
        assert world.server.cli_here("org", "suspend", slug).exit_code == 0
        wait_until(lambda: live.ended_at)
    assert not is_let_in(world.server, grant, "suspended-1")


def test_an_old_password_stays_valid_for_30_s_after_a_refresh(world: World, aging: Aging) -> None:
    until = aging.refreshed_at + SHORT_S
    while time.monotonic() < until - 3:
        assert is_let_in(world.server, aging.first, "overlap-2")
        time.sleep(1)
    wait_until(lambda: time.monotonic() > until + 0.5)
    assert not is_let_in(world.server, aging.first, "overlap-2")
    assert is_let_in(world.server, aging.second, "overlap-3")
    # The session opened with the old password continues under the new grant, and ends with it.
    assert aging.old.ended_at == 0
    sessions = world.owner.delete(f"/v2/tokens/{aging.second['token_id']}").json()["sessions"]
    wait_until(lambda: aging.old.ended_at, 3)
    assert world.ended(sessions) == 1


def test_a_session_of_a_refreshed_grant_ends_when_the_new_grant_expires(aging: Aging) -> None:
    expires_at = datetime.fromisoformat(aging.refreshes()["expires_at"]).timestamp()
    wait_until(lambda: aging.refreshing.ended_at, SHORT_S + 10)
    assert -0.1 < aging.refreshing.ended_at + NOW_WALL - expires_at < 1.5


def test_a_session_is_closed_within_1_5_s_of_its_grants_expiry(world: World, aging: Aging) -> None:
    wait_until(lambda: aging.short.ended_at, SHORT_S)
    expires_at = datetime.fromisoformat(aging.expiring["expires_at"]).timestamp()
    assert -0.1 < aging.short.ended_at + NOW_WALL - expires_at < 1.5
    assert not is_let_in(world.server, aging.expiring, "short-1")


def test_a_session_revoked_while_no_worker_runs_is_closed_at_the_next_start(world: World) -> None:
    key_id, key = world.key("live-meanwhile")
    grant = world.people.grant("meanwhile", key)
    org_id = world.owner.get("/v2/organization").json()["id"]
    (owner,) = world.owner.get("/v2/members").json()["members"]
    with (
        online(world.server, grant, "meanwhile-1") as live,
        online(world.server, world.people.grant("throughout"), "throughout-1") as stays,
    ):
        assert (live.code, stays.code) == (0, 0)
        with open_existing(config_of(world.server)) as runner:
            # No worker may stop while it holds the writer lock, so hold it here meanwhile.
            with runner.database.write():
                world.server.pause_workers()
            by = member(
                user_id=owner["user_id"],
                email="owner@acme.example",
                org_id=org_id,
                role=Role.OWNER,
                environment=Environment.LIVE,
            )
            runner.write(revoke, by, key_id, "unspecified")
        assert live.ended_at == 0
        world.server.kill_workers()
        wait_until(lambda: live.ended_at, 30)
        wait_until(lambda: world.owner.get("/v2/sessions").status_code == 200)
        assert stays.ended_at == 0
    assert not is_let_in(world.server, grant, "meanwhile-1")


def test_a_session_is_closed_when_the_key_of_its_grant_expires(world: World) -> None:
    """Also if the expiry is brought forward while the session is open."""
    key_id, text = world.key("live-expiring", permissions=["tokens:create"])
    with world.server.client(text) as key:
        made = key.post("/v2/tokens/create", json={"user_email": "soon@acme.example", "ttl": 3600})
    assert made.status_code in (200, 201), made.text
    grant = made.json()
    with online(world.server, grant, "soon-1") as client:
        at = time.time() + 3
        changed = world.owner.patch(
            f"/v2/keys/{key_id}",
            json={"expires_at": datetime.fromtimestamp(at, UTC).isoformat()},
        )
        assert changed.status_code == 200, changed.text
        assert not client.ended_at
        wait_until(lambda: client.ended_at, 10)
        assert abs(time.time() - at) < 2
    assert not is_let_in(world.server, grant, "soon-1")
    assert world.people.refresh(grant).status_code == 401
