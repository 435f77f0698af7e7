from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
from pathlib import Path

import anyio
import pytest

from orchestrator.hooks.function_hook import function_hook
from orchestrator.hooks.hook import Hook, StateUpdate
from state.trainer_state import TrainerState
from tests.orchestrator.hooks.driving import DEADLINE, AtEpochEnd, publish_epochs, quiet, running, until
from tests.paths import PROJECT

pytestmark = pytest.mark.anyio


class Plain(Hook):
    """Blocks its thread in each call until it is let go on."""

    name = "plain"
    max_lag = 100

    def __init__(self, **settings: object) -> None:
        self.begun: list[int] = []
        self.ended: list[int] = []
        self.threads: set[str] = set()
        self.go_on = threading.Semaphore(0)
        for setting, value in settings.items():
            setattr(self, setting, value)

    def on_epoch_end(self, state: TrainerState) -> StateUpdate | None:  # type: ignore[override]
        self.begun.append(state.epoch)
        self.threads.add(threading.current_thread().name)
        assert len(self.begun) - len(self.ended) == 1
        assert self.go_on.acquire(timeout=DEADLINE)
        self.ended.append(state.epoch)
        return StateUpdate(results={"key": self.delivery.idempotency_key})


async def test_a_plain_function_runs_in_a_thread_of_the_hooks_own_and_in_order() -> None:
    hook, other = Plain(), AtEpochEnd("other", max_lag=100)
    async with running(hook, other) as engine:
        await publish_epochs(engine, 1, 2, 3)
        await until(lambda: hook.begun == [1])
        assert other.epochs == [1, 2, 3], "the event loop goes on meanwhile"
        hook.go_on.release(3)
        assert await engine.drain(10) == ()
        results = engine.fold(TrainerState()).results
        assert results is not None
        assert results["key"].value == "run/plain/on_epoch_end/2"
    assert hook.ended == [1, 2, 3]
    assert hook.threads == {"hook plain"}
    await until(lambda: "hook plain" not in [thread.name for thread in threading.enumerate()])


async def test_many_plain_hooks_do_not_wait_for_each_others_threads() -> None:
    barrier = threading.Barrier(60)

    def meet(_: TrainerState) -> None:
        barrier.wait(DEADLINE)

    hooks = [function_hook("on_epoch_end", meet, {"name": f"h{place}"}) for place in range(60)]
    async with running(*hooks) as engine:
        await publish_epochs(engine, 1)
        assert await engine.drain(10) == ()
        assert all(statistics.handled == 1 for statistics in engine.statistics().hooks.values())


async def test_a_call_that_takes_too_long_is_given_up_but_never_overlaps_with_the_next() -> None:
    hook = Plain(timeout=0.02)
    async with running(hook) as engine:
        await publish_epochs(engine, 1, 2)
        assert await engine.drain(10) == ()
        assert engine.statistics().hooks["plain"].failed == 2
        assert hook.begun == [1], "the second call waited for the first, which still runs, and was given up too"
        hook.go_on.release(2)
        await until(lambda: hook.ended == [1])
        await publish_epochs(engine, 3)
        assert await engine.drain(10) == ()
    assert hook.ended == [1, 3]


async def test_a_run_does_not_wait_for_a_thread_that_hangs() -> None:
    hook = Plain()
    async with running(hook, grace=100) as engine:
        await publish_epochs(engine, 1)
        await until(lambda: hook.begun == [1])
    assert engine.statistics().hooks["plain"].abandoned == 1
    hook.go_on.release()


