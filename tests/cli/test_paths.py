"""Bad paths: every command names the path in one line and never ends in a traceback."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.test_backup import config_of
from tests.support.server import Server
from wardkey.db.backup import write_backup
from wardkey.deployment import open_deployment

# The shortest form of each command that reads or writes a deployment.
COMMANDS = (
    "up",
    "reload",
    "doctor",
    "backup {safe}/copy",
    "restore {safe}/backup",
    "master-key rotate",
    "master-key status",
    "master-key forget 1 --yes",
    "org list",
    "org create Umbrella --owner a@b.example",
    "setup-link owner@acme.example",
    "service-key list",
    "hook list",
    "audit verify",
    "audit head",
    "audit export --org deployment",
    (
        "broker settings --server-name=n --listen=127.0.0.1:4222 --mqtt-listen=127.0.0.1:1883 "
        "--websocket-listen=127.0.0.1:8984 --store-dir={safe}"
    ),
)
# Every other argument that is a path; {path} is replaced.
PATHS = (
    "backup {path}",
    "backup --force {path}",
    "restore {path}",
    "restore {safe}/backup --backup-key-file {path}",
    "master-key rotate --new-key-file {path}",
    "audit verify --head {path}",
    "up --tls-cert {path} --tls-key {path}",
    "up --broker-ca {path}",
    "up --nats-server {path} --workers 65",
    "up --master-key-file {path}",
    "doctor --master-key-file {path}",
    "org list --master-key-file {path}",
    "master-key status --master-key-file {path}",
    "up --database-url sqlite:///{path}",
    "doctor --database-url sqlite:///{path}",
    "doctor --tls-cert {path} --tls-key {path}",
)
# A folder, a missing path, a path below a file, and a system folder.
PLACES = ("{folder}", "{folder}/nowhere/file", "{folder}/file/below", "/proc/nowhere/file")
FAILED = re.compile(r"^(wardkey: [a-z_]+: |Usage: |fault )", re.MULTILINE)

# Runs each command of a JSON list in one process; prints their exit codes and output.
SEVERAL = """
import json, sys
from click.testing import CliRunner
from wardkey.cli import main
done = [CliRunner().invoke(main, args) for args in json.loads(sys.argv[1])]
print(json.dumps([[one.exit_code, one.output, repr(one.exception)] for one in done]))
"""


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Server:
    """Create a stopped deployment with a backup and a few other files beside it."""
    folder = tmp_path_factory.mktemp("paths")
    server = Server(folder / "data")
    (folder / "file").touch()
    (folder / "safe").mkdir()
    with open_deployment(config_of(server)) as runner:
        write_backup(runner.database, folder / "safe" / "backup")
    return server


def filled(server: Server, command: str, path: str = "") -> list[str]:
    folder = server.data_dir.parent
    place = path.format(folder=folder)
    return [part.format(safe=folder / "safe", path=place) for part in command.split()]


def check(code: int, output: str, exception: object) -> None:
    assert code != 0, output
    assert exception is None or isinstance(exception, SystemExit), exception
    assert "Traceback" not in output
    assert FAILED.search(output), output


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", PATHS)
def test_no_path_ends_in_a_traceback(deployment: Server, command: str, place: str) -> None:
    done = deployment.cli_here(*filled(deployment, command, place))
    check(done.exit_code, done.output, done.exception)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("command", COMMANDS)
def test_no_data_folder_ends_in_a_traceback(deployment: Server, command: str, place: str) -> None:
    if place in PLACES[:2] and command == "up":
        pytest.skip("there it makes a deployment")
    there = Server(Path(place.format(folder=deployment.data_dir.parent)))
    done = there.cli_here(*filled(deployment, command))
    check(done.exit_code, done.output, done.exception)


@pytest.mark.parametrize("mode", [0o000, 0o500])
def test_a_data_folder_without_permissions_is_named(deployment: Server, mode: int) -> None:
    commands = [filled(deployment, c) for c in COMMANDS if c != "reload"]
    deployment.data_dir.chmod(mode)
    try:
        results = without_rights(deployment, commands)
    finally:
        deployment.data_dir.chmod(0o700)
    for command, (code, output, exception) in zip(commands, results, strict=True):
        assert code in (6, 8), (command, output, exception)
        assert str(deployment.data_dir) in output, command
        assert "SystemExit" in exception, command


def test_an_unreadable_or_unwritable_file_or_folder_is_named(deployment: Server) -> None:
    locked = deployment.data_dir.parent / "locked"
    locked.mkdir(mode=0o500)
    secret = deployment.data_dir.parent / "secret"
    shutil.copy(deployment.data_dir.parent / "safe" / "backup", secret)
    secret.chmod(0)
    commands = [
        ["backup", str(locked / "copy")],
        ["restore", str(secret)],
        ["master-key", "rotate", "--new-key-file", str(secret)],
        ["org", "list", "--master-key-file", str(secret)],
        ["audit", "verify", "--head", str(secret)],
        ["up", "--data-dir", str(locked / "data")],
    ]
    results = without_rights(deployment, commands)
    for command, (code, output, exception) in zip(commands, results, strict=True):
        assert code != 0, command
        assert str(locked if str(locked) in " ".join(command) else secret) in output, command
        assert "SystemExit" in exception, (command, output, exception)


def without_rights(server: Server, commands: list[list[str]]) -> list[tuple[int, str, str]]:
    """Run commands as an unprivileged user, because root ignores file permissions."""
    drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    done = subprocess.run(
        [*(drop if os.geteuid() == 0 else []), sys.executable, "-c", SEVERAL, json.dumps(commands)],
        env=server.environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    results: list[tuple[int, str, str]] = json.loads(done.stdout.splitlines()[-1])
    return results
