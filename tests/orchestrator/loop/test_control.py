from __future__ import annotations

import threading
from collections.abc import Callable

import anyio
import pytest

from orchestrator.loop.control import RunControl
from orchestrator.workers.interrupt import Interrupt
from tests.orchestrator.hooks.driving import DEADLINE, quiet

pytestmark = pytest.mark.anyio


async def begin(control: RunControl, answers: list[bool]) -> None:
    with anyio.fail_after(DEADLINE):
        await control.wait_until(lambda: control.stopping or not control.paused)
        answers.append(not control.stopping)


def in_thread(function: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


async def test_who_waits_goes_on_when_the_run_is_resumed_or_stopped() -> None:
    control = RunControl(Interrupt())
    answers: list[bool] = []
    await begin(control, answers)
    assert answers.pop()
    async with anyio.create_task_group() as tasks:
        control.pause()
        tasks.start_soon(begin, control, answers)
        await quiet()
        assert answers == []
        assert repr(control) == "<RunControl: paused, stop no>"
        control.resume()
        await quiet()
        assert answers == [True]
        control.pause()
        tasks.start_soon(begin, control, answers)
        await quiet()
        control.stop("enough")
    assert answers == [True, False], "a paused run can be stopped"


async def test_the_first_reason_for_a_stop_is_kept_and_stopping_now_is_stronger() -> None:
    control = RunControl(Interrupt())
    control.stop("first")
    control.stop("second")
    assert (control.stop_requested, control.reason) == ("after_epoch", "first")
    assert not control.interrupt.is_set()
    control.stop_now()
    control.stop("third")
    assert (control.stop_requested, control.reason) == ("now", "first")
    assert control.interrupt.is_set()


async def test_a_request_for_a_checkpoint_is_met_once() -> None:
    control = RunControl(Interrupt())
    assert not control.take_checkpoint_request()
    control.request_checkpoint()
    control.request_checkpoint()
    assert control.take_checkpoint_request()
    assert not control.take_checkpoint_request()


async def test_wishes_from_another_thread_wake_the_run() -> None:
    control = RunControl(Interrupt())
    control.pause()
    answers: list[bool] = []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(begin, control, answers)
        await quiet()
        thread = in_thread(control.resume)
    assert answers == [True]
    thread.join()


async def test_wishes_from_another_event_loop_wake_the_run() -> None:
    control = RunControl(Interrupt())
    control.pause()
    answers: list[bool] = []

    async def resume() -> None:
        control.resume()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(begin, control, answers)
        await quiet()
        thread = in_thread(lambda: anyio.run(resume))
    assert answers == [True]
    thread.join()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_wishes_after_the_end_of_the_event_loop_do_nothing(backend: str) -> None:
    async def main() -> RunControl:
        return RunControl(Interrupt())

    control = anyio.run(main, backend=backend)
    control.pause()
    control.stop_now("too late")
    assert control.paused
