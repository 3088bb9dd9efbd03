from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey

from tests.adapters.issuer import Issuer, issuing
from tests.browser.conftest import Enter, Site, hidden_part, passes, site_in
from tests.support.mqtt import connected
from tests.support.server import wait_until

pytestmark = pytest.mark.browser

PROVIDERS = "/o/acme/live/messaging/providers"
HOSTILE = "<script>alert(1)</script>"
GRANTS = "/o/acme/live/messaging/grants"
KEY: ECKey = ECKey.generate_key("P-256", {"kid": "ec"})


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("providers")
    with site_in(folder, no_messaging=0, private_issuers=1) as there:
        wait_until(lambda: there.api.get("/v2/sessions").status_code == 200)
        yield there


@pytest.fixture(scope="module")
def issuer() -> Iterator[Issuer]:
    with issuing() as server:
        jwks = server.puts("/jwks", {"keys": [KEY.as_dict(private=False)]})
        server.puts("/.well-known/openid-configuration", {"issuer": server.url, "jwks_uri": jwks})
        yield server


def token(issuer: Issuer, **more: Any) -> str:  # noqa: ANN401 - claims
    now = int(time.time())
    claims = {"iss": issuer.url, "aud": "my-app", "sub": "user-1", "iat": now, "exp": now + 600}
    return jwt.encode({"alg": "ES256", "kid": "ec"}, {**claims, **more}, KEY, ["ES256"])


def add_provider(site: Site, issuer: Issuer, name: str) -> dict[str, Any]:
    """Add the issuer as a provider with the name."""
    body = {"kind": "oidc", "name": name, "issuer": issuer.url, "audiences": ["my-app"]}
    answer = site.api.post("/v2/auth-providers", json={**body, "algorithms": ["ES256"]})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def exchange_token(site: Site, provider: str, text: str) -> dict[str, Any]:
    with site.server.client(site.server.first_key) as client:
        answer = client.post("/v2/tokens/exchange", json={"provider": provider, "token": text})
    assert answer.status_code == 200, answer.text
    made: dict[str, Any] = answer.json()
    return made


def test_a_provider_is_added_with_the_fields_of_its_kind(
    site: Site, enter: Enter, issuer: Issuer
) -> None:
    page = enter("owner", PROVIDERS)
    passes(page)
    page.get_by_role("button", name="Add provider").first.click()
    shown = {
        "supabase": ["#project_url", "#issuer", "[name=legacy_secret]"],
        "firebase": ["#project_id"],
        "auth0": ["#domain", "#audiences"],
        "clerk": ["#domain", "#allowed_origins", "#audiences"],
        "oidc": ["#issuer", "#jwks_uri", "#audiences", "#audience_claim", "#algorithms"],
    }
    every = {selector for selectors in shown.values() for selector in selectors}
    for kind, selectors in shown.items():
        page.select_option("#kind", kind)
        assert {selector for selector in every if page.locator(selector).is_visible()} == set(
            selectors
        )
    passes(page)
    page.fill("#issuer", issuer.url)
    page.fill("#name", "staff")
    page.fill("#algorithms", "ES256")
    page.locator("summary", has_text="Claims").click()
    page.fill("#variables", "team=app.team")
    page.locator("#create").get_by_role("button", name="Add").click()
    assert "audiences is missing" in page.inner_text("#audiences-fault")
    assert page.input_value("#variables") == "team=app.team"
    passes(page)
    page.fill("#audiences", "my-app")
    page.locator("#create").get_by_role("button", name="Add").click()
    page.wait_for_selector("text=Provider added.")
    assert "{claim.team}" in page.inner_text("main")
    passes(page)
    page.get_by_role("button", name="Edit").click()
    assert not page.locator("#kind").count()
    page.locator("#edit summary", has_text="Limits").click()
    page.fill("#max_ttl_s", "59")
    page.get_by_role("button", name="Save changes").click()
    assert "60" in page.inner_text("#max_ttl_s-fault")
    page.fill("#max_ttl_s", "900")
    page.get_by_role("button", name="Save changes").click()
    page.wait_for_selector("text=Provider updated.")
    provider = site.api.get("/v2/auth-providers").json()["auth_providers"][0]
    assert (provider["limits"]["max_ttl_s"], provider["algorithms"]) == (900, ["ES256"])
    assert provider["mapping"]["variables"] == {"team": "app.team"}


