"""Failed attempts are counted before they are checked, across all workers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.ports import free_ports
from tests.support.server import OWNER, PASSWORD, Server, running
from wardkey.domain.errors import Overloaded, TooManyAttempts, Unauthenticated, WrongPassword
from wardkey.services.throttle import Counter, Limit, Throttle, by_account, by_address

ADDRESS = "203.0.113.7"


@pytest.fixture
def throttle(tmp_path: Path) -> Iterator[Throttle]:
    made = Throttle(tmp_path / "attempts")
    yield made
    made.close()


def fail(throttle: Throttle, *counters: Counter) -> bool:
    """Make an attempt that fails; return whether the throttle let it through."""
    refused = False
    try:
        with throttle.attempt(*counters):
            check_nothing()
    except TooManyAttempts:
        refused = True
    except WrongPassword:
        pass
    return not refused


def check_nothing() -> None:
    raise WrongPassword


def failures(file: Path, attempts: int) -> int:
    throttle = Throttle(file)
    return sum(fail(throttle, *by_address("address", ADDRESS)) for _ in range(attempts))


def test_all_processes_together_allow_ten_failures(tmp_path: Path) -> None:
    with get_context("fork").Pool(4) as pool:
        counts = pool.starmap(failures, [(tmp_path / "attempts", 50)] * 4)
    assert sum(counts) == 10


def test_pending_attempts_count(throttle: Throttle) -> None:
    counters = by_address("address", ADDRESS)
    for _ in range(10):
        throttle.take(*counters)
    with pytest.raises(TooManyAttempts) as refused:
        throttle.take(*counters)
    assert 20 < (refused.value.retry_after_s or 0) <= 30
    throttle.give_back(*counters)
    throttle.take(*counters)


@pytest.mark.parametrize("failure", [None, Overloaded, KeyboardInterrupt])
def test_an_attempt_that_did_not_fail_is_given_back(
    throttle: Throttle, failure: type[BaseException] | None
) -> None:
    counters = (*by_address("address", ADDRESS), by_account(OWNER))

    def go_through() -> None:
        with throttle.attempt(*counters):
            if failure is not None:
                raise failure

    for _ in range(30):
        if failure is None:
            go_through()
        else:
            with pytest.raises(failure):
                go_through()
    assert [fail(throttle, *counters) for _ in range(11)] == [True] * 10 + [False]


def test_a_rejected_attempt_is_not_counted(throttle: Throttle) -> None:
    mine, theirs = by_account("mine@acme.example"), by_account("theirs@acme.example")
    assert [fail(throttle, mine) for _ in range(11)] == [True] * 10 + [False]
    assert not any(fail(throttle, mine, theirs) for _ in range(20))
    assert [fail(throttle, theirs) for _ in range(11)] == [True] * 10 + [False]


def test_an_ipv6_64_counts_as_one_address_and_a_48_as_four(throttle: Throttle) -> None:
    def from_subnet(number: int, attempts: int = 25) -> int:
        sources = [f"2001:db8:1:{number:x}::{host:x}" for host in range(attempts)]
        return sum(fail(throttle, *by_address("address", source)) for source in sources)

    assert [from_subnet(number) for number in range(6)] == [10, 10, 10, 10, 0, 0]
    assert fail(throttle, *by_address("address", "2001:db8:2::1"))
    mapped = [f"::ffff:{ADDRESS}", ADDRESS] * 10
    assert sum(fail(throttle, *by_address("address", source)) for source in mapped) == 10


def test_an_account_name_is_normalized(throttle: Throttle) -> None:
    names = [OWNER, f" {OWNER.upper()} ", OWNER.title()] * 10
    assert sum(fail(throttle, by_account(name)) for name in names) == 10


@given(st.lists(st.sampled_from(["fail", "begin", "succeed"]), max_size=60))
@settings(deadline=None, max_examples=60)
def test_failures_and_pending_attempts_together_are_at_most_ten(
    tmp_path_factory: pytest.TempPathFactory, steps: list[str]
) -> None:
    throttle = Throttle(tmp_path_factory.mktemp("throttle") / "attempts")
    counter, counted, pending = by_account(OWNER), 0, 0
    for step in steps:
        if step == "succeed":
            if pending:
                throttle.give_back(counter)
                pending -= 1
        elif step == "fail":
            assert fail(throttle, counter) == (counted + pending < 10)
            counted += counted + pending < 10
        else:
            expected = counted + pending < 10
            try:
                throttle.take(counter)
                pending += 1
            except TooManyAttempts:
                assert not expected
            else:
                assert expected
    throttle.close()


# --- every entry point -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    (port,) = free_ports(1)
    # Passkeys need a host name.
    where = {"listen": f"127.0.0.1:{port}", "public_url": f"http://localhost:{port}"}
    folder = tmp_path_factory.mktemp("server") / "data"
    with running(folder, workers=2, behind_proxy=1, **where) as up:
        up.owner().close()
        yield up


def at_once(send: Callable[[int], Any], count: int = 40) -> list[Any]:
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(send, range(count)))


def posting(
    server: Server, path: str, body: Mapping[str, Any], *, form: bool, **headers: str
) -> Callable[[int], int]:
    """Return a function that posts the body over a new connection and returns the status."""
    kind = "x-www-form-urlencoded" if form else "json"
    content = urlencode(body) if form else json.dumps(body)

    def send(_: int) -> int:
        with server.client(Content_Type=f"application/{kind}", **headers) as client:
            return client.post(path, content=content).status_code

    return send


WRONG = "a wrong password"
LINK = "0" * 43
ENTRIES: dict[str, tuple[str, dict[str, Any], bool]] = {
    "api sign-in": ("/v2/user-tokens", {"email": "a@acme.example", "password": WRONG}, False),
    "page sign-in": ("/sign-in", {"email": "b@acme.example", "password": WRONG}, True),
    "api set-up": ("/v2/setup", {"token": LINK, "password": WRONG}, False),
    "page set-up": (f"/setup/{LINK}", {"password": WRONG}, True),
    "api invitation": ("/v2/invitations/accept", {"token": LINK, "password": WRONG}, False),
    "page invitation": (f"/invitations/{LINK}", {"password": WRONG}, True),
    "passkey": ("/sign-in/passkey/answer", {"answer": "{}"}, True),
}


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("family", [4, 6])
def test_of_forty_concurrent_wrong_attempts_at_most_ten_are_checked(
    server: Server, entry: str, family: int
) -> None:
    """A rejection for another reason than a wrong guess, such as load, doesn't count."""
    path, body, form = ENTRIES[entry]
    number = list(ENTRIES).index(entry)

    def send(host: int) -> int:
        address = f"2001:db8:0:{number}::{host:x}" if family == 6 else f"198.51.100.{number}"
        # Distinct names, so only the address counts.
        own = {"email": f"{family}-{number}-{host}@acme.example"} if "email" in body else {}
        return posting(server, path, {**body, **own}, form=form, X_Forwarded_For=address)(host)

    statuses = at_once(send)
    assert set(statuses) <= {401, 429, 503}
    assert 1 <= statuses.count(401) <= 10
    # Attempts not used up, because of other rejections, remain for the next requests.
    statuses += [send(40) for _ in range(12)]
    assert statuses.count(401) == 10


