"""Grants of many exchanges, made in one transaction for those who may still exchange."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from wardkey.actions.core.authority import CallerAuthority
from wardkey.actions.grants import grants
from wardkey.actions.grants.grants import MintedGrant
from wardkey.actions.grants.providers import TrustedProvider, require_unchanged
from wardkey.db.engine import Transaction
from wardkey.domain.errors import WardkeyError
from wardkey.domain.grants import NewGrant
from wardkey.domain.principal import Principal

_MOST_IN_ONE_EVENT = 100


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A verified token: who exchanges it, for which grant, and with which secret of a key."""

    by: Principal
    provider: TrustedProvider
    grant: NewGrant
    key_kid: str


def mint_together(
    tx: Transaction, exchanges: Sequence[VerifiedToken]
) -> list[MintedGrant | WardkeyError]:
    """Make the grants of exchanges; of each in turn its grant, or why there is none."""
    made: dict[int, MintedGrant | WardkeyError] = {}
    callers = _still_allowed(tx, exchanges, made)
    for places in _events(callers, exchanges):
        by, key_kid = callers[places[0]], exchanges[places[0]].key_kid
        wanted = [(exchanges[at].grant, exchanges[at].by.address) for at in places]
        try:
            minted = grants.mint(tx, by, wanted, key_kid)
        except WardkeyError as failure:
            made |= dict.fromkeys(places, failure)
        else:
            made |= dict(zip(places, minted, strict=True))
    return [made[place] for place in range(len(exchanges))]


def _still_allowed(
    tx: Transaction,
    exchanges: Sequence[VerifiedToken],
    refused: dict[int, MintedGrant | WardkeyError],
) -> dict[int, Principal]:
    """Return by place who may still exchange, by what holds now; the others go to `refused`."""
    authority, unchanged = CallerAuthority(tx), set()
    callers: dict[int, Principal] = {}
    for place, one in enumerate(exchanges):
        version = (one.provider.id, one.provider.updated_at)
        try:
            by = authority.recheck(one.by)
            if version not in unchanged:
                require_unchanged(tx, by, one.provider)
                unchanged.add(version)
        except WardkeyError as failure:
            refused[place] = failure
        else:
            callers[place] = by
    return callers


def _events(
    callers: Mapping[int, Principal], exchanges: Sequence[VerifiedToken]
) -> list[list[int]]:
    """Return the places whose grants share an audit event: those of one credential."""
    groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, by in callers.items():
        key_kid = exchanges[place].key_kid
        name: tuple[str, ...] = (by.kind, by.id, *by.scope, by.kid, key_kid)
        # The event of a full group has begun; the next begins another.
        while len(groups[name]) >= _MOST_IN_ONE_EVENT:
            name = (*name, "")
        groups[name].append(place)
    return list(groups.values())
