from __future__ import annotations

import pytest

from wardkey.domain.errors import Overloaded
from wardkey.services.work_slots import WorkSlots


def test_each_organization_has_a_limit_and_all_together_have_a_total() -> None:
    places = WorkSlots(total=3, per_organization=2)
    places.take("org_a")
    places.take("org_a")
    with pytest.raises(Overloaded) as refused:
        places.take("org_a")
    assert refused.value.retry_after_s
    places.take("org_b")
    with pytest.raises(Overloaded):
        places.take("org_c")
    places.give_back("org_a")
    places.take("org_c")


def test_a_slot_is_released_after_the_block_even_on_an_error() -> None:
    places = WorkSlots(total=1, per_organization=1)

    def fail() -> None:
        with places.reserve("org_a"):
            raise LookupError

    for _ in range(3):
        with pytest.raises(LookupError):
            fail()
    with places.reserve("org_b"), pytest.raises(Overloaded), places.reserve("org_a"):
        pass
    places.take("org_a")
