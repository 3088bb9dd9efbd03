"""The audit chain: events linked by a keyed hash, which reveals any edit, gap or reordering."""

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
    """An event at which the chain is broken, and a description of the problem."""

    seq: int
    what: str


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain at a time (`at`, epoch ms): its last number and link (`mac`)."""

    org_id: str
    seq: int
    mac: bytes
    at: int


def canonical(event: Event) -> bytes:
    """Return the canonical bytes of `event`: JSON with sorted names and no spaces, in UTF-8.

    Values are strings, integers, booleans, None, and lists and mappings of these. Raises
    `ValueError` for anything else, above all floats, whose JSON form varies between writers.
    """
    text = json.dumps(_normalize(event), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode()


def _normalize(value: object) -> object:
    if value is None or isinstance(value, (str, int)):
        return value
    if isinstance(value, Mapping):
        if not all(isinstance(name, str) for name in value):
            raise ValueError("The names in an audit event must be strings.")
        return {name: _normalize(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_normalize(item) for item in value]
    raise ValueError(f"An audit event can't contain {type(value).__name__}; use a string.")


def link(key: bytes, previous: bytes, event: Event) -> bytes:
    """Return the link of `event` after `previous`: 32 bytes of keyed BLAKE2b (RFC 7693).

    It covers the length and bytes of both, so no byte can move from one to the other. Raises
    `ValueError` for a key shorter than 32 or longer than 64 bytes, and what `canonical` raises.
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

    Only one event is in memory at a time. After a break the walk continues from the stored link,
    so one edit is reported once; it stops after 1,000 breaks. `head` is the recorded end (seq,
    link), or None, which is valid only for an empty chain.
    """
    breaks: list[Break] = []
    last, previous = 0, GENESIS
    for seq, version, event, mac in events:
        if len(breaks) == MOST_BREAKS:
            breaks.append(Break(seq, f"the check stopped here, after {MOST_BREAKS:,} breaks"))
            return breaks
        if seq <= last:
            breaks.append(Break(seq, f"it comes after event {last}: duplicated or out of order"))
            continue
        if seq > last + 1:
            breaks.append(Break(seq, f"{_events(last + 1, seq - 1)} missing before it"))
        elif version not in keys:
            breaks.append(Break(seq, "it names a key that this deployment never had"))
        elif not _is_linked(keys[version], previous, event, mac):
            breaks.append(Break(seq, "it was edited, moved, or follows one that was"))
        last, previous = seq, mac
    return breaks + _check_end(last, previous, head)


def _is_linked(key: bytes, previous: bytes, event: Event, mac: bytes) -> bool:
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
        return [Break(last, "the record of the chain’s end does not match its last event")]
    return []


def _events(first: int, last: int) -> str:
    return f"event {first} is" if first == last else f"events {first} to {last} are"


def sign_head(key: bytes, org_id: str, seq: int, mac: bytes, at_ms: int) -> str:
    """Return a chain's end as one line of ASCII, signed with `key`.

    Raises `ValueError` for a key shorter than 32 or longer than 64 bytes.
    """
    body = canonical({"org_id": org_id, "seq": seq, "mac": mac.hex(), "at": at_ms})
    return base64.urlsafe_b64encode(_signature(key, body) + body).decode()


def open_head(key: bytes, text: str) -> Head | None:
    """Return the head that `sign_head` wrote, or None if `key` did not sign it."""
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
    """Reject wrong key lengths, above all 0: BLAKE2b would then sign without a key."""
    if len(key) not in _KEY_LENGTHS:
        raise ValueError("A chain's key must have 32 to 64 bytes.")
