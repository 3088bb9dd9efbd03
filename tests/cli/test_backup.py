from __future__ import annotations

import json
import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from sqlalchemy import func, insert, select

from tests.support.server import PASSWORD, Server
from wardkey.actions.core.audit_walks import verify_chain
from wardkey.actions.core.runner import Runner
from wardkey.config import Config, load_config
from wardkey.db.backup import open_backup
from wardkey.db.schema import (
    audit_events,
    audit_heads,
    feed,
    hook_tokens,
    idempotency,
    keys,
    members,
    secrets,
    service_keys,
    users,
)
from wardkey.db.vault import MasterKey
from wardkey.deployment import open_deployment
from wardkey.domain.errors import InvalidBackup
from wardkey.domain.principal import operator

# Ends the process as kill -9 does at the nth database call.
CRASH = """
import os, sys
from sqlalchemy import Engine, event
from wardkey.cli import main
point, left = sys.argv[1], [int(sys.argv[2])]
def die(*_):
    left[0] -= 1
    if left[0] == 0:
        os.kill(os.getpid(), 9)
if point == "commit":
    event.listen(Engine, "commit", die)
elif point == "rename":
    sys.addaudithook(lambda name, _: die() if name == "os.rename" else None)
else:
    def statement(conn, cursor, statement, *_):
        if statement.startswith(point):
            die()
    event.listen(Engine, "after_cursor_execute", statement)
main(sys.argv[3:])
"""

SERVICE_KEY = {
    "kid": "kidkidkidkid",
    "name": "made since",
    "prefix": "svc_kidk…",
    "digest": bytes(32),
    "pepper_version": 1,
    "allowed_addresses": ["127.0.0.1/32"],
    "created_at": 1,
}
HOOK_TOKEN = {
    "kid": "kidkidkidkid",
    "kind": "emqx",
    "prefix": "wht_kidk…",
    "digest": bytes(32),
    "pepper_version": 1,
    "created_at": 1,
}


@dataclass
class Shop:
    """A running deployment and its secrets by key name."""

    server: Server
    ids: dict[str, str]
    texts: dict[str, str]

    def issue(self, owner: httpx.Client, *names: str) -> None:
        for name in names:
            made = owner.post("/v2/keys", json={"name": name, "type": "secret"})
            assert made.status_code == 201, made.text
            self.ids[name] = made.json()["key"]["id"]
            self.texts[name] = made.json()["secret"]

    def verdict(self, name: str) -> str:
        with self.server.client(self.server.first_key) as asking:
            answer = asking.post("/v2/keys/verify", json={"key": self.texts[name]})
        assert answer.status_code == 200, answer.text
        return str(answer.json()["code"])


def result_of(done: subprocess.CompletedProcess[str], code: int = 0) -> Any:  # noqa: ANN401 - JSON values
    assert done.returncode == code, done.stdout + done.stderr
    if code == 0:
        return json.loads(done.stdout)
    failed = re.search(r"^wardkey: (\w+):", done.stderr, re.MULTILINE)
    return failed and failed[1]


def holds(runner: Runner) -> bool:
    """Return whether every audit chain of the deployment verifies."""
    with runner.database.read() as tx:
        chains = tx.connection.execute(select(audit_heads.c.org_id)).scalars().all()
    return all(verify_chain(runner.database, operator(), org_id)[1] == [] for org_id in chains)


def config_of(server: Server) -> Config:
    return load_config(
        {},
        {
            "data_dir": server.data_dir,
            "database_url": str(server.settings.get("database_url", "")),
        },
    )


@pytest.fixture
def shop(start: Callable[..., Server], storage_url: str) -> Shop:
    return Shop(start(database_url=storage_url, workers=2), {}, {})


def remove_viewer(owner: httpx.Client) -> str:
    """Remove the only viewer and return their id."""
    members = owner.get("/v2/members").json()["members"]
    viewer: str = next(one["user_id"] for one in members if one["role"] == "viewer")
    assert owner.delete(f"/v2/members/{viewer}").status_code in (200, 204)
    return viewer


