from __future__ import annotations

import json
import os
import pty
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, func, select

from tests.cli.test_backup import config_of
from tests.support.server import Server
from wardkey.db.schema import audit_events, audit_heads
from wardkey.deployment import open_deployment

OWNER = "owner@umbrella.example"


@pytest.fixture
def stopped(tmp_path: Path, storage_url: str) -> Server:
    """Create a stopped deployment with the organization umbrella."""
    server = Server(
        tmp_path / "data", database_url=storage_url, public_url="https://keys.acme.example"
    )
    with open_deployment(config_of(server)):
        pass
    says(server, "org", "create", "Umbrella", "--owner", OWNER)
    return server


def says(server: Server, *args: str, code: int = 0, typed: str = "") -> str:
    """Run a command and return its output, or its error code."""
    done = server.cli_here(*args, typed=typed)
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr.partition("wardkey: ")[2].partition(":")[0]


def data(server: Server, *args: str) -> Any:  # noqa: ANN401 - JSON values
    return json.loads(says(server, *args, "--json"))


def events(server: Server) -> int:
    with open_deployment(config_of(server)) as runner, runner.database.read() as tx:
        return tx.connection.execute(select(func.count()).select_from(audit_events)).scalar_one()


def test_organizations_are_created_listed_suspended_and_deleted(stopped: Server) -> None:
    made = data(stopped, "org", "create", "Acme", "--owner", OWNER, "--slug", "acme-2")
    assert made["slug"] == "acme-2"
    assert made["setup_link"].startswith("https://keys.acme.example/setup/")
    assert says(stopped, "org", "list").startswith("acme-2 ")
    assert [item["slug"] for item in data(stopped, "org", "list")] == ["acme-2", "umbrella"]
    assert "suspended." in says(stopped, "org", "suspend", "acme-2")
    assert data(stopped, "org", "list")[0]["suspended"]
    assert not data(stopped, "org", "resume", made["id"])["suspended"]
    assert "deleted." in says(stopped, "org", "delete", "acme-2", "--yes")
    assert [item["slug"] for item in data(stopped, "org", "list")] == ["umbrella"]
    assert data(stopped, "org", "delete", "umbrella", "--yes")["deleted"]
    assert says(stopped, "org", "list").startswith("No organizations yet")
    assert data(stopped, "org", "list") == []


def test_a_refused_command_has_an_error_code_and_an_exit_code(stopped: Server) -> None:
    for command, code, name in [
        (("org", "suspend", "nobody"), 5, "organization_not_found"),
        (("org", "delete", "nobody", "--yes"), 5, "organization_not_found"),
        (
            ("org", "create", "Umbrella", "--slug", "umbrella", "--owner", OWNER),
            6,
            "duplicate_slug",
        ),
        (("org", "create", "Acme", "--slug", "A b", "--owner", OWNER), 2, "invalid_slug"),
        (("org", "create", "Acme", "--owner", "nobody"), 2, "invalid_email"),
        (("setup-link", "nobody@acme.example"), 5, "user_not_found"),
        (("service-key", "create", "gateway", "--allow", "anywhere"), 2, "invalid_address"),
        (("service-key", "revoke", "nothing"), 5, "service_key_not_found"),
        (("audit", "verify", "--org", "nobody"), 5, "organization_not_found"),
        (("audit", "export", "--org", "nobody"), 5, "organization_not_found"),
    ]:
        before = events(stopped)
        assert says(stopped, *command, code=code) == name
        assert events(stopped) == before


def test_a_folder_without_a_deployment_is_reported_and_left_unchanged(tmp_path: Path) -> None:
    server = Server(tmp_path / "none")
    for command in (
        ("org", "list"),
        ("setup-link", OWNER),
        ("service-key", "list"),
        ("audit", "verify"),
        ("audit", "head"),
    ):
        assert says(server, *command, code=5) == "deployment_not_found"
    assert not server.data_dir.exists()


