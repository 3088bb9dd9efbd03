"""The demo's steps with a user of an OIDC issuer, who gets a temporary MQTT credential."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx2 as httpx

from demo.issuer import CLIENT, PEOPLE, Issuer
from demo.messaging import Screen, wait
from demo.steps import PASSWORD, Step, claim

TTL_S = 30


def exchange(url: str, port: int) -> Iterator[Step]:
    """Yield the title and the outcome of each step when it is done."""
    issuer = Issuer()
    try:
        yield from _steps(url, port, issuer)
    finally:
        issuer.close()


def _steps(url: str, port: int, issuer: Issuer) -> Iterator[Step]:
    anonymous = httpx.Client(base_url=url, timeout=20)
    signed = anonymous.post(
        "/v2/user-tokens", json={"email": "owner@acme.example", "password": PASSWORD}
    ).json()
    owner = httpx.Client(
        base_url=url, timeout=20, headers={"Authorization": f"Bearer {signed['token']}"}
    )
    made = owner.post(
        "/v2/auth-providers",
        json={
            "kind": "oidc",
            "issuer": issuer.url,
            "audiences": [CLIENT],
            "algorithms": ["ES256"],
            "mapping": {"variables": {"team": "team"}},
            "limits": {"publishable_may_exchange": True},
        },
    )
    claim(made.status_code == 201, made.text)
    rule: dict[str, object] = {
        "priority": 30,
        "subject": {"kind": "provider", "value": made.json()["id"]},
        "filter": "people/{claim.user_id}/{claim.team}/#",
        "action": "both",
        "effect": "allow",
    }
    answer = owner.post("/v2/acl/rules", json=rule)
    claim(answer.status_code == 201, answer.text)
    yield "add a local OIDC issuer, and an ACL rule for its users", str(rule["filter"])

    ((email, password),) = PEOPLE.items()
    token = httpx.post(
        f"{issuer.url}/token", json={"email": email, "password": password}, timeout=20
    ).json()["id_token"]
    key = owner.post("/v2/keys", json={"name": "live-people-page", "type": "publishable"}).json()
    page = {"Authorization": f"Bearer {key['secret']}"}
    answer = anonymous.post(
        "/v2/tokens/exchange",
        json={"provider": "oidc", "token": token, "ttl": TTL_S},
        headers=page,
    )
    claim(answer.status_code == 200, answer.text)
    grant = answer.json()
    yield "sign in at the issuer, exchange the token", grant["mqtt_username"]

    altered = token[:-8] + ("A" if token[-8] != "A" else "B") + token[-7:]
    refused = anonymous.post(
        "/v2/tokens/exchange", json={"provider": "oidc", "token": altered}, headers=page
    )
    claim(refused.json()["code"] == "invalid_token", refused.text)
    yield "exchange an altered token", refused.json()["detail"]

    screen = Screen(port, grant["mqtt_username"], grant["mqtt_password"], "ada-phone")
    claim(screen.code == 0, f"the login was refused: {screen.code}")
    screen.subscribe("people/ada/hall-b/#")
    claim(not screen.may_subscribe("people/grace/hall-b/#"), "another user's topics were granted")
    yield "log in over MQTT with the grant", "own topics granted, another user's refused"

    screen.paho.publish("people/ada/hall-b/seat", "4", 1)
    wait(lambda: screen.messages, "no message arrived")
    began = time.perf_counter()
    done = owner.post(f"/v2/keys/{key['key']['id']}/revoke")
    claim(done.status_code == 200, done.text)
    wait(lambda: screen.ended_at, "the session did not end")
    took = (screen.ended_at - began) * 1000
    yield "revoke the key that made the grant", f"the MQTT session ended after {took:.0f} ms"

    key = owner.post("/v2/keys", json={"name": "live-people-app", "type": "secret"}).json()
    app = {"Authorization": f"Bearer {key['secret']}"}
    body = {"provider": "oidc", "token": token, "ttl": TTL_S}
    grant = anonymous.post("/v2/tokens/exchange", json=body, headers=app).json()
    screen = Screen(port, grant["mqtt_username"], grant["mqtt_password"], "ada-phone")
    claim(screen.code == 0, f"the login was refused: {screen.code}")
    began = time.perf_counter()
    wait(lambda: screen.ended_at, "the session outlived its grant", TTL_S + 5)
    lasted = screen.ended_at - began
    yield f"let a grant of {TTL_S} s expire", f"its session was closed after {lasted:.1f} s"