def test_restore_revives_nothing_that_narrowed_since_the_backup(shop: Shop, tmp_path: Path) -> None:
    server, file = shop.server, tmp_path / "copy.wardkey"
    with server.owner() as owner:
        shop.issue(owner, "revoked", "off", "rotated", "edited", "shortened", "untouched")
        owner.post("/v2/invitations", json={"email": "gone@acme.example", "role": "admin"})
        server.person("viewer").close()
        hook = json.loads(server.cli_here("hook", "create", "emqx", "--json").stdout)
        made = result_of(server.cli("backup", str(file), "--json"))
        assert made["rows"]["keys"] == 7
        assert file.stat().st_mode & 0o777 == 0o600
        receipt = owner.post(
            f"/v2/keys/{shop.ids['revoked']}/revoke",
            json={"reason": "keyCompromise", "comment": "was in a public log"},
        ).json()
        assert owner.post(f"/v2/keys/{shop.ids['off']}/disable").status_code == 200
        shop.texts["rotated anew"] = owner.post(
            f"/v2/keys/{shop.ids['rotated']}/rotate", json={"grace": "now"}
        ).json()["secret"]
        edit = owner.patch(
            f"/v2/keys/{shop.ids['edited']}", json={"allowed_addresses": ["192.0.2.1"]}
        )
        assert edit.status_code == 200, edit.text
        edit = owner.patch(
            f"/v2/keys/{shop.ids['shortened']}", json={"expires_at": "2099-01-01T00:00:00Z"}
        )
        assert edit.status_code == 200, edit.text
        shop.issue(owner, "new")
        assert server.cli_here("hook", "revoke", hook["kid"]).exit_code == 0
        viewer = remove_viewer(owner)
        credential = owner.headers["authorization"]
    old = result_of(server.cli("restore", str(file), "--json"), 6)
    assert old == "already_running"
    server.stop()

    done = result_of(server.cli("restore", str(file), "--json"))

    carried = {(item["action"], item["target"]["id"]) for item in done["carried_over"]}
    assert {
        ("key.revoked", shop.ids["revoked"]),
        ("key.disabled", shop.ids["off"]),
        ("secret.revoked", shop.ids["rotated"]),
        ("key.updated", shop.ids["shortened"]),
        ("member.removed", viewer),
        ("hook_token.revoked", hook["kid"]),
    } <= carried
    lost = {(item["kind"], item["name"]): item["prefixes"] for item in done["lost"]}
    assert lost["key", "new"][0].rstrip("…") in shop.texts["new"]
    assert lost["secret", shop.ids["rotated"]][0].rstrip("…") in shop.texts["rotated anew"]
    assert [item["fields"] for item in done["widened"] if item["name"] == "edited"] == [
        ["allowed_addresses"]
    ]
    assert done["epoch"] != made["epoch"]
    assert done["revision"] > made["revision"]
    events = [json.loads(line) for line in Path(done["lost_audit_file"]).read_text().splitlines()]
    assert len(events) == done["lost_audit_events"]
    assert {"key.revoked", "key.rotated", "key.issued"} <= {event["action"] for event in events}

    assert " revoked " in server.cli_here("hook", "list").stdout
    server.start()
    assert {name: shop.verdict(name) for name in shop.texts} == {
        "revoked": "revoked",
        "off": "disabled",
        "rotated": "revoked",
        "rotated anew": "unknown",
        "edited": "valid",
        "shortened": "valid",
        "untouched": "valid",
        "new": "unknown",
    }
    with server.client() as anonymous:
        stale = anonymous.get("/v2/keys", headers={"authorization": credential})
        assert stale.status_code == 401
        signed_in = anonymous.post(
            "/v2/user-tokens", json={"email": "owner@acme.example", "password": PASSWORD}
        )
    assert signed_in.status_code == 201, signed_in.text
    with server.client(signed_in.json()["token"]) as owner:
        again = owner.delete(f"/v2/keys/{shop.ids['revoked']}").json()
        assert (again["id"], again["reason"]) == (receipt["id"], "keyCompromise")
        assert owner.get("/v2/audit-events/verify").json()["holds"]
    server.stop()
    with open_deployment(config_of(server)) as runner:
        assert holds(runner)


