from __future__ import annotations

import pytest
from sqlalchemy import select, update

from wardkey.actions.core.runner import Runner
from wardkey.actions.operations.master_keys import rotate
from wardkey.db.master_key import check_peppers, vault_of
from wardkey.db.schema import master_keys
from wardkey.db.vault import MasterKey
from wardkey.domain.errors import WrongMasterKey
from wardkey.domain.principal import operator


def take(runner: Runner, *, new_broker_keys: bool = False) -> bytes:
    """Rotate the master key as a server finds it afterwards; return the broker's root."""
    following = MasterKey.generate()
    with runner.database.write() as tx:
        rotate(tx, operator(), following, new_broker_keys=new_broker_keys)
    with runner.database.read() as tx:
        rows = tx.connection.execute(select(master_keys)).all()
    runner.database.master, runner.database.vault = following, vault_of(following, rows)
    assert all(state.opens for state in check_peppers(runner.database))
    return runner.database.vault.broker_root


def test_the_brokers_root_outlives_each_master_key_unless_new_keys_are_wanted(
    runner: Runner,
) -> None:
    first = runner.database.vault.broker_root
    # As deployments had it before it was kept.
    assert first == runner.database.vault.key_for("broker")
    assert [take(runner), take(runner)] == [first, first]
    second = take(runner, new_broker_keys=True)
    assert second == runner.database.vault.key_for("broker") != first
    assert take(runner) == second


def test_a_brokers_root_that_does_not_open_is_noticed(runner: Runner) -> None:
    take(runner)
    with runner.database.writer.begin() as connection:
        connection.execute(update(master_keys).values(sealed_broker_root=b"edited"))
        rows = connection.execute(select(master_keys)).all()
    assert [state.opens for state in check_peppers(runner.database)] == [True, False]
    with pytest.raises(WrongMasterKey):
        vault_of(runner.database.master, rows)