def test_a_shared_secret_is_kept_and_never_shown(site: Site) -> None:
    forms = site.forms()
    secret = "a-shared-secret-of-a-legacy-project-0123456789"
    url = "https://abcdefgh.supabase.co"
    made = forms.post(
        PROVIDERS,
        kind="supabase",
        name="legacy",
        project_url=url,
        legacy_secret="1",
        secret=secret,
        user_id="sub",
        # A field of another kind; the form hides it.
        project_id="left-over",
    )
    assert made.status_code == 303, made.text
    path = made.headers["location"].partition("?")[0]
    assert secret not in forms.get(f"{path}?dialog=edit").text
    edited = forms.post(
        f"{path}/edit", name="legacy", project_url=url, legacy_secret="1", user_id="sub", secret=""
    )
    assert edited.status_code == 303
    provider = site.api.get(f"/v2/auth-providers/{path.rpartition('/')[2]}").json()
    assert provider["has_secret"]
    refused = forms.post(
        f"{path}/edit", name="legacy", project_url="x", legacy_secret="1", secret=secret
    )
    assert refused.status_code == 400
    assert secret not in refused.text


def test_the_test_tool_names_the_failing_claim(site: Site, enter: Enter, issuer: Issuer) -> None:
    made = add_provider(site, issuer, "tested")
    page = enter("owner", f"{PROVIDERS}/{made['id']}")

    def run_test(text: str) -> str:
        page.fill("#token", text)
        page.get_by_role("button", name="Run test").click()
        page.wait_for_selector(".steps")
        assert page.input_value("#token") == ""
        return page.inner_text("[aria-labelledby=test] [role=status]")

    assert "The keys were fetched." in run_test("")
    assert "This token would be accepted for user-1" in run_test(token(issuer))
    passes(page)
    wrong = token(issuer, aud="<b>another</b>")
    assert "would be refused" in run_test(wrong)
    assert "it must be my-app" in page.inner_text(".steps .failed")
    assert wrong not in page.content()
    assert page.locator(".steps b b").count() == 0
    passes(page)
    assert "would be refused" in run_test("eyJ.not-a-token")


def test_a_provider_can_be_tested_before_it_is_saved(
    site: Site, enter: Enter, issuer: Issuer
) -> None:
    page = enter("owner", f"{PROVIDERS}?dialog=create")
    dialog = page.locator("#create")

    def run_test(text: str) -> str:
        dialog.locator("summary", has_text="Test with a token").click()
        dialog.get_by_label("Provider token").fill(text)
        dialog.get_by_role("button", name="Run test").click()
        result = dialog.get_by_role("group", name="Test result")
        result.wait_for()
        assert dialog.get_by_label("Provider token").input_value() == ""
        assert result.evaluate("one => one === document.activeElement")
        assert hidden_part(result) <= 0
        return result.inner_text()

    page.select_option("#kind", "oidc")
    page.fill("#issuer", issuer.url)
    page.fill("#audiences", "another-app")
    page.fill("#algorithms", "ES256")
    page.fill("#name", "unsaved")
    page.fill("#issuer", "http://127.0.0.1:9")
    assert "The keys can't be fetched" in run_test("")
    page.fill("#issuer", issuer.url)
    dialog.locator("summary", has_text="Test with a token").click()
    dialog.locator("summary", has_text="Limits").click()
    page.locator("#create [name=keyless_may_exchange]").check()
    good = token(issuer)
    assert "would be refused" in run_test(good)
    assert "it must be another-app" in page.inner_text(".steps .failed")
    assert good not in page.content()
    passes(page)
    page.fill("#audiences", "my-app")
    page.keyboard.press("Tab")
    dialog.locator("summary", has_text="Test with a token").click()
    assert "This token would be accepted for user-1." in run_test(good)
    assert page.input_value("#name") == "unsaved"
    assert page.locator("#create [name=keyless_may_exchange]").is_checked()
    names = [
        provider["name"] for provider in site.api.get("/v2/auth-providers").json()["auth_providers"]
    ]
    assert "unsaved" not in names
    # Enter saves, although the test button comes first in the form.
    page.locator("#name").press("Enter")
    page.wait_for_selector("text=Provider added.")
    page.get_by_role("button", name="Edit").click()
    dialog = page.locator("#edit")
    page.fill("#audiences", "another-app")
    assert "would be refused" in run_test(good)
    assert page.input_value("#audiences") == "another-app"
    passes(page)
    assert good not in page.content()
    providers = site.api.get("/v2/auth-providers").json()["auth_providers"]
    assert [provider["audiences"] for provider in providers if provider["name"] == "unsaved"] == [
        ["my-app"]
    ]
    assert good not in site.server.output


