"""A device cookie is only recognized for its own account and that account's current password."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wardkey.db.vault import MasterKey, Vault
from wardkey.web.devices import device_id_of, new_device

VAULT = Vault.of(MasterKey.generate(), 1, {}, {})
MINE = ("user_one", "$argon2id$one")
TEXT = new_device(VAULT, *MINE)


def test_a_device_keeps_its_id() -> None:
    assert device_id_of(VAULT, TEXT, *MINE) == TEXT.partition(".")[0]
    assert new_device(VAULT, *MINE) != TEXT


@pytest.mark.parametrize(
    ("user_id", "password_hash"),
    [("user_two", MINE[1]), (MINE[0], "$argon2id$two"), ("user_on", f"e {MINE[1]}"), ("", "")],
)
def test_a_device_is_unknown_to_another_account_and_after_a_password_change(
    user_id: str, password_hash: str
) -> None:
    assert device_id_of(VAULT, TEXT, user_id, password_hash) == ""


def test_a_device_is_unknown_under_another_master_key() -> None:
    other = Vault.of(MasterKey.generate(), 1, {}, {})
    assert device_id_of(other, TEXT, *MINE) == ""


@given(st.text(max_size=120) | st.text("0123456789abcdef.-_\xff", min_size=87, max_size=87))
@example("\xff" * 87)
@example("\ud800" * 87)
@example(TEXT.upper())
@example(f"{TEXT[:22]}..{TEXT[24:]}")
def test_other_texts_are_not_devices(text: str) -> None:
    assert device_id_of(VAULT, text, *MINE) == ""
