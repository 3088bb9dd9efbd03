"""The check of an account's password, for every door that takes one."""

from __future__ import annotations

from wardkey.actions import hashing, people
from wardkey.domain.errors import WrongPassword
from wardkey.domain.principal import Principal
from wardkey.web.context import Context
from wardkey.web.throttle import by_account, by_address

_LONGEST = 1024


def check_account_password(
    here: Context, by: Principal, email: str, password: str
) -> tuple[str, str]:
    """Return the user id and the password's hash of the account that `password` opens.

    A wrong password counts against the address and the account. Raises `WrongPassword`,
    `TooManyAttempts`, `Overloaded`.
    """
    counters = (*by_address("address", by.address), by_account(email))
    with here.throttle.attempt(*counters):
        with here.runner.database.read() as tx:
            user_id, known = people.password_hash_of(tx, email)
        fits = hashing.check_password(known, password[:_LONGEST], by.address)
        if not fits or known is None:
            raise WrongPassword
    return user_id, known
