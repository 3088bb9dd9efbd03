"""Logins are looked up by their MQTT username, and a storm of logins hashes its password once."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from argon2 import PasswordHasher

from wardkey.actions.accounts import organizations
from wardkey.actions.core.hashing import Line
from wardkey.actions.core.runner import Runner
from wardkey.actions.messaging import clients
from wardkey.actions.messaging.client_logins import (
    CACHED_S,
    MAX_CACHED,
    KnownClient,
    VerifiedPasswords,
    find_login,
    mark_connected,
)
from wardkey.actions.messaging.clients import ClientWithPassword
from wardkey.actions.operations import master_keys
from wardkey.db.master_key import check_peppers
from wardkey.db.vault import MasterKey
from wardkey.domain.clients import ClientSpec
from wardkey.domain.principal import Principal, operator
from wardkey.domain.secret import Environment
from wardkey.domain.times import MINUTE_MS

GIVEN = "moss on a northern roof"
OTHER = "a heron beside the pond"


@pytest.fixture
def verified() -> VerifiedPasswords:
    return VerifiedPasswords()


@pytest.fixture
def hashings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the passwords that Argon2 verifies."""
    passwords: list[str] = []
    verify = PasswordHasher.verify

    def counted(self: PasswordHasher, known: str | bytes, password: str | bytes) -> Any:  # noqa: ANN401 - Argon2's own answer
        passwords.append(str(password))
        return verify(self, known, password)

    monkeypatch.setattr(PasswordHasher, "verify", counted)
    return passwords


def fits(verified: VerifiedPasswords, known: str, password: str) -> bool:
    return verified.check(known, password, "203.0.113.7", Line.LOGIN).result()


def made(
    runner: Runner, by: Principal, username: str = "agent", password: str | None = None
) -> ClientWithPassword:
    hashed = None if password is None else clients.hash_password(by, password)
    return runner.write(clients.create, by, ClientSpec(username, by.environment), hashed)


def test_only_the_correct_password_finds_the_client(
    runner: Runner, owner: Principal, verified: VerifiedPasswords
) -> None:
    given, generated = made(runner, owner, "given", GIVEN), made(runner, owner, "generated")
    assert given.password is None
    assert generated.password is not None
    for created, right in ((given, GIVEN), (generated, generated.password)):
        name = created.client.mqtt_username
        login = find_login(runner.database, verified, name, right)
        assert login is not None
        assert (login.id, login.mqtt_username) == (created.client.id, name)
        for wrong in (OTHER, right + " ", "\ud800", "x" * 70_000):
            assert find_login(runner.database, verified, name, wrong) is None


def test_a_password_works_with_no_other_username(
    runner: Runner, owner: Principal, verified: VerifiedPasswords
) -> None:
    password = made(runner, owner).password or ""
    org_id = owner.org_id
    for name in (
        "",
        "agent",
        f"@{org_id}",
        f"agent@{org_id}.test",
        f"Agent@{org_id}",
        f"agent@ {org_id}",
        f"agent@{org_id}\0",
        f"agent@{org_id}@{org_id}",
        "agent@org_another",
        "agent@\ud800",
    ):
        assert find_login(runner.database, verified, name, password) is None, name
    assert find_login(runner.database, verified, f"agent@{org_id}", password)


def test_the_same_name_in_test_is_another_client(
    runner: Runner, owner: Principal, verified: VerifiedPasswords
) -> None:
    live = made(runner, owner)
    test = made(runner, replace(owner, environment=Environment.TEST))
    for created, other in ((live, test), (test, live)):
        name = created.client.mqtt_username
        login = find_login(runner.database, verified, name, created.password or "")
        assert login is not None
        assert (login.id, login.environment) == (created.client.id, created.client.environment)
        assert find_login(runner.database, verified, name, other.password or "") is None


def test_a_disabled_or_deleted_client_is_not_found_even_with_a_cached_password(
    runner: Runner, owner: Principal, verified: VerifiedPasswords
) -> None:
    client = made(runner, owner, password=GIVEN).client

    def can_log_in() -> bool:
        return find_login(runner.database, verified, client.mqtt_username, GIVEN) is not None

    assert can_log_in()
    runner.write(clients.change, owner, client.id, {"enabled": False})
    assert not can_log_in()
    runner.write(clients.change, owner, client.id, {"enabled": True})
    assert can_log_in()
    runner.write(clients.remove, owner, client.id)
    assert not can_log_in()


def test_no_client_of_a_suspended_or_deleted_organization_is_found(
    runner: Runner, owner: Principal, verified: VerifiedPasswords
) -> None:
    created = made(runner, owner)

    def can_log_in() -> bool:
        name = created.client.mqtt_username
        return find_login(runner.database, verified, name, created.password or "") is not None

    assert can_log_in()
    runner.write(organizations.suspend, operator(), owner.org_id)
    assert not can_log_in()
    runner.write(organizations.resume, operator(), owner.org_id)
    assert can_log_in()
    runner.write(organizations.delete, operator(), owner.org_id)
    assert not can_log_in()


