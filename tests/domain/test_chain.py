import base64
import random
from collections.abc import Iterator
from enum import StrEnum

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wardkey.domain.audit_chain import (
    GENESIS,
    MOST_BREAKS,
    Event,
    Head,
    canonical,
    check,
    link,
    open_head,
    sign_head,
)

Link = tuple[int, int, Event, bytes]
KEYS = {1: b"\x01" * 32, 2: b"\x02" * 32}

values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
events = st.dictionaries(st.text(max_size=6), values, max_size=5)


def chain_of(number: int, **fields: object) -> list[Link]:
    links: list[Link] = []
    previous = GENESIS
    for seq in range(1, number + 1):
        version = 1 if seq <= number // 2 else 2
        event = {"seq": seq, "action": f"key.{seq}", **fields}
        previous = link(KEYS[version], previous, event)
        links.append((seq, version, event, previous))
    return links


def head_of(links: list[Link]) -> tuple[int, bytes]:
    return links[-1][0], links[-1][3]


sizes = st.integers(2, 12)


@given(st.integers(0, 12))
def test_an_untouched_chain_has_no_breaks_across_a_key_change(number: int) -> None:
    links = chain_of(number)
    assert check(links, KEYS, head_of(links) if links else None) == []


@given(sizes, st.data())
def test_any_edit_is_reported_once_at_its_event(number: int, data: st.DataObject) -> None:
    links = chain_of(number)
    head = head_of(links)
    place = data.draw(st.integers(0, number - 1))
    seq, version, event, mac = links[place]
    change = data.draw(st.sampled_from(["value", "name", "added", "removed", "version"]))
    edited = dict(event)
    if change == "value":
        edited["action"] = "key.other"
    elif change == "name":
        edited["actions"] = edited.pop("action")
    elif change == "added":
        edited["more"] = None
    elif change == "removed":
        del edited["action"]
    else:
        version = 3 - version
    links[place] = (seq, version, edited, mac)
    assert [found.seq for found in check(links, KEYS, head)] == [seq]


@given(sizes, st.data())
def test_an_edited_link_is_found(number: int, data: st.DataObject) -> None:
    links = chain_of(number)
    head = head_of(links)
    place = data.draw(st.integers(0, number - 1))
    bit = data.draw(st.integers(0, 255))
    seq, version, event, mac = links[place]
    forged = (int.from_bytes(mac, "big") ^ (1 << bit)).to_bytes(32, "big")
    links[place] = (seq, version, event, forged)
    assert seq in {found.seq for found in check(links, KEYS, head)}


@given(sizes, st.data())
def test_any_removal_is_found_and_the_missing_events_are_named(
    number: int, data: st.DataObject
) -> None:
    links = chain_of(number)
    head = head_of(links)
    first = data.draw(st.integers(0, number - 1))
    last = data.draw(st.integers(first, number - 1))
    del links[first : last + 1]
    (found,) = check(links, KEYS, head) if links else check([], KEYS, head)
    named = f"event {first + 1} is" if first == last else f"events {first + 1} to {last + 1} are"
    assert found.what.startswith(f"{named} missing")


@given(sizes, st.data())
def test_a_removal_with_the_rest_renumbered_is_found(number: int, data: st.DataObject) -> None:
    links = chain_of(number)
    head = head_of(links)
    del links[data.draw(st.integers(0, number - 1))]
    renumbered = [(seq, *rest[1:]) for seq, rest in enumerate(links, 1)]
    assert check(renumbered, KEYS, head)


@given(sizes, st.data())
def test_a_removed_tail_is_found_against_the_head(number: int, data: st.DataObject) -> None:
    links = chain_of(number)
    kept = data.draw(st.integers(0, number - 1))
    (found,) = check(links[:kept], KEYS, head_of(links))
    assert (found.seq, "missing at the end" in found.what) == (kept + 1, True)


def test_a_removed_head_is_found_unless_the_chain_is_empty() -> None:
    assert [found.seq for found in check(chain_of(3), KEYS, None)] == [3]
    assert check([], KEYS, None) == []


