"""The limits of a key (addresses, origins, rate, expiry) and their comparison."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from wardkey.domain.addresses import Network, parse_networks
from wardkey.domain.keys import KeyRecord, KeySpec, Rate


@dataclass(frozen=True, slots=True)
class Limits:
    """A key's limits; empty lists and None mean no limit. `expires_at` in epoch milliseconds."""

    allowed_addresses: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()
    allow_native: bool = False
    rate_limit: Rate | None = None
    expires_at: int | None = None

    def find_exceeding_field(self, bound: Limits) -> str:
        """Return the name of the first field that allows more than `bound`, or ""."""
        checks = {
            "allowed_addresses": _contains_networks(
                bound.allowed_addresses, self.allowed_addresses
            ),
            "allowed_origins": _contains_all(bound.allowed_origins, self.allowed_origins),
            "allow_native": bound.allow_native or not (bound.allowed_origins and self.allow_native),
            "rate_limit": _is_within_rate(self.rate_limit, bound.rate_limit),
            "expires_at": bound.expires_at is None
            or (self.expires_at is not None and self.expires_at <= bound.expires_at),
        }
        return next((name for name, within in checks.items() if not within), "")


def limits_of(key: KeyRecord | KeySpec) -> Limits:
    """Return the limits of a key, or of the spec of one."""
    return Limits(
        key.allowed_addresses,
        key.allowed_origins,
        key.allow_native,
        key.rate_limit,
        key.expires_at,
    )


def _contains_networks(bound: tuple[str, ...], items: tuple[str, ...]) -> bool:
    if not bound:
        return True
    outer = parse_networks(bound)
    inner = parse_networks(items)
    return bool(inner) and all(any(_contains(block, item) for block in outer) for item in inner)


def _contains(outer: Network, inner: Network) -> bool:
    is_narrower = outer.version == inner.version and inner.mask & outer.mask == outer.mask
    return is_narrower and inner.first & outer.mask == outer.first


def _contains_all(bound: Collection[str], items: tuple[str, ...]) -> bool:
    return not bound or (bool(items) and set(items) <= set(bound))


def _is_within_rate(rate: Rate | None, bound: Rate | None) -> bool:
    if bound is None:
        return True
    if rate is None:
        return False
    is_no_faster = rate.limit * bound.period_s <= bound.limit * rate.period_s
    return is_no_faster and rate.burst <= bound.burst
