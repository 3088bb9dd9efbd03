"""Key usage is counted in the same way on both storages."""

from __future__ import annotations

from sqlalchemy import insert

from wardkey.actions.core.runner import Runner
from wardkey.actions.keys import keys, usage
from wardkey.db.schema import hours
from wardkey.domain.keys import KeySpec
from wardkey.domain.permissions import KeyType
from wardkey.domain.principal import Principal
from wardkey.domain.secret import Environment

HOUR_MS = 3_600_000


def test_uses_are_counted_by_day_for_one_key_and_for_all(runner: Runner, owner: Principal) -> None:
    spec = KeySpec("live-counted", KeyType.SECRET, Environment.LIVE)
    issued = runner.write(keys.issue, owner, spec)
    today = runner.database.clock() // HOUR_MS
    with runner.database.counting() as connection:
        for code, count in (("valid", 3), ("expired", 2), ("revoked", 1)):
            row = {"key_id": issued.key.id, "kid": issued.kid, "hour": today}
            connection.execute(insert(hours).values(**row, code=code, count=count))
    by_key = runner.read(usage.days_by_key, owner, [issued.key.id])[issued.key.id]
    for days in (by_key, runner.read(usage.days_in_all, owner)):
        assert (days[-1].allowed, days[-1].denied) == (3, 3)
