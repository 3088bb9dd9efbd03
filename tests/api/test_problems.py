from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2 as httpx
import pytest
from joserfc.jwk import OctKey
from sqlalchemy import text, update

from tests.adapters.test_tokens import signed
from tests.support.database import database_of
from tests.support.server import PASSWORD, Server
from wardkey.actions.accounts import organizations
from wardkey.actions.core.runner import Runner
from wardkey.db.schema import audit_events, feed
from wardkey.domain.errors import ERRORS_BY_CODE, OperatorOnly
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment, SecretKind, generate
from wardkey.web.problems import status_of

TESTS = Path(__file__).parents[1]
NOBODY = "key_0fA3xQ2LmN7pR9sT1uV4wY"
SECRET = {"type": "secret"}
PAGE = {"type": "publishable"}
EVERYONE = {"subject": {"kind": "everyone"}, "action": "both"}


@dataclass
class World:
    """One deployment with the users and keys that most errors need."""

    server: Server
    owner: httpx.Client
    key: httpx.Client
    anyone: httpx.Client
    admin: httpx.Client
    count: int = 0

    def made(self, **more: object) -> Any:  # noqa: ANN401 - JSON
        self.count += 1
        answer = self.owner.post("/v2/keys", json={**SECRET, "name": f"w-{self.count}", **more})
        assert answer.status_code == 201, answer.text
        return answer.json()

    def refused(self, **more: object) -> httpx.Response:
        return self.owner.post("/v2/keys", json={**SECRET, "name": "refused", **more})

    def send_as(self, credential: str, **headers: str) -> httpx.Response:
        with self.server.client(credential, **headers) as client:
            return client.get("/v2/keys")

    def revoked(self) -> Any:  # noqa: ANN401 - JSON
        made = self.made()
        self.owner.delete(f"/v2/keys/{made['key']['id']}")
        return made

    def changed(self, made: Any, **fields: object) -> str:  # noqa: ANN401 - JSON
        answer = self.owner.patch(f"/v2/keys/{made['key']['id']}", json=fields)
        assert answer.status_code == 200, answer.text
        return str(made["secret"])

    def disabled(self) -> str:
        made = self.made()
        self.owner.post(f"/v2/keys/{made['key']['id']}/disable")
        return str(made["secret"])

    def invited(self, email: str, role: str = "viewer") -> httpx.Response:
        return self.owner.post("/v2/invitations", json={"email": email, "role": role})

    def accepted(self, token: str, password: str = PASSWORD) -> httpx.Response:
        return self.anyone.post(
            "/v2/invitations/accept", json={"token": token, "password": password}
        )

    def invitation_used(self) -> httpx.Response:
        made = self.invited("used@acme.example").json()
        self.accepted(made["link"].rpartition("/")[2])
        return self.owner.delete(f"/v2/invitations/{made['id']}")

    def weak_password(self) -> httpx.Response:
        made = self.invited("weak@acme.example").json()
        return self.accepted(made["link"].rpartition("/")[2], "short")

    def rotated(self, made: Any, **body: str) -> httpx.Response:  # noqa: ANN401 - JSON
        return self.owner.post(f"/v2/keys/{made['key']['id']}/rotate", json=body)

    def too_many_secrets(self) -> httpx.Response:
        made = self.made()
        for _ in range(9):
            self.rotated(made, grace="until_revoked")
        return self.rotated(made)

    def reused(self) -> httpx.Response:
        again = {"Idempotency-Key": "8f14e45f-ceea-467f-a8d3-9c6f2b1e7a05"}
        self.owner.post("/v2/keys", json={**SECRET, "name": "once"}, headers=again)
        return self.owner.post("/v2/keys", json={**SECRET, "name": "twice"}, headers=again)

    def brought(self, prefix: str = "brought_", **more: object) -> httpx.Response:
        body = {"name": f"brought-{self.count}", "environment": "live", "prefix": prefix}
        self.count += 1
        return self.owner.post(
            "/v2/keys/import", json=body | {"sha256": "ab" * 32, "entropy_bits": 160} | more
        )

    def tested(self) -> httpx.Response:
        body = {"environment": "test", "permissions": ["members:read"]}
        with self.server.client(self.made(**body)["secret"]) as key:
            return key.get("/v2/members")

    def unlimited(self) -> httpx.Response:
        body = {"permissions": ["keys:write"], "allowed_addresses": ["127.0.0.0/8"]}
        with self.server.client(self.made(**body)["secret"]) as key:
            return key.post("/v2/keys", json={**SECRET, "name": "unlimited", "permissions": []})

    def prefixed(self) -> httpx.Response:
        letters = "abcdefghijklmnopqrstu"
        answers = [self.registered(f"many{letter}_") for letter in letters]
        for letter in letters:
            self.owner.delete(f"/v2/import-prefixes/many{letter}_")
        return answers[-1]

    def registered(self, prefix: str) -> httpx.Response:
        return self.owner.post("/v2/import-prefixes", json={"prefix": prefix})

    def scoped(self, name: str) -> httpx.Response:
        return self.owner.post("/v2/scopes", json={"name": name})

    def too_many_scopes(self) -> httpx.Response:
        return [
            self.refused(
                name=f"many-{first}",
                permissions=[f"many:n{n}" for n in range(first, first + 100)],
                create_scopes=True,
            )
            for first in range(0, 1001, 100)
        ][-1]

    def limited(self) -> httpx.Response:
        text = self.made(rate_limit={"limit": 1, "period_s": 3600, "burst": 1})["secret"]
        return [self.send_as(text) for _ in range(9)][-1]

    def connects(self, **more: object) -> httpx.Response:
        self.count += 1
        return self.owner.post("/v2/clients", json={"username": f"agent-{self.count}", **more})

    def guessed(self) -> httpx.Response:
        body = {"email": "guessed@acme.example", "password": "guess"}
        return [self.anyone.post("/v2/user-tokens", json=body) for _ in range(24)][-1]

    def slug_taken(self) -> httpx.Response:
        assert (
            self.server.cli("org", "create", "Taken", "--owner", "t@acme.example").returncode == 0
        )
        return self.owner.patch("/v2/organization", json={"slug": "taken"})

    def suspended(self) -> httpx.Response:
        self.server.cli("org", "suspend", "acme")
        answer = self.owner.get("/v2/keys")
        self.server.cli("org", "resume", "acme")
        return answer

    def nameless(self) -> httpx.Response:
        """Send a request without an organization as a member of two."""
        made = self.server.cli("org", "create", "Both", "--owner", "owner@acme.example")
        assert made.returncode == 0, made.stderr
        answer = self.owner.get("/v2/keys")
        assert self.server.cli("org", "delete", "both", "--yes").returncode == 0
        return answer

    def ruled(self, *rules: tuple[str, str]) -> httpx.Response:
        """Replace the ACL with rules for everyone, each an effect and a filter."""
        made = [
            {"priority": n, "effect": effect, "filter": topic_filter, **EVERYONE}
            for n, (effect, topic_filter) in enumerate(rules)
        ]
        return self.owner.put("/v2/acl/rules", json={"rules": made})

    def preset_over_rules(self) -> httpx.Response:
        self.ruled(("allow", "a"))
        return self.owner.post("/v2/acl/presets", json={"preset": "chat"})

    def simulated(self, topic: str) -> httpx.Response:
        body = {"who": {"kind": "client"}, "action": "publish", "topic": topic}
        return self.owner.post("/v2/acl/simulate", json=body)

    def trusts(self, **more: object) -> httpx.Response:
        body = {"kind": "firebase", "project_id": "acme-app-1"}
        return self.owner.post("/v2/auth-providers", json=more or body)

    def too_many_providers(self) -> httpx.Response:
        body = {"kind": "firebase", "project_id": "acme-app-1"}
        test = {"Wardkey-Environment": "test"}
        return [
            self.owner.post("/v2/auth-providers", json={**body, "name": f"n{n}"}, headers=test)
            for n in range(51)
        ][-1]

    def exchanged(self, client: httpx.Client | None = None, **more: object) -> httpx.Response:
        body = {"token": "nothing"} | more
        return (client or self.anyone).post("/v2/tokens/exchange", json=body)

    def exchanged_with_a_disabled_one(self) -> httpx.Response:
        made = self.trusts(kind="firebase", project_id="acme-app-1", name="disabled").json()
        self.owner.post(f"/v2/auth-providers/{made['id']}/disable")
        return self.exchanged(self.key, provider="disabled")

    def exchanged_by_a_page(self) -> httpx.Response:
        self.trusts(kind="firebase", project_id="acme-app-1", name="servers")
        with self.server.client(self.made(**PAGE)["secret"]) as page:
            return self.exchanged(page, provider="servers")

    def exchanged_with_one_of_two(self) -> httpx.Response:
        for name in ("one", "two"):
            self.trusts(kind="auth0", domain="a.example", audiences=["a"], name=name)
        return self.exchanged(self.key, provider="auth0")

    def exchanged_with_the_legacy_secret(self, **claims: object) -> httpx.Response:
        """Exchange a token signed with a shared secret, which needs no issuer."""
        secret = "a-shared-secret-of-a-legacy-project-0123456789"
        url = "https://abcdefgh.supabase.co"
        self.trusts(kind="supabase", project_url=url, legacy_secret=True, secret=secret)
        good = {
            "iss": f"{url}/auth/v1",
            "aud": "authenticated",
            "role": "authenticated",
            "sub": "abc",
            "exp": 4_000_000_000,
        }
        token = signed({"alg": "HS256"}, good | claims, OctKey.import_key(secret.encode()))
        return self.exchanged(self.key, provider="supabase", token=token)

    def refreshed_twice(self) -> httpx.Response:
        body = {"user_email": "guest@acme.example"}
        made = self.key.post("/v2/tokens/create", json=body).json()
        shown = {"token_id": made["token_id"], "current_token_password": made["mqtt_password"]}
        again = self.anyone.post("/v2/tokens/refresh", json=shown).json()
        used = {"token_id": again["token_id"], "current_token_password": again["mqtt_password"]}
        self.anyone.post("/v2/tokens/refresh", json=used)
        return self.anyone.post("/v2/tokens/refresh", json=shown)

    def me(self, client: httpx.Client) -> str:
        return str(client.get("/v2/me").json()["id"])


