from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardkey.domain.times import iso, parse_duration, parse_iso

LAST = 253_402_300_799_999
moments = st.integers(0, LAST)


def test_a_time_is_written_in_utc_with_milliseconds() -> None:
    assert iso(0) == "1970-01-01T00:00:00.000Z"
    assert iso(1_895_918_400_007) == "2030-01-29T12:00:00.007Z"


@given(moments)
def test_a_written_time_parses_back_equal(ms: int) -> None:
    assert parse_iso(iso(ms)) == ms


@given(moments, moments)
def test_written_times_sort_chronologically(a: int, b: int) -> None:
    assert (iso(a) < iso(b)) == (a < b)


@given(st.integers(86_400_000, LAST - 86_400_000), st.integers(-14 * 60, 14 * 60))
def test_any_offset_names_the_same_moment(ms: int, minutes: int) -> None:
    zone = timezone(timedelta(minutes=minutes))
    moment = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)).astimezone(zone)
    assert parse_iso(moment.isoformat()) == ms


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01t00:00:01z", 1_000),
        ("1970-01-01 00:00:01Z", 1_000),
        ("1970-01-01T00:00:00.5Z", 500),
        ("1970-01-01T00:00:00.0019Z", 1),
        ("1970-01-01T00:00:00.123456789012Z", 123),
        ("1970-01-01T02:00:00-00:00", 7_200_000),
        ("2024-02-29T00:00:00Z", 1_709_164_800_000),
    ],
)
def test_the_forms_of_rfc_3339_are_accepted(text: str, ms: int) -> None:
    assert parse_iso(text) == ms


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("2030-01-31T12:00:00", "has no offset"),
        ("2030-01-31", "not a time"),
        ("", "not a time"),
        ("tomorrow", "not a time"),
        ("20300131T120000Z", "not a time"),
        ("2030-W05-4T12:00:00Z", "not a time"),
        ("2030-01-31T12:00Z", "not a time"),
        ("2030-01-31T12:00:00Z ", "not a time"),
        ("2030-01-31T12:00:00+02:00:01", "not a time"),
        ("\u0662\u0660\u0663\u0660-01-31T12:00:00Z", "not a time"),
        ("2023-02-29T00:00:00Z", "does not exist"),
        ("2030-01-31T24:30:00Z", "does not exist"),
        ("2016-12-31T23:59:60Z", "does not exist"),
        ("2030-01-31T12:00:00+24:00", "does not exist"),
        ("1969-12-31T23:59:59.999Z", "out of range"),
        ("0001-01-01T00:00:00+14:00", "out of range"),
        ("9999-12-31T23:59:59-14:00", "out of range"),
    ],
)
def test_an_invalid_time_is_refused_with_a_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        parse_iso(text)


@given(st.text(max_size=40))
def test_parsing_a_time_raises_no_other_error(text: str) -> None:
    for read in (parse_iso, parse_duration):
        try:
            assert read(text) >= 0
        except ValueError as error:
            assert str(error).endswith(".")  # noqa: PT017 - either outcome is right


@pytest.mark.parametrize(
    ("text", "ms"),
    [("90s", 90_000), ("30m", 1_800_000), ("1h", 3_600_000), ("24h", 86_400_000),
     ("7d", 604_800_000)],
)  # fmt: skip
def test_a_duration_is_read_in_its_unit(text: str, ms: int) -> None:
    assert parse_duration(text) == ms


@pytest.mark.parametrize(
    "text", ["", "1", "h", "1w", "-1h", "1.5h", " 1h", "1h30m", "1234567s", "\u0661h"]
)
def test_an_invalid_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="such as 24h"):
        parse_duration(text)