def test_a_program_ends_though_a_plain_hook_hangs(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import sys, threading, anyio\n"
        "from orchestrator.hooks.function_hook import function_hook\n"
        "from tests.orchestrator.hooks.driving import publish_epochs, running\n"
        "begun = threading.Event()\n"
        "def hang(state):\n"
        "    begun.set()\n"
        "    threading.Event().wait()\n"
        "async def main():\n"
        "    async with running(function_hook('on_epoch_end', hang, {})) as engine:\n"
        "        await publish_epochs(engine, 1)\n"
        "        while not begun.is_set():\n"
        "            await anyio.sleep(0.001)\n"
        "anyio.run(main, backend=sys.argv[1])\n"
        "print('over')\n"
    )
    programs = [
        subprocess.Popen(
            [sys.executable, script, backend],
            cwd=PROJECT,
            env={"PYTHONPATH": "."},
            stdout=subprocess.PIPE,
            text=True,
        )
        for backend in ("asyncio", "trio")
    ]
    for program in programs:
        with program:
            try:
                output, _ = program.communicate(timeout=60)
            except subprocess.TimeoutExpired:
                program.kill()
                raise
        assert (output, program.returncode) == ("over\n", 0)


async def test_errors_of_a_plain_function_are_failures_like_any_other(caplog: pytest.LogCaptureFixture) -> None:
    class Failing(Hook):
        retries = 1
        backoff = 0.0

        def on_epoch_end(self, state: TrainerState) -> None:  # type: ignore[override]
            raise ConnectionError("down")

    async with running(Failing()) as engine:
        await publish_epochs(engine, 1)
        assert await engine.drain(10) == ()
        statistics = engine.statistics().hooks["failing"]
        assert (statistics.failed, statistics.retried) == (1, 1)
    assert "ConnectionError: down" in caplog.text
    assert "in on_epoch_end" in caplog.text


async def test_a_plain_function_may_run_an_event_loop_of_its_own() -> None:
    results: list[str] = []

    def act(_: TrainerState) -> None:
        async def main() -> None:
            await anyio.lowlevel.checkpoint()
            results.append("ran")

        anyio.run(main)

    async with running(function_hook("on_epoch_end", act, {})) as engine:
        await publish_epochs(engine, 1)
        assert await engine.drain(10) == ()
    assert results == ["ran"]


async def test_a_plain_function_that_returns_an_awaitable_is_awaited() -> None:
    async def later(state: TrainerState) -> StateUpdate:
        await anyio.lowlevel.checkpoint()
        return StateUpdate(results={"epoch": state.epoch})

    def act(state: TrainerState) -> object:
        return later(state)

    async with running(function_hook("on_epoch_end", act, {})) as engine:
        await publish_epochs(engine, 4)
        assert await engine.drain(10) == ()
        results = engine.fold(TrainerState()).results
        assert results is not None
        assert results["epoch"].value == 4


async def test_a_plain_function_sees_the_context_in_which_the_engine_was_entered() -> None:
    request = contextvars.ContextVar[str]("request")
    request.set("from the service")
    seen: list[str] = []
    async with running(function_hook("on_epoch_end", lambda _: seen.append(request.get()), {"name": "seer"})) as engine:
        await publish_epochs(engine, 1)
        assert await engine.drain(10) == ()
    assert seen == ["from the service"]


async def test_a_function_becomes_a_hook_of_its_name_with_the_settings_given() -> None:
    async def report(state: TrainerState) -> None:
        """Reports."""

    hook = function_hook("on_rollout_end", report, {"every": 5, "on_error": "stop"})
    assert (hook.name, hook.every, hook.on_error) == ("report", 5, "stop")
    assert type(hook).__doc__ == "Reports."
    async with running(hook) as engine:
        assert engine.listens("on_rollout_end")
        assert not engine.listens("on_epoch_end")
        await quiet()


async def test_a_function_that_cannot_be_a_hook_is_refused_where_it_is_given() -> None:
    async def takes_two(state: TrainerState, more: int) -> None: ...

    with pytest.raises(TypeError, match=r"does not take evry; a hook's settings are after, backoff, .*timeout"):
        function_hook("on_epoch_end", print, {"evry": 3})
    with pytest.raises(TypeError, match=r"calls 'takes_two' with one argument, the state; but missing.*'more'"):
        function_hook("on_epoch_end", takes_two, {})