def test_a_backup_taken_while_keys_are_issued_is_consistent(shop: Shop, tmp_path: Path) -> None:
    stop, made = threading.Event(), threading.Semaphore(0)
    files = [tmp_path / f"copy-{n}.wardkey" for n in range(2)]

    def busy() -> None:
        with shop.server.client(shop.server.first_key) as client:
            for number in range(10_000):
                if stop.is_set():
                    return
                body = {"name": f"live-busy-{number}", "type": "secret"}
                assert client.post("/v2/keys", json=body).status_code == 201
                made.release()

    issuing = threading.Thread(target=busy)
    issuing.start()
    try:
        for file in files:
            while made.acquire(blocking=False):
                pass
            assert made.acquire(timeout=20)
            result_of(shop.server.cli("backup", str(file), "--json"))
    finally:
        stop.set()
        issuing.join()
    shop.server.stop()

    with open_deployment(config_of(shop.server)) as runner:
        master = runner.database.master
        counts = []
        for file in files:
            with open_backup(file, master, tmp_path) as backup:
                ask = backup.connection.execute
                issued = select(func.count()).where(audit_events.c.action == "key.issued")
                count = ask(select(func.count()).select_from(keys)).scalar_one()
                assert count == ask(issued).scalar_one()
                assert count == ask(select(func.count()).select_from(secrets)).scalar_one()
                newest = select(func.max(audit_events.c.seq)).group_by(audit_events.c.org_id)
                heads = select(audit_heads.c.seq)
                assert set(ask(heads).scalars()) == set(ask(newest).scalars())
                assert ask(select(feed.c.revision)).scalar_one() == backup.head.revision
                assert ask(select(func.count()).select_from(idempotency)).scalar_one() == 0
                counts.append(count)
        assert 1 < counts[0] < counts[1]
        with runner.database.read() as tx:
            last = tx.connection.execute(select(func.count()).select_from(keys)).scalar_one()
        assert counts[1] < last + 1
    body = file.read_bytes()
    assert master.raw not in body
    assert master.text.encode() not in body


def test_a_backup_moves_a_deployment_to_the_other_storage(
    shop: Shop, start: Callable[..., Server], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source, file = shop.server, tmp_path / "copy.wardkey"
    with source.owner() as owner:
        shop.issue(owner, "moved")
        made = owner.post(
            "/v2/keys",
            json={
                "name": "rich",
                "type": "publishable",
                "allowed_origins": ["https://app.acme.example"],
                "rate_limit": {"limit": 5, "period_s": 60, "burst": 5},
                "metadata": {"plan": "pro", "seats": 3, "ratio": 0.5, "deep": {"a": [False, {}]}},
                "expires_at": "2099-01-01T00:00:00Z",
            },
        )
        assert made.status_code == 201, made.text
        before = owner.get("/v2/keys").json()["keys"]
    result_of(source.cli("backup", str(file), "--json"))
    source.stop()
    other = ""
    if not source.settings.get("database_url"):
        other = request.getfixturevalue("postgres").create_database()
    there = Server(tmp_path / "there", database_url=other)
    there.data_dir.mkdir(mode=0o700)
    accept = "--accept-lost-revocations"
    assert result_of(there.cli("restore", str(file), accept), 6) == "master_key_missing"
    shutil.copy(source.data_dir / "master.key", there.data_dir)
    assert result_of(there.cli("restore", str(file)), 6) == "revocations_unknown"
    done = result_of(there.cli("restore", str(file), accept, "--json"))
    assert (done["carried_over"], done["lost"]) == ([], [])

    moved = start(there.data_dir, database_url=other)
    shop.server, moved.first_key = moved, source.first_key
    assert shop.verdict("moved") == "valid"
    with moved.client(moved.first_key) as client:
        assert client.get("/v2/keys").json()["keys"] == before
    assert "First secret key" not in moved.output


@pytest.fixture(scope="module")
def made(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Server, Path, Path]]:
    """Create a stopped deployment on SQLite, with a backup from before a key was revoked."""
    folder = tmp_path_factory.mktemp("made")
    server = Server(folder / "data")
    server.start()
    try:
        with server.owner() as owner:
            issued = owner.post("/v2/keys", json={"name": "k", "type": "secret"}).json()
            result_of(server.cli("backup", str(folder / "copy.wardkey"), "--json"))
            owner.delete(f"/v2/keys/{issued['key']['id']}")
        server.stop()
        with open_deployment(config_of(server)):
            pass  # folds the WAL into the file, so damaging the file has an effect
        yield server, folder / "copy.wardkey", folder / "spare"
    finally:
        server.kill()


