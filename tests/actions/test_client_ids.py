"""Whose an MQTT client id is, and for which connection it was told."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from wardkey.actions.core.runner import Runner
from wardkey.actions.messaging.sessions import KEPT_MS, ClientIds, IdClaim, Owner, find_owners
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope

SCOPE = TenantScope("org_1", Environment.LIVE)


def claimed(subject: str, cid: int, grant_kid: str | None = None) -> IdClaim:
    return IdClaim(SCOPE, "device-1", subject, subject.encode(), ("NODE", cid), grant_kid)


def owner_in(runner: Runner) -> Owner:
    with runner.database.read() as tx:
        return find_owners(tx, SCOPE, ["device-1"])["device-1"]


def test_what_is_kept_is_of_the_connection_that_was_judged_last(runner: Runner) -> None:
    ids = ClientIds(runner.database)
    for cid, kid in ((7, None), (8, "7QdRk2mVx9Ta"), (9, "7QdRk2mVx9Ta")):
        assert ids.take(claimed("cli_a", cid, kid))
        found = owner_in(runner)
        assert (found.subject_id, found.rights) == ("cli_a", b"cli_a")
        assert (found.connection, found.grant_kid) == (("NODE", cid), kid)


def test_a_client_id_is_its_first_users_until_it_was_not_shown_for_a_week(runner: Runner) -> None:
    ids, now = ClientIds(runner.database), runner.database.clock()
    runner.database.clock = lambda: now
    assert ids.take(claimed("cli_a", 1))
    for later, taken in ((KEPT_MS - 1, False), (KEPT_MS, True)):
        runner.database.clock = lambda later=later: now + later  # type: ignore[misc]
        assert ids.take(claimed("cli_b", 2)) is taken
    assert owner_in(runner).connection == ("NODE", 2)


def test_of_many_who_ask_at_once_one_gets_the_client_id(runner: Runner) -> None:
    # As two processes do.
    ids = [ClientIds(runner.database), ClientIds(runner.database)]
    asked = [claimed(f"cli_{number}", number) for number in range(24)]
    with ThreadPoolExecutor(12) as pool:
        told = list(pool.map(lambda claim: ids[claim.connection[1] % 2].take(claim), asked))
    assert told.count(True) == 1
    assert owner_in(runner).connection == ("NODE", told.index(True))
