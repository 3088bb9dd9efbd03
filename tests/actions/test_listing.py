"""A list's filters match the state that the records themselves report."""

from __future__ import annotations

import pytest

from wardkey.actions.accounts import organizations
from wardkey.actions.core.runner import Runner
from wardkey.actions.keys import keys, revocations
from wardkey.actions.keys.keys import KeyQuery
from wardkey.domain.keys import EXPIRING_MS, KeySpec, KeyStatus
from wardkey.domain.permissions import KeyType
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment
from wardkey.verify.usage import Usage

START = 1_900_000_000_000
DAY = 86_400_000


@pytest.fixture(autouse=True)
def steady(runner: Runner) -> None:
    runner.database.clock = lambda: START


def issue(
    runner: Runner,
    by: Principal,
    name: str,
    *,
    expires_at: int | None = None,
    key_type: KeyType = KeyType.SECRET,
) -> keys.Issued:
    spec = KeySpec(name, key_type, Environment.LIVE, expires_at=expires_at)
    return runner.write(keys.issue, by, spec)


def names(runner: Runner, by: Principal, at: int, query: KeyQuery) -> set[str]:
    runner.database.clock = lambda: at
    listed = {key.name for key in runner.read(keys.list_keys, by, query)}
    assert runner.read(keys.count_keys, by, query) == len(listed)
    return listed


@pytest.mark.parametrize("at", [START, START + 90 * DAY - 1, START + 90 * DAY])
def test_each_key_is_listed_under_its_own_status(runner: Runner, owner: Principal, at: int) -> None:
    ends = {"never": None, "before": START + 1, "at": START + 90 * DAY, "after": START + 91 * DAY}
    for end, expires_at in ends.items():
        for state in ("plain", "disabled", "revoked"):
            made = issue(runner, owner, f"{state}-{end}", expires_at=expires_at)
            if state == "disabled":
                runner.write(keys.disable, owner, made.key.id)
            if state == "revoked":
                runner.write(revocations.revoke, owner, made.key.id, "unspecified")
    issue(runner, owner, "page", key_type=KeyType.PUBLISHABLE)
    runner.database.clock = lambda: at
    everything = runner.read(keys.list_keys, owner, KeyQuery())
    assert len(everything) == 13
    for status in KeyStatus:
        expected = {key.name for key in everything if key.status(at) is status}
        assert names(runner, owner, at, KeyQuery(status=status)) == expected
    due = {key.name for key in everything if key.rotation_due(at)}
    assert names(runner, owner, at, KeyQuery(rotation_due=True)) == due
    late = at == START + 90 * DAY
    assert due == (
        {"plain-never", "disabled-never", "plain-after", "disabled-after"} if late else set()
    )


def test_the_organizations_policy_sets_when_a_rotation_is_due(
    runner: Runner, owner: Principal
) -> None:
    issue(runner, owner, "old")
    runner.write(organizations.change, owner, rotation_days=7)
    for at, expected in ((START + 7 * DAY - 1, set()), (START + 7 * DAY, {"old"})):
        assert names(runner, owner, at, KeyQuery(rotation_due=True)) == expected
        (key,) = runner.read(keys.list_keys, owner, KeyQuery())
        assert key.rotation_due(at) == bool(expected)


def test_a_key_is_unused_once_neither_created_nor_used_for_that_many_days(
    runner: Runner, owner: Principal
) -> None:
    usage = Usage(runner.database)
    issue(runner, owner, "never")
    used = issue(runner, owner, "used")
    rotated = issue(runner, owner, "rotated")
    revoked = issue(runner, owner, "revoked")
    runner.write(revocations.revoke, owner, revoked.key.id, "unspecified")
    newer = runner.write(keys.rotate, owner, rotated.key.id, "until_revoked")
    usage.note(used.kid, used.key.id, "valid", START + DAY, "", "", "")
    usage.note(newer.kid, rotated.key.id, "valid", START + 2 * DAY, "", "", "")
    usage.note(rotated.kid, rotated.key.id, "valid", START + 1, "", "", "")
    usage.flush()
    usage.catch_up()
    query = KeyQuery(unused_days=7)
    assert names(runner, owner, START + 7 * DAY - 1, query) == set()
    assert names(runner, owner, START + 7 * DAY, query) == {"never"}
    assert names(runner, owner, START + 8 * DAY - 1, query) == {"never"}
    assert names(runner, owner, START + 8 * DAY, query) == {"never", "used"}
    assert names(runner, owner, START + 9 * DAY, query) == {"never", "used", "rotated"}


def test_a_key_is_expiring_in_its_last_fourteen_days(runner: Runner, owner: Principal) -> None:
    end = START + 20 * DAY
    issue(runner, owner, "ends", expires_at=end)
    issue(runner, owner, "stays")
    revoked = issue(runner, owner, "gone", expires_at=end)
    runner.write(revocations.revoke, owner, revoked.key.id, "unspecified")
    query = KeyQuery(expiring=True)
    assert names(runner, owner, end - EXPIRING_MS - 1, query) == set()
    assert names(runner, owner, end - EXPIRING_MS, query) == {"ends"}
    assert names(runner, owner, end - 1, query) == {"ends"}
    assert names(runner, owner, end, query) == set()