@pytest.mark.parametrize("typed", ["", "\n", "wrong\n", "Umbrella\n"])
def test_a_declined_confirmation_changes_nothing_and_says_so(stopped: Server, typed: str) -> None:
    before = events(stopped)
    done = stopped.cli_here("org", "delete", "umbrella", typed=typed)
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "wardkey: not_confirmed: Nothing was changed: type umbrella" in done.stderr
    assert events(stopped) == before


def test_a_given_confirmation_is_enough(stopped: Server) -> None:
    assert "deleted." in says(stopped, "org", "delete", "umbrella", typed="umbrella\n")


def test_a_link_contains_the_address_where_the_server_was_reached(
    start: Callable[..., Server],
) -> None:
    server = start()  # on a port chosen by the kernel
    assert not server.url.endswith(":0")
    link = server.cli("setup-link", "owner@acme.example").stdout.strip()
    assert link.startswith(f"{server.url}/setup/")
    made = data(server, "org", "create", "Umbrella", "--owner", OWNER)
    assert made["setup_link"].startswith(f"{server.url}/setup/")
    with server.client() as anonymous:
        body = {"token": link.rpartition("/")[2], "password": "a password of some length"}
        assert anonymous.post("/v2/setup", json=body).status_code == 201


def test_a_link_without_a_known_address_is_refused_before_it_is_created(stopped: Server) -> None:
    stopped.settings["public_url"] = ""
    before = events(stopped)
    for command in (("setup-link", OWNER), ("org", "create", "Acme", "--owner", OWNER)):
        assert says(stopped, *command, code=2) == "invalid_setting"
    assert events(stopped) == before
    output = says(stopped, "setup-link", OWNER, "--public-url", "https://other.acme.example/")
    assert output.startswith("https://other.acme.example/setup/")


def test_service_keys_are_created_listed_and_revoked(stopped: Server) -> None:
    assert says(stopped, "service-key", "list").startswith("No service keys yet")
    text = says(stopped, "service-key", "create", "first", "--allow", "192.0.2.0/24")
    assert text.startswith("wsk_")
    made = data(
        stopped, "service-key", "create", "second", "--allow", "::1", "--allow", "127.0.0.1"
    )
    assert made["allowed_addresses"] == ["::1/128", "127.0.0.1/32"]
    assert made["secret"].startswith("wsk_")
    listed = data(stopped, "service-key", "list")
    assert [item["name"] for item in listed] == ["first", "second"]
    assert made["secret"] not in json.dumps(listed)
    assert "second" in says(stopped, "service-key", "revoke", made["kid"])
    assert data(stopped, "service-key", "list")[1]["revoked_at"]
    assert f"{made['kid']}  revoked" in says(stopped, "service-key", "list")


def test_hook_tokens_are_created_listed_and_revoked(stopped: Server) -> None:
    assert says(stopped, "hook", "list").startswith("No hook tokens yet")
    assert says(stopped, "hook", "create", "emqx").startswith("wht_")
    bound = ("--organization", "umbrella", "--environment", "test")
    before = events(stopped)
    made = data(stopped, "hook", "create", "mosquitto", *bound)
    assert events(stopped) == before + 1
    assert (made["kind"], made["environment"]) == ("mosquitto", "test")
    assert made["secret"].startswith("wht_")
    listed = data(stopped, "hook", "list")
    assert [(item["kind"], item["organization_id"]) for item in listed] == [
        ("emqx", None),
        ("mosquitto", made["organization_id"]),
    ]
    assert made["secret"] not in json.dumps(listed)
    assert "all organizations" in says(stopped, "hook", "list")
    assert "mosquitto" in says(stopped, "hook", "revoke", made["kid"])
    assert data(stopped, "hook", "list")[1]["revoked_at"]
    says(stopped, "hook", "revoke", made["kid"])
    assert events(stopped) == before + 2


@pytest.mark.parametrize(
    "args",
    [
        ("mosquitto",),
        ("emqx", "--organization", "umbrella"),
        ("emqx", "--environment", "live"),
    ],
)
def test_a_hook_that_could_not_keep_organizations_apart_is_refused(
    stopped: Server, args: tuple[str, ...]
) -> None:
    before = data(stopped, "hook", "list")
    assert says(stopped, "hook", "create", *args, code=2) == "invalid_hook"
    assert data(stopped, "hook", "list") == before


