"""Headers that every response has, and values that never get into them."""

from __future__ import annotations

from collections.abc import Iterator
from urllib.parse import quote

import pytest

from tests.support.server import Server, running
from tests.web.test_raw_http import answers, statuses
from wardkey.web.raw_http import header_lines


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("single") / "data", workers=1) as up:
        yield up


INJECTED = [
    'x"\r\nSet-Cookie: a=b',
    'x"\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n',
    "x\nSet-Cookie: a=b",
    "x\rSet-Cookie: a=b",
    'keys:read"',
    "€",
    "\0",
    "keys:read\r\n",
]
# The fast path answers the first; `Expect` makes it leave the second to the framework.
WAYS = ["", "Expect: 100-continue\r\n"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("parameter", ["permission", "organization", "environment", "type"])
@pytest.mark.parametrize("value", INJECTED)
def test_no_parameter_of_forward_auth_reaches_the_response_headers(
    single: Server, parameter: str, value: str, way: str
) -> None:
    head = (
        f"GET /v2/auth?{parameter}={quote(value)} HTTP/1.1\r\nHost: x\r\n{way}"
        f"Authorization: Bearer {single.first_key}\r\nConnection: close\r\n\r\n"
    )
    received = answers(single.url, head.encode())
    # The body quotes the value, so only the heads are checked.
    heads = received.rpartition(b"\r\n\r\n")[0]
    # An organization that does not exist is the proxy's mistake: 404.
    assert statuses(heads)[-1:] in ([400], [401], [404])
    assert b"set-cookie" not in heads.lower()
    assert b"traceback" not in single.output.lower().encode()


@pytest.mark.parametrize("value", ["a\r\nb: c", "a\nb", "a\rb", "a\0b", "€"])
def test_a_header_value_that_would_end_its_line_is_not_written(value: str) -> None:
    with pytest.raises(ValueError, match=r"control character|latin-1"):
        header_lines({"Name": value})


def test_responses_with_secrets_are_never_cached(single: Server) -> None:
    with single.owner() as owner:
        for path, body in (
            ("/v2/keys", {"name": "live-stored", "type": "secret"}),
            ("/v2/invitations", {"email": "new@acme.example", "role": "viewer"}),
            ("/v2/keys/verify", {"key": single.first_key}),
        ):
            made = owner.post(path, json=body)
            assert made.is_success
            assert made.headers.get_list("cache-control") == ["no-store"]
        for path in ("/v2/keys", "/v2/nothing", "/v2/auth"):
            assert owner.get(path).headers.get_list("cache-control") == ["no-store"]


def test_head_is_answered_wherever_get_is(single: Server) -> None:
    with single.client(single.first_key) as client:
        for path in ("/healthz", "/readyz", "/v2/keys", "/v2/organization", "/sign-in", "/v2/auth"):
            got, head = client.get(path), client.head(path)
            assert (head.status_code, head.content) == (got.status_code, b""), path
        refused = client.delete("/healthz")
        assert (refused.status_code, refused.headers["allow"]) == (405, "GET, HEAD")
