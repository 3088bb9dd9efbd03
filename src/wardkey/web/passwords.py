"""The check of an account's password, for every door that takes one."""

from __future__ import annotations

from wardkey.actions.accounts import people
from wardkey.actions.core import hashing
from wardkey.domain.errors import WrongPassword
from wardkey.domain.principal import Principal
from wardkey.services.throttle import Counter, by_account, by_address
from wardkey.web.context import AppContext
from wardkey.web.devices import device_id_of

_LONGEST = 1024


def check_account_password(
    ctx: AppContext, by: Principal, email: str, password: str, device: str = ""
) -> tuple[str, str]:
    """Return the user id and the password's hash of the account that `password` opens.

    A wrong password counts against the address and the account; with the text of a valid device
    cookie against that device alone, so that strangers never keep the account's owner out. Raises
    `WrongPassword`, `TooManyAttempts`, `Overloaded`.
    """
    with ctx.runner.database.read() as tx:
        user_id, known = people.password_hash_of(tx, email)
    device_id = device_id_of(ctx.runner.database.vault, device, user_id, known) if known else ""
    counters = (
        (Counter("device", device_id),)
        if device_id
        else (*by_address("address", by.address), by_account(email))
    )
    with ctx.throttle.attempt(*counters):
        fits = hashing.check_password(known, password[:_LONGEST], by.address)
        if not fits or known is None:
            raise WrongPassword
    return user_id, known
