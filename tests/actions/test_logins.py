"""A login is found by what is on the wire, and a storm of logins pays for its password once."""

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
    """Count what Argon2 is asked, which it still answers."""
    asked: list[str] = []
    verify = PasswordHasher.verify

    def counted(self: PasswordHasher, known: str | bytes, password: str | bytes) -> Any:  # noqa: ANN401 - Argon2's own answer
        asked.append(str(password))
        return verify(self, known, password)

    monkeypatch.setattr(PasswordHasher, "verify", counted)
    return asked


def fits(verified: VerifiedPasswords, known: str, password: str) -> bool:
    return verified.check(known, password, "203.0.113.7", Line.LOGIN).result()


def made(
    runner: Runner, by: Principal, username: str = "agent", password: str | None = None
) -> ClientWithPassword:
    hashed = None if password is None else clients.hash_password(by, password)
    return runner.write(clients.create, by, ClientSpec(username, by.environment), hashed)


def test_the_right_password_finds_the_client_and_a_wrong_one_nobody(
    runner: Runner, owner: Principal, verified: VerifiedPasswords
) -> None:
    given, generated = made(runner, owner, "given", GIVEN), made(runner, owner, "generated")
    assert given.password is None
    assert generated.password is not None
    for one, right in ((given, GIVEN), (generated, generated.password)):
        name = one.client.mqtt_username
        found = find_login(runner.database, verified, name, right)
        assert found is not None
        assert (found.id, found.mqtt_username) == (one.client.id, name)
        for wrong in (OTHER, right + " ", "\ud800", "x" * 70_000):
            assert find_login(runner.database, verified, name, wrong) is None


def test_no_other_user_name_opens_with_a_known_password(
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
    for one, other in ((live, test), (test, live)):
        name = one.client.mqtt_username
        found = find_login(runner.database, verified, name, one.password or "")
        assert found is not None
        assert (found.id, found.environment) == (one.client.id, one.client.environment)
        assert find_login(runner.database, verified, name, other.password or "") is None


def test_a_disabled_or_deleted_client_is_not_found_though_its_password_is_remembered(
    runner: Runner, owner: Principal, verified: VerifiedPasswords
) -> None:
    client = made(runner, owner, password=GIVEN).client

    def found() -> bool:
        return find_login(runner.database, verified, client.mqtt_username, GIVEN) is not None

    assert found()
    runner.write(clients.change, owner, client.id, {"enabled": False})
    assert not found()
    runner.write(clients.change, owner, client.id, {"enabled": True})
    assert found()
    runner.write(clients.remove, owner, client.id)
    assert not found()


def test_no_client_of_a_suspended_or_deleted_organization_is_found(
    runner: Runner, owner: Principal, verified: VerifiedPasswords
) -> None:
    one = made(runner, owner)

    def found() -> bool:
        name = one.client.mqtt_username
        return find_login(runner.database, verified, name, one.password or "") is not None

    assert found()
    runner.write(organizations.suspend, operator(), owner.org_id)
    assert not found()
    runner.write(organizations.resume, operator(), owner.org_id)
    assert found()
    runner.write(organizations.delete, operator(), owner.org_id)
    assert not found()


def test_a_new_password_ends_the_old_one_that_is_remembered(
    runner: Runner, owner: Principal, verified: VerifiedPasswords
) -> None:
    # The clock stands still, so that nothing but the password itself tells the two apart.
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


def test_passwords_outlive_a_rotation_of_the_master_key(
    runner: Runner, owner: Principal, verified: VerifiedPasswords
) -> None:
    given, generated = made(runner, owner, "given", GIVEN), made(runner, owner, "generated")
    (before,) = runner.read(master_keys.versions, operator())
    assert before.rows["clients"] == 1
    assert [(state.version, state.opens) for state in check_peppers(runner.database)] == [(1, True)]
    with runner.database.write() as tx:
        master_keys.rotate(tx, operator(), MasterKey.generate())
        runner.database.vault = tx.vault
    for one, right in ((given, GIVEN), (generated, generated.password or "")):
        assert find_login(runner.database, verified, one.client.mqtt_username, right)
        assert find_login(runner.database, verified, one.client.mqtt_username, OTHER) is None


def test_a_storm_of_logins_pays_for_its_password_once(
    runner: Runner, owner: Principal, verified: VerifiedPasswords, hashings: list[str]
) -> None:
    name = made(runner, owner, password=GIVEN).client.mqtt_username

    def found(_: int) -> bool:
        return find_login(runner.database, verified, name, GIVEN) is not None

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(found, range(200)))
    # Two may begin at once, before either is remembered.
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


def test_a_verified_password_is_remembered_for_five_minutes(hashings: list[str]) -> None:
    now = [1000.0]
    verified = VerifiedPasswords(clock=lambda: now[0])
    known = PasswordHasher(time_cost=1, memory_cost=8, parallelism=1).hash(GIVEN)
    for later, asked in ((0, 1), (CACHED_S - 0.1, 1), (0.1, 2), (1, 2)):
        now[0] += later
        assert fits(verified, known, GIVEN)
        assert len(hashings) == asked
    for _ in range(2):
        assert not fits(verified, known, OTHER)
    assert len(hashings) == 4
    assert GIVEN not in repr(verified)


def test_no_more_than_ten_thousand_passwords_are_remembered(hashings: list[str]) -> None:
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
    one = made(runner, owner)
    start = runner.database.clock()

    def connected_at(now: int, by: Principal = owner) -> int | None:
        runner.database.clock = lambda: now
        known = find_login(runner.database, verified, one.client.mqtt_username, one.password or "")
        assert known is not None
        mark_connected(runner.database, [known, stale(known)])
        return runner.read(clients.get, by, one.client.id).last_connected_at

    def stale(known: KnownClient) -> KnownClient:
        """Return what a process knows that did not see the other one's mark."""
        return replace(known, last_connected_at=None)

    assert connected_at(start) == start
    assert connected_at(start + MINUTE_MS - 1) == start
    assert connected_at(start + MINUTE_MS) == start + MINUTE_MS
    # A clock that was set back does not stop it.
    assert connected_at(start) == start