@pytest.fixture
def stopped(made: tuple[Server, Path, Path], tmp_path: Path) -> tuple[Server, Path]:
    """Copy the shared deployment for a single test."""
    server, file, _ = made
    shutil.copytree(server.data_dir, tmp_path / "data")
    shutil.copy(file, tmp_path / "copy.wardkey")
    copy = Server(tmp_path / "data")
    copy.first_key = server.first_key
    return copy, tmp_path / "copy.wardkey"


def _statuses(server: Server) -> tuple[str, list[bool], bool]:
    """Return the epoch, which keys are revoked, and whether all chains hold."""
    with open_deployment(config_of(server)) as runner, runner.database.read() as tx:
        epoch = tx.connection.execute(select(feed.c.epoch)).scalar_one()
        revoked = tx.connection.execute(select(keys.c.revoked_at).order_by(keys.c.name))
        return epoch, [at is not None for at in revoked.scalars()], holds(runner)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda body: body[: len(body) // 2],
    "cut at a page": lambda body: body[: 4096 * 5],
    "edited": lambda body: body[:20_000] + bytes([body[20_000] ^ 1]) + body[20_001:],
    "edited at its start": lambda body: bytes([body[0] ^ 1]) + body[1:],
    "empty": lambda _: b"",
    "foreign": lambda _: b"SQLite format 3\0" + bytes(8000),
}


def test_a_damaged_backup_is_refused_and_nothing_changes(
    stopped: tuple[Server, Path],
) -> None:
    server, file = stopped
    before, body = (server.data_dir / "wardkey.db").read_bytes(), file.read_bytes()
    master = MasterKey.parse((server.data_dir / "master.key").read_text())
    for damage in DAMAGES.values():
        file.write_bytes(damage(body))
        with pytest.raises(InvalidBackup), open_backup(file, master, file.parent):
            pass
    file.write_bytes(DAMAGES["edited"](body))
    assert result_of(server.cli("restore", str(file)), 2) == "invalid_backup"
    file.unlink()
    assert result_of(server.cli("restore", str(file)), 2) == "invalid_backup"
    assert (server.data_dir / "wardkey.db").read_bytes() == before


def test_a_backup_of_another_master_key_is_refused(
    stopped: tuple[Server, Path], tmp_path: Path
) -> None:
    _, file = stopped
    with open_deployment(load_config({}, {"data_dir": tmp_path / "other"})):
        pass
    other = Server(tmp_path / "other")
    assert (
        result_of(other.cli("restore", str(file), "--accept-lost-revocations"), 2)
        == "invalid_backup"
    )


def test_a_backup_does_not_replace_a_file_without_force(stopped: tuple[Server, Path]) -> None:
    server, file = stopped
    before = file.read_bytes()
    assert result_of(server.cli("backup", str(file)), 6) == "unwritable_file"
    assert file.read_bytes() == before
    assert (
        result_of(server.cli("backup", str(file.parent / "no" / "folder")), 6) == "unwritable_file"
    )
    result_of(server.cli("backup", str(file), "--force", "--json"))
    assert file.read_bytes() != before
    assert not list(file.parent.glob("*.part"))


def test_a_backup_goes_through_a_pipe_and_back(stopped: tuple[Server, Path]) -> None:
    server, _ = stopped

    def piped(*args: str, given: bytes = b"") -> tuple[int, bytes, str]:
        done = subprocess.run(
            [sys.executable, "-m", "wardkey", *args],
            env=server.environment,
            input=given,
            capture_output=True,
            check=False,
            timeout=60,
        )
        return done.returncode, done.stdout, done.stderr.decode()

    code, copy, errors = piped("backup", "-")
    assert code == 0, errors
    assert "rows at revision" in errors
    code, out, errors = piped("restore", "-", given=copy)
    assert code == 0, errors
    assert out.startswith(b"Restored the backup of ")
    assert b"Edits made after the backup, now undone: none" in out
    assert piped("restore", "-", given=copy[:-4096])[0] == 2
    assert not [path.name for path in server.data_dir.glob("std*") if "lost" not in path.name]
    assert not Path("-").exists()


