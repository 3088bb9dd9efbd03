from __future__ import annotations

import inspect
import re
from http import HTTPStatus

import pytest

from wardkey.domain import errors
from wardkey.domain.errors import ERRORS_BY_CODE, WardkeyError
from wardkey.web.problems import status_of

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
    if issubclass(made, WardkeyError) and made is not WardkeyError
]
ALL = pytest.mark.parametrize("leaf", ERRORS_BY_CODE.values(), ids=list(ERRORS_BY_CODE))


def test_every_error_class_is_a_family_or_a_leaf_with_a_code() -> None:
    leaves = {made.__name__ for made in ERRORS_BY_CODE.values()}
    assert leaves | FAMILIES == {made.__name__ for made in CLASSES}
    assert not leaves & FAMILIES
    assert len(leaves) == len(ERRORS_BY_CODE)


@ALL
def test_a_leaf_belongs_to_exactly_one_family(leaf: type[WardkeyError]) -> None:
    assert leaf.__bases__[0].__name__ in FAMILIES
    assert len(leaf.__bases__) == 1


@ALL
def test_a_code_is_the_class_name_in_snake_case(leaf: type[WardkeyError]) -> None:
    assert re.fullmatch(r"[a-z]+(_[a-z]+)*", leaf.code)
    assert leaf.code.replace("_", "") == leaf.__name__.lower()


@ALL
def test_an_error_without_details_has_a_whole_sentence(leaf: type[WardkeyError]) -> None:
    detail = leaf().detail
    assert detail[0].isupper()
    assert detail.endswith(".")
    assert "\n" not in detail
    assert "  " not in detail
    assert str(leaf()) == detail
    assert leaf.title


def test_published_codes_do_not_change() -> None:
    titles = {code: leaf.title for code, leaf in ERRORS_BY_CODE.items()}
    for code in ("malformed", "unknown", "revoked", "expired", "disabled"):
        assert titles[code] == "Invalid API Key"
    assert titles["duplicate_name"] == "Duplicate name"


def test_no_title_is_the_name_of_another_status() -> None:
    # A 403 with the title “Unauthorized” reads like a 401.
    phrases = {status.phrase.casefold(): status for status in HTTPStatus}
    for leaf in ERRORS_BY_CODE.values():
        assert phrases.get(leaf.title.casefold(), status_of(leaf)) == status_of(leaf), leaf


def test_an_error_keeps_its_details() -> None:
    failure = errors.NotPermitted("No.", field="a.0", needs="keys:read", retry_after_s=2.5)
    assert (failure.detail, failure.field, failure.needs) == ("No.", "a.0", "keys:read")
    assert failure.retry_after_s == 2.5
    assert errors.InvalidRequest(errors=(("a", "b"),)).errors == (("a", "b"),)
