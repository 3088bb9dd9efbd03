"""A request admitted before its caller lost a permission changes nothing after the loss."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from itertools import count
from typing import Any

import httpx2 as httpx
import pytest
import uvicorn
from sqlalchemy import Table, func, select

from demo.issuer import CLIENT, Issuer
from tests.conftest import STORAGES
from tests.support.server import wait_until
from wardkey.actions.accounts import browser_sessions, members, organizations, people
from wardkey.actions.core.runner import Runner
from wardkey.actions.grants import providers
from wardkey.actions.keys import keys, revocations
from wardkey.app import create_app
from wardkey.config import load_config
from wardkey.dashboard.shell.auth import COOKIE
from wardkey.db import schema
from wardkey.db.engine import Database, Transaction
from wardkey.deployment import open_deployment
from wardkey.domain.errors import OrganizationNotFound
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import KeyType, Role
from wardkey.domain.principal import Principal, PrincipalKind, member, operator
from wardkey.domain.providers import ExchangeLimits, ProviderKind, ProviderSpec
from wardkey.domain.secret import Environment
from wardkey.web.fast_path import FastPathProtocol

NUMBERS = count()
HASH = "not a hash that any password fits"
EVERYTHING = (
    "keys:read", "keys:write", "tokens:create", "tokens:exchange", "members:write",
    "members:read", "providers:write", "clients:write", "acl:write",
)  # fmt: skip


class Gate:
    """Pauses one writer of the server just before its transaction, while armed."""

    def __init__(self) -> None:
        self.is_armed = False
        self.arrived, self.opened = threading.Event(), threading.Event()

    def pass_through(self) -> None:
        thread = threading.current_thread()
        if not self.is_armed or thread is threading.main_thread() or "ticker" in thread.name:
            return
        self.is_armed = False
        self.arrived.set()
        assert self.opened.wait(20)

    def arm(self) -> None:
        self.arrived.clear()
        self.opened.clear()
        self.is_armed = True


@dataclass
class World:
    """An in-process server whose requests can pause between authentication and transaction."""

    runner: Runner
    gate: Gate
    url: str
    issuer: Issuer
    pool: ThreadPoolExecutor = field(default_factory=ThreadPoolExecutor)

    def __post_init__(self) -> None:
        made, user_id = self.run(organizations.create, operator(), "Acme", "owner@acme.example")
        self.org_id, self.slug = made.id, made.slug
        self.owner = self.principal(user_id, "owner@acme.example", Role.OWNER)
        self.trusted = self.provider("trusted").id

    def run(
        self, action: Callable[..., Any], by: Principal, *args: object, **kwargs: object
    ) -> Any:  # noqa: ANN401 - as `action`
        return self.runner.write(action, by, *args, **kwargs)

    def principal(self, user_id: str, email: str, role: Role) -> Principal:
        return member(
            user_id=user_id, email=email, org_id=self.org_id, role=role,
            environment=Environment.LIVE,
        )  # fmt: skip

    def provider(self, name: str) -> Any:  # noqa: ANN401 - a provider's record
        spec = ProviderSpec(
            ProviderKind.OIDC,
            name,
            issuer=self.issuer.url,
            audiences=(CLIENT,),
            algorithms=("ES256",),
            limits=ExchangeLimits(keyless_may_exchange=True),
        )
        return self.run(providers.create, self.owner, spec, http_allowed=True)

    def rows(self, table: Table) -> int:
        with self.runner.database.read() as tx:
            result = tx.connection.execute(select(func.count()).select_from(table))
            return int(result.scalar_one())

    def paused(
        self, call: Callable[[], httpx.Response], meanwhile: Callable[[], object]
    ) -> httpx.Response:
        """Start a call, pause it between authentication and transaction, run an action, resume."""
        self.gate.arm()
        answer = self.pool.submit(call)
        try:
            wait_until(lambda: self.gate.arrived.is_set() or answer.done())
            assert not answer.done(), "the call began no transaction"
            meanwhile()
        finally:
            self.gate.opened.set()
        return answer.result(20)


@pytest.fixture(scope="module", params=STORAGES)
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    url = ""
    if request.param == "postgresql":
        url = request.getfixturevalue("postgres").create_database()
    options = {
        "data_dir": tmp_path_factory.mktemp("flight") / "data",
        "database_url": url,
        "no_messaging": True,
        "private_issuers": True,
        "listen": "127.0.0.1:0",
    }
    config = load_config({}, options)
    gate, original = Gate(), Database.write

    def write(database: Database) -> AbstractContextManager[Transaction]:
        gate.pass_through()
        return original(database)

    with pytest.MonkeyPatch.context() as patch, open_deployment(config) as runner:
        patch.setattr(Database, "write", write)
        for name, value in config.environment().items():
            patch.setenv(name, value)
        listening = socket.create_server(("127.0.0.1", 0))
        settings = uvicorn.Config(
            create_app,
            factory=True,
            http=FastPathProtocol,
            ws="none",
            log_config=None,
            proxy_headers=False,
        )
        server = uvicorn.Server(settings)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        wait_until(lambda: server.started)
        host, port = listening.getsockname()
        try:
            yield World(runner, gate, f"http://{host}:{port}", Issuer())
        finally:
            server.should_exit = True
            thread.join()


@dataclass
class Person:
    """A new admin of the organization, signed in with a user token and in a browser."""

    world: World

    def __post_init__(self) -> None:
        self.number = next(NUMBERS)
        self.email = f"ada{self.number}@acme.example"
        run = self.world.run
        _, link = run(members.invite, self.world.owner, self.email, Role.ADMIN)
        signed_in = run(members.accept, Principal(PrincipalKind.USER, "", ""), link, HASH)
        self.id, self.text = signed_in.user_id, signed_in.token.text
        self.by = Principal(PrincipalKind.USER, self.id, self.email)
        begun = run(browser_sessions.create_session, self.by, self.id, "password", "")
        self.session_id, self.cookie = begun.id, begun.text

    def remove(self) -> None:
        self.world.run(members.remove, self.world.owner, self.id)

    def demote(self) -> None:
        self.world.run(members.change_role, self.world.owner, self.id, Role.VIEWER)

    def sign_out_everywhere(self) -> None:
        self.world.run(browser_sessions.end_all, self.by)

    def recover(self) -> None:
        link = self.world.run(people.create_setup_link, operator(), self.email)
        self.world.run(people.use_setup_link, self.by, link, "another hash")

    def form(self, path: str, **fields: str) -> httpx.Response:
        key = self.world.runner.database.vault.key_for("csrf")
        csrf = blake2b(self.cookie.encode(), key=key, digest_size=24).hexdigest()
        return httpx.post(
            f"{self.world.url}{path}",
            data={"csrf": csrf, "once": f"{self.number:032}", **fields},
            headers={"cookie": f"{COOKIE}={self.cookie}"},
        )


@dataclass
class Key:
    """A new secret key with many permissions."""

    world: World

    def __post_init__(self) -> None:
        self.number = next(NUMBERS)
        spec = KeySpec(
            f"live-key-{self.number}", KeyType.SECRET, Environment.LIVE, permissions=EVERYTHING
        )
        issued = self.world.run(keys.issue, self.world.owner, spec)
        self.id, self.kid, self.text = issued.key.id, issued.kid, issued.secret.text

    def change(self, **changes: object) -> None:
        self.world.run(keys.change, self.world.owner, self.id, changes)

    def revoke(self) -> None:
        self.world.run(revocations.revoke, self.world.owner, self.id, "keyCompromise")

    def revoke_secret(self) -> None:
        self.world.run(keys.rotate, self.world.owner, self.id, "24h")
        by = self.world.owner
        self.world.run(revocations.revoke_secret, by, self.id, self.kid, "keyCompromise")

    def disable(self) -> None:
        self.world.run(keys.disable, self.world.owner, self.id)

    def expire(self) -> None:
        end = self.world.runner.database.clock() + 20
        self.change(expires_at=end)
        wait_until(lambda: self.world.runner.database.clock() > end)

    def narrow(self) -> None:
        self.change(permissions=["keys:read"])

    def bind(self) -> None:
        self.change(allowed_addresses=("198.51.100.1",))


Call = Callable[[World, str], httpx.Response]


def call(method: str, path: str, **body: object) -> Call:
    def ask(world: World, credential: str) -> httpx.Response:
        n = next(NUMBERS)
        sent = {k: v.format(n=n) if isinstance(v, str) else v for k, v in body.items()}
        return httpx.request(
            method,
            f"{world.url}{path}".format(owner=world.owner.id, provider=world.trusted),
            json=sent or None,
            headers={"authorization": f"Bearer {credential}"},
        )

    return ask


CALLS: dict[str, tuple[Call, Table]] = {
    "key": (call("POST", "/v2/keys", type="secret", name="live-made-{n}"), schema.keys),
    "grant": (call("POST", "/v2/tokens/create", user_email="u{n}@acme.example"), schema.grants),
    "invitation": (
        call("POST", "/v2/invitations", email="new{n}@acme.example", role="viewer"),
        schema.invitations,
    ),
    "provider": (
        call(
            "POST", "/v2/auth-providers", kind="clerk", name="clerk-{n}",
            domain="https://clerk{n}.acme.example",
        ),
        schema.auth_providers,
    ),
    "client": (call("POST", "/v2/clients", username="agent-{n}"), schema.clients),
    "rule": (
        call(
            "POST", "/v2/acl/rules", priority=1, subject={"kind": "everyone"},
            action="publish", filter="a/{n}", effect="allow",
        ),
        schema.acl_rules,
    ),
}  # fmt: skip


@pytest.mark.parametrize("made", CALLS)
@pytest.mark.parametrize(
    ("loss", "status"),
    [("remove", 404), ("demote", 403), ("sign_out_everywhere", 401), ("recover", 401)],
)
def test_a_member_who_lost_the_permission_creates_nothing(
    world: World, made: str, loss: str, status: int
) -> None:
    person, (ask, table) = Person(world), CALLS[made]
    assert ask(world, person.text).is_success, "as long as the right is there"
    before = world.rows(table)
    answer = world.paused(lambda: ask(world, person.text), getattr(person, loss))
    assert (answer.status_code, world.rows(table)) == (status, before), answer.text


@pytest.mark.parametrize("made", ["key", "grant", "provider", "client"])
@pytest.mark.parametrize(
    ("loss", "status"),
    [
        ("revoke", 401),
        ("revoke_secret", 401),
        ("disable", 401),
        ("expire", 401),
        ("narrow", 403),
        ("bind", 403),
    ],
)
def test_a_key_that_lost_the_permission_creates_nothing(
    world: World, made: str, loss: str, status: int
) -> None:
    key, (ask, table) = Key(world), CALLS[made]
    assert ask(world, key.text).is_success, "as long as the right is there"
    before = world.rows(table)
    answer = world.paused(lambda: ask(world, key.text), getattr(key, loss))
    assert (answer.status_code, world.rows(table)) == (status, before), answer.text


def test_a_removed_admin_cannot_change_roles_or_remove_members(world: World) -> None:
    for method, body in (("PATCH", {"role": "viewer"}), ("DELETE", {})):
        person, other = Person(world), Person(world)
        ask = partial(call(method, f"/v2/members/{other.id}", **body), world, person.text)
        assert world.paused(ask, person.remove).status_code == 404
        with world.runner.database.read() as tx:
            result = people.as_member(tx, other.by, world.org_id, Environment.LIVE)
        assert result.role is Role.ADMIN


@pytest.mark.parametrize("loss", ["remove", "demote", "sign_out_everywhere", "recover"])
@pytest.mark.parametrize(
    ("path", "fields", "table"),
    [
        ("settings/api-keys",
         {"type": "secret", "name": "live-form-{n}", "expires": "never", "access": "usual"},
         schema.keys),
        ("messaging/topics/grant", {}, schema.grants),
        ("settings/members", {"email": "f{n}@acme.example", "role": "viewer"},
         schema.invitations),
    ],
)  # fmt: skip
def test_a_form_from_a_user_who_lost_the_permission_creates_nothing(
    world: World, path: str, fields: dict[str, str], table: Table, loss: str
) -> None:
    person = Person(world)
    sent = {name: value.format(n=person.number) for name, value in fields.items()}
    before = world.rows(table)
    answer = world.paused(
        lambda: person.form(f"/o/{world.slug}/live/{path}", **sent), getattr(person, loss)
    )
    assert answer.status_code in {303, 401, 403, 404}
    assert world.rows(table) == before
    assert person.form(f"/o/{world.slug}/live/{path}", **sent).status_code in {303, 401, 403, 404}


def exchange(world: World, provider: str, credential: str) -> Callable[[], httpx.Response]:
    body: dict[str, str] = {"token": world.issuer.token("ada@acme.example")}
    headers = {"authorization": f"Bearer {credential}"} if credential else {}
    body |= {"provider": provider} if credential else {"organization_id": world.org_id}
    url = f"{world.url}/v2/tokens/exchange"
    return lambda: httpx.post(url, json=body, headers=headers)


@pytest.mark.parametrize("loss", ["revoke", "disable", "narrow", "bind"])
def test_a_key_that_lost_the_permission_cannot_exchange_tokens(world: World, loss: str) -> None:
    key = Key(world)
    ask = exchange(world, "trusted", key.text)
    assert ask().is_success, "as long as the right is there"
    before = world.rows(schema.grants)
    answer = world.paused(ask, getattr(key, loss))
    assert answer.status_code in {401, 403}
    assert world.rows(schema.grants) == before


@pytest.mark.parametrize("keyless", [True, False])
@pytest.mark.parametrize(
    ("change", "code"),
    [("disable", "provider_disabled"), ("remove", "provider_not_found"),
     ("narrow", "provider_changed")],
)  # fmt: skip
def test_a_token_verified_under_earlier_settings_gets_no_grant(
    world: World, change: str, code: str, *, keyless: bool
) -> None:
    provider_id, by = world.trusted, world.owner
    changes: dict[str, Callable[[], object]] = {
        "disable": lambda: world.run(providers.enable, by, provider_id, enabled=False),
        "remove": lambda: world.run(providers.remove, by, provider_id),
        "narrow": lambda: world.run(providers.change, by, provider_id, {"audiences": ("other",)},
                                    http_allowed=True),
    }  # fmt: skip
    ask = exchange(world, "trusted", "" if keyless else Key(world).text)
    assert ask().is_success, "as long as the provider is trusted so"
    before = world.rows(schema.grants)
    answer = world.paused(ask, changes[change])
    assert (answer.json()["code"], world.rows(schema.grants)) == (code, before)
    if change != "remove":
        world.run(providers.remove, by, provider_id)
    world.trusted = world.provider("trusted").id


def test_a_batch_rejects_only_callers_that_lost_the_permission(world: World) -> None:
    lost, kept = Key(world), Key(world)
    answers = world.pool.submit(exchange(world, "trusted", kept.text))
    answer = world.paused(exchange(world, "trusted", lost.text), lost.revoke)
    assert (answer.status_code, answers.result(20).status_code) == (401, 200)


def test_a_write_queued_behind_the_removal_is_rejected(world: World) -> None:
    person, removed, asking = Person(world), threading.Event(), threading.Event()
    by = people_member(world, person)

    def remove() -> None:
        with world.runner.database.write() as tx:
            members.remove(tx, world.owner, person.id)
            removed.set()
            assert asking.wait(20)

    spec = KeySpec(f"live-line-{person.number}", KeyType.SECRET, Environment.LIVE)
    removing = world.pool.submit(remove)
    assert removed.wait(20)
    issuing = world.pool.submit(world.run, keys.issue, by, spec)
    asking.set()
    removing.result(20)
    with pytest.raises(OrganizationNotFound):
        issuing.result(20)


def people_member(world: World, person: Person) -> Principal:
    with world.runner.database.read() as tx:
        return people.as_member(tx, person.by, world.org_id, Environment.LIVE)
