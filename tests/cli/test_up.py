from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import httpx2 as httpx
import pytest

from tests.support.server import Server, wait_until


def refused(data_dir: Path, *args: str, **environ: str) -> tuple[int, str]:
    """Run `wardkey up` that should not start; return its exit code and the failure's code."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("WARDKEY_")}
    done = subprocess.run(
        [sys.executable, "-m", "wardkey", "up", "--data-dir", str(data_dir), *args],
        env={**clean, **environ},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    return done.returncode, done.stderr.strip().splitlines()[-1].split(": ")[1]


def test_unsafe_and_unknown_settings_are_refused_and_create_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    assert refused(data, "--listen", "0.0.0.0:0") == (2, "unsafe_listen")
    assert refused(data, "--listen", "nowhere") == (2, "invalid_setting")
    assert refused(data, "--tls-cert", "x.pem") == (2, "invalid_setting")
    assert refused(data, "--brand", "A b") == (2, "invalid_setting")
    assert refused(data, WARDKEY_LISTENN="127.0.0.1:0") == (2, "unknown_setting")
    assert refused(data, WARDKEY_WORKERS="many") == (2, "invalid_setting")
    remote = "postgresql://db.acme.example/wardkey"
    assert refused(data, "--database-url", remote) == (2, "unsafe_database")
    assert not data.exists()


def test_a_remote_broker_is_never_reached_without_tls(tmp_path: Path) -> None:
    server = Server(tmp_path / "data")
    inside = {"broker": "tls://broker.acme.example:4222"}
    for settings, code, field in (
        ({"mqtt_listen": "0.0.0.0:0"}, "unsafe_listen", "mqtt_listen"),
        ({"websocket_listen": "0.0.0.0:0"}, "unsafe_listen", "websocket_listen"),
        ({"broker": "nats://broker.acme.example:4222"}, "unsafe_broker", "broker"),
        ({**inside, "broker_mqtt": "mqtt://broker.acme.example:1"}, "unsafe_broker", "broker_mqtt"),
        ({**inside, "broker_ca": "missing.pem"}, "invalid_setting", "broker_ca"),
    ):
        options = [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]
        server.settings["no_messaging"] = 0
        done = server.cli_here("up", *options)
        assert done.exit_code == 2
        assert done.stderr.startswith(f"wardkey: {code}: ")
        assert field in done.stderr.replace("-", "_")
    assert not server.data_dir.exists()


def test_later_starts_show_no_secret_and_every_secret_starts_with_the_brand(
    start: Callable[..., Server],
) -> None:
    server = start(brand="acme")
    assert server.first_key.startswith("acme_sk_live_")
    assert (server.data_dir.stat().st_mode & 0o777) == 0o700
    assert ((server.data_dir / "master.key").stat().st_mode & 0o777) == 0o600
    assert server.stop() == 0
    assert not (server.data_dir / "wardkey.db-wal").exists()
    server.start()
    assert server.output.count("acme_sk_live_") == 1
    assert server.output.count("/setup/") == 1
    with server.client(server.first_key) as client:
        assert client.get("/v2/keys").status_code == 200


def test_a_wrong_or_missing_master_key_is_reported(start: Callable[..., Server]) -> None:
    server = start()
    server.stop()
    key = server.data_dir / "master.key"
    right = key.read_text()
    key.write_text("ab" * 32 + "\n")
    assert refused(server.data_dir, "--listen", "127.0.0.1:0") == (6, "wrong_master_key")
    key.write_text("short\n")
    assert refused(server.data_dir, "--listen", "127.0.0.1:0") == (2, "invalid_master_key")
    key.unlink()
    assert refused(server.data_dir, "--listen", "127.0.0.1:0") == (6, "master_key_missing")
    assert not key.exists()
    key.write_text(right)
    server.start()


def test_a_database_of_a_newer_version_is_reported(start: Callable[..., Server]) -> None:
    from wardkey.config import load_config
    from wardkey.deployment import open_deployment

    server = start()
    server.stop()
    config = load_config({}, {"data_dir": server.data_dir})
    with open_deployment(config) as runner, runner.database.writer.begin() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    assert refused(server.data_dir, "--listen", "127.0.0.1:0") == (6, "database_newer")
    report = server.cli("doctor")
    assert report.returncode == 6
    assert "database_newer" in report.stdout


def test_sigterm_finishes_running_requests_and_loses_no_counter(
    start: Callable[..., Server],
) -> None:
    server = start(workers=2, cold=True)
    with server.client(server.first_key) as client:
        key_id = client.get("/v2/keys").json()["keys"][0]["id"]
        made = client.post("/v2/keys", json={"name": "live-drained", "type": "secret"}).json()
        response = client.post(
            "/v2/keys/verify", json={"key": made["secret"], "user_agent": "drained/1"}
        )
        assert response.json()["valid"]
    assert server.stop() == 0
    server.start()
    with server.client(server.first_key) as client:
        used = client.get(f"/v2/keys/{made['key']['id']}").json()["secrets"][0]["last_used"]
        assert used["user_agent"] == "drained/1"
        assert client.get(f"/v2/keys/{key_id}").status_code == 200


def test_only_workers_have_settings_in_their_environment(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    seen, key = tmp_path / "seen", tmp_path / "key"
    key.write_text("6c" * 32)
    command = f"sh -c 'cat /proc/$$/environ > {seen}; cat {key}'"
    server = start(
        around={"PGPASSWORD": "of-a-database", "AWS_PROFILE": "ops"},
        workers=2,
        no_messaging=0,
        metrics_token="of-metrics-0123456789abcdef",
        master_key_command=command,
    )
    assert server.process is not None
    group = server.process.pid
    others = [
        pid
        for pid in (int(process.name) for process in Path("/proc").glob("[0-9]*"))
        if pid not in (group, *server.workers()) and group_of(pid) == group
    ]
    # The broker has its own process group.
    others.append(server.broker())
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in others]
    assert sorted("nats-server" in command for command in commands) == [False, True]
    for pid in others:
        assert "WARDKEY_" not in Path(f"/proc/{pid}/environ").read_text()
    broker = Path(f"/proc/{server.broker()}/environ").read_text()
    assert "PATH=" in broker
    assert "PGPASSWORD" not in broker
    # The command that prints the master key keeps cloud credentials but gets no Wardkey settings.
    variables = seen.read_text()
    assert "AWS_PROFILE=ops" in variables
    assert "WARDKEY_" not in variables


def group_of(pid: int) -> int:
    with suppress(OSError):
        return os.getpgid(pid)
    return 0


def test_workers_end_with_their_supervisor(
    start: Callable[..., Server],
) -> None:
    server = start(workers=2, cold=True)
    workers = server.workers()
    assert server.process is not None
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(10)
    wait_until(lambda: not any(Path(f"/proc/{pid}/fd/0").exists() for pid in workers), 20)
    server.start()


def test_a_starting_worker_ends_with_its_supervisor_too(start: Callable[..., Server]) -> None:
    server = start(workers=2, cold=True)
    assert server.process is not None
    before = server.workers()
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: set(server.workers()) - set(before), 20)
    (new,) = set(server.workers()) - set(before)
    os.kill(server.process.pid, signal.SIGKILL)
    server.process.wait(10)
    wait_until(lambda: not any(Path(f"/proc/{pid}/fd/0").exists() for pid in (*before, new)), 20)


def test_verification_continues_while_a_full_disk_refuses_writes(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=12m", "tmpfs", str(small)], check=False
    )
    if mounted.returncode != 0:
        pytest.skip("only root may mount the small disk that this fills")
    try:
        server = start(small / "data")
        with server.client(server.first_key) as client:
            (small / "ballast").write_bytes(b"")
            with (small / "ballast").open("ab", buffering=0) as ballast:
                try:
                    while True:
                        ballast.write(bytes(4096))
                except OSError:
                    pass
            codes = set()
            for n in range(40):
                answer = client.post("/v2/keys", json={"name": f"live-f-{n}", "type": "secret"})
                codes.add(answer.json().get("code", "made"))
                if answer.status_code == 503:
                    break
            assert "storage_full" in codes
            response = client.post("/v2/keys/verify", json={"key": server.first_key})
            assert response.json()["code"] == "valid"
            before = client.get("/v2/keys").json()["total"]
            (small / "ballast").unlink()
            made = client.post("/v2/keys", json={"name": "live-after", "type": "secret"})
            assert made.status_code == 201, made.text
            assert client.get("/v2/keys").json()["total"] == before + 1
            assert client.get("/v2/audit-events/verify").json()["holds"]
        server.kill()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_an_unwritable_folder_is_reported(start: Callable[..., Server], tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(small)]
    if subprocess.run(mount, check=False).returncode != 0:
        pytest.skip("only root may mount the disk that this makes read-only")
    try:
        server = start(small / "data")
        assert server.stop() == 0
        subprocess.run(["mount", "-o", "remount,ro", str(small)], check=True)
        for folder in ("data", "new"):
            refused = server.cli("up", WARDKEY_DATA_DIR=str(small / folder))
            assert refused.returncode == 8
            assert "cannot be written" in refused.stderr
            assert "Traceback" not in refused.stderr
        subprocess.run(["mount", "-o", "remount,rw", str(small)], check=True)
        server.start()
        server.kill()
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_a_file_cannot_be_the_data_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        refused = Server(path).cli("up")
        assert refused.returncode == 2
        assert "data folder" in refused.stderr


def test_a_first_start_that_cannot_show_its_key_creates_none(tmp_path: Path) -> None:
    server = Server(tmp_path / "data")
    with Path("/dev/full").open("wb") as full:
        failed = subprocess.run(
            [sys.executable, "-m", "wardkey", "up"],
            env=server.environment,
            stdout=full,
            stderr=subprocess.DEVNULL,
            timeout=30,
            check=False,
        )
    assert failed.returncode != 0
    server.start()
    try:
        assert server.setup_token
        with server.client(server.first_key) as client:
            assert client.get("/v2/keys").json()["total"] == 1
    finally:
        server.kill()


@pytest.mark.parametrize("after", ["One-time set-up link", "First secret key", "Master key:"])
def test_the_last_key_shown_works_whenever_the_first_start_is_killed(
    tmp_path: Path, after: str
) -> None:
    server = Server(tmp_path / "data")
    with (
        server.log.open("wb") as log,
        subprocess.Popen(
            [sys.executable, "-m", "wardkey", "up"],
            env={**server.environment, "PYTHONUNBUFFERED": "1"},
            stdout=log,
            stderr=log,
        ) as process,
    ):
        wait_until(lambda: after in server.output)
        process.kill()
    server.start()
    try:
        last = re.findall(r"sk_live_\w+", server.output)[-1]
        with server.client(last) as client:
            assert client.get("/v2/keys").status_code == 200
    finally:
        server.kill()


def test_only_a_trusted_proxy_can_set_the_client_address(start: Callable[..., Server]) -> None:
    secret = ""
    for trusted in ("127.0.0.0/8", "203.0.113.1"):
        server = start(behind_proxy=True, trusted_proxies=trusted)
        if not secret:
            wanted = {
                "name": "live-behind-proxy",
                "type": "secret",
                "allowed_addresses": ["198.51.100.7"],
            }
            with server.client(server.first_key) as client:
                secret = client.post("/v2/keys", json=wanted).json()["secret"]
        with httpx.Client(base_url=server.url) as proxy:
            answer = proxy.get(
                "/v2/auth",
                headers={
                    "Authorization": f"Bearer {secret}",
                    "X-Forwarded-For": "192.0.2.1, 198.51.100.7",
                },
            )
        expected = "valid" if trusted == "127.0.0.0/8" else "address_not_allowed"
        assert answer.headers["wardkey-verdict"] == expected
        server.stop()


def test_files_in_a_folder_open_to_others_are_private_to_the_owner(
    tmp_path: Path, start: Callable[..., Server]
) -> None:
    data = tmp_path / "open"
    data.mkdir()
    data.chmod(0o755)
    start(data)
    files = [path for path in data.rglob("*") if path.is_file()]
    assert {path.name for path in files} >= {"url", "usage.db"}
    assert not [path for path in files if path.stat().st_mode & 0o077]
