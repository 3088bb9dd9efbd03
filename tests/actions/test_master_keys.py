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


def rotate_and_reopen(runner: Runner, *, new_broker_keys: bool = False) -> bytes:
    """Rotate the master key and reopen the vault as a server would; return the broker's root."""
    following = MasterKey.generate()
    with runner.database.write() as tx:
        rotate(tx, operator(), following, new_broker_keys=new_broker_keys)
    with runner.database.read() as tx:
        rows = tx.connection.execute(select(master_keys)).all()
    runner.database.master, runner.database.vault = following, vault_of(following, rows)
    assert all(state.opens for state in check_peppers(runner.database))
    return runner.database.vault.broker_root


def test_the_brokers_root_survives_rotations_unless_new_keys_are_requested(
    runner: Runner,
) -> None:
    first = runner.database.vault.broker_root
    # As in deployments from before it was stored.
    assert first == runner.database.vault.key_for("broker")
    assert [rotate_and_reopen(runner), rotate_and_reopen(runner)] == [first, first]
    second = rotate_and_reopen(runner, new_broker_keys=True)
    assert second == runner.database.vault.key_for("broker") != first
    assert rotate_and_reopen(runner) == second


def test_a_brokers_root_that_cannot_be_opened_is_reported(runner: Runner) -> None:
    rotate_and_reopen(runner)
    with runner.database.writer.begin() as connection:
        connection.execute(update(master_keys).values(sealed_broker_root=b"edited"))
        rows = connection.execute(select(master_keys)).all()
    assert [state.opens for state in check_peppers(runner.database)] == [True, False]
    with pytest.raises(WrongMasterKey):
        vault_of(runner.database.master, rows)