def test_a_backup_is_not_written_to_a_terminal(stopped: tuple[Server, Path]) -> None:
    server, _ = stopped
    pid, terminal = pty.fork()
    if not pid:
        command = [sys.executable, "-m", "wardkey", "backup", "-"]
        os.execve(command[0], command, server.environment)  # noqa: S606 - the pty is its terminal
    errors = b""
    with suppress(OSError):  # reading a closed terminal raises it
        while more := os.read(terminal, 65_536):
            errors += more
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 6
    assert errors.startswith(b"wardkey: unwritable_file: A backup is binary")


@pytest.mark.parametrize("state", ["missing", "junk", "damaged"])
def test_without_a_readable_database_revocations_are_unknown(
    stopped: tuple[Server, Path], state: str
) -> None:
    server, file = stopped
    database = server.data_dir / "wardkey.db"
    if state == "missing":
        database.unlink()
    elif state == "junk":
        database.write_bytes(b"junk" * 5000)
    else:
        body = database.read_bytes()
        database.write_bytes(body[:4096] + bytes(len(body) - 4096))
    assert result_of(server.cli("restore", str(file)), 6) == "revocations_unknown"
    result_of(server.cli("restore", str(file), "--accept-lost-revocations", "--json"))
    _, revoked, whole = _statuses(server)
    assert (revoked, whole) == ([False, False], True)
    kept = list(server.data_dir.glob("wardkey.db.unreadable-*"))
    assert len(kept) == (0 if state == "missing" else 1)


@pytest.mark.parametrize("storage", ["sqlite", "postgresql"])
def test_a_killed_restore_leaves_either_the_old_or_the_new_database_intact(
    stopped: tuple[Server, Path], storage: str, request: pytest.FixtureRequest
) -> None:
    server, file = stopped
    if storage == "postgresql":
        server.settings["database_url"] = request.getfixturevalue("postgres").create_database()
        result_of(server.cli("restore", str(file), "--accept-lost-revocations", "--json"))
        with open_deployment(config_of(server)) as runner, runner.database.writer.begin() as c:
            c.execute(keys.update().where(keys.c.name == "k").values(revoked_at=1, live_name=None))
    old = _statuses(server)
    for point, nth in (("DELETE", 3), ("INSERT", 4), ("commit", 3)):
        done = subprocess.run(
            [sys.executable, "-c", CRASH, point, str(nth), "restore", str(file)],
            env=server.environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == -9, (point, done)
        assert _statuses(server) == old, point
    result_of(server.cli("restore", str(file), "--json"))
    epoch, revoked, whole = _statuses(server)
    assert epoch != old[0]
    assert (revoked, whole) == ([True, False], True)


def test_restoring_over_a_damaged_file_survives_a_kill_at_each_rename(
    stopped: tuple[Server, Path],
) -> None:
    server, file = stopped
    database = server.data_dir / "wardkey.db"
    database.write_bytes(b"junk" * 5000)
    arguments = ["restore", str(file), "--accept-lost-revocations"]
    for nth in (1, 2):
        done = subprocess.run(
            [sys.executable, "-c", CRASH, "rename", str(nth), *arguments],
            env=server.environment,
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == -9, done
    result_of(server.cli(*arguments, "--json"))
    assert _statuses(server)[1:] == ([False, False], True)


def test_a_restore_keeps_the_current_owner_of_each_organization(
    stopped: tuple[Server, Path],
) -> None:
    server, file = stopped
    with open_deployment(config_of(server)) as runner, runner.database.writer.begin() as c:
        org_id, first = c.execute(select(members.c.org_id, members.c.user_id)).one()
        person = {"id": "user_new", "email": "new@acme.example", "name": "new", "created_at": 1}
        c.execute(insert(users).values(**person, email_folded=person["email"]))
        c.execute(
            insert(members).values(org_id=org_id, user_id="user_new", role="owner", created_at=1)
        )
        c.execute(members.delete().where(members.c.user_id == first))
        c.execute(insert(service_keys).values(**SERVICE_KEY))
        c.execute(insert(hook_tokens).values(**HOOK_TOKEN))
    done = result_of(server.cli("restore", str(file), "--json"))
    lost = {(item["kind"], item["id"]) for item in done["lost"]}
    assert {("service_key", "kidkidkidkid"), ("hook_token", "kidkidkidkid")} <= lost
    with open_deployment(config_of(server)) as runner, runner.database.read() as tx:
        now = tx.connection.execute(select(members.c.user_id, members.c.role)).all()
        assert [tuple(row) for row in now] == [("user_new", "owner")]
        assert holds(runner)
