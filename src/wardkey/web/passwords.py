"""Checking the password of an account, at whichever entry it is sent."""

from __future__ import annotations

from wardkey.actions import hashing, people
from wardkey.domain.errors import WrongPassword
from wardkey.domain.principal import Principal
from wardkey.web.context import Context
from wardkey.web.throttle import counter_of_account, counters_of_address

_LONGEST_EMAIL, _LONGEST_PASSWORD = 254, 1024


def check_password(here: Context, by: Principal, email: str, password: str) -> tuple[str, str]:
    """Return the user id and the password's hash of the account `email`, if `password` fits.

    Wrong ones are counted against the address and the account. Raises `WrongPassword`,
    `TooManyAttempts`, `Overloaded`.
    """
    now, email = here.runner.database.clock(), email.strip()[:_LONGEST_EMAIL]
    counters = (*counters_of_address("address", by.address), counter_of_account(email))
    with here.throttle.attempt(now, *counters):
        with here.runner.database.read() as tx:
            user_id, known = people.password_hash_of(tx, email)
        fits = hashing.check_password(known, password[:_LONGEST_PASSWORD], by.address)
        if not fits or known is None:
            raise WrongPassword
    return user_id, known
