"""What `wardkey restore` reports about clients and ACL rules that it does not roll back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.cli.test_backup import config_of, holds, result_of
from tests.support.server import PASSWORD, Server
from wardkey.actions.messaging.client_logins import VerifiedPasswords, find_login
from wardkey.deployment import open_deployment


def test_restore_does_not_readmit_clients_blocked_since_the_backup(
    start: Callable[..., Server], tmp_path: Path
) -> None:
    server, file = start(), tmp_path / "copy.wardkey"
    with server.owner() as owner:

        def create(name: str, **more: object) -> tuple[str, str]:
            made = owner.post("/v2/clients", json={"username": name, **more})
            assert made.status_code == 201, made.text
            return made.json()["client"]["id"], made.json()["password"]

        ids, texts = {}, {}
        for name in ("untouched", "deleted", "disabled", "changed", "changed back"):
            ids[name], texts[name] = create(name.replace(" ", "-"))
        ids["let in"], texts["let in"] = create("let-in", enabled=False)
        result_of(server.cli("backup", str(file), "--json"))
        assert owner.delete(f"/v2/clients/{ids['deleted']}").status_code == 200
        owner.post(f"/v2/clients/{ids['disabled']}/disable")
        owner.post(f"/v2/clients/{ids['let in']}/enable")
        anew = owner.post(f"/v2/clients/{ids['changed']}/password").json()["password"]
        given = {"password": PASSWORD}
        owner.post(f"/v2/clients/{ids['changed back']}/password", json=given)
        create("new")
        rule = {"subject": {"kind": "everyone"}, "action": "both", "effect": "deny"}
        owner.post("/v2/acl/rules", json={**rule, "priority": 1, "filter": "a/#"})
        org_id = owner.get("/v2/organization").json()["id"]
    server.stop()

    done = result_of(server.cli("restore", str(file), "--json"))

    carried = {(item["action"], item["target"]["id"]) for item in done["carried_over"]}
    assert carried == {
        ("client.deleted", ids["deleted"]),
        ("client.disabled", ids["disabled"]),
        ("client.password_set", ids["changed"]),
        ("client.password_set", ids["changed back"]),
    }
    assert [(item["kind"], item["name"]) for item in done["lost"]] == [("client", "new")]
    assert [(item["name"], item["fields"]) for item in done["widened"]] == [("let-in", ["enabled"])]
    scope = {"organization": org_id, "environment": "live"}
    assert done["acl_rules_kept"] == [{**scope, "rules": 1, "backup_rules": 0}]
    again = server.cli_here("restore", str(file)).output
    assert f"{org_id}  live  1 rules, instead of the backup's 0" in again
    with open_deployment(config_of(server)) as runner:
        assert holds(runner)

        def opens(name: str, password: str) -> bool:
            wire = f"{name.replace(' ', '-')}@{org_id}"
            return find_login(runner.database, VerifiedPasswords(), wire, password) is not None

        assert [name for name, text in texts.items() if opens(name, text)] == ["untouched"]
        assert opens("changed", anew)
        assert opens("changed back", PASSWORD)
