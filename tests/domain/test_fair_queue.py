from __future__ import annotations

from wardkey.domain.fair_queue import FairQueue


def test_users_are_served_in_turn_and_their_items_in_order() -> None:
    queue = FairQueue[str](9)
    for item in ("a1", "a2", "a3", "b1", "c1", "b2"):
        assert queue.put(item[0], item) is None
    assert len(queue) == 6
    assert [queue.take() for _ in range(7)] == ["a1", "b1", "c1", "a2", "b2", "a3", None]
    assert len(queue) == 0


def test_a_full_queue_drops_the_newest_item_of_its_heaviest_user() -> None:
    queue = FairQueue[str](4)
    for item in ("a1", "a2", "a3", "a4"):
        assert queue.put("a", item) is None
    assert queue.put("a", "a5") == "a5"
    assert queue.put("b", "b1") == "a4"
    assert queue.put("c", "c1") == "a3"
    assert queue.put("a", "a3") == "a3"
    assert len(queue) == 4
    assert [queue.take() for _ in range(5)] == ["a1", "b1", "c1", "a2", None]


def test_the_new_item_is_dropped_if_all_users_have_the_same_number() -> None:
    queue = FairQueue[str](2)
    assert queue.put("a", "a1") is None
    assert queue.put("b", "b1") is None
    assert queue.put("c", "c1") == "c1"
    assert [queue.take(), queue.take(), queue.take()] == ["a1", "b1", None]