REQUESTS: dict[str, Callable[[World], httpx.Response]] = {
    "invalid_request": lambda w: w.refused(typo=1),
    "malformed_json": lambda w: w.owner.post(
        "/v2/keys", content="{", headers={"Content-Type": "application/json"}
    ),
    "body_too_large": lambda w: w.refused(description="x" * 1_100_000),
    "unsupported_media_type": lambda w: w.owner.post("/v2/keys", data={"name": "x"}),
    "invalid_name": lambda w: w.refused(name=" "),
    "invalid_text": lambda w: w.refused(description="x" * 501),
    "invalid_email": lambda w: w.invited("nobody"),
    "invalid_rotation_policy": lambda w: w.owner.patch(
        "/v2/organization", json={"rotation_days": 0}
    ),
    "invalid_slug": lambda w: w.owner.patch("/v2/organization", json={"slug": "-"}),
    "invalid_metadata": lambda w: w.refused(metadata={"a b": 1}),
    "invalid_address": lambda w: w.refused(allowed_addresses=["1.2.3.4/33"]),
    "invalid_origin": lambda w: w.refused(**PAGE, allowed_origins=["https://a.example/path"]),
    "invalid_time": lambda w: w.refused(expires_at="2200-01-01"),
    "expiry_in_past": lambda w: w.refused(expires_at="2001-01-01T00:00:00Z"),
    "invalid_grace": lambda w: w.rotated(w.made(), grace="2h"),
    "invalid_reason": lambda w: w.owner.post(
        f"/v2/keys/{w.made()['key']['id']}/revoke", json={"reason": "bored"}
    ),
    "invalid_cursor": lambda w: w.owner.get("/v2/keys?cursor=AAAA"),
    "unknown_permission": lambda w: w.refused(permissions=["nope"]),
    "unknown_scope": lambda w: w.refused(permissions=["never:added"]),
    "invalid_scope_name": lambda w: w.scoped("Invoices"),
    "scope_not_found": lambda w: w.owner.delete("/v2/scopes/never:added"),
    "duplicate_scope": lambda w: [w.scoped("twice:added") for _ in range(2)][-1],
    "scope_in_use": lambda w: (
        w.made(permissions=["held:by-one"], create_scopes=True),
        w.owner.delete("/v2/scopes/held:by-one"),
    )[1],
    "too_many_scopes": World.too_many_scopes,
    "permission_not_for_type": lambda w: w.refused(**PAGE, permissions=["acl:read"]),
    "origins_not_for_type": lambda w: w.refused(allowed_origins=["https://a.example"]),
    "weak_idempotency_key": lambda w: w.owner.post(
        "/v2/keys", json={**SECRET, "name": "x"}, headers={"Idempotency-Key": "weak"}
    ),
    "weak_password": World.weak_password,
    "invalid_username": lambda w: w.connects(username="a@b"),
    "invalid_tag": lambda w: w.connects(tags=["a b"]),
    "invalid_prefix": lambda w: w.registered("sk_"),
    "too_many_prefixes": World.prefixed,
    "duplicate_prefix": lambda w: (w.registered("brought_"), w.registered("brought_x"))[1],
    "invalid_import": lambda w: w.brought(sha256="no"),
    "weak_import": lambda w: w.brought(entropy_bits=64),
    "prefix_not_found": lambda w: w.brought("nobodys_"),
    "duplicate_import": lambda w: (w.brought(), w.brought())[1],
    "prefix_in_use": lambda w: w.owner.delete("/v2/import-prefixes/brought_"),
    "invalid_cost": lambda w: w.key.post("/v2/keys/verify", json={"key": "x", "cost": -1}),
    "too_many_items": lambda w: w.key.post(
        "/v2/keys/verify-batch", json={"items": [{"key": "x"}] * 101}
    ),
    "ambiguous_credentials": lambda w: w.key.get(
        "/v2/keys",
        headers={"Wardkey-Api-Key": generate(SecretKind.SECRET, Environment.LIVE).text},
    ),
    "organization_required": World.nameless,
    "credential_in_url": lambda w: w.key.get(f"/v2/keys?search={w.server.first_key}"),
    "missing_credentials": lambda w: w.anyone.get("/v2/keys"),
    "malformed": lambda w: w.send_as(w.server.first_key[:-1]),
    "unknown": lambda w: w.send_as(generate(SecretKind.SECRET, Environment.LIVE).text),
    "revoked": lambda w: w.send_as(w.revoked()["secret"]),
    "disabled": lambda w: w.send_as(w.disabled()),
    "invalid_user_token": lambda w: w.send_as(generate(SecretKind.USER, None).text),
    "invalid_hook_token": lambda w: w.anyone.post("/hooks/rabbitmq/nothing/user"),
    "wrong_password": lambda w: w.anyone.post(
        "/v2/user-tokens", json={"email": "nobody@acme.example", "password": "guess"}
    ),
    "invalid_link": lambda w: w.accepted("nothing"),
    "not_permitted": lambda w: w.send_as(w.made(permissions=["keys:verify"])["secret"]),
    "wrong_environment": lambda w: w.key.get("/v2/keys?environment=test"),
    "live_key_required": World.tested,
    "exceeds_own_limits": World.unlimited,
    "secret_key_required": lambda w: w.send_as(w.made(**PAGE)["secret"]),
    "address_not_allowed": lambda w: w.send_as(w.made(allowed_addresses=["203.0.113.1"])["secret"]),
    "origin_not_allowed": lambda w: w.send_as(
        w.made(**PAGE, allowed_origins=["https://a.example"])["secret"], Origin="https://b.example"
    ),
    "secret_key_in_browser": lambda w: w.send_as(w.made()["secret"], Origin="https://a.example"),
    "exceeds_own_permissions": lambda w: w.admin.post(
        "/v2/keys", json={**SECRET, "name": "more", "permissions": ["billing:read"]}
    ),
    "owner_only": lambda w: w.admin.post(
        "/v2/organization/transfer", json={"user_id": w.me(w.admin)}
    ),
    "organization_suspended": World.suspended,
    "other_organization": lambda w: w.key.post(
        "/v2/keys/verify", json={"key": "x", "organization": "other"}
    ),
    "route_not_found": lambda w: w.anyone.get("/v2/nothing"),
    "method_not_allowed": lambda w: w.anyone.put("/v2/keys"),
    "key_not_found": lambda w: w.owner.get(f"/v2/keys/{NOBODY}"),
    "secret_not_found": lambda w: w.owner.post(
        f"/v2/keys/{w.made()['key']['id']}/secrets/kidkidkidkid/revoke"
    ),
    "receipt_not_found": lambda w: w.owner.get("/v2/receipts/rcp_nothing"),
    "organization_not_found": lambda w: w.owner.get(
        "/v2/keys", headers={"Wardkey-Organization": "nothing"}
    ),
    "client_not_found": lambda w: w.owner.get("/v2/clients/cli_nobody"),
    "member_not_found": lambda w: w.owner.delete("/v2/members/user_nobody"),
    "invitation_not_found": lambda w: w.owner.delete("/v2/invitations/inv_nothing"),
    "duplicate_name": lambda w: w.refused(name=w.made()["key"]["name"]),
    "username_taken": lambda w: [w.connects(username="taken") for _ in range(2)][-1],
    "duplicate_slug": World.slug_taken,
    "key_revoked": lambda w: w.rotated(w.revoked()),
    "too_many_secrets": World.too_many_secrets,
    "idempotency_key_reused": World.reused,
    "last_owner": lambda w: w.owner.delete(f"/v2/members/{w.me(w.owner)}"),
    "already_member": lambda w: w.invited("admin@acme.example"),
    "invitation_used": World.invitation_used,
    "invalid_topic": lambda w: w.simulated("a/+"),
    "invalid_topic_filter": lambda w: w.ruled(("allow", "a/#/b")),
    "invalid_acl_subject": lambda w: w.owner.post(
        "/v2/acl/rules",
        json={
            **EVERYONE,
            "priority": 1,
            "effect": "allow",
            "filter": "a",
            "subject": {"kind": "client", "value": "agent"},
        },
    ),
    "acl_rule_not_found": lambda w: w.owner.get("/v2/acl/rules/acl_nothing"),
    "too_many_acl_rules": lambda w: w.ruled(*[("allow", "a")] * 1_001),
    "acl_rules_exist": World.preset_over_rules,
    "acl_exception_above_denial": lambda w: w.ruled(
        ("allow", "a/b"), ("deny", "a/#"), ("allow", "#")
    ),
    "acl_loose_wildcard": lambda w: w.ruled(("allow", "a"), ("allow", "a/+"), ("allow", "a/b/c")),
    "invalid_provider": lambda w: w.trusts(kind="supabase"),
    "duplicate_provider": lambda w: (w.trusts(), w.trusts())[1],
    "too_many_providers": World.too_many_providers,
    "provider_not_found": lambda w: w.owner.get("/v2/auth-providers/prv_nobody"),
    "provider_disabled": World.exchanged_with_a_disabled_one,
    "exchange_not_allowed": World.exchanged_by_a_page,
    "ambiguous_provider": World.exchanged_with_one_of_two,
    "invalid_token": lambda w: w.exchanged(organization_id="nowhere"),
    "token_expired": lambda w: w.exchanged_with_the_legacy_secret(exp=1),
    "claim_missing": lambda w: w.exchanged_with_the_legacy_secret(sub=""),
    "invalid_ttl": lambda w: w.exchanged(ttl=5),
    "refresh_replayed": World.refreshed_twice,
    "grant_not_found": lambda w: w.owner.get("/v2/tokens/tok_nothing"),
    "rate_limit_exceeded": World.limited,
    "too_many_attempts": World.guessed,
}

