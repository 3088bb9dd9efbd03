"""People log in over MQTT with what an exchange returned, see their own, and are ended with it."""

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
# 100 ms are promised; the socket's end has a way to paho's threads on a busy machine.
AT_ONCE_S = 0.5
# The shortest time that a grant can be asked for, and that an old password goes on after a refresh.
SHORT_S = 30
NOW_WALL = time.time() - time.monotonic()


@dataclass
class World:
    """A deployment with its broker, an issuer, and the people of one provider."""

    server: Server
    issuer: Issuer
    owner: httpx.Client
    people: People

    def key(self, name: str, **more: object) -> tuple[str, str]:
        """Return the id and the text of a new secret key."""
        made = self.owner.post("/v2/keys", json={"name": name, "type": "secret", **more}).json()
        return made["key"]["id"], made["secret"]

    def ended(self, sessions: Json) -> int:
        """Return how many sessions a change ended, once that is settled."""

        def told() -> Any:  # noqa: ANN401
            shown = self.owner.get(f"/v2/sessions/receipts/{sessions['receipt_id']}").json()
            return None if shown["pending"] else [shown["ended"]]

        (count,) = wait_until(told)
        return int(count)


@dataclass
class Aging:
    """What takes half a minute, begun before all tests: an expiry, and the end of an overlap."""

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
        theirs = {
            "subject": {"kind": "provider", "value": people.provider_id},
            "filter": "teams/{claim.team}/#",
            "action": "both",
        }
        for number, rule in enumerate([*RULES, theirs]):
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


def test_people_see_their_own_and_what_everyone_sees(world: World) -> None:
    ada = world.people.grant("ada", team="hall-b")
    grace = world.people.grant("grace", team="hall-a")
    with (
        online(world.server, ada, "ada-1") as one,
        online(world.server, grace, "grace-1") as other,
    ):
        assert (one.code, other.code) == (0, 0)
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
            assert (pattern, one.subscribe(pattern)) == (pattern, granted)
        assert other.subscribe("people/grace/#") == 1
        one.publish("people/grace/x", "not hers", qos=0)
        one.publish("news/x", "not his", qos=0)
        one.publish("people/ada/x", "his")
        other.publish("people/grace/x", "hers")
        wait_until(lambda: one.messages and other.messages)
        assert one.messages == [("people/ada/x", b"his")]
        assert other.messages == [("people/grace/x", b"hers")]


def test_rules_of_a_provider_are_for_its_people_alone(world: World) -> None:
    others = People(world.server, world.issuer, "others")
    with online(world.server, others.grant("ada", team="hall-b"), "other-ada") as ada:
        assert ada.code == 0
        assert ada.subscribe("teams/hall-b/#") == 128
        assert ada.subscribe("people/ada/#") == 1
    # A client has no claims, and so no topics that are made of one.
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
def test_a_claim_that_could_widen_a_rule_allows_nothing(world: World, value: str) -> None:
    answer = world.people.ask(f"u{value}", team=value)
    # What cannot be shown is no user id; it is refused before there is a grant.
    if answer.status_code != 200:
        assert answer.json()["code"] == "claim_missing"
        return
    with online(world.server, answer.json(), f"wide-{value.encode().hex()}") as wide:
        assert wide.code == 0
        for pattern in (
            f"people/u{value}/#", "people/+/#", "people/#", "people/u/#", "people/ada/#",
            f"teams/{value}/#", "teams/+/#", "teams/#", f"shouts/{value}", "shouts/+", "shouts/a",
        ):  # fmt: skip
            try:
                granted = wide.subscribe(pattern)
            except ValueError:  # paho itself takes it for no filter
                continue
            assert (pattern, granted) == (pattern, 128)


def test_a_dot_in_a_claim_is_a_dot(world: World) -> None:
    with online(world.server, world.people.grant("a.b"), "dotted") as dotted:
        assert dotted.subscribe("people/a.b/#") == 1
        assert dotted.subscribe("people/a/b/#") == 128


def test_a_password_is_for_its_own_user_name_alone(world: World) -> None:
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


def test_nobody_takes_anothers_client_id(world: World) -> None:
    ada, grace = world.people.grant("ada"), world.people.grant("grace")
    with online(world.server, ada, "ones-own") as live:
        assert not is_let_in(world.server, grace, "ones-own")
        assert live.ended_at == 0
        # The same person, with another grant, takes his own over.
        assert is_let_in(world.server, world.people.grant("ada"), "ones-own")


