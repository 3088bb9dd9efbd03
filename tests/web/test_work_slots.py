from __future__ import annotations

import pytest

from wardkey.domain.errors import Overloaded
from wardkey.services.work_slots import WorkSlots


def test_one_organization_has_its_share_of_the_places_and_all_together_no_more_than_there_are() -> (
    None
):
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


def test_a_place_is_free_again_after_the_block_whatever_happened_in_it() -> None:
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
