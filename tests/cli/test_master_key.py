from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from tests.cli.test_backup import config_of, holds, result_of
from tests.support.server import Server, wait_until
from wardkey.actions.core.runner import Runner
from wardkey.actions.messaging.client_logins import VerifiedPasswords, find_login
from wardkey.actions.operations.service_keys import create as create_service_key
from wardkey.config import load_config
from wardkey.db.backup import named_version, write_backup
from wardkey.db.schema import secrets, service_keys
from wardkey.db.vault import MasterKey
from wardkey.deployment import open_deployment
from wardkey.domain.principal import operator

IMPORTED = "acme_7Zk2mQx9TbW4nLr8VdYc3HsJ"

# Ends the process as kill -9 does at the nth file opened, rename or commit of the rotation.
CRASH = """
import os, sys
from sqlalchemy import Engine, event
from wardkey.cli import main
left = [int(sys.argv[1])]
def die():
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), 9)
def heard(name, arguments):
    if name == "os.rename":
        die()
    if name == "open" and ".next" in str(arguments[0]):
        die()
from wardkey.cli import master_key
sys.addaudithook(heard)
event.listen(Engine, "commit", lambda _: die())
main(sys.argv[2:])
"""


def versions(runner: Runner) -> set[int]:
    """Return the pepper versions of the secrets and service keys."""
    with runner.database.read() as tx:
        return {
            version
            for table in (secrets, service_keys)
            for version in tx.connection.execute(select(table.c.pepper_version)).scalars()
        }


def test_keys_survive_a_rotation_and_are_rehashed_when_used(
    start: Callable[..., Server], storage_url: str
) -> None:
    server = start(database_url=storage_url, workers=2)
    with server.owner() as owner:
        made = owner.post("/v2/keys", json={"name": "plain", "type": "secret"}).json()["secret"]
        assert owner.post("/v2/import-prefixes", json={"prefix": "acme_"}).status_code == 201
        taken = owner.post(
            "/v2/keys/import",
            json={
                "name": "imported",
                "prefix": "acme_",
                "sha256": hashlib.sha256(IMPORTED.encode()).hexdigest(),
                "entropy_bits": 140,
                "environment": "live",
            },
        )
        assert taken.status_code == 201, taken.text
    assert result_of(server.cli("master-key", "rotate"), 6) == "already_running"
    server.stop()
    old_key = (server.data_dir / "master.key").read_text()
    config = config_of(server)
    with open_deployment(config) as runner:
        service = runner.write(create_service_key, operator(), "ours", ("127.0.0.1",))[1].text

    assert result_of(server.cli("master-key", "rotate", "--json"))["version"] == 2

    key_file = server.data_dir / "master.key"
    assert key_file.read_text() != old_key
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert not list(server.data_dir.glob("*.next*"))
    kept = server.data_dir / "master.key.1"
    assert kept.read_text() == old_key
    assert kept.stat().st_mode & 0o777 == 0o600
    status = result_of(server.cli("master-key", "status", "--json"))
    assert [(item["version"], item["current"]) for item in status] == [(1, False), (2, True)]
    assert [item["kept_file"] for item in status] == [str(kept), None]
    assert status[0]["hashed_under_it"]["secrets"] == 3
    server.start()
    for credential in (server.first_key, service):
        with server.client(credential) as asking:
            for text in (made, IMPORTED, server.first_key):
                answer = asking.post("/v2/keys/verify", json={"key": text}).json()
                assert answer["code"] == "valid", answer

    def hashed_anew() -> bool:
        now = result_of(server.cli("master-key", "status", "--json"))
        return not {"secrets", "service_keys"} & set(now[0]["hashed_under_it"])

    wait_until(hashed_anew)
    with server.client(service) as asking:
        for text in (made, IMPORTED):
            assert asking.post("/v2/keys/verify", json={"key": text}).json()["code"] == "valid"
    server.stop()
    with open_deployment(config) as runner:
        assert versions(runner) == {2}
        assert holds(runner)


@pytest.fixture
def stopped(tmp_path: Path, storage_url: str) -> Server:
    """Create a stopped deployment."""
    server = Server(tmp_path / "data", database_url=storage_url)
    with open_deployment(config_of(server)):
        pass
    return server


