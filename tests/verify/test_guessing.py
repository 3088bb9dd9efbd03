"""Guessing keys uses bounded memory, delays no other caller and reveals nothing by timing."""

from __future__ import annotations

import gc
import hashlib
import os
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import pytest

from wardkey.actions.core.runner import Runner
from wardkey.actions.keys import imports, keys
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import KeyType
from wardkey.domain.principal import Principal
from wardkey.domain.secret import (
    ALPHABET,
    CRC_LENGTH,
    RANDOM_LENGTH,
    Environment,
    SecretKind,
    SecretText,
    generate,
    random_text,
)
from wardkey.domain.verdict import Verdict, VerificationRequest
from wardkey.verify.usage import Usage
from wardkey.verify.verifier import Verifier

MIB = 1_048_576


@pytest.fixture
def usage(runner: Runner) -> Usage:
    return Usage(runner.database)


@pytest.fixture
def verifier(runner: Runner, usage: Usage) -> Iterator[Verifier]:
    made = Verifier(runner.database, usage)
    yield made
    made.directory.close()


def issue(runner: Runner, by: Principal, name: str) -> SecretText:
    spec = KeySpec(name, KeyType.SECRET, Environment.LIVE)
    return runner.write(keys.issue, by, spec).secret


def guess() -> str:
    """Return a text that only a look-up distinguishes from a secret."""
    return generate(SecretKind.SECRET, Environment.LIVE).text


def guess_at(known: SecretText) -> str:
    """Return another secret with the same kid and a valid checksum."""
    body = known.text[: -(RANDOM_LENGTH + CRC_LENGTH)] + random_text(RANDOM_LENGTH)
    left, digits = crc32(body.encode()), ""
    for _ in range(CRC_LENGTH):
        left, digit = divmod(left, 62)
        digits = ALPHABET[digit] + digits
    return body + digits


def address_of(number: int) -> str:
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def resident() -> int:
    """Return this process's memory use in bytes."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    "guesses",
    [50_000, pytest.param(1_000_000, marks=[pytest.mark.soak, pytest.mark.timeout(3600)])],
)
def test_a_flood_of_unknown_keys_uses_bounded_memory_and_delays_no_other_caller(
    runner: Runner,
    owner: Principal,
    verifier: Verifier,
    usage: Usage,
    storage_url: str,
    guesses: int,
) -> None:
    right = issue(runner, owner, "live-billing-export").text
    # There each look-up crosses the network.
    count = guesses // 4 if storage_url else guesses
    longest = 0.0
    memory = verifier.directory.memory
    assert verifier.verify(VerificationRequest(right)).verdict is Verdict.VALID
    before = resident()
    for number in range(count):
        request = VerificationRequest(guess(), address=address_of(number))
        assert verifier.verify(request).verdict is Verdict.UNKNOWN
        if number % 500 == 0:
            began = time.perf_counter()
            assert (
                verifier.verify(VerificationRequest(right, address="192.0.2.1")).verdict
                is Verdict.VALID
            )
            longest = max(longest, time.perf_counter() - began)
            usage.flush()
    grown = resident() - before
    assert len(memory.unknown_kids) <= 10_000
    assert len(verifier._guesses) <= 100_000
    # Two full tables and no more; a million texts alone would take twice as much.
    assert grown < 64 * MIB, f"{grown / MIB:.1f} MiB after {count} guesses"
    assert longest < 1


def test_response_times_do_not_reveal_whether_a_kid_exists(
    runner: Runner, owner: Principal, verifier: Verifier
) -> None:
    """Compares kids that are cached, as on a caller's second request."""
    hot = [issue(runner, owner, f"live-hot-{number}") for number in range(20)]
    strangers = [generate(SecretKind.SECRET, Environment.LIVE) for _ in range(20)]
    chance = random.Random(1)
    asked = {
        "known": [VerificationRequest(guess_at(one)) for one in hot for _ in range(50)],
        "unknown": [VerificationRequest(guess_at(one)) for one in strangers for _ in range(50)],
    }
    for questions in asked.values():
        for question in questions:
            assert verifier.verify(question).verdict is Verdict.UNKNOWN
    took: dict[str, list[int]] = {"known": [], "unknown": []}
    order = ["known", "unknown"] * 50_000
    chance.shuffle(order)
    clock = time.perf_counter_ns
    verify = verifier.verify
    gc.disable()
    try:
        for which in order:
            question = chance.choice(asked[which])
            began = clock()
            verify(question)
            took[which].append(clock() - began)
    finally:
        gc.enable()
    low, high = difference_of_middles(took["known"], took["unknown"], chance)
    typical = statistics.median(took["unknown"])
    print(f"known - unknown: {low:.0f} to {high:.0f} ns of {typical:.0f} ns")  # noqa: T201 - on failure
    assert max(abs(low), abs(high)) < typical / 8


def difference_of_middles(
    first_sample: list[int], others: list[int], chance: random.Random
) -> tuple[float, float]:
    """Return a 99 % bootstrap interval of the difference between two trimmed means.

    The slowest fifth of each is trimmed as noise from the machine.
    """

    def middle(samples: list[int]) -> list[int]:
        return sorted(samples)[: len(samples) * 4 // 5]

    kept = middle(first_sample), middle(others)
    differences = []
    for _ in range(200):
        first, second = (statistics.fmean(chance.choices(part, k=5_000)) for part in kept)
        differences.append(first - second)
    differences.sort()
    # Means of so many vary less than means of 5,000, by the root of how many more they are.
    centre = statistics.fmean(kept[0]) - statistics.fmean(kept[1])
    shrink = (5_000 / len(kept[0])) ** 0.5
    return centre + (differences[1] - centre) * shrink, centre + (differences[-2] - centre) * shrink


def test_a_secret_is_looked_up_under_its_own_prefix_only(
    runner: Runner, owner: Principal, verifier: Verifier
) -> None:
    prefixes = ("acme_", "acmf", "beta_", "zed_")
    for prefix in prefixes:
        runner.write(imports.register_prefix, owner, prefix)
    has = verifier.directory.has_import_prefix
    assert all(has(prefix + tail) for prefix in prefixes for tail in ("", "0", "zzz", "~"))
    assert not any(has(text) for text in ("", "acme", "acmd_1", "acm", "bet", "zee", "~", "a"))


def test_valid_keys_are_accepted_from_an_address_that_sends_invalid_ones(
    runner: Runner, owner: Principal, verifier: Verifier
) -> None:
    """All callers behind a proxy share its address, and a newly issued key is not cached."""
    runner.write(imports.register_prefix, owner, "old_")
    right = "old_" + "r" * 40
    hashed = hashlib.sha256(right.encode()).hexdigest()
    spec = KeySpec("live-imported", KeyType.SECRET, Environment.LIVE)
    runner.write(imports.import_key, owner, imports.Import(spec, "old_", hashed, 160))
    address = "2001:db8::1"
    for number in range(700):
        wrong = f"old_{number:040}" if number % 2 else guess()
        verifier.verify(VerificationRequest(wrong, address=address))
    limited = verifier.verify(VerificationRequest(guess(), address="2001:db8::ffff"))
    assert limited.verdict is Verdict.RATE_LIMITED
    fresh = issue(runner, owner, "live-issued-a-moment-ago").text
    for text in (right, fresh):
        assert verifier.verify(VerificationRequest(text, address=address)).verdict is Verdict.VALID