def test_the_oidc_form_takes_a_jwks_uri_and_an_audience_claim(site: Site, issuer: Issuer) -> None:
    forms = site.forms()
    form = {"kind": "oidc", "name": "by-keys", "issuer": "urn:acme", "audiences": "my-app"}
    form |= {"jwks_uri": f"{issuer.url}/jwks", "audience_claim": "client_id", "user_id": "sub"}
    form["algorithms"] = "ES256"
    text = token(issuer, iss="urn:acme", aud=None, client_id="my-app")
    answer = forms.post(f"{PROVIDERS}/test", **form, token=text)
    assert "This token would be accepted" in answer.text
    wrong = forms.post(f"{PROVIDERS}/test", **{**form, "audience_claim": "sub"}, token=text)
    assert 'id="audience_claim-fault"' in wrong.text
    wrong = forms.post(f"{PROVIDERS}/test", **{**form, "jwks_uri": HOSTILE}, token=text)
    assert 'id="jwks_uri-fault"' in wrong.text
    assert HOSTILE not in wrong.text
    made = forms.post(PROVIDERS, **form)
    assert made.status_code == 303
    provider = site.api.get("/v2/auth-providers").json()["auth_providers"][-1]
    assert (provider["jwks_uri"], provider["audience_claim"]) == (form["jwks_uri"], "client_id")
    page = forms.get(f"{PROVIDERS}/{provider['id']}").text
    assert form["jwks_uri"] in page
    assert "my-app, in client_id" in page


def test_a_setting_that_a_supabase_token_cannot_prove_is_rejected_at_its_field(site: Site) -> None:
    form = {"kind": "supabase", "project_url": "https://unproven.supabase.co", "user_id": "sub"}
    answer = site.forms().post(PROVIDERS, **form, email="email", verified_email_only="1")
    assert answer.status_code == 400
    assert 'id="verified_email_only-fault"' in answer.text


def test_an_invalid_form_is_rejected_and_not_tested(site: Site) -> None:
    forms = site.forms()
    path = f"{PROVIDERS}/test"
    wrong = forms.post(path, kind="oidc", user_id="sub", issuer=HOSTILE, token="eyJ.x")
    assert wrong.status_code == 400
    assert HOSTILE not in wrong.text
    assert 'id="issuer-fault"' in wrong.text
    for fields in ({"token": "x" * 20_000}, {"token": "x" * 20_000, "name": "y" * 4_000}):
        long = forms.post(path, kind="firebase", project_id="my-project", **fields)
        assert long.status_code == 400
        assert 'id="create-token-fault"' in long.text
        assert "x" * 20_000 not in long.text
    assert forms.post(path, kind="nothing").status_code == 400
    assert forms.send(path, {"csrf": "x"}).status_code == 403
    back = forms.get(path)
    assert (back.status_code, back.headers["location"]) == (303, PROVIDERS)


def test_changes_are_tested_with_the_saved_or_the_entered_secret(site: Site) -> None:
    forms = site.forms()
    kept, typed = "a-shared-secret-that-is-kept-0123456789", "another-one-that-was-typed-0123456789"
    body = {"kind": "supabase", "name": "sealed", "project_url": "https://ijklmnop.supabase.co"}
    made = site.api.post(
        "/v2/auth-providers", json={**body, "legacy_secret": True, "secret": kept}
    ).json()
    now = int(time.time())
    claims = {"iss": made["issuer"], "aud": "authenticated", "sub": "user-1", "exp": now + 600}
    claims["role"] = "authenticated"
    by_kept, by_typed = (
        jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(key), ["HS256"])
        for key in (kept, typed)
    )
    form = {**body, "legacy_secret": "1", "user_id": "sub"}
    path = f"{PROVIDERS}/{made['id']}/test-changes"
    for secret, good, bad in (("", by_kept, by_typed), (typed, by_typed, by_kept)):
        answer = forms.post(path, **form, secret=secret, token=good)
        assert "This token would be accepted" in answer.text
        refused = forms.post(path, **form, secret=secret, token=bad)
        assert "This token would be accepted" not in refused.text
        assert typed not in answer.text
        assert kept not in answer.text
        assert ("enter it again" in answer.text) == bool(secret)
    fresh = forms.post(f"{PROVIDERS}/test", **form, secret=typed, token=by_typed)
    assert "This token would be accepted" in fresh.text
    assert 'id="secret-fault"' in forms.post(f"{PROVIDERS}/test", **form, secret="short").text
    assert forms.get(path).status_code == 303


