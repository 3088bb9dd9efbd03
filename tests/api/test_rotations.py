"""Callers of an old secret; a rotation can only finish once there are none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import httpx2 as httpx
import pytest
from sqlalchemy import text as sql
from sqlalchemy import update

from demo.steps import worker_of
from tests.support.server import Server, wait_until
from wardkey.actions.accounts import organizations
from wardkey.actions.core.runner import Runner
from wardkey.actions.keys import keys, revocations, rotations
from wardkey.config import load_config
from wardkey.db.engine import Database
from wardkey.db.schema import callers
from wardkey.deployment import open_deployment
from wardkey.domain.errors import KeyRevoked, StillInUse
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import KeyType, Role
from wardkey.domain.principal import Principal, member, operator
from wardkey.domain.secret import Environment
from wardkey.domain.times import HOUR_MS, iso, parse_iso
from wardkey.verify.usage import Usage


@pytest.fixture(scope="module")
def owner(server: Server) -> Iterator[httpx.Client]:
    with server.owner() as client:
        yield client


def rotated(owner: httpx.Client, name: str, grace: str = "24h") -> tuple[str, str, str]:
    """Issue and rotate a key; return its id, the old secret and the new one."""
    made = owner.post("/v2/keys", json={"name": name, "type": "secret"}).json()
    key_id = made["key"]["id"]
    answer = owner.post(f"/v2/keys/{key_id}/rotate", json={"grace": grace})
    assert answer.status_code == 200, answer.text
    return key_id, made["secret"], answer.json()["secret"]


def use(server: Server, text: str, **more: object) -> str:
    body = {"key": text, "address": "203.0.113.7", "user_agent": "billing/1.4 (x)"} | more
    with server.client(server.first_key) as client:
        answer = client.post("/v2/keys/verify", json=body)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["code"])


def callers_of(owner: httpx.Client, key_id: str, text: str) -> dict[str, Any]:
    kid = text.split("_")[2]
    answer = owner.get(f"/v2/keys/{key_id}/callers", params={"secret": kid})
    assert answer.status_code == 200, answer.text
    (secret,) = answer.json()["secrets"]
    assert secret["kid"] == kid
    shown: dict[str, Any] = secret
    return shown


def test_callers_are_listed_by_address_program_and_route(
    server: Server, owner: httpx.Client
) -> None:
    key_id, old, new = rotated(owner, "live-callers")
    assert use(server, old, route="POST /v1/invoices?page=2") == "valid"
    assert use(server, old) == "valid"
    assert use(server, old, permissions=["keys:write"]) == "not_permitted"
    with server.client(old, User_Agent="probe/2 x") as client:
        held = {"X-Forwarded-Method": "PUT", "X-Forwarded-Uri": f"/v1/{old}/a?key=1"}
        assert client.get("/v2/auth", headers=held).status_code == 200
        assert client.get("/v2/auth").status_code == 200
        assert client.get(f"/v2/keys/{key_id}").status_code == 200

    def seen() -> dict[str, Any]:
        shown = callers_of(owner, key_id, old)
        return shown if sum(caller["count"] for caller in shown["callers"]) == 6 else {}

    shown = wait_until(seen, 3)
    assert {(c["address"], c["product"], c["route"], c["count"]) for c in shown["callers"]} == {
        ("203.0.113.7", "billing/1.4", "POST /v1/invoices", 1),
        ("203.0.113.7", "billing/1.4", "verify", 2),
        ("127.0.0.1", "probe/2", "PUT /v1/…/a", 1),
        ("127.0.0.1", "probe/2", "auth", 1),
        ("127.0.0.1", "probe/2", "GET /v2/keys/{key_id}", 1),
    }
    assert shown["last_seen_at"] == shown["callers"][0]["last_seen_at"]
    counts = [hour["counts"] for hour in shown["hours"]]
    assert sum(each.get("valid", 0) for each in counts) == 5
    assert sum(each.get("not_permitted", 0) for each in counts) == 1
    assert callers_of(owner, key_id, new)["callers"] == []
    both = owner.get(f"/v2/keys/{key_id}/callers").json()["secrets"]
    assert [caller["kid"] for caller in both] == [new.split("_")[2], old.split("_")[2]]
    other = owner.get(f"/v2/keys/{key_id}/callers", params={"secret": "000000000000"})
    assert (other.status_code, other.json()["code"]) == (404, "secret_not_found")


def test_409_finish_names_the_callers_and_revoke_is_never_blocked(
    server: Server, owner: httpx.Client
) -> None:
    key_id, old, new = rotated(owner, "live-finish-used")
    use(server, old)
    use(server, new, address="198.51.100.1")
    wait_until(
        lambda: (
            callers_of(owner, key_id, old)["callers"] and callers_of(owner, key_id, new)["callers"]
        )
    )
    refused = owner.post(f"/v2/keys/{key_id}/finish")
    assert (refused.status_code, refused.json()["code"]) == (409, "still_in_use")
    assert [caller["address"] for caller in refused.json()["callers"]] == ["203.0.113.7"]
    assert "used just now; one caller" in refused.json()["detail"]
    assert [use(server, old), use(server, new)] == ["valid", "valid"]
    kid = old.split("_")[2]
    assert owner.post(f"/v2/keys/{key_id}/secrets/{kid}/revoke").status_code == 200
    assert [use(server, old), use(server, new)] == ["revoked", "valid"]


@contextmanager
def beside(server: Server) -> Iterator[Database]:
    """Open the server's database like another process of the deployment."""
    url = str(server.settings.get("database_url", ""))
    options = {"data_dir": server.data_dir, "database_url": url}
    with open_deployment(load_config({}, options)) as opened:
        yield opened.database