COMMANDS: dict[str, tuple[str, ...]] = {
    "user_not_found": ("setup-link", "nobody@acme.example"),
    "service_key_not_found": ("service-key", "revoke", "nobody"),
    "hook_token_not_found": ("hook", "revoke", "nobody"),
    "invalid_hook": ("hook", "create", "mosquitto"),
    "unusable_file": ("up", "--listen", "127.0.0.1:0", "--data-dir", "/proc/wardkey"),
    "deployment_not_found": ("org", "list", "--data-dir", "nowhere"),
    "already_running": ("master-key", "rotate"),
    # Not even root can create a folder there.
    "storage_read_only": ("up", "--listen", "127.0.0.1:0", "--data-dir", "/sys/wardkey"),
    # The last, because it leaves the chain broken.
    "audit_broken": ("audit", "verify"),
}

UNSAFE = "cli/test_up.py::test_unsafe_and_unknown_settings_are_refused_and_create_nothing"
BAD_MESSAGE = "messaging/test_publish.py::test_bad_input_is_refused_with_its_error_code"
BROKER_AWAY = "messaging/test_publish.py::test_503_or_504_while_the_broker_is_unreachable"
ELSEWHERE = {
    "key_set_unavailable": "api/test_exchange.py::"
    "test_503_while_the_issuer_is_down_and_cached_keys_keep_working",
    "provider_changed": "api/test_in_flight.py::"
    "test_a_token_verified_under_earlier_settings_gets_no_grant",
    # OAuth responses have their own error codes for these.
    "unsupported_grant_type": "api/test_oauth.py::test_an_error_has_the_oauth_format",
    "invalid_scope": "api/test_oauth.py::test_an_error_has_the_oauth_format",
    "invalid_payload": BAD_MESSAGE,
    "payload_too_large": BAD_MESSAGE,
    "publish_denied": "messaging/test_publish.py::"
    "test_a_publishable_key_publishes_only_where_a_rule_allows_it",
    "publish_unconfirmed": BROKER_AWAY,
    "broker_unreachable": "messaging/test_publish.py::test_503_if_the_broker_was_never_reachable",
    "broker_full": "faults/test_broker.py::"
    "test_503_while_the_broker_disk_is_full_and_publishing_recovers",
    "unsafe_broker": "cli/test_up.py::test_a_remote_broker_is_never_reached_without_tls",
    "messaging_off": "messaging/test_publish.py::test_404_if_messaging_is_off",
    "client_id_not_found": "messaging/test_client_ids.py::"
    "test_a_client_id_is_listed_and_freed_by_hand",
    "session_not_found": "messaging/test_sessions.py::"
    "test_404_another_organizations_session_cannot_be_ended",
    "signed_out": "browser/test_sign_in.py::test_signing_out_ends_this_session_or_all_sessions",
    "password_required": "browser/test_sign_in.py::"
    "test_an_old_sign_in_is_confirmed_before_a_key_is_created",
    "invalid_passkey": "browser/test_passkeys.py::"
    "test_a_passkey_assertion_works_once_and_only_unaltered",
    "passkey_not_found": "browser/test_passkeys.py::"
    "test_another_users_passkey_cannot_be_renamed_or_removed",
    "sign_in_failed": "browser/test_single_sign_on.py::"
    "test_401_a_callback_works_once_and_only_in_the_browser_that_started",
    "sign_in_not_allowed": "browser/test_single_sign_on.py::"
    "test_403_an_address_that_may_not_join_is_rejected",
    "account_exists": "api/test_invitations.py::"
    "test_409_an_invitation_link_with_a_password_never_signs_in_to_an_existing_account",
    "account_not_set_up": "browser/test_single_sign_on.py::"
    "test_409_an_invitation_cannot_set_the_password_of_an_account_without_one",
    "identity_not_found": "browser/test_single_sign_on.py::"
    "test_a_known_address_is_linked_and_can_be_unlinked",
    "duplicate_passkey": "browser/test_passkeys.py::test_a_passkey_cannot_be_registered_twice",
    "forged_form": "browser/test_sign_in.py::test_a_forged_form_changes_nothing",
    "form_sent_before": "browser/test_keys.py::test_a_form_sent_twice_creates_one_key",
    "browser_session_not_found": "browser/test_sign_in.py::test_sessions_are_listed_and_ended",
    "expired": "api/test_verify.py::test_expiry_and_grace_period_end_at_their_second",
    "storage_full": "cli/test_up.py::test_verification_continues_while_a_full_disk_refuses_writes",
    "storage_unreachable": "faults/test_postgres_away.py::"
    "test_503_while_postgresql_is_down_and_nothing_is_half_done",
    "verifier_unavailable": "faults/test_postgres_away.py::"
    "test_503_while_postgresql_is_down_and_nothing_is_half_done",
    "unknown_setting": UNSAFE,
    "invalid_setting": UNSAFE,
    "unsafe_listen": UNSAFE,
    "unsafe_database": UNSAFE,
    "wrong_master_key": "cli/test_up.py::test_a_wrong_or_missing_master_key_is_reported",
    "master_key_missing": "cli/test_up.py::test_a_wrong_or_missing_master_key_is_reported",
    "invalid_master_key": "cli/test_up.py::test_a_wrong_or_missing_master_key_is_reported",
    "master_key_not_kept": "cli/test_master_key.py::test_a_kept_key_is_removed_after_confirmation",
    "server_not_running": "cli/test_reload.py::test_reload_reports_that_no_server_is_running",
    "reload_refused": "cli/test_reload.py::"
    "test_a_mismatched_certificate_is_refused_and_the_old_one_stays",
    "database_newer": "cli/test_up.py::test_a_database_of_a_newer_version_is_reported",
    "unwritable_file": "cli/test_backup.py::test_a_backup_does_not_replace_a_file_without_force",
    "invalid_backup": "cli/test_backup.py::test_a_damaged_backup_is_refused_and_nothing_changes",
    "revocations_unknown": "cli/test_backup.py::"
    "test_without_a_readable_database_revocations_are_unknown",
    "still_in_use": "api/test_rotations.py::"
    "test_409_finish_names_the_callers_and_revoke_is_never_blocked",
    "not_confirmed": "cli/test_operator.py::"
    "test_a_declined_confirmation_changes_nothing_and_says_so",
    "metrics_off": "api/test_metrics.py::test_metrics_are_off_without_a_token",
    "wrong_metrics_token": "api/test_metrics.py::test_metrics_require_the_right_token",
    "operator_only": "api/test_problems.py::test_only_the_operator_creates_organizations",
    "internal_error": "api/test_problems.py::test_500_an_unexpected_error_is_logged_with_its_id",
    "overloaded": "faults/test_costly.py::"
    "test_503_many_sign_ins_at_once_use_bounded_memory_and_delay_no_other_request",
    "storage_busy": "api/test_problems.py::test_503_while_the_database_is_locked",
    "database_damaged": "api/test_problems.py::test_every_command_reports_a_damaged_file",
    "unhealthy_deployment": "api/test_problems.py::test_every_command_reports_a_damaged_file",
    "headers_too_large": "api/test_problems.py::test_bytes_that_are_not_http_get_a_problem_too",
    "invalid_http": "api/test_problems.py::test_bytes_that_are_not_http_get_a_problem_too",
}