def test_a_refreshed_password_goes_on_with_what_was_queued(world: World) -> None:
    grant = world.people.grant("queued")
    with online(world.server, grant, "queued-1", clean=False) as first:
        assert first.subscribe("people/queued/#") == 1
    again = world.people.refresh(grant).json()
    assert again["mqtt_username"] == grant["mqtt_username"]
    assert again["mqtt_password"] != grant["mqtt_password"]
    with world.server.client(world.server.first_key) as key:
        sent = key.post("/publish", json={"topic": "people/queued/x", "payload": "kept", "qos": 1})
    assert sent.status_code == 200, sent.text
    with online(world.server, again, "queued-1", clean=False) as second:
        wait_until(lambda: second.messages)
        assert second.messages == [("people/queued/x", b"kept")]


def test_a_replayed_refresh_ends_every_session_of_the_family(world: World) -> None:
    first = world.people.grant("replayed")
    other = world.people.grant("replayed")
    second = world.people.refresh(first).json()
    third = world.people.refresh(second).json()
    with ExitStack() as stack:
        family = [
            stack.enter_context(online(world.server, one, f"family-{number}"))
            for number, one in enumerate((first, second, third))
        ]
        stays = stack.enter_context(online(world.server, other, "family-not"))
        assert [one.code for one in (*family, stays)] == [0, 0, 0, 0]
        refused = world.people.refresh(first)
        returned = time.monotonic()
        assert (refused.status_code, refused.json()["code"]) == (401, "refresh_replayed")
        wait_until(partial(all_ended, family))
        assert max(one.ended_at for one in family) - returned < AT_ONCE_S
        for one in (first, second, third):
            assert not is_let_in(world.server, one, "family-0")
        assert world.people.refresh(third).json()["code"] == "invalid_token"
        assert is_let_in(world.server, other, "family-not-2")
        assert stays.ended_at == 0


def test_a_login_with_an_answer_that_another_took_the_place_of_ends_the_family(
    world: World,
) -> None:
    first, other = world.people.grant("lost-answer"), world.people.grant("lost-answer")
    stolen = world.people.refresh(first).json()
    found = world.people.refresh(first).json()
    with (
        online(world.server, found, "lost-answer-1") as live,
        online(world.server, other, "lost-answer-2") as stays,
    ):
        assert (live.code, stays.code) == (0, 0)
        assert world.people.refresh(first).json()["code"] == "refresh_replayed"
        wait_until(lambda: live.ended_at)
    again = world.people.grant("lost-answer")
    stolen = world.people.refresh(again).json()
    found = world.people.refresh(again).json()
    with online(world.server, found, "lost-answer-3") as live:
        assert live.code == 0
        assert not is_let_in(world.server, stolen, "lost-answer-4")
        wait_until(lambda: live.ended_at)
        assert not is_let_in(world.server, found, "lost-answer-3")
        assert is_let_in(world.server, other, "lost-answer-2")


@dataclass
class Case:
    """Somebody whose grant is to end: by which provider, and with which key he has it."""

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
def test_whatever_ends_a_grant_ends_and_counts_its_sessions(world: World, how: str) -> None:
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
        assert [one.code for one in (first, second, stays)] == [0, 0, 0]
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
        # It is about grants that there were; whoever may sign in is let in anew.
        assert is_let_in(world.server, people.grant(f"u-{name}", key), f"{name}-1")


def test_a_disabled_provider_and_a_rotated_key_end_nothing(world: World) -> None:
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
        # Everybody is looked at for this, also those of `aging`, whose overlap may end just now.
        told = world.owner.post("/v2/tokens/revoke", json={"user_id": "nobody"}).json()
        assert (told["revoked"], world.ended(told["sessions"]) <= 1) == (0, True)
        assert live.ended_at == 0
        assert is_let_in(world.server, grant, "paused-2")
        assert world.owner.post(f"{path}/enable").status_code == 200
        assert people.refresh(grant).status_code == 200


def test_a_login_in_flight_is_caught_by_the_second_look(world: World) -> None:
    for attempt in range(60):
        grant = world.people.grant(f"flight-{attempt}")
        with ThreadPoolExecutor(12) as pool:
            login = partial(
                MqttClient, world.server.mqtt_port, grant["mqtt_username"], grant["mqtt_password"]
            )
            asked = [pool.submit(login, f"flight-{attempt}-{number}") for number in range(12)]
            time.sleep(0.002 * (attempt % 30))
            told = world.owner.delete(f"/v2/tokens/{grant['token_id']}").json()["sessions"]
            returned = time.monotonic()
            live = [one.result() for one in asked]
        let_in = [one for one in live if one.code == 0]
        wait_until(partial(all_ended, let_in))
        assert all(one.ended_at - returned < 2.6 for one in let_in)
        for one in live:
            one.close()
        if told["ended"] < len(let_in):
            assert world.ended(told) == len(let_in)
            return
    pytest.fail("no login was in flight while its grant was revoked")