def test_a_disabled_provider_exchanges_no_tokens(site: Site, enter: Enter, issuer: Issuer) -> None:
    made = add_provider(site, issuer, "sleeping")
    page = enter("owner", f"{PROVIDERS}/{made['id']}")
    page.get_by_role("button", name="Disable").click()
    page.wait_for_selector("text=Its tokens can't be exchanged until")
    passes(page)
    with site.server.client(site.server.first_key) as client:
        body = {"provider": "sleeping", "token": token(issuer)}
        assert client.post("/v2/tokens/exchange", json=body).status_code >= 400
    page.get_by_role("button", name="Enable").click()
    page.wait_for_selector("text=exchanged again")
    exchange_token(site, "sleeping", token(issuer))


def test_deleting_a_provider_ends_its_grants(site: Site, enter: Enter, issuer: Issuer) -> None:
    made = add_provider(site, issuer, "ending")
    grant = exchange_token(site, "ending", token(issuer, sub="leaver"))
    page = enter("owner", f"{PROVIDERS}/{made['id']}?dialog=delete")
    assert "all its grants and their live sessions are ended" in page.inner_text("#delete")
    passes(page)
    name, password = grant["mqtt_username"], grant["mqtt_password"]
    with connected(site.server, name, password, "ending-1") as session:
        assert session.code == 0
        page.fill("#confirmation", "ending")
        page.get_by_role("button", name="Delete provider").click()
        page.wait_for_selector("text=1 live session ended")
        wait_until(lambda: session.ended_at)
    refused = site.forms().post(f"{PROVIDERS}/{made['id']}/delete", confirmation="ending")
    assert refused.status_code == 404


def test_grants_are_filtered_by_user_and_revoked_singly_or_together(
    site: Site, enter: Enter, issuer: Issuer
) -> None:
    add_provider(site, issuer, "granting")
    first = exchange_token(site, "granting", token(issuer, sub="ana", email="Ana@acme.example"))
    for number in range(3):
        exchange_token(site, "granting", token(issuer, sub="bea", jti=str(number)))
    page = enter("owner", f"{GRANTS}?user=ana")
    assert page.locator("tbody tr").count() == 1
    passes(page)
    name, password = first["mqtt_username"], first["mqtt_password"]
    with connected(site.server, name, password, "ana-1") as session:
        assert session.code == 0
        page.get_by_role("button", name="Revoke the grant").click()
        page.wait_for_selector("text=1 live session ended")
    page.goto(site.url(GRANTS))
    page.fill("[name=user]", "bea")
    page.keyboard.press("Enter")
    page.wait_for_url("**user=bea**")
    assert page.locator("tbody tr").count() == 3
    page.get_by_role("button", name="Revoke all").click()
    passes(page)
    page.locator("#revoke-all").get_by_role("button", name="Revoke all").click()
    page.wait_for_selector("text=Grants revoked.")
    page.goto(site.url(f"{GRANTS}?user=bea"))
    page.wait_for_selector("text=No matching grants")
    page.select_option("[name=state]", "all")
    page.wait_for_selector("tbody tr")
    assert page.inner_text("tbody").count("Revoked") == 3


def test_members_cannot_change_providers_and_pages_fit_a_phone(
    site: Site, enter: Enter, issuer: Issuer
) -> None:
    made = add_provider(site, issuer, "watched")
    grant = exchange_token(site, "watched", token(issuer, sub="watched-user"))
    phone = {"viewport": {"width": 390, "height": 844}}
    page = enter("member", PROVIDERS, **phone)
    for path in (PROVIDERS, f"{PROVIDERS}/{made['id']}", f"{GRANTS}?user=watched-user"):
        page.goto(site.url(path))
        assert "Only admins and owners can do this." in page.inner_text("main")
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        passes(page)
    forms = site.forms(site.cookie("member"))
    revoke = {"kind": "grant", "subject": grant["token_id"]}
    assert forms.post(f"{GRANTS}/revoke", **revoke).status_code == 403
    assert forms.post(PROVIDERS, kind="firebase", project_id="my-project").status_code == 403
    assert forms.post(f"{PROVIDERS}/test", kind="firebase", project_id="x").status_code == 403
    for verb in ("edit", "enable", "disable", "delete", "test", "test-changes"):
        assert forms.post(f"{PROVIDERS}/{made['id']}/{verb}").status_code == 403
    assert site.forms().get(f"/o/acme/test/messaging/providers/{made['id']}").status_code == 404
    wrong = site.forms().post(f"{GRANTS}/revoke", kind="everybody", subject="x")
    assert wrong.status_code == 400