# No request triggers these, each with its reason. Move a code up once it becomes reachable.
UNREACHED = {
    "quota_exceeded": "Quotas come with billing; the code is reserved.",
    "request_timeout": "It takes 30 idle seconds, too slow for every run.",
    "invalid_rate_limit": "The API types limit rates first; the rule protects other callers.",
}


@pytest.fixture(scope="module")
def world(server: Server) -> Iterator[World]:
    acme = {"Wardkey_Organization": "acme"}
    with (
        server.owner() as owner,
        server.client(server.first_key) as key,
        server.client() as anyone,
        server.person("admin", **acme) as admin,
    ):
        yield World(server, owner, key, anyone, admin)


@pytest.mark.parametrize("code", REQUESTS)
def test_a_request_triggers_each_problem(world: World, code: str) -> None:
    answer = REQUESTS[code](world)
    result = answer.json()
    assert result["code"] == code, answer.text
    assert answer.status_code == result["status"] == status_of(ERRORS_BY_CODE[code])
    assert answer.headers["content-type"] == "application/problem+json"
    assert result["request_id"] == answer.headers["wardkey-request-id"]
    assert result["detail"].endswith(".")
    assert (result["error"], result["message"]) == (code, result["detail"])


@pytest.mark.parametrize("code", COMMANDS)
def test_a_command_triggers_each_other_problem(world: World, code: str) -> None:
    if code == "audit_broken":
        with database_of(world.server) as connection:
            connection.execute(update(audit_events).values(action="edited"))
    done = world.server.cli(*COMMANDS[code])
    assert re.search(r"^wardkey: (\w+): ", done.stderr, re.MULTILINE), done
    assert f"wardkey: {code}: " in done.stderr


