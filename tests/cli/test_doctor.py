from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import update

from tests.cli.test_backup import config_of
from tests.cli.test_tls import NOW, pair, write_certificate, write_key
from tests.support.issuers import oidc_provider
from tests.support.server import Server
from wardkey.actions.core.runner import Runner
from wardkey.db.schema import audit_events, master_keys, service_keys
from wardkey.deployment import open_deployment

__all__ = ["pair"]  # a fixture


@pytest.fixture
def stopped(tmp_path: Path, storage_url: str) -> Server:
    """Create a deployment with two master keys and a service key hashed under the first."""
    server = Server(tmp_path / "data", database_url=storage_url)
    with open_deployment(config_of(server)):
        pass
    for command in (
        (
            "org",
            "create",
            "Acme",
            "--owner",
            "owner@acme.example",
            "--public-url",
            "https://a.example",
        ),
        ("service-key", "create", "gateway", "--allow", "127.0.0.1"),
        ("master-key", "rotate"),
    ):
        done = server.cli_here(*command)
        assert done.exit_code == 0, done.output
    return server


def examined(server: Server, code: int = 0) -> dict[str, str]:
    """Return doctor's findings by subject, each as `state: sentence`."""
    done = server.cli_here("doctor", "--json")
    assert done.exit_code == code, done.output
    assert done.stderr.startswith("wardkey: unhealthy_deployment: " if code else "")
    findings: dict[str, str] = {}
    for item in json.loads(done.stdout):
        findings[item["what"]] = f"{item['state']}: {item['said']}"
    return findings


@contextmanager
def tampering(server: Server) -> Iterator[Runner]:
    with open_deployment(config_of(server)) as runner:
        yield runner


def test_doctor_finds_no_fault_in_a_healthy_deployment_and_changes_nothing(stopped: Server) -> None:
    findings = examined(stopped)
    assert not [line for line in findings.values() if line.startswith("fault")]
    assert findings["peppers"].startswith(
        "ok: 2 opened; 2 stored secrets are hashed under an older"
    )
    assert findings["audit"].startswith("ok: 2 chains with ")
    text = stopped.cli_here("doctor").stdout.splitlines()
    assert [line.split(maxsplit=1)[1].partition(":")[0] for line in text][-1] == "audit"
    assert examined(stopped)["audit"] == findings["audit"]


def test_encryption_at_rest_is_provided_by_wardkey_or_confirmed(stopped: Server) -> None:
    finding = examined(stopped)["encryption at rest"]
    if not stopped.settings["database_url"]:
        assert finding == "ok: Wardkey encrypts the database's files"
        return
    assert finding.startswith("warning: Wardkey does not encrypt PostgreSQL")
    stopped.settings["database_encrypted_by_operator"] = 1
    assert examined(stopped)["encryption at rest"].startswith("ok: ")


def test_a_needed_pepper_that_does_not_open_is_a_fault(stopped: Server) -> None:
    with tampering(stopped) as runner, runner.database.writer.begin() as connection:
        connection.execute(
            update(master_keys).where(master_keys.c.version == 1).values(sealed_pepper=b"x" * 60)
        )
    findings = examined(stopped, 6)
    assert findings["peppers"].startswith(
        "fault: version 1 does not open with this master key, but 2"
    )
    assert findings["audit"].startswith("warning: not checked")
    assert stopped.cli_here("org", "list").exit_code == 6


def test_a_needed_pepper_that_is_missing_is_a_fault(stopped: Server) -> None:
    with tampering(stopped) as runner, runner.database.writer.begin() as connection:
        connection.execute(update(service_keys).values(pepper_version=9))
    assert "version 9 does not open" in examined(stopped, 6)["peppers"]
    assert stopped.cli_here("master-key", "status").exit_code == 0


def test_a_broken_audit_chain_is_a_fault_that_names_the_event(stopped: Server) -> None:
    with tampering(stopped) as runner, runner.database.writer.begin() as connection:
        connection.execute(
            update(audit_events)
            .where(audit_events.c.org_id == "deployment", audit_events.c.seq == 1)
            .values(actor_label="somebody else")
        )
    finding = examined(stopped, 6)["audit"]
    assert finding.startswith("fault: the chain of deployment is broken at event 1: it was edited")
    assert "`wardkey audit verify --org deployment`" in finding


