"""Forms that take effect once, however often the browser sends them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import TypeVar

from wardkey.actions.accounts.browser_sessions import consume_form_nonce
from wardkey.dashboard.shell.auth import Fields, MemberContext
from wardkey.db.engine import Transaction
from wardkey.domain.principal import Principal
from wardkey.domain.receipts import Confirmation
from wardkey.web.context import AppContext

T = TypeVar("T")


def write_once(
    ctx: AppContext,
    current: MemberContext,
    fields: Fields,
    create: Callable[[Transaction, Principal], tuple[str, T]],
) -> tuple[T, Confirmation]:
    """Run `create`, which returns an id and a result, unless this form was sent before.

    Raises `FormSentBefore` with the id created then, and `InvalidRequest` without a nonce.
    """
    nonce, session_id = fields.nonce(), current.person.session.id

    # Refusals are audited under the name of `create`.
    @wraps(create)
    def create_once(tx: Transaction, by: Principal) -> T:
        return consume_form_nonce(tx, session_id, nonce, partial(create, tx, by))

    return ctx.runner.write_confirmed(create_once, current.by)