@pytest.mark.parametrize("head", [(3, GENESIS), (2, GENESIS), (0, GENESIS)])
def test_a_head_that_names_another_end_is_found(head: tuple[int, bytes]) -> None:
    (found,) = check(chain_of(3), KEYS, head)
    assert (found.seq, "does not match" in found.what) == (3, True)


@given(sizes, st.randoms(use_true_random=False))
def test_any_reordering_is_found(number: int, source: random.Random) -> None:
    links = chain_of(number)
    moved = links[:]
    source.shuffle(moved)
    assert bool(check(moved, KEYS, head_of(links))) == (moved != links)


def test_swapped_events_are_reported_as_one_missing_and_one_out_of_order() -> None:
    first, second, third, fourth = chain_of(4)
    breaks = check([first, third, second, fourth], KEYS, (4, fourth[3]))
    assert [(b.seq, b.what) for b in breaks] == [
        (3, "event 2 is missing before it"),
        (2, "it comes after event 3: duplicated or out of order"),
    ]


@given(sizes, st.data())
def test_any_insertion_is_found(number: int, data: st.DataObject) -> None:
    links = chain_of(number)
    head = head_of(links)
    place = data.draw(st.integers(0, number))
    strange = data.draw(st.binary(min_size=32, max_size=32))
    new = (place + 1, 1, {"seq": place + 1, "action": "key.slipped.in"}, strange)
    later = [(seq + 1, version, event, mac) for seq, version, event, mac in links[place:]]
    assert check([*links[:place], new, *later], KEYS, head)
    assert check([*links[:place], new, *links[place:]], KEYS, head)


def test_a_chain_rewritten_without_the_key_is_found() -> None:
    previous, forged = GENESIS, []
    for seq in range(1, 4):
        event: Event = {"seq": seq, "action": "key.forged"}
        previous = link(b"\x09" * 32, previous, event)
        forged.append((seq, 1, event, previous))
    assert [found.seq for found in check(forged, KEYS, (3, previous))] == [1, 2, 3]


def test_an_unknown_chain_key_is_reported() -> None:
    links = chain_of(4)
    breaks = check(links, {1: KEYS[1]}, head_of(links))
    assert [b.seq for b in breaks] == [3, 4]
    assert "never had" in breaks[0].what


def test_an_event_that_cannot_be_chained_is_reported_as_a_break() -> None:
    links = chain_of(3)
    seq, version, event, mac = links[1]
    for value in (1.5, "\ud800", b"x"):
        links[1] = (seq, version, {**event, "action": value}, mac)
        assert [found.seq for found in check(links, KEYS, head_of(links))] == [2]


def test_a_long_chain_is_read_one_event_at_a_time() -> None:
    key, walked = KEYS[1], 0
    previous = GENESIS

    def stream() -> Iterator[Link]:
        nonlocal previous, walked
        for seq in range(1, 2_001):
            event: Event = {"seq": seq}
            previous = link(key, previous, event)
            yield seq, 1, event, previous
            walked += 1

    links = stream()
    assert check(links, KEYS, (2_001, GENESIS))[0].seq == 2_001
    assert walked == 2_000


def test_the_check_stops_after_too_many_breaks() -> None:
    endless = ((seq, 1, {"seq": seq}, GENESIS) for seq in range(1, 10**9))
    breaks = check(endless, KEYS, None)
    assert len(breaks) == MOST_BREAKS + 1
    assert "stopped here" in breaks[-1].what


@given(events)
def test_the_order_of_names_does_not_matter(event: dict[str, object]) -> None:
    turned = dict(reversed(event.items()))
    try:
        assert canonical(event) == canonical(turned)
    except UnicodeEncodeError:
        assert "\\ud" in ascii(event)


@given(events, events)
@example({"a": 1}, {"a": True})
@example({"a": 1}, {"a": "1"})
@example({"a": None}, {})
@example({"a": 'b","c":"d'}, {"a": "b", "c": "d"})
@example({"a": [[], []]}, {"a": [[[]]]})
def test_different_events_never_have_the_same_bytes(
    one: dict[str, object], other: dict[str, object]
) -> None:
    try:
        same = canonical(one) == canonical(other)
    except UnicodeEncodeError:
        return
    assert same == (repr(sorted_deeply(one)) == repr(sorted_deeply(other)))


