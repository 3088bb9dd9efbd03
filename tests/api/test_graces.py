from __future__ import annotations

import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import pytest

from tests.support.server import Server
from wardkey.domain.times import iso, parse_iso

HOUR = 3_600_000


@pytest.fixture
def owner(server: Server) -> Iterator[httpx.Client]:
    with server.owner() as client:
        yield client


@pytest.fixture
def made(owner: httpx.Client) -> Any:  # noqa: ANN401 - JSON
    answer = owner.post("/v2/keys", json={"name": f"live-{uuid.uuid4()}", "type": "secret"})
    assert answer.status_code == 201, answer.text
    return answer.json()


def rotate(owner: httpx.Client, made: Any, **body: str) -> Any:  # noqa: ANN401 - JSON
    answer = owner.post(f"/v2/keys/{made['key']['id']}/rotate", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ends(rotated: Any) -> dict[str, str | None]:  # noqa: ANN401 - JSON
    return {secret["kid"]: secret["grace_ends_at"] for secret in rotated["key"]["secrets"]}


def code(owner: httpx.Client, text: str) -> str:
    result: str = owner.post("/v2/keys/verify", json={"key": text}).json()["code"]
    return result


@pytest.mark.parametrize(
    ("body", "hours"),
    [({}, 24), ({"grace": "1h"}, 1), ({"grace": "24h"}, 24), ({"grace": "7d"}, 168)],
)
def test_the_old_secret_works_during_the_grace_period(
    owner: httpx.Client,
    made: Any,  # noqa: ANN401 - JSON
    body: dict[str, str],
    hours: int,
) -> None:
    rotated = rotate(owner, made, **body)
    end = ends(rotated)[made["kid"]]
    assert end is not None
    assert parse_iso(end) - parse_iso(rotated["key"]["rotated_at"]) == hours * HOUR
    assert ends(rotated)[rotated["kid"]] is None
    assert code(owner, made["secret"]) == code(owner, rotated["secret"]) == "valid"


def test_without_a_grace_period_the_old_secret_ends_at_once(
    owner: httpx.Client,
    made: Any,  # noqa: ANN401 - JSON
) -> None:
    rotated = rotate(owner, made, grace="now")
    assert code(owner, made["secret"]) == "revoked"
    assert code(owner, rotated["secret"]) == "valid"
    old = rotated["key"]["secrets"][-1]
    assert (old["kid"], old["revoke_reason"]) == (made["kid"], "superseded")


def test_the_grace_period_can_end_at_a_given_time_or_stay_open(
    owner: httpx.Client,
    made: Any,  # noqa: ANN401 - JSON
) -> None:
    assert ends(rotate(owner, made, grace="until_revoked"))[made["kid"]] is None
    end = iso(int(time.time() * 1000) + 48 * HOUR)
    assert ends(rotate(owner, made, grace=end))[made["kid"]] == end
    # An earlier end is not postponed, but a nearer one takes effect.
    assert ends(rotate(owner, made, grace="7d"))[made["kid"]] == end
    assert ends(rotate(owner, made, grace="1h"))[made["kid"]] != end
    for refused in ("2001-01-01T00:00:00Z", "2h", "", "tomorrow"):
        answer = owner.post(f"/v2/keys/{made['key']['id']}/rotate", json={"grace": refused})
        assert answer.json()["code"] == "invalid_grace", refused


def test_409_an_eleventh_live_secret_is_rejected(
    owner: httpx.Client,
    made: Any,  # noqa: ANN401 - JSON
) -> None:
    rotated = [rotate(owner, made, grace="until_revoked") for _ in range(9)][-1]
    where = f"/v2/keys/{made['key']['id']}"
    answer = owner.post(f"{where}/rotate", json={"grace": "1h"})
    assert (answer.status_code, answer.json()["code"]) == (409, "too_many_secrets")
    assert len(owner.get(where).json()["secrets"]) == 10
    owner.post(f"{where}/secrets/{rotated['kid']}/revoke")
    rotate(owner, made, grace="1h")
    # Ending all other secrets at once leaves only the new one.
    last = rotate(owner, made, grace="now")
    assert [secret["kid"] for secret in last["key"]["secrets"] if secret["live"]] == [last["kid"]]
