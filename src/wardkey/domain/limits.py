"""From where, when and how often a key works, and whether one set of limits is within another."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from wardkey.domain.addresses import Network, parse_networks
from wardkey.domain.keys import KeyRecord, KeySpec, Rate


@dataclass(frozen=True, slots=True)
class Limits:
    """A key's limits; empty lists and None don't limit. `expires_at` in epoch milliseconds."""

    allowed_addresses: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    allow_native: bool = False
    rate_limit: Rate | None = None
    expires_at: int | None = None

    def exceeding(self, bound: Limits) -> str:
        """Return the name of the first field that allows more than `bound` does, or ""."""
        checks = {
            "allowed_addresses": _covers(bound.allowed_addresses, self.allowed_addresses),
            "allowed_origins": _holds(bound.allowed_origins, self.allowed_origins),
            "allow_native": bound.allow_native or not (bound.allowed_origins and self.allow_native),
            "rate_limit": _is_slower(self.rate_limit, bound.rate_limit),
            "expires_at": bound.expires_at is None
            or (self.expires_at is not None and self.expires_at <= bound.expires_at),
        }
        return next((name for name, within in checks.items() if not within), "")


def limits_of(key: KeyRecord | KeySpec) -> Limits:
    """Return the limits of a key, or of what is wanted of one."""
    return Limits(
        key.allowed_addresses,
        key.allowed_origins,
        key.allow_native,
        key.rate_limit,
        key.expires_at,
    )


def _covers(bound: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    if not bound:
        return True
    blocks = parse_networks(bound)
    inner = parse_networks(wanted)
    return bool(inner) and all(any(_contains(b, one) for b in blocks) for one in inner)


def _contains(outer: Network, inner: Network) -> bool:
    narrower = outer.version == inner.version and inner.mask & outer.mask == outer.mask
    return narrower and inner.first & outer.mask == outer.first


def _holds(bound: Collection[str], wanted: tuple[str, ...]) -> bool:
    return not bound or (bool(wanted) and set(wanted) <= set(bound))


def _is_slower(rate: Rate | None, bound: Rate | None) -> bool:
    if bound is None:
        return True
    if rate is None:
        return False
    no_faster = rate.limit * bound.period_s <= bound.limit * rate.period_s
    return no_faster and rate.burst <= bound.burst