def test_a_new_password_replaces_a_cached_one(
    runner: Runner, owner: Principal, verified: VerifiedPasswords
) -> None:
    # The clock is frozen, so only the password itself distinguishes the two.
    now = runner.database.clock()
    runner.database.clock = lambda: now
    client = made(runner, owner, password=GIVEN).client
    name = client.mqtt_username
    assert find_login(runner.database, verified, name, GIVEN)
    runner.write(clients.set_password, owner, client.id, clients.hash_password(owner, OTHER))
    assert find_login(runner.database, verified, name, GIVEN) is None
    assert find_login(runner.database, verified, name, OTHER)
    generated = runner.write(clients.set_password, owner, client.id).password or ""
    assert find_login(runner.database, verified, name, OTHER) is None
    assert find_login(runner.database, verified, name, generated)


def test_passwords_survive_a_master_key_rotation(
    runner: Runner, owner: Principal, verified: VerifiedPasswords
) -> None:
    given, generated = made(runner, owner, "given", GIVEN), made(runner, owner, "generated")
    (before,) = runner.read(master_keys.versions, operator())
    assert before.rows["clients"] == 1
    assert [(state.version, state.opens) for state in check_peppers(runner.database)] == [(1, True)]
    with runner.database.write() as tx:
        master_keys.rotate(tx, operator(), MasterKey.generate())
        runner.database.vault = tx.vault
    for created, right in ((given, GIVEN), (generated, generated.password or "")):
        assert find_login(runner.database, verified, created.client.mqtt_username, right)
        assert find_login(runner.database, verified, created.client.mqtt_username, OTHER) is None


def test_a_storm_of_logins_hashes_its_password_once(
    runner: Runner, owner: Principal, verified: VerifiedPasswords, hashings: list[str]
) -> None:
    name = made(runner, owner, password=GIVEN).client.mqtt_username

    def can_log_in(_: int) -> bool:
        return find_login(runner.database, verified, name, GIVEN) is not None

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(can_log_in, range(200)))
    # Two may begin at once, before either is cached.
    assert len(hashings) <= 2
    generated = made(runner, owner, "generated")
    mqtt_username, password = generated.client.mqtt_username, generated.password or ""
    del hashings[:]
    assert find_login(runner.database, verified, mqtt_username, password)
    assert hashings == []


def test_every_refusal_costs_as_much_as_a_wrong_password(
    runner: Runner, owner: Principal, verified: VerifiedPasswords, hashings: list[str]
) -> None:
    given, generated = made(runner, owner, "given", GIVEN), made(runner, owner, "generated")
    refused = (
        (given.client.mqtt_username, OTHER),
        (generated.client.mqtt_username, OTHER),
        (generated.client.mqtt_username, "\0"),
        (f"nobody@{owner.org_id}", OTHER),
        ("no name of ours", OTHER),
    )
    for count, (name, password) in enumerate(refused, 1):
        assert find_login(runner.database, verified, name, password) is None
        assert len(hashings) == count, name


def test_a_verified_password_is_cached_for_five_minutes(hashings: list[str]) -> None:
    now = [1000.0]
    verified = VerifiedPasswords(clock=lambda: now[0])
    known = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(GIVEN)
    for later, count in ((0, 1), (CACHED_S - 0.1, 1), (0.1, 2), (1, 2)):
        now[0] += later
        assert fits(verified, known, GIVEN)
        assert len(hashings) == count
    for _ in range(2):
        assert not fits(verified, known, OTHER)
    assert len(hashings) == 4
    assert GIVEN not in repr(verified)


def test_at_most_ten_thousand_passwords_are_cached(hashings: list[str]) -> None:
    verified = VerifiedPasswords()
    known = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(GIVEN)
    assert fits(verified, known, GIVEN)
    later = time.monotonic() + 60
    others = {n.to_bytes(32, "big"): later for n in range(MAX_CACHED - 1)}
    verified.expiries.update(others)
    assert fits(verified, known, GIVEN)
    assert len(hashings) == 1
    second = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(OTHER)
    assert fits(verified, second, OTHER)
    assert len(verified.expiries) == MAX_CACHED
    assert fits(verified, known, GIVEN)
    assert len(hashings) == 3


def test_a_connection_is_stored_at_most_once_a_minute(
    runner: Runner, owner: Principal, verified: VerifiedPasswords
) -> None:
    created = made(runner, owner)
    start = runner.database.clock()

    def connected_at(now: int, by: Principal = owner) -> int | None:
        runner.database.clock = lambda: now
        known = find_login(
            runner.database, verified, created.client.mqtt_username, created.password or ""
        )
        assert known is not None
        mark_connected(runner.database, [known, stale(known)])
        return runner.read(clients.get, by, created.client.id).last_connected_at

    def stale(known: KnownClient) -> KnownClient:
        """Return the client as cached by a process that has not seen the other's mark."""
        return replace(known, last_connected_at=None)

    assert connected_at(start) == start
    assert connected_at(start + MINUTE_MS - 1) == start
    assert connected_at(start + MINUTE_MS) == start + MINUTE_MS
    # It is also stored after the clock is set back.
    assert connected_at(start) == start
