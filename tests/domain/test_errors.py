from __future__ import annotations

import inspect
import re

import pytest

from wardkey.domain import errors
from wardkey.domain.errors import LEAVES, Failure

FAMILIES = {
    "Invalid",
    "Unauthenticated",
    "InvalidKey",
    "Forbidden",
    "NotFound",
    "Conflict",
    "RateLimited",
    "Unavailable",
}
CLASSES = [
    made
    for _, made in inspect.getmembers(errors, inspect.isclass)
    if issubclass(made, Failure) and made is not Failure
]
ALL = pytest.mark.parametrize("leaf", LEAVES.values(), ids=list(LEAVES))


def test_every_failure_is_a_family_or_a_leaf_with_a_code() -> None:
    leaves = {made.__name__ for made in LEAVES.values()}
    assert leaves | FAMILIES == {made.__name__ for made in CLASSES}
    assert not leaves & FAMILIES
    assert len(leaves) == len(LEAVES)


@ALL
def test_a_leaf_is_of_exactly_one_family(leaf: type[Failure]) -> None:
    assert leaf.__bases__[0].__name__ in FAMILIES
    assert len(leaf.__bases__) == 1


@ALL
def test_a_code_is_the_name_in_snake_case(leaf: type[Failure]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", leaf.code)
    assert leaf.code.replace("_", "") == leaf.__name__.lower()


@ALL
def test_a_failure_without_details_says_a_whole_sentence(leaf: type[Failure]) -> None:
    detail = leaf().detail
    assert detail[0].isupper()
    assert detail.endswith(".")
    assert "\n" not in detail
    assert "  " not in detail
    assert str(leaf()) == detail
    assert leaf.title


def test_codes_that_clients_know_stay() -> None:
    titles = {code: leaf.title for code, leaf in LEAVES.items()}
    for code in ("malformed", "unknown", "revoked", "expired", "disabled"):
        assert titles[code] == "Invalid API Key"
    for code in (
        "not_permitted",
        "wrong_environment",
        "secret_key_required",
        "address_not_allowed",
        "origin_not_allowed",
        "secret_key_in_browser",
        "other_organization",
    ):
        assert titles[code] == "Unauthorized"
    assert titles["duplicate_name"] == "Duplicate name"


def test_a_failure_carries_what_it_was_told() -> None:
    failure = errors.NotPermitted("No.", field="a.0", needs="keys:read", retry_after_s=2.5)
    assert (failure.detail, failure.field, failure.needs) == ("No.", "a.0", "keys:read")
    assert failure.retry_after_s == 2.5
    assert errors.InvalidRequest(errors=(("a", "b"),)).errors == (("a", "b"),)