def sorted_deeply(value: object) -> object:
    if isinstance(value, dict):
        return [(name, sorted_deeply(value[name])) for name in sorted(value)]
    return [sorted_deeply(item) for item in value] if isinstance(value, list) else value


class Colour(StrEnum):
    RED = "red"


def test_canonical_bytes_are_compact_sorted_utf_8() -> None:
    event = {"b": (1, None, True), "a": "é\n", "c": {"z": Colour.RED, "y": -1}}
    assert canonical(event) == '{"a":"é\\n","b":[1,null,true],"c":{"y":-1,"z":"red"}}'.encode()


@pytest.mark.parametrize(
    "value", [1.0, float("nan"), b"x", {1: "a"}, [0.5], {"a": {"b": 2.5}}, {1, 2}]
)
def test_a_value_without_a_unique_encoding_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="audit event"):
        canonical({"value": value})


def test_bytes_cannot_move_between_the_previous_link_and_the_event() -> None:
    body = canonical({"a": 1})
    assert link(KEYS[1], GENESIS, {"a": 1}) != link(KEYS[1], GENESIS + body[:1], {"a": 1})


def test_the_link_of_a_given_event_never_changes() -> None:
    mac = link(bytes(range(32)), GENESIS, {"seq": 1, "action": "key.issued"})
    assert mac.hex() == "7d4d321cbcff83558c08b734155cfa9b15f1f7aba9586e780fd38143b52700ad"


@pytest.mark.parametrize("key", [b"", b"k" * 31, b"k" * 65])
def test_a_chain_without_a_proper_key_is_refused(key: bytes) -> None:
    for act in (
        lambda: link(key, GENESIS, {}),
        lambda: sign_head(key, "org_1", 1, GENESIS, 0),
        lambda: open_head(key, base64.urlsafe_b64encode(bytes(40)).decode()),
    ):
        with pytest.raises(ValueError, match="32 to 64 bytes"):
            act()


@given(
    st.text("abc_123", min_size=1),
    st.integers(0),
    st.binary(min_size=32, max_size=32),
    st.integers(0),
)
def test_a_signed_head_opens_to_the_signed_value(
    org_id: str, seq: int, mac: bytes, at_ms: int
) -> None:
    text = sign_head(KEYS[1], org_id, seq, mac, at_ms)
    assert text.isascii()
    assert len(text.split()) == 1
    assert open_head(KEYS[1], f" {text}\n") == Head(org_id, seq, mac, at_ms)
    assert open_head(KEYS[2], text) is None


def test_an_exported_head_opens_forever() -> None:
    text = (
        "XXu8pdJ-ybvII39JzVBFdKPLjRGLfWq1M2j8kM7A78V7ImF0IjoxODAwMDAwMDAwMDAwLCJtYWMiOiIwMDAwMD"
        "AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwIiwib3Jn"
        "X2lkIjoib3JnXzEiLCJzZXEiOjF9"
    )
    assert open_head(bytes(range(32)), text) == Head("org_1", 1, GENESIS, 1_800_000_000_000)


@given(st.data())
def test_an_edited_signed_head_does_not_open(data: st.DataObject) -> None:
    text = sign_head(KEYS[1], "org_1", 7, b"\x05" * 32, 1_800_000_000_000)
    raw = bytearray(base64.urlsafe_b64decode(text))
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    assert open_head(KEYS[1], base64.urlsafe_b64encode(raw).decode()) is None


@given(st.text(max_size=80))
def test_no_other_text_opens_as_a_head(text: str) -> None:
    assert open_head(KEYS[1], text) is None


def test_a_link_cannot_pass_for_a_signature() -> None:
    body = canonical({"org_id": "org_1", "seq": 1, "mac": GENESIS.hex(), "at": 0})
    forged = link(KEYS[1], GENESIS, {"org_id": "org_1", "seq": 1, "mac": GENESIS.hex(), "at": 0})
    assert open_head(KEYS[1], base64.urlsafe_b64encode(forged + body).decode()) is None
