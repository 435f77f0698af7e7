from __future__ import annotations

import anyio
import pytest

from orchestrator.hooks.wakeup import Wakeup
from tests.orchestrator.hooks.driving import DEADLINE, quiet

pytestmark = pytest.mark.anyio


async def wait(wakeup: Wakeup, woken: list[str], name: str) -> None:
    await wakeup.wait()
    woken.append(name)


async def test_everyone_who_waits_is_woken_by_one_set_and_has_to_wait_for_the_next_again() -> None:
    wakeup = Wakeup()
    woken: list[str] = []

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as tasks:
            wakeup.set()
            for name in "ab":
                tasks.start_soon(wait, wakeup, woken, name)
            await quiet()
            assert woken == [], "what was set before counts for nobody"
            wakeup.set()
            tasks.start_soon(wait, wakeup, woken, "c")
            await quiet()
            assert sorted(woken) == ["a", "b"]
            wakeup.set()
    assert woken[2:] == ["c"]


async def test_a_waiter_that_is_cancelled_takes_nobody_else_along() -> None:
    wakeup = Wakeup()
    woken: list[str] = []

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as others:
            others.start_soon(wait, wakeup, woken, "stays")
            await quiet()
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait, wakeup, woken, "goes")
                await quiet()
                tasks.cancel_scope.cancel()
            await quiet()
            assert woken == []
            wakeup.set()
    assert woken == ["stays"]


async def test_a_waiter_that_is_cancelled_when_it_is_woken_takes_nobody_else_along() -> None:
    wakeup = Wakeup()
    woken: list[str] = []

    with anyio.fail_after(DEADLINE):
        async with anyio.create_task_group() as others:
            others.start_soon(wait, wakeup, woken, "stays")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait, wakeup, woken, "goes")
                await quiet()
                tasks.cancel_scope.cancel()
                wakeup.set()
    assert woken == ["stays"]
