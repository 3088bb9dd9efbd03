from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any

import pytest
from joserfc.jwk import ECKey

from tests.adapters.issuer import INSIDE, Issuer, issuing, sending
from tests.support.server import wait_until
from wardkey.adapters.key_sets import KeySets
from wardkey.adapters.tokens import MOST_KEYS
from wardkey.domain.errors import KeySetUnavailable
from wardkey.domain.providers import KeySource


@dataclass
class Clock:
    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Place:
    """An issuer, its cached keys, and a clock controlled by the test."""

    issuer: Issuer
    clock: Clock = field(default_factory=Clock)
    sets: KeySets = field(init=False)

    def __post_init__(self) -> None:
        self.sets = KeySets(INSIDE.get, self.clock)

    def puts(self, *kids: str, path: str = "/jwks", cache_control: str = "") -> KeySource:
        keys = {"keys": [jwk(kid) for kid in kids]}
        return KeySource(self.issuer.puts(path, keys, Cache_Control=cache_control))

    def breaks(self, path: str = "/jwks") -> None:
        self.issuer.answers[path] = sending(b"", 500)

    def kids(self, source: KeySource, kid: str = "", provider: str = "idp_1") -> list[str]:
        return [key.kid for key in self.sets.keys(provider, source, kid)]

    @property
    def asked(self) -> int:
        return len(self.issuer.asked)


def jwk(kid: str) -> dict[str, Any]:
    return ECKey.generate_key("P-256", {"kid": kid}, private=False).as_dict()


@pytest.fixture
def place() -> Iterator[Place]:
    with issuing() as issuer:
        yield Place(issuer)


def test_a_set_is_fetched_once_and_cached(place: Place) -> None:
    source = place.puts("a", "b")
    assert place.kids(source, "a") == ["a"]
    assert place.kids(source, "b") == ["b"]
    assert place.kids(source) == ["a", "b"]
    assert place.asked == 1


@pytest.mark.parametrize(
    ("header", "kept"),
    [
        ("max-age=120", 120),
        ("max-age=86400", 600),
        ("", 600),
        ("max-age=0", 30),
        ("no-store", 30),
    ],
)
def test_a_set_is_cached_as_long_as_it_allows_but_ten_minutes_at_most(
    place: Place, header: str, kept: float
) -> None:
    source = place.puts("a", cache_control=header)
    place.kids(source)
    place.clock.now += kept - 0.1
    place.kids(source)
    assert place.asked == 1
    place.clock.now += 0.2
    # A stale set is used while a fresh one is fetched in the background.
    assert place.kids(source) == ["a"]
    wait_until(lambda: place.asked == 2)


def test_a_rotated_key_is_found_at_once(place: Place) -> None:
    source = place.puts("a")
    place.kids(source)
    place.clock.now += 31
    place.puts("a", "b")
    assert place.kids(source, "b") == ["b"]


def test_unknown_kids_refetch_the_set_at_most_once_in_thirty_seconds(place: Place) -> None:
    source = place.puts("a")
    place.kids(source)
    for _ in range(3):
        place.clock.now += 31
        for n in range(20):
            assert place.kids(source, f"../../etc/passwd' OR {n}") == []
    assert place.asked == 4
    with ThreadPoolExecutor(8) as pool:
        place.clock.now += 31
        list(pool.map(lambda n: place.kids(source, f"no-{n}"), range(8)))
    assert place.asked == 5


def test_503_when_stale_keys_are_too_old(place: Place) -> None:
    source = place.puts("a")
    place.kids(source)
    place.breaks()
    place.clock.now += 601
    assert place.kids(source, "a") == ["a"]
    wait_until(lambda: place.sets._entries[("idp_1", source)].attempts == 2)
    place.clock.now += 3_590
    assert place.kids(source, "a") == ["a"]
    wait_until(lambda: place.sets._entries[("idp_1", source)].attempts == 3)
    place.clock.now += 11
    with pytest.raises(KeySetUnavailable) as refused:
        place.kids(source, "a")
    assert "answered 500" in refused.value.detail
    assert refused.value.retry_after_s == 10
    place.puts("a")
    place.clock.now += 11
    assert place.kids(source, "a") == ["a"]


def test_503_for_an_unknown_kid_while_the_issuer_is_down(place: Place) -> None:
    source = place.puts("a")
    place.kids(source)
    place.breaks()
    place.clock.now += 31
    for _ in range(3):
        # The kid may be new or invented.
        with pytest.raises(KeySetUnavailable):
            place.kids(source, "b")
        assert place.kids(source, "a") == ["a"]
    assert place.asked == 2