def test_a_folder_without_a_deployment_is_a_fault_with_a_fix(tmp_path: Path) -> None:
    assert "start `wardkey up`" in examined(Server(tmp_path / "none"), 6)["data folder"]
    (tmp_path / "empty").mkdir(mode=0o700)
    findings = examined(Server(tmp_path / "empty"), 6)
    assert findings["database"] == "fault: empty; start `wardkey up` once"
    assert sorted(path.name for path in (tmp_path / "empty").iterdir()) == []


def test_doctor_reports_until_when_the_certificate_is_valid(
    tmp_path: Path, pair: tuple[Path, Path]
) -> None:
    cert, key = pair
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    server = Server(data, tls_cert=cert, tls_key=key)

    def findings() -> dict[str, str]:
        return examined(server, 6)  # the folder contains no deployment

    assert findings()["certificate"].startswith("ok: valid until ")
    assert findings()["TLS key"] == "ok: matches the certificate, 0600"
    key.chmod(0o644)
    assert findings()["TLS key"].startswith("warning: ")
    made = ec.generate_private_key(ec.SECP256R1())
    write_key(key, made)
    assert findings()["certificate"].startswith("fault: The TLS key ")
    for begin, end, state in [
        (-30, 13, "warning: valid until "),
        (-30, -1, "fault: expired at "),
        (2, 90, "fault: not valid before "),
    ]:
        days = timedelta(days=1)
        write_certificate(cert, made, NOW + end * days, NOW + begin * days)
        assert findings()["certificate"].startswith(state)


def test_doctor_reports_the_organization_that_newcomers_join(stopped: Server) -> None:
    made = json.loads(stopped.cli_here("org", "list", "--json").stdout)
    stopped.settings |= {
        "public_url": "https://keys.acme.example",
        "oidc_issuer": "http://127.0.0.1:1",
        "oidc_client_id": "wardkey",
        "oidc_domains": "acme.example",
    }
    acme = made[0]["id"]
    for reference, expected in (
        (acme, "ok: join Acme"),
        ("acme", f"warning: join Acme, found by a slug that its owner can change; set {acme}"),
        ("umbrella", "fault: there is no organization umbrella, so new users can't join"),
    ):
        stopped.settings["oidc_organization"] = reference
        # The issuer is a fault each time, because it does not exist.
        assert examined(stopped, 6)["newcomers"].startswith(expected)


def test_doctor_checks_the_sign_in_issuer(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    assert examined(Server(data), 6)["sign-in"] == "ok: with passwords and passkeys"
    with oidc_provider({}) as provider:
        server = Server(
            data,
            public_url="https://keys.acme.example",
            oidc_issuer=provider.url,
            oidc_client_id=provider.client_id,
        )
        assert examined(server, 6)["sign-in"] == (
            f"ok: {provider.url} is reachable; the redirect URI is "
            "https://keys.acme.example/sign-in/oidc/callback"
        )
    assert examined(server, 6)["sign-in"].startswith("fault: 127.0.0.1:")


def test_doctor_reports_whether_a_server_is_running(start: Callable[..., Server]) -> None:
    server = start()
    assert server.process is not None
    assert examined(server)["server"].startswith(f"ok: running as process {server.process.pid};")
    server.stop()
    findings = examined(server)
    assert findings["server"].startswith(f"ok: No server is running on {server.data_dir}")
    assert findings["listening"] == "ok: a server can listen on 127.0.0.1:0"


def test_an_old_master_key_that_others_may_read_is_a_fault(stopped: Server) -> None:
    kept = stopped.data_dir / "master.key.1"
    assert examined(stopped)["old master key 1"] == f"ok: {kept}, 0600"
    kept.chmod(0o644)
    assert examined(stopped, 6)["old master key 1"].startswith(
        "fault: other users can access it (0644)"
    )
