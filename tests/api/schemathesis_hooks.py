"""Schemathesis hooks: values for our formats, and errors that depend on server state."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

# Errors that depend on server state or on several fields together, which a schema can't express:
# the key type, whether a rule's client exists, the settings of a provider kind. Generated data
# can't contain a valid issuer token or grant password either.
BEYOND_A_SCHEMA = {
    "permission_not_for_type",
    "origins_not_for_type",
    "expiry_in_past",
    "invalid_acl_subject",
    "invalid_provider",
    "invalid_token",
    "ambiguous_provider",
    "ambiguous_credentials",
    "exchange_not_allowed",
    "unknown_scope",
    "provider_disabled",
}
FILTERS = ["#", "agents/{username}/#", "a/+/b", "{org}-{claim.team}", "é.x/{client_id}"]

WORD = st.text("abcdefghijklmnopqrstuvwxyz", min_size=1, max_size=12)
# Times are in the future: a past expiry is rejected.
TIMES = st.datetimes(datetime(2200, 1, 1), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001 - the zone is a separate argument
FORMATS = {
    "date-time": TIMES.map(datetime.isoformat),
    "name": st.text("aeiou bcd-ÄÖ☃東", min_size=1, max_size=50).map(lambda text: f"live {text}"),
    "text": st.text("aeiou bcd-ÄÖ☃東\n\t", max_size=50),
    "email": st.builds("{}.{}@acme.example".format, WORD, WORD),
    "cidr": st.one_of(
        st.ip_addresses().map(str), st.ip_addresses().map(lambda address: f"{address}/32")
    ),
    "origin": WORD.map(lambda host: f"https://{host}.example"),
    "idempotency-key": st.uuids(version=4).map(str),
    "password": WORD.map(lambda word: f"a long password of {word}"),
    "permission": st.sampled_from(["publish", "keys:read", "invoices:read", "a.b:c:d-e"]),
    "scope": st.builds("{}x:{}".format, WORD, WORD),
    "rule-filter": st.sampled_from(FILTERS),
    "topic": st.builds("{}/{}".format, WORD, WORD),
    "issuer-url": WORD.map(lambda word: f"https://{word}.example/realms/{word}"),
    "claim-path": st.sampled_from(["sub", "email", "app_metadata.team", "https://a.example/x"]),
    "audience": WORD,
    "shared-secret": WORD.map(lambda word: word.ljust(40, "x")),
    "provider-token": WORD.map(lambda word: f"{word}.{word}.{word}"),
    "grant-password": WORD.map(lambda word: f"tkn_{word}"),
    # Every request already carries the real key.
    "key-text": st.just(""),
    # Only the server creates cursors; paging has its own test.
    "cursor": st.just(""),
}
for name, strategy in FORMATS.items():
    schemathesis.openapi.format(name, strategy)


@schemathesis.hook
def filter_body(_: Any, body: Any) -> bool:  # noqa: ANN401 - any JSON
    """Skip floats such as 1.0, which are integers to JSON Schema but not to a strict parser."""
    if isinstance(body, float):
        return not body.is_integer()
    parts = body.values() if isinstance(body, dict) else body if isinstance(body, list) else ()
    return all(filter_body(_, part) for part in parts)


# These routes take exactly one of their parameters, which OpenAPI can't express for a query.
ONE_OF_SEVERAL = {"/v2/presence", "/v2/retained"}


@schemathesis.check
def what_fits_the_schema_is_taken(ctx: Any, response: Any, case: Any) -> bool | None:  # noqa: ANN401 - schemathesis's own types are private
    """Run `positive_data_acceptance`, ignoring errors that depend on server state."""
    if response.status_code in {400, 401, 403} and response.json()["code"] in BEYOND_A_SCHEMA:
        return None
    if response.status_code == 400 and case.operation.path in ONE_OF_SEVERAL:
        return None
    taken: bool | None = positive_data_acceptance(ctx, response, case)
    return taken