def test_an_issuer_that_is_down_is_requested_only_every_ten_seconds(place: Place) -> None:
    place.breaks()
    source = KeySource(f"{place.issuer.url}/jwks")
    for _ in range(5):
        with pytest.raises(KeySetUnavailable):
            place.kids(source)
    assert place.asked == 1
    place.clock.now += 10
    place.puts("a")
    assert place.kids(source) == ["a"]


def holding(place: Place, path: str) -> tuple[threading.Event, Callable[[], bool]]:
    """Delay the issuer's response at a path until an event is set."""
    go, before = threading.Event(), place.issuer.answers[path]

    def answer(request: BaseHTTPRequestHandler) -> None:
        go.wait(4)
        before(request)

    place.issuer.answers[path] = answer
    return go, lambda: path in place.issuer.asked


def test_callers_share_one_fetch_and_never_wait_for_another_provider(place: Place) -> None:
    slow, quick = place.puts("a"), place.puts("b", path="/quick")
    go, is_asked = holding(place, "/jwks")
    with ThreadPoolExecutor(8) as pool:
        waiting = [pool.submit(place.kids, slow, "a") for _ in range(8)]
        wait_until(is_asked)
        assert place.kids(quick, "b", "idp_2") == ["b"]
        assert not any(future.done() for future in waiting)
        go.set()
        assert [future.result() for future in waiting] == [["a"]] * 8
    assert place.issuer.asked.count("/jwks") == 1


def test_503_beyond_the_maximum_number_of_waiting_callers(place: Place) -> None:
    source = place.puts("a")
    go, _ = holding(place, "/jwks")
    with ThreadPoolExecutor(12) as pool:
        waiting = [pool.submit(place.kids, source, "a") for _ in range(12)]
        wait_until(lambda: sum(future.done() for future in waiting) == 4)
        failed = [future.exception() for future in waiting if future.done()]
        assert all(isinstance(fault, KeySetUnavailable) for fault in failed)
        go.set()
    assert sum(future.exception() is None for future in waiting) == 8


def test_two_providers_with_the_same_url_are_independent(place: Place) -> None:
    source = place.puts("a")
    place.kids(source)
    place.kids(source, provider="idp_2")
    assert place.asked == 2
    place.breaks()
    place.sets.purge("idp_1")
    assert place.kids(source, provider="idp_2") == ["a"]
    with pytest.raises(KeySetUnavailable):
        place.kids(source)


def test_a_purged_key_is_removed_at_once(place: Place) -> None:
    source = place.puts("stolen", "a")
    assert place.kids(source, "stolen") == ["stolen"]
    place.puts("a")
    place.sets.purge("idp_1")
    assert place.kids(source, "stolen") == []


def test_discovery_leads_to_the_keys(place: Place) -> None:
    place.puts("a")
    issuer = place.issuer.url
    document = {"issuer": issuer, "jwks_uri": f"{issuer}/jwks"}
    url = place.issuer.puts("/.well-known/openid-configuration", document)
    source = KeySource(url, issuer)
    assert place.kids(source, "a") == ["a"]
    assert place.kids(source, "a") == ["a"]
    assert place.issuer.asked == ["/.well-known/openid-configuration", "/jwks"]


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"issuer": "{}/"}, "another issuer"),
        ({"issuer": None}, "another issuer"),
        ({"issuer": "HTTP{}"}, "another issuer"),
        ({"jwks_uri": None}, "no jwks_uri"),
        ({"jwks_uri": ["{}/jwks"]}, "no jwks_uri"),
        ({"jwks_uri": "file:///etc/passwd"}, "The URL can't be fetched"),
    ],
)
def test_503_for_an_invalid_discovery_document(
    place: Place, changed: dict[str, object], reason: str
) -> None:
    place.puts("a")
    issuer = place.issuer.url
    changed = {
        name: value.format(issuer) if isinstance(value, str) else value
        for name, value in changed.items()
    }
    document = {"issuer": issuer, "jwks_uri": f"{issuer}/jwks"} | changed
    url = place.issuer.puts("/.well-known/openid-configuration", document)
    with pytest.raises(KeySetUnavailable) as refused:
        place.kids(KeySource(url, issuer))
    assert reason in refused.value.detail


@pytest.mark.parametrize(
    "document", [{}, {"keys": {}}, {"keys": [{"kty": "oct"}] * (MOST_KEYS + 1)}]
)
def test_503_for_an_unusable_key_set(place: Place, document: dict[str, object]) -> None:
    with pytest.raises(KeySetUnavailable) as refused:
        place.kids(KeySource(place.issuer.puts("/jwks", document)))
    assert "can't be used" in refused.value.detail


def test_the_number_of_cached_sets_is_bounded(place: Place) -> None:
    place.sets.max_sets = 3
    source = place.puts("a")
    for n in range(6):
        place.kids(source, provider=f"idp_{n}")
    assert [name[0] for name in place.sets._entries] == ["idp_3", "idp_4", "idp_5"]
