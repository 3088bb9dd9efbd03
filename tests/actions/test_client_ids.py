"""The holder of an MQTT client id, its latest connection, and when the id is freed."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from wardkey.actions.core.runner import Runner
from wardkey.actions.grants import grants
from wardkey.actions.grants.grants import MintedGrant
from wardkey.actions.messaging import clients, held_client_ids
from wardkey.actions.messaging.client_ids import ClientIds, IdClaim
from wardkey.actions.messaging.freed_client_ids import (
    KEPT_MS,
    MAX_PER_HOLDER,
    end_lease,
    force_free,
    free_if_abandoned,
    free_orphaned,
    free_unused,
    lease,
    list_freed,
    mark_live,
    scopes_to_scan,
)
from wardkey.actions.messaging.held_client_ids import HeldQuery
from wardkey.actions.messaging.sessions import Owner, find_owners
from wardkey.db.maintenance import clean_up_grants
from wardkey.domain.clients import ClientSpec
from wardkey.domain.grants import CutoffKind, NewGrant
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment
from wardkey.domain.tenants import TenantScope

SCOPE = TenantScope("org_1", Environment.LIVE)


def claim_by(subject: str, cid: int, grant_kid: str | None = None) -> IdClaim:
    return IdClaim(SCOPE, "device-1", subject, subject.encode(), ("NODE", cid), grant_kid)


def owner_in(runner: Runner) -> Owner:
    with runner.database.read() as tx:
        return find_owners(tx, SCOPE, ["device-1"])["device-1"]


def test_the_stored_claim_is_that_of_the_latest_login(runner: Runner) -> None:
    ids = ClientIds(runner.database)
    for cid, kid in ((7, None), (8, "7QdRk2mVx9Ta"), (9, "7QdRk2mVx9Ta")):
        assert ids.take(claim_by("cli_a", cid, kid)) is None
        holder = owner_in(runner)
        assert (holder.subject_id, holder.rights) == ("cli_a", b"cli_a")
        assert (holder.connection, holder.grant_kid) == (("NODE", cid), kid)


def make_client(runner: Runner, by: Principal, username: str) -> str:
    spec = ClientSpec(username, Environment.LIVE)
    return runner.write(clients.create, by, spec).client.id


def can_take(runner: Runner, claim: IdClaim) -> bool:
    """Return whether a login gets the client id; an abandoned session of it is removed first."""
    holder = ClientIds(runner.database).take(claim)
    if holder is None:
        return True
    if not free_if_abandoned(runner.database, claim, holder):
        return False
    until = lease(runner.database, claim.scope, claim.mqtt_id)
    return ClientIds(runner.database).take(replace(claim, lease=until)) is None


def test_a_client_id_belongs_to_its_first_client_until_unused_for_a_week(
    runner: Runner, owner: Principal
) -> None:
    now = runner.database.clock()
    runner.database.clock = lambda: now
    first, second = (make_client(runner, owner, name) for name in ("first", "second"))
    claims = [
        IdClaim(owner.scope, "device-1", client_id, b"", ("NODE", 1))
        for client_id in (first, second)
    ]
    assert can_take(runner, claims[0])
    for later, taken in ((KEPT_MS - 1, False), (KEPT_MS, True)):
        runner.database.clock = lambda later=later: now + later  # type: ignore[misc]
        assert can_take(runner, claims[1]) is taken
    assert not can_take(runner, claims[0])


def test_a_client_id_is_free_once_its_client_is_deleted(runner: Runner, owner: Principal) -> None:
    first, second = (make_client(runner, owner, name) for name in ("first", "second"))
    claims = [
        IdClaim(owner.scope, "device-1", client_id, b"", ("NODE", 1))
        for client_id in (first, second)
    ]
    assert can_take(runner, claims[0])
    assert not can_take(runner, claims[1])
    runner.write(clients.change, owner, first, {"enabled": False})
    assert not can_take(runner, claims[1])
    runner.write(clients.remove, owner, first)
    assert can_take(runner, claims[1])
    with runner.database.read() as tx:
        (held,) = held_client_ids.list_held(tx, owner, HeldQuery())
    assert (held.mqtt_id, held.holder_id) == ("device-1", second)


def test_a_client_id_at_a_foreign_broker_stays_held_for_a_week(
    runner: Runner, owner: Principal
) -> None:
    first = make_client(runner, owner, "first")
    claim = IdClaim(owner.scope, "device-1", first, b"", ("", 0))
    assert can_take(runner, claim)
    runner.write(clients.remove, owner, first)
    assert not can_take(runner, replace(claim, subject_id=make_client(runner, owner, "second")))
    assert free_orphaned(runner.database) == 0


def mint(runner: Runner, by: Principal, refreshable_s: int = 3_600) -> MintedGrant:
    user = NewGrant("", "u1", "ann@x.example", "key-of-ann", "ann-1", {}, 60, refreshable_s)
    return runner.write(grants.create, by, user)


def test_a_users_client_ids_are_freed_once_no_grant_can_log_in_or_be_refreshed(
    runner: Runner, owner: Principal
) -> None:
    now = runner.database.clock()
    runner.database.clock = lambda: now
    mint(runner, owner)
    claim = IdClaim(owner.scope, "page-1", "key-of-ann", b"", ("NODE", 1))
    assert can_take(runner, claim)
    # The grant has expired, but its password can still refresh it.
    runner.database.clock = lambda: now + 3_599_999
    assert free_orphaned(runner.database) == 0
    runner.database.clock = lambda: now + 3_600_000
    clean_up_grants(runner.database)
    assert free_orphaned(runner.database, TenantScope(owner.org_id, Environment.TEST)) == 0
    assert free_orphaned(runner.database, owner.scope) == 1


@pytest.mark.parametrize("how", ["grant", "user"])
def test_a_users_client_ids_are_freed_when_all_grants_are_revoked(
    runner: Runner, owner: Principal, how: str
) -> None:
    first, second = mint(runner, owner), mint(runner, owner)
    assert can_take(runner, IdClaim(owner.scope, "page-1", "key-of-ann", b"", ("NODE", 1)))
    if how == "grant":
        runner.write(grants.revoke, owner, first.grant.token_id)
        assert free_orphaned(runner.database) == 0
        runner.write(grants.revoke, owner, second.grant.token_id)
    else:
        runner.write(grants.revoke_all, owner, CutoffKind.USER, "u1")
    assert free_orphaned(runner.database) == 1
    assert [freed.mqtt_id for freed in list_freed(runner.database, 9)] == ["page-1"]


def test_a_client_keeps_a_thousand_ids_and_all_connected_ones(
    runner: Runner, owner: Principal
) -> None:
    now = runner.database.clock()
    client = make_client(runner, owner, "fleet")
    for number in range(MAX_PER_HOLDER + 3):
        runner.database.clock = lambda number=number: now - 400_000 + number  # type: ignore[misc]
        name = f"device-{number}"
        assert can_take(runner, IdClaim(owner.scope, name, client, b"", ("NODE", number)))
    runner.database.clock = lambda: now
    assert scopes_to_scan(runner.database) == [owner.scope]
    # The second connection does not hold the client id.
    live = [("device-1", ("NODE", 1)), ("device-2", ("NODE", 7))]
    mark_live(runner.database, owner.scope, live)
    free_unused(runner.database)
    freed = {row.mqtt_id for row in list_freed(runner.database, 9)}
    assert freed == {"device-0", "device-2", "device-3"}


def test_only_the_lease_holder_takes_or_forgets_a_freed_client_id(
    runner: Runner, owner: Principal
) -> None:
    now = runner.database.clock()
    runner.database.clock = lambda: now
    scope, claim = owner.scope, IdClaim(owner.scope, "device-1", "cli_b", b"", ("NODE", 1))
    assert can_take(runner, replace(claim, subject_id="cli_a"))
    force_free(runner.database, scope, "device-1")
    until = lease(runner.database, scope, "device-1")
    assert until is not None
    assert lease(runner.database, scope, "device-1") is None
    assert [row.due_at for row in list_freed(runner.database, 9)] == [until]
    runner.database.clock = lambda: until
    later = lease(runner.database, scope, "device-1")
    ids = ClientIds(runner.database)
    assert ids.take(replace(claim, lease=until)) is not None
    end_lease(runner.database, scope, "device-1", until, forget=True)
    assert ids.take(replace(claim, lease=later)) is None
    # A removal that took too long leaves the new holder's claim alone.
    assert later is not None
    end_lease(runner.database, scope, "device-1", later, forget=True)
    with runner.database.read() as tx:
        assert find_owners(tx, scope, ["device-1"])["device-1"].subject_id == "cli_b"


def test_one_of_many_simultaneous_logins_gets_the_client_id(runner: Runner) -> None:
    # As in two processes.
    ids = [ClientIds(runner.database), ClientIds(runner.database)]
    claims = [claim_by(f"cli_{number}", number) for number in range(24)]
    with ThreadPoolExecutor(12) as pool:
        holders = list(pool.map(lambda claim: ids[claim.connection[1] % 2].take(claim), claims))
    assert holders.count(None) == 1
    assert owner_in(runner).connection == ("NODE", holders.index(None))
