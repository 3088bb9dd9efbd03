"""Organizations in a proxy's forward-auth URL, and how mistakes in it are reported."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import httpx2 as httpx
import pytest

from tests.support.server import Server, running, wait_until


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server") / "data") as up:
        up.owner().close()
        made = up.cli("org", "create", "Gamma", "--owner", "owner@acme.example")
        assert made.returncode == 0, made.stderr
        yield up


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


def bearer(server: Server) -> dict[str, str]:
    return {"Authorization": f"Bearer {server.first_key}"}


def issued(server: Server, slug: str, name: str) -> dict[str, str]:
    """Issue a key of the organization and return the headers that present it."""
    with server.owner(wardkey_organization=slug) as owner:
        made = owner.post("/v2/keys", json={"name": name, "type": "secret"})
    assert made.status_code == 201, made.text
    return {"Authorization": f"Bearer {made.json()['secret']}"}


@pytest.fixture(scope="module")
def gamma(server: Server) -> dict[str, str]:
    """Return headers that present a key of the second organization."""
    return issued(server, "gamma", "live-gamma")


def test_a_url_for_any_organization_accepts_all_keys_and_names_their_organization(
    server: Server, client: httpx.Client, gamma: dict[str, str]
) -> None:
    for shown, slug in ((bearer(server), "acme"), (gamma, "gamma")):
        for path in ("/v2/auth?organization=any", "/v2/auth?organization=any&path=/x"):
            answer = client.get(path, headers=shown)
            assert (answer.status_code, answer.headers["wardkey-organization-slug"]) == (200, slug)
    assert client.get("/v2/auth?organization=acme", headers=gamma).status_code == 401
    assert client.get("/v2/auth?organization=any").status_code == 401


@pytest.mark.parametrize("named", ["acmee", "org_0fA3xQ2LmN7pR9sT1uV4wY", "ANY", "acme/", "%E2%82"])
def test_a_url_with_an_unknown_organization_is_reported_differently_from_a_bad_key(
    server: Server, client: httpx.Client, named: str
) -> None:
    strange = {"Authorization": f"Bearer {server.first_key[:-1]}"}
    for fields in (bearer(server), strange, {}):
        answer = client.get(f"/v2/auth?organization={named}", headers=fields)
        assert (answer.status_code, answer.json()["code"]) == (404, "organization_not_found")
        assert "The proxy's forward-auth URL" in answer.json()["detail"]
        assert answer.headers["wardkey-verdict"] == "organization_not_found"
        assert answer.headers["wardkey-key-id"] == ""


def test_a_key_in_place_of_an_organization_is_never_returned_or_logged(
    server: Server, client: httpx.Client
) -> None:
    answer = client.get(f"/v2/auth?organization={server.first_key}")
    assert answer.json()["code"] == "credential_in_url"
    answer = client.get("/v2/auth?organization=brought_0123456789abcdef")
    assert answer.json()["code"] == "organization_not_found"
    assert "brought_" not in answer.text
    assert "brought_" not in server.output


def test_a_new_or_changed_slug_works_at_once(server: Server, client: httpx.Client) -> None:
    def status(named: str, shown: dict[str, str]) -> int:
        return client.get(f"/v2/auth?organization={named}", headers=shown).status_code

    assert status("delta", bearer(server)) == status("epsilon", bearer(server)) == 404
    made = server.cli("org", "create", "Delta", "--owner", "owner@acme.example")
    assert made.returncode == 0, made.stderr
    shown = issued(server, "delta", "live-delta")
    assert status("delta", shown) == 200
    assert status("epsilon", shown) == 404
    with server.owner(wardkey_organization="delta") as owner:
        assert owner.patch("/v2/organization", json={"slug": "epsilon"}).status_code == 200
    assert [status(named, shown) for named in ("delta", "epsilon")] == [200, 200]
    assert [status(named, bearer(server)) for named in ("delta", "epsilon")] == [401, 401]


def test_a_wrong_url_is_logged_once_and_reported_by_doctor(
    server: Server, client: httpx.Client
) -> None:
    for _ in range(30):
        client.get("/v2/auth?organization=acmme", headers=bearer(server))
        client.get("/v2/auth", headers=bearer(server))
    assert server.output.count("sets organization= to “acmme”") == 1
    assert server.output.count("names no organization, and") == 1

    def diagnosis() -> str:
        report = server.cli_here("doctor").output
        return report if "acmme" in report and "names no organization" in report else ""

    assert "warning  forward-auth: " in wait_until(diagnosis)


def test_unauthenticated_clients_cannot_fill_the_log_with_wrong_urls(
    server: Server, client: httpx.Client
) -> None:
    for number in range(60):
        client.get(f"/v2/auth?organization=nobody-{number}")
    assert server.output.count("nobody-") <= 10


def test_a_new_organization_cannot_use_any_as_its_slug(server: Server) -> None:
    refused = server.cli("org", "create", "X", "--owner", "o@any.example", "--slug", "any")
    assert "invalid_slug" in refused.stderr
    with server.owner(wardkey_organization="acme") as owner:
        assert owner.patch("/v2/organization", json={"slug": "any"}).json()["code"] == (
            "invalid_slug"
        )
    made = server.cli("org", "create", "Any", "--owner", "o@any.example")
    assert "(any-2," in made.stdout


def test_only_the_second_organization_comes_with_a_note_on_proxies(
    start: Callable[..., Server],
) -> None:
    server = start()
    said = [
        server.cli("org", "create", name, "--owner", "o@x.example", "--json").stderr
        for name in ("Second", "Third")
    ]
    assert "organization=any" in said[0]
    assert said[1] == ""