def flush_a_use(database: Database, key_id: str, text: str, address: str) -> None:
    usage, now = Usage(database), int(time.time() * 1000)
    usage.note(text.split("_")[2], key_id, "valid", now, address, "billing/1.4", "verify")
    usage.flush()


def test_usage_flushed_by_another_process_is_visible_at_once(
    server: Server, owner: httpx.Client
) -> None:
    key_id, old, new = rotated(owner, "live-pending")
    with beside(server) as database:
        flush_a_use(database, key_id, old, "10.9.0.1")
        assert [caller["address"] for caller in callers_of(owner, key_id, old)["callers"]] == [
            "10.9.0.1"
        ]
        flush_a_use(database, key_id, old, "10.9.0.2")
        secrets = owner.get(f"/v2/keys/{key_id}").json()["secrets"]
        assert secrets[1]["last_used"]["address"] == "10.9.0.2"
        flush_a_use(database, key_id, new, "10.9.0.3")
        (key,) = owner.get("/v2/keys", params={"search": "live-pending"}).json()["keys"]
        assert key["secrets"][0]["last_used"]["address"] == "10.9.0.3"
        flush_a_use(database, key_id, old, "10.9.0.4")
        refused = owner.post(f"/v2/keys/{key_id}/finish")
    assert (refused.status_code, refused.json()["code"]) == (409, "still_in_use")
    named = [caller["address"] for caller in refused.json()["callers"]]
    assert named == ["10.9.0.4", "10.9.0.2", "10.9.0.1"]


def test_finish_is_blocked_while_a_recorded_use_cannot_be_merged(
    server: Server, owner: httpx.Client
) -> None:
    key_id, old, new = rotated(owner, "live-unmerged")

    def rename(table: str, name: str) -> None:
        with database.usage.begin() as connection:
            connection.execute(sql(f"ALTER TABLE usage.{table} RENAME TO {name}"))

    with beside(server) as database:
        rename("hours", "aside")
        try:
            flush_a_use(database, key_id, old, "10.9.0.1")
            # A 500 response closes its connection.
            with server.owner() as refused:
                assert refused.post(f"/v2/keys/{key_id}/finish").status_code == 500
            assert owner.get(f"/v2/keys/{key_id}").status_code == 200
        finally:
            rename("aside", "hours")
    assert owner.post(f"/v2/keys/{key_id}/finish").status_code == 409
    assert [use(server, old), use(server, new)] == ["valid", "valid"]


