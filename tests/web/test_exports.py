"""An export always releases its slot, and an aborted one never looks complete."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from wardkey.domain.errors import Overloaded, StorageBusy
from wardkey.web import exports
from wardkey.web.exports import Chunks, Export, Exports

GET: Scope = {"type": "http"}


class Client:
    """A client that reads a number of chunks, and disconnects when `gone` is set."""

    def __init__(self, reads: int = 1_000) -> None:
        self.reads, self.came = reads, list[Message]()
        self.gone = asyncio.Event()

    async def send(self, message: Message) -> None:
        if len(self.came) >= self.reads:
            await asyncio.Event().wait()
        self.came.append(message)

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    @property
    def is_whole(self) -> bool:
        """Whether the end of the body arrived."""
        return bool(self.came) and self.came[-1].get("more_body") is False


def chunks(count: int, closed: list[int], fails_at: int = -1) -> Chunks:
    try:
        for number in range(count):
            if number == fails_at:
                raise StorageBusy
            yield f"{number}\n"
    finally:
        closed.append(1)


def run(export: Callable[[Scope, Receive, Send], Any], client: Client) -> None:
    async def answer() -> None:
        await export(GET, client.receive, client.send)

    asyncio.run(answer())


@pytest.fixture
def closed() -> Iterator[list[int]]:
    """Collect the closings of the generator, which every test must close."""
    times: list[int] = []
    yield times
    assert times == [1]


def begun(among: Exports, closed: list[int], count: int = 5, fails_at: int = -1) -> Export:
    return among.begin("org_a", chunks(count, closed, fails_at), "text/plain")


def is_free(among: Exports) -> bool:
    among.slots.take("org_a")
    among.slots.take("org_a")
    return True


def test_an_export_is_sent_completely(closed: list[int]) -> None:
    among, client = Exports(), Client()
    run(begun(among, closed), client)
    assert client.is_whole
    assert b"".join(part.get("body", b"") for part in client.came) == b"0\n1\n2\n3\n4\n"
    assert is_free(among)


def test_an_export_ends_at_its_deadline_even_if_its_client_does_not(
    closed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exports, "LONGEST_S", 0.05)
    among, client = Exports(), Client(reads=2)
    run(begun(among, closed), client)
    assert not client.is_whole
    assert is_free(among)


def test_an_export_ends_when_its_client_goes_away(closed: list[int]) -> None:
    among, client = Exports(), Client()
    client.gone.set()
    run(begun(among, closed, 1_000_000), client)
    assert not client.is_whole
    assert len(client.came) < 10
    assert is_free(among)


@pytest.mark.parametrize("fails_at", [0, 3])
def test_an_error_is_reported_before_the_first_chunk_and_aborts_the_export_later(
    closed: list[int], fails_at: int
) -> None:
    among, client = Exports(), Client()
    export = begun(among, closed, 5, fails_at)
    if fails_at:
        run(export, client)
    else:
        with pytest.raises(StorageBusy):
            run(export, client)
    assert not client.is_whole
    assert bool(client.came) == bool(fails_at)
    assert is_free(among)


def test_503_a_third_concurrent_export_of_an_organization_is_rejected(closed: list[int]) -> None:
    among = Exports()
    first = begun(among, closed)
    among.slots.take("org_a")
    with pytest.raises(Overloaded):
        begun(among, [])
    run(first, Client())
    among.slots.take("org_a")