def test_an_account_has_ten_failures_across_all_addresses_and_entry_points(server: Server) -> None:
    with server.person("viewer"):
        pass
    email = "viewer@acme.example"
    with server.client(X_Forwarded_For="192.0.2.250") as anyone:
        signed = anyone.post("/sign-in", data={"email": email, "password": PASSWORD})
    session = signed.headers["set-cookie"].partition(";")[0]
    with server.client(Cookie=session) as client:
        match = re.search(r'name="csrf" value="(\w+)"', client.get("/account").text)
    assert match is not None
    csrf = {"csrf": match[1]}
    change = {**csrf, "current_password": WRONG, "password": "moss on a northern roof"}
    forms = [
        ("/v2/user-tokens", {"email": email.upper(), "password": WRONG}, False, ""),
        ("/sign-in", {"email": f" {email}", "password": WRONG}, True, ""),
        ("/account/password", change, True, session),
    ]

    def send(number: int) -> int:
        path, body, form, cookie = forms[number % len(forms)]
        address = f"192.0.2.{number}"
        return posting(server, path, body, form=form, X_Forwarded_For=address, Cookie=cookie)(0)

    statuses = at_once(send, 39)
    statuses += [send(number) for number in range(39, 60)]
    assert set(statuses) <= {401, 429, 503}
    assert statuses.count(401) == 10


@pytest.mark.parametrize("path", ["/v2/tokens/exchange", "/v2/tokens/refresh"])
def test_of_concurrent_wrong_tokens_a_hundred_are_checked(server: Server, path: str) -> None:
    body = (
        {"organization_id": "org_nobody", "token": "nothing"}
        if path.endswith("exchange")
        else {"token_id": "tok_nothing", "current_token_password": "tkn_nothing"}
    )
    send = posting(server, path, body, form=False, X_Forwarded_For="203.0.113.20")
    statuses = at_once(send, 40) + at_once(send, 40) + at_once(send, 40)
    assert set(statuses) == {401, 429}
    # Each second of this loop allows one more attempt.
    assert 100 <= statuses.count(401) <= 110


def test_of_forty_concurrent_wrong_logins_at_most_ten_are_checked(server: Server) -> None:
    made = server.cli("hook", "create", "emqx")
    assert made.returncode == 0, made.stderr
    match = re.search(r"wht_\w+", made.stdout)
    assert match is not None
    with server.client(server.first_key) as key:
        client = key.post("/v2/clients", json={"username": "a", "password": PASSWORD}).json()
        name = client["client"]["mqtt_username"]
    body = {"username": name, "clientid": "a", "peerhost": "203.0.113.30"}

    def login(password: str, address: str) -> bool:
        with server.client(match[0]) as broker:
            login_body = {**body, "password": password, "peerhost": address}
            answer = broker.post("/hooks/emqx/authentication", json=login_body)
        return bool(answer.json()["result"] == "allow")

    assert not any(at_once(lambda n: login(f"wrong {n}", ADDRESS)))
    # Load may have rejected some unchecked; these are checked.
    assert not any(login(f"wrong {n}", ADDRESS) for n in range(10))
    assert not login(PASSWORD, ADDRESS)
    assert login(PASSWORD, "203.0.113.8")
    # Concurrent correct logins aren't counted.
    assert any(at_once(lambda _: login(PASSWORD, "203.0.113.9")))
    assert login(PASSWORD, "203.0.113.9")


def test_successful_sign_ins_are_not_counted(server: Server) -> None:
    with server.person("member"):
        pass
    right = {"email": "member@acme.example", "password": PASSWORD}
    send = posting(server, "/v2/user-tokens", right, form=False, X_Forwarded_For="203.0.113.40")
    assert [send(0) for _ in range(12)] == [201] * 12


def test_limits_match_the_documentation() -> None:
    assert (Limit.PERSON.value.burst, Limit.PERSON.value.increment_ms) == (10, 30_000)
    assert (Limit.SHARED.value.burst, Limit.SHARED.value.increment_ms) == (100, 1_000)
    assert issubclass(WrongPassword, Unauthenticated)