def test_every_code_is_triggered_here_or_by_a_named_test() -> None:
    known = [*REQUESTS, *COMMANDS, *ELSEWHERE, *UNREACHED]
    assert len(known) == len(set(known))
    assert set(known) == set(ERRORS_BY_CODE)
    for place in ELSEWHERE.values():
        file, _, test = place.partition("::")
        assert f"def {test}(" in (TESTS / file).read_text(), place


def test_only_the_operator_creates_organizations(runner: Runner, owner: Principal) -> None:
    with pytest.raises(OperatorOnly):
        runner.write(organizations.create, owner, "Mine", "owner@acme.example")


def test_500_an_unexpected_error_is_logged_with_its_id(start: Callable[..., Server]) -> None:
    server = start()
    with database_of(server) as connection:
        connection.execute(text("DROP TABLE receipts"))
    with server.client(server.first_key) as key:
        answer = key.get("/v2/receipts/rcp_any")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal_error")
    assert "receipts" not in answer.text
    assert answer.json()["request_id"] in server.output


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"not a request\r\n\r\n", b"invalid_http"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 66_000, b"headers_too_large"),
    ],
)
def test_bytes_that_are_not_http_get_a_problem_too(
    server: Server, sent: bytes, code: bytes
) -> None:
    host, _, port = server.url.rpartition("/")[2].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=20) as line:
        line.sendall(sent)
        answer = b""
        while part := line.recv(65_536):
            answer += part
    assert b'"code":"' + code + b'"' in answer.replace(b": ", b":")


def test_503_while_the_database_is_locked(server: Server) -> None:
    with server.client(server.first_key) as key:
        with database_of(server) as connection:
            connection.execute(update(feed).values(revision=feed.c.revision))
            answer = key.post("/v2/keys", json={**SECRET, "name": "while-held"})
            assert (answer.status_code, answer.json()["code"]) == (503, "storage_busy")
            assert answer.headers["retry-after"]
        assert key.post("/v2/keys", json={**SECRET, "name": "while-held"}).status_code == 201


def test_every_command_reports_a_damaged_file(start: Callable[..., Server]) -> None:
    server = start()
    assert server.stop() == 0
    file = server.data_dir / "wardkey.db"
    body = file.read_bytes()
    file.write_bytes(body[:4096] + bytes(len(body) - 4096))
    assert "wardkey: database_damaged: " in server.cli("org", "list").stderr
    assert "wardkey: unhealthy_deployment: " in server.cli("doctor").stderr
