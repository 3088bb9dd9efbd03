"""The audit chain: events linked by a keyed hash, so that any edit, gap or reordering shows."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from hashlib import blake2b

GENESIS = bytes(32)
MOST_BREAKS = 1_000
_KEY_LENGTHS = range(32, 65)

Event = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Break:
    """A place where a chain does not hold, and what is wrong there."""

    seq: int
    what: str


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain at one time (epoch milliseconds): its last number and link."""

    org_id: str
    seq: int
    mac: bytes
    at: int


def canonical(event: Event) -> bytes:
    """Return the bytes that stand for `event`: JSON with sorted names and no spaces, UTF-8.

    Values are texts, integers, booleans, None, and lists and mappings of these. Raises
    `ValueError` for anything else; above all for floats, which writers spell in different ways.
    """
    text = json.dumps(_plain(event), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def _plain(value: object) -> object:
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise ValueError("The names in an audit event are texts.")
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise ValueError(f"An audit event holds no {type(value).__name__}; write it as a text.")


def link(key: bytes, previous: bytes, event: Event) -> bytes:
    """Return the link of `event` after `previous`: 32 bytes of keyed BLAKE2b (RFC 7693).

    It covers the length and the bytes of each, so that nothing can move from one to the other.
    Raises `ValueError` for a key outside 32 to 64 bytes, and what `canonical` raises.
    """
    _check_key(key)
    mac = blake2b(key=key, digest_size=32, person=b"wardkey-audit")
    for part in (previous, canonical(event)):
        mac.update(len(part).to_bytes(8, "big"))
        mac.update(part)
    return mac.digest()


def check(
    events: Iterable[tuple[int, int, Event, bytes]],
    keys: Mapping[int, bytes],
    head: tuple[int, bytes] | None,
) -> list[Break]:
    """Walk `events`, each (seq, key version, event, link) in order of seq; return the breaks.

    Only one event is held at a time. After a break the walk goes on from the link that stands
    there, so that one edit is told once; it stops after 1,000 breaks. `head` is the recorded end
    (seq, link): None fits an empty chain only.
    """
    breaks: list[Break] = []
    last, previous = 0, GENESIS
    for seq, version, event, mac in events:
        if len(breaks) == MOST_BREAKS:
            breaks.append(Break(seq, "the walk stopped here, after as many breaks as it tells"))
            return breaks
        if seq <= last:
            breaks.append(Break(seq, f"it stands after event {last}: doubled or out of order"))
            continue
        if seq > last + 1:
            breaks.append(Break(seq, f"{_events(last + 1, seq - 1)} missing before it"))
        elif version not in keys:
            breaks.append(Break(seq, "it names a key that this deployment never had"))
        elif not _holds(keys[version], previous, event, mac):
            breaks.append(Break(seq, "it was edited, moved, or follows one that was"))
        last, previous = seq, mac
    return breaks + _check_end(last, previous, head)


def _holds(key: bytes, previous: bytes, event: Event, mac: bytes) -> bool:
    try:
        expected = link(key, previous, event)
    except ValueError:
        return False
    return hmac.compare_digest(expected, mac)


def _check_end(last: int, previous: bytes, head: tuple[int, bytes] | None) -> list[Break]:
    if head is None:
        return [Break(last, "the record of the chain’s end is missing")] if last else []
    if head[0] > last:
        return [Break(last + 1, f"{_events(last + 1, head[0])} missing at the end")]
    if head[0] < last or not hmac.compare_digest(head[1], previous):
        return [Break(last, "the record of the chain’s end does not fit its last event")]
    return []


def _events(first: int, last: int) -> str:
    return f"event {first} is" if first == last else f"events {first} to {last} are"


def sign_head(key: bytes, org_id: str, seq: int, mac: bytes, at_ms: int) -> str:
    """Return a chain's end as one line of ASCII that only a holder of `key` can have written.

    Raises `ValueError` for a key outside 32 to 64 bytes.
    """
    body = canonical({"org_id": org_id, "seq": seq, "mac": mac.hex(), "at": at_ms})
    return base64.urlsafe_b64encode(_signature(key, body) + body).decode()


def open_head(key: bytes, text: str) -> Head | None:
    """Return what `sign_head` wrote, or None if `key` did not sign it."""
    try:
        raw = base64.b64decode(text.strip(), altchars=b"-_", validate=True)
    except ValueError:
        return None
    if not hmac.compare_digest(_signature(key, raw[32:]), raw[:32]):
        return None
    body = json.loads(raw[32:])
    return Head(body["org_id"], body["seq"], bytes.fromhex(body["mac"]), body["at"])


def _signature(key: bytes, body: bytes) -> bytes:
    _check_key(key)
    return blake2b(body, key=key, digest_size=32, person=b"wardkey-head").digest()


def _check_key(key: bytes) -> None:
    """Refuse an empty key above all: BLAKE2b would take it for none, and anybody could sign."""
    if len(key) not in _KEY_LENGTHS:
        raise ValueError("A chain's key has 32 to 64 bytes.")