def test_chains_are_verified_and_their_heads_exported_as_lines_or_json(
    stopped: Server, tmp_path: Path
) -> None:
    assert "umbrella: 1 events, intact" in says(stopped, "audit", "verify")
    lines = says(stopped, "audit", "head")
    as_json = data(stopped, "audit", "head")
    assert [line.split()[0] for line in lines.splitlines()] == [i["org_id"] for i in as_json]
    assert as_json[0]["name"] == "deployment"
    file = tmp_path / "heads"
    for kept in (lines, json.dumps(as_json)):
        file.write_text(kept)
        chains = data(stopped, "audit", "verify", "--head", str(file))
        assert all(item["holds"] and item["checked_against_head"] for item in chains)
    says(stopped, "org", "create", "Acme", "--owner", OWNER)
    output = says(stopped, "audit", "verify", "--head", str(file))
    assert "acme: 1 events, intact (not checked against a head)" in output
    args = ("audit", "verify", "--head", str(file), "--org")
    assert data(stopped, *args, "umbrella")[0]["holds"]
    assert says(stopped, *args, "acme", code=2) == "invalid_setting"
    for wrong in ("a b c", "[1]", "[{}]", "[", "one"):
        file.write_text(wrong)
        assert says(stopped, "audit", "verify", "--head", str(file), code=2) == "invalid_setting"


def test_a_truncated_or_removed_chain_is_detected_with_its_head(
    stopped: Server, tmp_path: Path
) -> None:
    file = tmp_path / "heads"
    file.write_text(says(stopped, "audit", "head"))
    org_id = data(stopped, "org", "list")[0]["id"]
    with (
        open_deployment(config_of(stopped)) as runner,
        runner.database.writer.begin() as connection,
    ):
        connection.execute(delete(audit_events).where(audit_events.c.org_id == org_id))
        connection.execute(delete(audit_heads).where(audit_heads.c.org_id == org_id))
    assert data(stopped, "audit", "verify")[1]["events"] == 0
    args = ("audit", "verify", "--head", str(file))
    assert says(stopped, *args, code=6) == "audit_broken"
    assert "names an event that no longer exists" in stopped.cli_here(*args).stdout


def test_the_chain_of_a_deleted_organization_still_verifies(stopped: Server) -> None:
    org_id = data(stopped, "org", "delete", "umbrella", "--yes")["id"]
    assert org_id in [item["org_id"] for item in data(stopped, "audit", "verify")]
    assert data(stopped, "audit", "verify", "--org", org_id)[0]["events"] == 2
    assert "organization.deleted" in says(stopped, "audit", "export", "--org", org_id)


def test_events_are_exported_as_json_lines_or_as_a_list(stopped: Server) -> None:
    says(stopped, "org", "suspend", "umbrella")
    lines = [
        json.loads(line)
        for line in says(stopped, "audit", "export", "--org", "umbrella").splitlines()
    ]
    assert [event["action"] for event in lines] == [
        "organization.created",
        "organization.suspended",
    ]
    assert lines == data(stopped, "audit", "export", "--org", "umbrella")


def test_a_terminal_shows_column_headings_and_a_pipe_does_not(stopped: Server) -> None:
    plain = says(stopped, "org", "list").splitlines()
    pid, terminal = pty.fork()
    if not pid:
        command = [sys.executable, "-m", "wardkey", "org", "list"]
        os.execve(command[0], command, stopped.environment)  # noqa: S606 - the pty is its terminal
    output = b""
    with suppress(OSError):  # reading a closed terminal raises it
        while more := os.read(terminal, 65_536):
            output += more
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    first, *rest = output.decode().splitlines()
    assert first.split() == ["SLUG", "STATE", "ID", "NAME"]
    assert rest == plain
    assert rest[0].index("active") == first.index("STATE")


@pytest.mark.parametrize("group", ["org", "hook", "audit", "service-key", "master-key", "broker"])
def test_the_help_of_a_group_truncates_no_sentence(stopped: Server, group: str) -> None:
    assert "..." not in says(stopped, group, "--help").partition("Commands:")[2]
