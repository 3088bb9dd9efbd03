from __future__ import annotations

from tests.support.server import Server


def test_a_key_goes_through_its_whole_life_cycle(server: Server) -> None:
    with server.owner() as owner:
        issued = owner.post("/v2/keys", json={"name": "live-billing-webhooks", "type": "secret"})
        assert issued.status_code == 201, issued.text
        first = issued.json()["secret"]
        key_id = issued.json()["key"]["id"]
        rotated = owner.post(f"/v2/keys/{key_id}/rotate", json={"grace": "1h"}).json()
        with server.client(server.first_key) as asking:

            def verdict(text: str) -> str:
                answer = asking.post("/v2/keys/verify", json={"key": text})
                assert answer.status_code == 200, answer.text
                return str(answer.json()["code"])

            assert [verdict(first), verdict(rotated["secret"])] == ["valid", "valid"]
            receipt = owner.post(f"/v2/keys/{key_id}/revoke", json={"reason": "keyCompromise"})
            assert receipt.status_code == 200, receipt.text
            assert [verdict(first), verdict(rotated["secret"])] == ["revoked", "revoked"]
        again = owner.delete(f"/v2/keys/{key_id}").json()
        assert again | {"took_ms": 0} == receipt.json() | {"took_ms": 0}
        assert owner.get("/v2/audit-events/verify").json()["holds"]
