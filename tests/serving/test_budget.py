"""A budget is handed out in order, and given back."""

from __future__ import annotations

import asyncio

from sharp_cog.serving.budget import Budget


def test_parts_are_handed_out_in_the_order_of_the_requests_as_there_is_enough() -> None:
    begun: list[str] = []

    async def main() -> None:
        budget = Budget(10)
        ends = {name: asyncio.Event() for name in "abcd"}

        async def client(name: str, part: int) -> None:
            async with budget.held(part):
                begun.append(name)
                await ends[name].wait()

        parts = {"a": 6, "b": 8, "c": 1, "d": 10}
        tasks = [asyncio.create_task(client(name, part)) for name, part in parts.items()]
        await asyncio.sleep(0.01)
        assert begun == ["a"], "c would fit, but b is before it and would wait for ever"
        ends["a"].set()
        await asyncio.sleep(0.01)
        assert begun == ["a", "b", "c"]
        assert budget.left == 1
        tasks[3].cancel()
        for end in ends.values():
            end.set()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert budget.left == budget.amount == 10

    asyncio.run(main())
