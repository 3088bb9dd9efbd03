"""Background maintenance of the database changes no verdict and completes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from sqlalchemy import Column, LargeBinary, String, Table, event, insert, select

from wardkey.actions.core.runner import Runner
from wardkey.actions.keys import imports, keys
from wardkey.actions.messaging import clients
from wardkey.actions.messaging.client_logins import find_login
from wardkey.actions.operations import service_keys
from wardkey.adapters.fetch import Fetch
from wardkey.adapters.key_sets import KeySets
from wardkey.app import _rehash, _run_maintenance
from wardkey.db import maintenance
from wardkey.db.maintenance import KEPT_ANSWERS_MS, clean_up, rehash
from wardkey.db.schema import (
    callers,
    changes,
    hours,
    idempotency,
    imported,
    mqtt_ids,
    publications,
    refused,
    secrets,
)
from wardkey.db.schema import clients as client_rows
from wardkey.domain.clients import ClientSpec
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import KeyType
from wardkey.domain.principal import Principal, operator
from wardkey.domain.secret import Environment, SecretText
from wardkey.domain.times import HOUR_MS
from wardkey.domain.verdict import VerificationRequest
from wardkey.services.mqtt_login import MqttLogins
from wardkey.services.throttle import Throttle
from wardkey.services.token_exchange import TokenExchange
from wardkey.verify.usage import Usage
from wardkey.verify.verifier import Verifier
from wardkey.web.context import AppContext

IMPORTED = "acme_7Zk2mQx9TbW4nLr8VdYc3HsJ"
ADDRESS = "192.0.2.1"


def spec(name: str) -> KeySpec:
    return KeySpec(name, KeyType.SECRET, Environment.LIVE)


def issue(runner: Runner, by: Principal, name: str) -> keys.Issued:
    return runner.write(keys.issue, by, spec(name))


@pytest.fixture
def begin(runner: Runner, tmp_path: Path) -> Iterator[Callable[[], AppContext]]:
    """Create the state of a second process of the deployment."""
    begun: list[AppContext] = []

    def process() -> AppContext:
        usage = Usage(runner.database)
        verifier = Verifier(runner.database, usage)
        exchanges = TokenExchange(runner.database, verifier, KeySets(Fetch().get), False)
        throttle = Throttle(tmp_path / "attempts")
        begun.append(AppContext(runner, verifier, usage, throttle, "", (), (), "", exchanges))
        return begun[-1]

    yield process
    for context in begun:
        context.verifier.directory.close()


def take_another_pepper(runner: Runner) -> None:
    old = runner.database.vault
    version = old.version + 1
    peppers = {**old.peppers, version: os.urandom(32)}
    audit_keys = {**old.audit_keys, version: os.urandom(32)}
    runner.database.vault = replace(old, version=version, peppers=peppers, audit_keys=audit_keys)


def written(runner: Runner) -> list[str]:
    """Collect the data-changing statements executed from now on."""
    statements: list[str] = []

    def hear(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith(("INSERT", "UPDATE", "DELETE")):
            statements.append(statement.split(" SET", maxsplit=1)[0])

    event.listen(runner.database.writer, "before_cursor_execute", hear)
    return statements


def stored(runner: Runner, kid: str) -> tuple[int, bytes]:
    with runner.database.read() as tx:
        row = tx.connection.execute(select(secrets).where(secrets.c.kid == kid)).one()
    return row.pepper_version, bytes(row.digest)


def verdict(context: AppContext, text: str) -> str:
    return str(context.verifier.verify(VerificationRequest(text)).verdict)


def test_a_secret_is_rehashed_once_after_a_pepper_change(
    runner: Runner, owner: Principal, begin: Callable[[], AppContext]
) -> None:
    made, unused = issue(runner, owner, "live-used"), issue(runner, owner, "live-unused")
    text = made.secret.text
    take_another_pepper(runner)
    first, second = begin(), begin()
    assert [verdict(context, text) for context in (first, second, first)] == ["valid"] * 3
    statements = written(runner)
    _rehash(first)
    assert statements == ["UPDATE secrets", "UPDATE imported"]
    assert stored(runner, made.kid) == (2, runner.database.vault.digest(text, 2))
    assert stored(runner, unused.kid)[0] == 1
    # The second process queued it too, and finds it done.
    _rehash(second)
    after = stored(runner, made.kid)
    statements.clear()
    for _ in range(2):
        for context in (first, second):
            assert verdict(context, text) == "valid"
            _rehash(context)
    assert statements == []
    assert stored(runner, made.kid) == after


def test_a_secret_that_grants_no_access_is_not_rehashed(
    runner: Runner, owner: Principal, begin: Callable[[], AppContext]
) -> None:
    made = issue(runner, owner, "live-disabled")
    runner.write(keys.disable, owner, made.key.id)
    take_another_pepper(runner)
    process = begin()
    assert verdict(process, made.secret.text) == "disabled"
    assert process.verifier.take_rehashes() == {}


def test_an_imported_secret_is_found_under_the_new_pepper(
    runner: Runner, owner: Principal, begin: Callable[[], AppContext]
) -> None:
    hashed = hashlib.sha256(IMPORTED.encode()).hexdigest()
    runner.write(imports.register_prefix, owner, "acme_")
    wanted = imports.Import(spec("live-imported"), "acme_", hashed, 140)
    runner.write(imports.import_key, owner, wanted)
    take_another_pepper(runner)
    process = begin()
    assert verdict(process, IMPORTED) == "valid"
    _rehash(process)
    with runner.database.read() as tx:
        row = tx.connection.execute(select(imported)).one()
    assert row.pepper_version == 2
    assert bytes(row.digest) == runner.database.vault.digest(hashed, 2)
    assert stored(runner, row.kid) == (2, bytes(row.digest))
    assert verdict(process, IMPORTED) == "valid"
    assert process.verifier.take_rehashes() == {}


def test_a_service_key_is_rehashed_once(runner: Runner, begin: Callable[[], AppContext]) -> None:
    secret: SecretText = runner.write(service_keys.create, operator(), "proxy", (f"{ADDRESS}/32",))[
        1
    ]
    take_another_pepper(runner)
    process = begin()
    verifier = process.verifier
    assert verifier.service_key(secret, ADDRESS).pepper_version == 1
    _rehash(process)
    known = verifier.service_key(secret, ADDRESS)
    assert known.pepper_version == 2
    assert known.digest == runner.database.vault.digest(secret.text, 2)
    assert verifier.take_rehashes() == {}


def test_a_login_rehashes_a_generated_password_once(
    runner: Runner, owner: Principal, begin: Callable[[], AppContext]
) -> None:
    made = {
        name: runner.write(clients.create, owner, ClientSpec(name, owner.environment))
        for name in ("used", "unused", "disabled", "changed")
    }
    runner.write(clients.change, owner, made["disabled"].client.id, {"enabled": False})
    take_another_pepper(runner)
    process = begin()

    def opens(name: str) -> bool:
        login = made[name]
        wire, password = login.client.mqtt_username, login.password or ""
        return find_login(runner.database, process.verified, wire, password) is not None

    def versions() -> dict[str, int]:
        with runner.database.read() as tx:
            rows = tx.connection.execute(select(client_rows)).all()
        return {row.username: row.pepper_version for row in rows}

    assert [opens(name) for name in ("used", "used", "disabled", "changed")] == [
        True,
        True,
        False,
        True,
    ]
    made["changed"] = runner.write(clients.set_password, owner, made["changed"].client.id)
    statements = written(runner)
    _rehash(process)
    assert versions() == {"used": 2, "unused": 1, "disabled": 1, "changed": 2}
    assert set(statements) == {"UPDATE clients"}
    statements.clear()
    assert [opens(name) for name in ("used", "unused", "changed")] == [True] * 3
    assert list(process.verified.rehashes) == [made["unused"].client.id]
    _rehash(process)
    assert versions()["unused"] == 2
    assert len(statements) == 1


def test_a_digest_is_replaced_only_if_it_has_not_changed_since(
    runner: Runner, owner: Principal
) -> None:
    made = issue(runner, owner, "live-newer")
    before = stored(runner, made.kid)
    rehash(runner.database, {made.kid: (b"x" * 32, 7), "nobodys": (b"x" * 32, 1)})
    assert stored(runner, made.kid) == before


def test_stored_responses_expire_after_exactly_ten_minutes(runner: Runner) -> None:
    now = runner.database.clock()
    runner.database.clock = lambda: now
    rows: list[dict[str, Any]] = [
        {"id": name, "body_digest": b"", "sealed": b"", "created_at": now - age}
        for name, age in ((b"over", KEPT_ANSWERS_MS), (b"kept", KEPT_ANSWERS_MS - 1))
    ]
    with runner.database.writer.begin() as connection:
        connection.execute(insert(idempotency), rows)
    clean_up(runner.database)
    with runner.database.read() as tx:
        left = tx.connection.execute(select(idempotency.c.id)).scalars().all()
    assert [bytes(name) for name in left] == [b"kept"]


def test_recent_changes_are_kept_and_a_process_that_missed_older_ones_starts_over(
    runner: Runner,
    owner: Principal,
    begin: Callable[[], AppContext],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(maintenance, "KEPT_CHANGES", 3)
    made = issue(runner, owner, "live-missed")
    process = begin()
    assert verdict(process, made.secret.text) == "valid"
    runner.write(keys.disable, owner, made.key.id)
    for n in range(5):
        issue(runner, owner, f"live-later-{n}")
    clean_up(runner.database)
    with runner.database.read() as tx:
        left = tx.connection.execute(select(changes.c.revision).distinct()).scalars().all()
    assert len(left) == 3
    assert max(left) == 8
    assert verdict(process, made.secret.text) == "disabled"


def _value(column: Column[Any], at: int) -> object:
    if isinstance(column.type, LargeBinary):
        return b"%d" % at
    return str(at)[-8:] if isinstance(column.type, String) else at


def test_the_server_deletes_rows_that_unprivileged_callers_can_add(
    runner: Runner, begin: Callable[[], AppContext]
) -> None:
    now = runner.database.clock()
    runner.database.clock = lambda: now
    day, over = 86_400_000, now - 90 * 86_400_000 - 1
    columns: dict[Table, tuple[str, int, int]] = {
        publications: ("created_at", now - day, now - day + 1),
        mqtt_ids: ("seen_at", over, now),
        callers: ("last_at", over, now),
        hours: ("hour", over // HOUR_MS - 1, now // HOUR_MS),
        refused: ("hour", over // HOUR_MS - 1, now // HOUR_MS),
    }
    with runner.database.usage.begin() as connection:
        for table, (column, *times) in columns.items():
            for at in times:
                values = {
                    known.name: _value(known, at) for known in table.columns if not known.nullable
                }
                connection.execute(insert(table).values({**values, column: at}))
    stopping = Event()
    stopping.set()
    context = begin()
    _run_maintenance(context, _logins(context), 1, stopping)
    with runner.database.usage.connect() as connection:
        for table, (column, _, kept) in columns.items():
            left = connection.execute(select(table.c[column])).scalars().all()
            assert left == [kept], table.name


def _logins(context: AppContext) -> MqttLogins:
    return MqttLogins(context.runner.database, context.throttle, context.verified, context.rights)