def test_a_rotation_killed_at_any_point_leaves_a_usable_deployment(
    stopped: Server,
) -> None:
    seen: set[tuple[int, bool]] = set()
    key_file = stopped.data_dir / "master.key"
    first = key_file.read_text()
    for nth in range(1, 60, 2):
        done = subprocess.run(
            [sys.executable, "-c", CRASH, str(nth), "master-key", "rotate"],
            env=stopped.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        left = (stopped.data_dir / "master.key.next").exists()
        with open_deployment(config_of(stopped)) as runner:
            version = runner.database.vault.version
            assert holds(runner), nth
        kept = key_file if version == 1 else key_file.with_name("master.key.1")
        assert kept.read_text() == first, nth
        seen.add((version, left))
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
    else:
        pytest.fail("the rotation never came to its end")
    assert nth > 3
    # The next start both undid some rotations and finished others.
    assert (1, True) in seen
    assert len({version for version, _ in seen}) > 1


def test_a_key_from_the_environment_is_rotated_to_one_from_the_operator(
    tmp_path: Path,
) -> None:
    first, second = MasterKey.generate().text, MasterKey.generate().text
    server = Server(tmp_path / "data", master_key=first)
    with open_deployment(load_config({}, {"data_dir": server.data_dir, "master_key": first})):
        pass
    assert result_of(server.cli("master-key", "rotate"), 2) == "invalid_setting"
    new = tmp_path / "new.key"
    new.write_text("not a key")
    rotate = ("master-key", "rotate", "--new-key-file", str(new))
    assert result_of(server.cli(*rotate), 2) == "invalid_master_key"
    new.write_text(first)
    assert result_of(server.cli(*rotate), 2) == "invalid_master_key"
    new.write_text(second)
    done = server.cli(*rotate)
    assert done.returncode == 0, done.stderr
    assert "change the setting" in done.stdout
    assert result_of(server.cli("master-key", "status"), 6) == "wrong_master_key"
    server.settings["master_key"] = second
    assert len(result_of(server.cli("master-key", "status", "--json"))) == 2


def test_a_usage_file_that_does_not_open_blocks_nothing(start: Callable[..., Server]) -> None:
    server = start()
    server.stop()
    for name in ("usage.db", "usage.db-wal", "usage.db-shm"):
        (server.data_dir / name).unlink(missing_ok=True)
    (server.data_dir / "usage.db").write_bytes(b"from another key" * 1000)
    server.start()
    with server.client(server.first_key) as asking:
        answer = asking.post("/v2/keys/verify", json={"key": server.first_key}).json()
        assert answer["code"] == "valid"

        def counted() -> Any:  # noqa: ANN401 - JSON values
            listed = asking.get("/v2/keys").json()["keys"]
            return listed[0]["secrets"][0]["last_used"]

        wait_until(counted)
    assert "usage.db can't be opened" in server.output
    assert len(list(server.data_dir.glob("usage.db.unreadable-*"))) == 1


def test_master_key_commands_refuse_a_folder_without_a_deployment(tmp_path: Path) -> None:
    server = Server(tmp_path / "nothing")
    for arguments in (("master-key", "rotate"), ("backup", "x")):
        assert result_of(server.cli(*arguments), 2) == "invalid_setting"
    assert not server.data_dir.exists()


def lines(done: subprocess.CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_backup_from_before_a_rotation_is_restored_with_the_kept_key(
    start: Callable[..., Server], storage_url: str, tmp_path: Path
) -> None:
    elsewhere = tmp_path / "keys" / "wardkey.key"
    elsewhere.parent.mkdir()
    server = start(database_url=storage_url, master_key_file=elsewhere)
    file, other = tmp_path / "before.wardkey", tmp_path / "other"
    with server.owner() as owner:
        made = owner.post("/v2/keys", json={"name": "revoked", "type": "secret"}).json()
        client = owner.post("/v2/clients", json={"username": "agent"}).json()["client"]["id"]
        result_of(server.cli("backup", str(file), "--json"))
        server.stop()
        assert f"\n  {elsewhere}.1\n" in lines(server.cli("master-key", "rotate"))
        server.start()
    first, second = elsewhere.with_name("wardkey.key.1"), elsewhere.read_text()
    with server.owner() as owner:
        assert owner.delete(f"/v2/keys/{made['key']['id']}").status_code == 200
        # Its digest is carried over and was computed under the second master key.
        password = owner.post(f"/v2/clients/{client}/password").json()["password"]
        org_id = owner.get("/v2/organization").json()["id"]
    server.stop()

    result_of(server.cli("restore", str(file), "--json"))

    assert elsewhere.read_text() == second
    status = result_of(server.cli("master-key", "status", "--json"))
    assert [item["kept_file"] for item in status] == [str(first), None]
    config = replace(config_of(server), master_key_file=str(elsewhere))
    with open_deployment(config) as runner:
        assert holds(runner)
        login = find_login(runner.database, VerifiedPasswords(), f"agent@{org_id}", password)
        assert login is not None
    server.start()
    with server.client(server.first_key) as asking:
        for text, code in ((made["secret"], "revoked"), (server.first_key, "valid")):
            assert asking.post("/v2/keys/verify", json={"key": text}).json()["code"] == code
    server.stop()

    # A new machine, first with only the current master key, then with the old one too.
    shutil.copytree(elsewhere.parent, other / "keys")
    there = Server(other / "data", master_key_file=other / "keys" / "wardkey.key")
    (other / "keys" / "wardkey.key.1").unlink()
    done = there.cli("restore", str(file), "--accept-lost-revocations")
    assert result_of(done, 2) == "invalid_backup"
    assert "made under master key 1; neither the present key nor a kept one opens it" in done.stderr
    assert f"Restore master key 1 as {other}/keys/wardkey.key.1," in done.stderr
    accepted = ("--accept-lost-revocations", f"--backup-key-file={first}")
    lines(there.cli("restore", str(file), *accepted))
    assert result_of(there.cli("master-key", "status", "--json"))[1]["current"]
    there.start()
    with there.client(server.first_key) as asking:
        answer = asking.post("/v2/keys/verify", json={"key": server.first_key}).json()
    assert answer["code"] == "valid"
    there.kill()


def test_a_backup_without_a_key_name_is_also_opened_with_the_kept_key(
    stopped: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("wardkey.db.backup._salt", lambda _: os.urandom(16))
    file = tmp_path / "old.wardkey"
    with open_deployment(config_of(stopped)) as runner:
        write_backup(runner.database, file)
    assert named_version(file) is None
    lines(stopped.cli("master-key", "rotate"))
    lines(stopped.cli("restore", str(file), "--accept-lost-revocations"))
    assert len(result_of(stopped.cli("master-key", "status", "--json"))) == 2


def test_a_kept_key_is_removed_after_confirmation(stopped: Server, tmp_path: Path) -> None:
    file, kept = tmp_path / "old.wardkey", stopped.data_dir / "master.key.1"
    result_of(stopped.cli("backup", str(file), "--json"))
    lines(stopped.cli("master-key", "rotate"))
    assert stopped.cli_here("master-key", "forget", "1", typed="no\n").exit_code == 1
    assert kept.exists()
    assert stopped.cli_here("master-key", "forget", "1", typed="1\n").exit_code == 0
    assert not kept.exists()
    done = stopped.cli("master-key", "forget", "1", "--yes")
    assert result_of(done, 5) == "master_key_not_kept"
    done = stopped.cli("restore", str(file), "--accept-lost-revocations")
    assert result_of(done, 2) == "invalid_backup"
    assert "was made under master key 1" in done.stderr


def test_a_kept_key_is_never_replaced_by_another(stopped: Server) -> None:
    kept = stopped.data_dir / "master.key.1"
    kept.write_text("something else")
    key = (stopped.data_dir / "master.key").read_text()
    assert result_of(stopped.cli("master-key", "rotate"), 6) == "unwritable_file"
    assert kept.read_text() == "something else"
    assert (stopped.data_dir / "master.key").read_text() == key
