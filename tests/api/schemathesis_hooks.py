"""What schemathesis cannot read out of the document: values of our formats, and our state."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import schemathesis
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

# Refusals that hang on the state of things, or on several fields together, which a schema cannot
# tell: the type of the key, whether the client that a rule names is there, what a kind of provider
# takes. And nobody makes up the token of an issuer, or the password of a grant.
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
# Times are in the future: an expiry that has passed is refused.
TIMES = st.datetimes(datetime(2200, 1, 1), datetime(9999, 12, 30), timezones=st.just(UTC))  # noqa: DTZ001 - the zone comes beside it
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
    # The real key comes with every request.
    "key-text": st.just(""),
    # Only the server writes cursors; the walk through pages has a test of its own.
    "cursor": st.just(""),
}
for name, strategy in FORMATS.items():
    schemathesis.openapi.format(name, strategy)


@schemathesis.hook
def filter_body(_: Any, body: Any) -> bool:  # noqa: ANN401 - any JSON
    """Leave out 1.0 and its like, which JSON Schema takes for integers and a strict reader not."""
    if isinstance(body, float):
        return not body.is_integer()
    parts = body.values() if isinstance(body, dict) else body if isinstance(body, list) else ()
    return all(filter_body(_, part) for part in parts)


# Exactly one of these routes' parameters is given, which OpenAPI cannot say of a query.
ONE_OF_SEVERAL = {"/v2/presence", "/v2/retained"}


@schemathesis.check
def what_fits_the_schema_is_taken(ctx: Any, response: Any, case: Any) -> bool | None:  # noqa: ANN401 - schemathesis's own types are private
    """Stand in for `positive_data_acceptance`, but for what hangs on the state of things."""
    if response.status_code in {400, 401, 403} and response.json()["code"] in BEYOND_A_SCHEMA:
        return None
    if response.status_code == 400 and case.operation.path in ONE_OF_SEVERAL:
        return None
    taken: bool | None = positive_data_acceptance(ctx, response, case)
    return taken
