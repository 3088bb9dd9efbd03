"""Mints the grants of many token exchanges in one transaction, rechecking each caller."""

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

_MAX_PER_EVENT = 100


@dataclass(frozen=True, slots=True)
class VerifiedToken:
    """A verified token: the caller, the grant to mint, and the kid of the caller's key, if any."""

    by: Principal
    provider: TrustedProvider
    grant: NewGrant
    key_kid: str


def mint_together(
    tx: Transaction, exchanges: Sequence[VerifiedToken]
) -> list[MintedGrant | WardkeyError]:
    """Mint the grants of exchanges; return the grant or the error of each, in order."""
    results: dict[int, MintedGrant | WardkeyError] = {}
    callers = _recheck_callers(tx, exchanges, results)
    for indices in _group_by_event(callers, exchanges):
        by, key_kid = callers[indices[0]], exchanges[indices[0]].key_kid
        new_grants = [(exchanges[i].grant, exchanges[i].by.address) for i in indices]
        try:
            minted = grants.mint(tx, by, new_grants, key_kid)
        except WardkeyError as error:
            results |= dict.fromkeys(indices, error)
        else:
            results |= dict(zip(indices, minted, strict=True))
    return [results[index] for index in range(len(exchanges))]


def _recheck_callers(
    tx: Transaction,
    exchanges: Sequence[VerifiedToken],
    results: dict[int, MintedGrant | WardkeyError],
) -> dict[int, Principal]:
    """Return, by index, the callers who may still exchange; add the others' errors to `results`."""
    authority, unchanged = CallerAuthority(tx), set()
    callers: dict[int, Principal] = {}
    for index, exchange in enumerate(exchanges):
        version = (exchange.provider.id, exchange.provider.updated_at)
        try:
            by = authority.recheck(exchange.by)
            if version not in unchanged:
                require_unchanged(tx, by, exchange.provider)
                unchanged.add(version)
        except WardkeyError as error:
            results[index] = error
        else:
            callers[index] = by
    return callers


def _group_by_event(
    callers: Mapping[int, Principal], exchanges: Sequence[VerifiedToken]
) -> list[list[int]]:
    """Return groups of indices whose grants share an audit event: those of one credential."""
    groups: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, by in callers.items():
        key_kid = exchanges[index].key_kid
        name: tuple[str, ...] = (by.kind, by.id, *by.scope, by.kid, key_kid)
        # A full group is followed by another with a longer name.
        while len(groups[name]) >= _MAX_PER_EVENT:
            name = (*name, "")
        groups[name].append(index)
    return list(groups.values())
