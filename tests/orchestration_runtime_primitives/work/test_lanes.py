"""Requests of one lane go together; nothing waits for company, and nobody fails for another."""

import asyncio
from collections.abc import Sequence

import pytest

from kernel.commands.lanes import Lanes


class Works:
    """Executes batches, each when it is let."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[int]]] = []
        self.gates: dict[str, asyncio.Event] = {}

    async def execute(self, key: str, requests: Sequence[int]) -> list[int | Exception]:
        self.batches.append((key, list(requests)))
        if key in self.gates:
            await self.gates[key].wait()
        if 666 in requests:
            raise OSError("gone")
        return [ValueError(str(request)) if request < 0 else request * 2 for request in requests]


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_first_leaves_alone_and_the_rest_together() -> None:
    works = Works()
    works.gates["a"] = asyncio.Event()
    lanes = Lanes(works.execute)
    first = asyncio.create_task(lanes.take("a", 1))
    await settled()
    rest = [asyncio.create_task(lanes.take("a", number)) for number in (2, 3, 4)]
    await settled()
    assert works.batches == [("a", [1])]
    # Another lane is not held up.
    assert await lanes.take("b", 5) == 10
    works.gates["a"].set()
    assert await first == 2
    assert await asyncio.gather(*rest) == [4, 6, 8]
    assert works.batches[2:] == [("a", [2, 3, 4])]


async def test_a_refusal_is_told_to_whom_it_is_for_and_a_failure_to_all() -> None:
    works = Works()
    works.gates["a"] = asyncio.Event()
    lanes = Lanes(works.execute)
    tasks = [asyncio.create_task(lanes.take("a", 0))]
    await settled()
    tasks += [asyncio.create_task(lanes.take("a", number)) for number in (-1, 2)]
    await settled()
    works.gates["a"].set()
    answers = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(answer) for answer in answers] == ["0", "-1", "4"]
    with pytest.raises(OSError, match="gone"):
        await lanes.take("a", 666)
    # The lane goes on.
    assert await lanes.take("a", 7) == 14


async def test_whoever_goes_away_while_it_waits_is_passed_over() -> None:
    works = Works()
    works.gates["a"] = asyncio.Event()
    lanes = Lanes(works.execute)
    first = asyncio.create_task(lanes.take("a", 1))
    await settled()
    second, third = asyncio.create_task(lanes.take("a", 2)), asyncio.create_task(lanes.take("a", 3))
    await settled()
    second.cancel()
    first.cancel()
    works.gates["a"].set()
    assert await third == 6
    assert works.batches == [("a", [1]), ("a", [3])]