def refused_too_late(world: World, grant: Json, mqtt_id: str) -> None:
    """Have a login judged when the broker waits for it no more."""
    with open_existing(config_of(world.server)) as runner:
        # What one login is let in with is written while nobody else counts anything.
        with runner.database.counting(), online(world.server, grant, mqtt_id) as late:
            assert late.code != 0
        scope = TenantScope(world.owner.get("/v2/organization").json()["id"], Environment.LIVE)

        def is_judged() -> bool:
            with runner.database.read() as tx:
                kid = find_owners(tx, scope, [mqtt_id])[mqtt_id].grant_kid
            return kid is not None and token_id_of(kid) == grant["token_id"]

        wait_until(is_judged)


def let_in_elsewhere(world: World, grant: Json, mqtt_id: str) -> None:
    """Log in at a broker of somebody else's, which asks over HTTP."""
    hook = world.server.cli_here("hook", "create", "emqx")
    assert hook.exit_code == 0, hook.stderr
    asked = {
        "username": grant["mqtt_username"],
        "password": grant["mqtt_password"],
        "clientid": mqtt_id,
        "peerhost": "203.0.113.9",
    }
    with world.server.client(hook.stdout.strip()) as broker:
        assert broker.post("/hooks/emqx/authentication", json=asked).json()["result"] == "allow"


@pytest.mark.parametrize("judged", [refused_too_late, let_in_elsewhere])
def test_a_session_ends_with_its_own_grant_whatever_login_was_judged_since(
    world: World, judged: Callable[[World, Json, str], None]
) -> None:
    name = judged.__name__
    # Second looks for what other tests changed are over when this one's is.
    nothing = world.owner.post("/v2/tokens/revoke", json={"user_id": "nobody"}).json()
    world.ended(nothing["sessions"])
    older, newer = world.people.grant(name), world.people.grant(name)
    with online(world.server, older, name) as live:
        assert live.code == 0
        judged(world, newer, name)
        assert live.ended_at == 0
        told = world.owner.delete(f"/v2/tokens/{older['token_id']}").json()["sessions"]
        returned = time.monotonic()
        wait_until(lambda: live.ended_at, 3)
        assert live.ended_at - returned < AT_ONCE_S
        assert world.ended(told) == 1
    assert is_let_in(world.server, newer, name)


def test_a_suspended_organizations_people_are_closed_out(world: World) -> None:
    slug, owner = second_organization(world.server)
    with owner:
        grant = owner.post("/v2/tokens/create", json={"user_email": "o@acme.example"}).json()
    with online(world.server, grant, "suspended-1") as live:
        assert live.code == 0
        assert world.server.cli_here("org", "suspend", slug).exit_code == 0
        wait_until(lambda: live.ended_at)
    assert not is_let_in(world.server, grant, "suspended-1")


def test_an_old_password_goes_on_for_half_a_minute_after_a_refresh(
    world: World, aging: Aging
) -> None:
    until = aging.refreshed_at + SHORT_S
    while time.monotonic() < until - 3:
        assert is_let_in(world.server, aging.first, "overlap-2")
        time.sleep(1)
    wait_until(lambda: time.monotonic() > until + 0.5)
    assert not is_let_in(world.server, aging.first, "overlap-2")
    assert is_let_in(world.server, aging.second, "overlap-3")
    # The session that the old one opened goes on under the new one, and ends with it.
    assert aging.old.ended_at == 0
    told = world.owner.delete(f"/v2/tokens/{aging.second['token_id']}").json()["sessions"]
    wait_until(lambda: aging.old.ended_at, 3)
    assert world.ended(told) == 1


def test_a_session_of_a_refreshed_grant_ends_when_the_new_grant_expires(aging: Aging) -> None:
    expires_at = datetime.fromisoformat(aging.refreshes()["expires_at"]).timestamp()
    wait_until(lambda: aging.refreshing.ended_at, SHORT_S + 10)
    assert -0.1 < aging.refreshing.ended_at + NOW_WALL - expires_at < 1.5


def test_a_session_is_closed_in_the_second_in_which_its_grant_expires(
    world: World, aging: Aging
) -> None:
    wait_until(lambda: aging.short.ended_at, SHORT_S)
    expires_at = datetime.fromisoformat(aging.expiring["expires_at"]).timestamp()
    assert -0.1 < aging.short.ended_at + NOW_WALL - expires_at < 1.5
    assert not is_let_in(world.server, aging.expiring, "short-1")


def test_what_ended_while_no_worker_lived_is_closed_when_one_is_back(world: World) -> None:
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
            # No worker may stop while it holds the writers' lock, so it is held here meanwhile.
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


def test_a_session_is_closed_when_the_key_expires_that_made_its_grant(world: World) -> None:
    """Also where the expiry was brought forward while the session was open."""
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