def test_finish_revokes_all_but_the_newest_with_receipts(
    server: Server, owner: httpx.Client
) -> None:
    key_id, old, middle = rotated(owner, "live-finish", "until_revoked")
    newest = owner.post(f"/v2/keys/{key_id}/rotate", json={"grace": "7d"}).json()["secret"]
    done = owner.post(f"/v2/keys/{key_id}/finish")
    assert done.status_code == 200, done.text
    kids = {text.split("_")[2] for text in (old, middle)}
    assert done.json()["kept"] == newest.split("_")[2]
    assert {receipt["kid"] for receipt in done.json()["receipts"]} == kids
    for receipt in done.json()["receipts"]:
        assert receipt["reason"] == "superseded"
        again = owner.get(f"/v2/receipts/{receipt['id']}").json()
        assert (again["kid"], again["revision"]) == (receipt["kid"], receipt["revision"])
    codes = [use(server, text) for text in (old, middle, newest)]
    assert codes == ["revoked", "revoked", "valid"]
    params = {"target_id": key_id, "action": "rotation.finished"}
    (event,) = owner.get("/v2/audit-events", params=params).json()["events"]
    assert set(event["details"]["revoked"]) == kids
    again = owner.post(f"/v2/keys/{key_id}/finish")
    assert (again.status_code, again.json()["receipts"]) == (200, [])
    assert again.json()["kept"] == newest.split("_")[2]
    assert owner.get("/v2/audit-events/verify").json()["holds"]


def test_403_a_member_can_list_callers_but_cannot_finish(
    server: Server, owner: httpx.Client
) -> None:
    key_id, old, new = rotated(owner, "live-finish-member")
    page = owner.post("/v2/keys", json={"name": "live-page-key", "type": "publishable"}).json()
    with server.person("member") as person:
        assert person.get(f"/v2/keys/{key_id}/callers").status_code == 200
        answer = person.post(f"/v2/keys/{key_id}/finish")
        assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted")
    with server.client(page["secret"]) as client:
        for answer in (
            client.get(f"/v2/keys/{key_id}/callers"),
            client.post(f"/v2/keys/{key_id}/finish"),
        ):
            assert (answer.status_code, answer.json()["code"]) == (403, "secret_key_required")
    assert [use(server, old), use(server, new)] == ["valid", "valid"]


def test_forward_auth_returns_the_start_and_end_of_a_grace_period(
    server: Server, owner: httpx.Client
) -> None:
    key_id, old, new = rotated(owner, "live-grace-headers", "1h")
    secrets = owner.get(f"/v2/keys/{key_id}").json()["secrets"]
    with server.client() as client:

        def ask(text: str) -> httpx.Headers:
            answer = client.get("/v2/auth", headers={"Authorization": f"Bearer {text}"})
            assert answer.status_code == 200
            return answer.headers

        headers = ask(old)
        assert headers["deprecation"] == f"@{parse_iso(secrets[0]['created_at']) // 1000}"
        end = parse_iso(secrets[1]["grace_ends_at"]) // 1000
        assert parsedate_to_datetime(headers["sunset"]).timestamp() == end
        assert not {"deprecation", "sunset"} & set(ask(new))
        _, endless, _ = rotated(owner, "live-grace-endless", "until_revoked")
        assert "deprecation" in ask(endless)
        assert "sunset" not in ask(endless)


def test_a_grace_period_ends_at_its_millisecond_in_both_workers(
    server: Server, owner: httpx.Client
) -> None:
    assert server.process is not None
    port, group = int(server.url.rpartition(":")[2]), server.process.pid
    clients: dict[int, httpx.Client] = {}
    judged: dict[int, list[tuple[int, str]]] = {}
    with ExitStack() as opened:
        while len(clients) < 2:
            client = opened.enter_context(server.client(server.first_key))
            stream = client.get("/readyz").extensions["network_stream"]
            worker = worker_of(stream.get_extra_info("client_addr")[1], port, group)
            clients.setdefault(worker, client)
        end = int(time.time() * 1000) + 800
        _, old, _ = rotated(owner, "live-grace-workers", iso(end))
        while int(time.time() * 1000) < end + 100:
            for worker, client in clients.items():
                answer = client.post("/v2/keys/verify", json={"key": old}).json()
                seen = (parse_iso(answer["as_of"]), answer["code"])
                judged.setdefault(worker, []).append(seen)
    for there in judged.values():
        assert {code for at, code in there if at < end} == {"valid"}
        assert {code for at, code in there if at >= end} == {"expired"}


def test_a_kill_loses_at_most_the_last_second_of_callers(
    start: Callable[..., Server], storage_url: str
) -> None:
    server = start(database_url=storage_url)
    with server.owner() as owner:
        key_id, old, _ = rotated(owner, "live-callers-killed")
    used: list[float] = []
    end = time.monotonic() + 2.5
    while time.monotonic() < end:
        use(server, old, address=f"10.0.0.{len(used) % 40}")
        used.append(time.monotonic())
    killed = time.monotonic()
    server.kill()
    server.start()
    with server.client(server.first_key) as client:
        body = client.get(f"/v2/keys/{key_id}/callers").json()["secrets"][1]
    kept = sum(caller["count"] for caller in body["callers"])
    assert kept == sum(hour["counts"]["valid"] for hour in body["hours"])
    assert len([at for at in used if at < killed - 1]) <= kept <= len(used)


