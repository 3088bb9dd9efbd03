"""Checks an account's password, with a throttle; every route that accepts one uses this."""

from __future__ import annotations

from wardkey.actions.accounts import people
from wardkey.actions.core import hashing
from wardkey.domain.errors import WrongPassword
from wardkey.domain.principal import Principal
from wardkey.services.throttle import Counter, by_account, by_address
from wardkey.web.context import AppContext
from wardkey.web.devices import device_id_of

_MAX_LENGTH = 1024


def check_account_password(
    ctx: AppContext, by: Principal, email: str, password: str, device: str = ""
) -> tuple[str, str]:
    """Return the user id and the password hash of the account with this e-mail and password.

    A wrong password counts against the address and the account, or, with a valid device cookie,
    only against the device, so others' failed attempts can't lock out the account's owner. Raises
    `WrongPassword`, `TooManyAttempts`, `Overloaded`.
    """
    with ctx.runner.database.read() as tx:
        user_id, password_hash = people.password_hash_of(tx, email)
    vault, device_id = ctx.runner.database.vault, ""
    if password_hash:
        device_id = device_id_of(vault, device, user_id, password_hash)
    counters = (
        (Counter("device", device_id),)
        if device_id
        else (*by_address("address", by.address), by_account(email))
    )
    with ctx.throttle.attempt(*counters):
        is_correct = hashing.check_password(password_hash, password[:_MAX_LENGTH], by.address)
        if not is_correct or password_hash is None:
            raise WrongPassword
    return user_id, password_hash