# --- without a server, so stored times can be changed -------------------------------------------


@pytest.fixture
def admin(runner: Runner) -> Principal:
    made, user = runner.write(organizations.create, operator(), "Acme", "admin@acme.example")
    return member(
        user_id=user,
        email="admin@acme.example",
        org_id=made.id,
        role=Role.ADMIN,
        environment=Environment.LIVE,
    )


def issue(runner: Runner, by: Principal, name: str) -> keys.Issued:
    return runner.write(keys.issue, by, KeySpec(name, KeyType.SECRET, Environment.LIVE))


def end_rotation(runner: Runner, by: Principal, key_id: str) -> rotations.FinishedRotation:
    used = runner.read(rotations.callers_to_finish, by, key_id)
    return runner.write(rotations.finish, by, key_id, used)


def test_finish_is_refused_until_the_last_use_is_an_hour_old(
    runner: Runner, admin: Principal
) -> None:
    now = runner.database.clock()
    runner.database.clock = lambda: now
    made = issue(runner, admin, "live-hour")
    runner.write(keys.rotate, admin, made.key.id, "7d")
    usage = Usage(runner.database)
    usage.note(made.kid, made.key.id, "rate_limited", now, "10.0.0.1", "curl/8.5.0", "verify")
    usage.flush()
    usage.catch_up()
    for age in (0, 3 * 60_000, HOUR_MS - 1):
        with runner.database.counting() as connection:
            connection.execute(update(callers).values(last_at=now - age))
        with pytest.raises(StillInUse) as refused:
            end_rotation(runner, admin, made.key.id)
        assert [caller.last_at for caller in refused.value.callers] == [now - age]
        if age == 3 * 60_000:
            assert "last used 3 minutes ago" in refused.value.detail
    with runner.database.counting() as connection:
        connection.execute(update(callers).values(last_at=now - HOUR_MS))
    assert [caller.kid for caller in end_rotation(runner, admin, made.key.id).receipts] == [
        made.kid
    ]


def test_finish_never_revokes_the_newest_secret_even_if_the_clock_is_set_back(
    runner: Runner, admin: Principal
) -> None:
    made = issue(runner, admin, "live-clock")
    early = made.key.created_at - 60_000
    runner.database.clock = lambda: early
    newest = runner.write(keys.rotate, admin, made.key.id, "until_revoked")
    done = end_rotation(runner, admin, made.key.id)
    assert (done.kept, [receipt.kid for receipt in done.receipts]) == (newest.kid, [made.kid])


def test_finish_keeps_a_secret_created_after_the_callers_were_read(
    runner: Runner, admin: Principal
) -> None:
    made = issue(runner, admin, "live-race")
    used = runner.read(rotations.callers_to_finish, admin, made.key.id)
    second = runner.write(keys.rotate, admin, made.key.id, "7d")
    third = runner.write(keys.rotate, admin, made.key.id, "7d")
    done = runner.write(rotations.finish, admin, made.key.id, used)
    assert (done.kept, [receipt.kid for receipt in done.receipts]) == (third.kid, [made.kid])
    left = runner.read(keys.get, admin, made.key.id).secrets
    assert {receipt.kid for receipt in left if receipt.revoked_at is None} == {
        second.kid,
        third.kid,
    }


def test_the_last_live_secret_is_kept_if_the_newest_was_revoked(
    runner: Runner, admin: Principal
) -> None:
    made = issue(runner, admin, "live-only")
    newest = runner.write(keys.rotate, admin, made.key.id, "7d")
    runner.write(revocations.revoke_secret, admin, made.key.id, newest.kid, "keyCompromise")
    done = end_rotation(runner, admin, made.key.id)
    assert (done.kept, done.receipts) == (made.kid, ())


def test_409_a_revoked_key_has_no_rotation_to_finish(runner: Runner, admin: Principal) -> None:
    made = issue(runner, admin, "live-dead")
    runner.write(revocations.revoke, admin, made.key.id, "unspecified")
    with pytest.raises(KeyRevoked):
        end_rotation(runner, admin, made.key.id)
