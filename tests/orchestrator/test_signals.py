"""Signals to a run: to the command, and to a program that asks its run something from a signal handler."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest

from orchestrator import Hook, Trainer
from orchestrator.checkpoints import find_checkpoint
from state.trainer_state import TrainerState
from tests.orchestrator.training import small_config
from tests.paths import PROJECT

pytestmark = pytest.mark.slow

DEADLINE = 90
ENDLESS = ("--total-agent-steps", "1000000000")
INLINE = ("--collection.backend", "inline")  # where the workers' processes do not matter, which take long to start


def start(folder: Path, *words: str, module: str = "tests.orchestrator.hanging") -> subprocess.Popen[str]:
    program = [sys.executable, "-m", module, "train", "--run-dir", "run"]
    settings = ["--collection.num_environments", "2", "--collection.horizon", "32"]
    environment = os.environ | {"PYTHONPATH": str(PROJECT)}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen([*program, *settings, *words], cwd=folder, env=environment, **streams)


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not list(path.parent.glob(path.name)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"there is no {path.name}"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("words", "number", "worker", "saves"),
    [
        (["--policy.network", "tests.orchestrator.hanging:hangs_in_acting"], signal.SIGHUP, "collector-0", True),
        (["--environment", "tests.orchestrator.hanging:hangs_at_the_start"], signal.SIGTERM, "collector-0", False),
    ],
)
def test_one_signal_ends_a_run_in_which_a_worker_hangs(
    words: list[str], number: signal.Signals, worker: str, saves: bool, tmp_path: Path
) -> None:
    process = start(tmp_path, *ENDLESS, *words)
    wait_for(tmp_path / "hangs", process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + number, errors
    assert f"worker {worker!r} has not answered" in errors
    assert "Traceback" not in errors
    if saves:
        assert find_checkpoint(tmp_path / "run").manifest["epoch"] >= 1


@pytest.mark.parametrize(("hook", "name"), [("PlainHook", "plain_hook"), ("PoolHook", "pool_hook")])
def test_one_signal_ends_a_run_in_which_a_thread_of_a_hook_hangs(hook: str, name: str, tmp_path: Path) -> None:
    process = start(tmp_path, *ENDLESS, *INLINE, "--hanging-hook", hook)
    wait_for(tmp_path / "hangs", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert name in errors
    assert find_checkpoint(tmp_path / "run").manifest["resumable"]


def test_a_signal_takes_a_checkpoint_of_a_run_that_goes_on(tmp_path: Path) -> None:
    process = start(tmp_path, *ENDLESS)
    wait_for(tmp_path / "run" / "metrics.jsonl", process)
    for one in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
        one.send_signal(signal.SIGUSR1)  # as job schedulers do, to everybody
    wait_for(tmp_path / "run" / "checkpoints" / "0*", process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "died" not in errors
    assert len(list((tmp_path / "run" / "checkpoints").glob("0*"))) > 1


def test_a_request_for_a_checkpoint_before_the_run_has_begun_does_nothing(tmp_path: Path) -> None:
    (tmp_path / "slow_start.py").write_text(
        "import time\nfrom pathlib import Path\nimport gymnasium\n"
        "Path('imports').touch()\n"
        "while not Path('go').exists():\n    time.sleep(0.01)\n"
        "def environment():\n    return gymnasium.make('CartPole-v1')\n"
    )
    words = ["--total-agent-steps", "100", "--environment", "slow_start:environment"]
    process = start(tmp_path, *INLINE, *words, module="orchestrator")
    wait_for(tmp_path / "imports", process)
    process.send_signal(signal.SIGUSR1)
    (tmp_path / "go").touch()
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 0, errors
    assert find_checkpoint(tmp_path / "run").manifest["epoch"] == 2


def test_a_run_that_was_started_under_nohup_goes_on_when_its_terminal_is_closed(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which the program inherits
    try:
        process = start(tmp_path, *ENDLESS)
    finally:
        signal.signal(signal.SIGHUP, before)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(metrics, process)
    process.send_signal(signal.SIGHUP)
    seen = metrics.stat().st_size
    deadline = time.monotonic() + DEADLINE
    while metrics.stat().st_size == seen:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "it stands still"
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert "SIGHUP" not in errors


# Programs of one's own.


def main_thread_waits_for_the_system() -> bool:
    frame = sys._current_frames().get(threading.main_thread().ident or 0)  # pyright: ignore[reportPrivateUsage]
    return frame is not None and frame.f_code.co_name in ("select", "get_events")


def send_while_the_loop_sleeps(number: signal.Signals) -> None:
    deadline = time.monotonic() + DEADLINE
    while not main_thread_waits_for_the_system() and time.monotonic() < deadline:
        time.sleep(0.001)
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("wish", ["stop", "stop_now"])
def test_a_signal_handler_stops_a_run_whose_event_loop_sleeps(wish: str, backend: str) -> None:
    async def paused_run() -> str:
        with anyio.fail_after(DEADLINE):
            async with Trainer(small_config(epochs=10**6)).start() as run:
                await run.next_state(None)
                run.pause()
                signal.signal(signal.SIGUSR2, lambda *_: getattr(run, wish)("a signal"))
                threading.Thread(target=send_while_the_loop_sleeps, args=[signal.SIGUSR2]).start()
                await run.result()
        return run.stop_reason

    before = signal.getsignal(signal.SIGUSR2)
    try:
        # Not as an asynchronous test, which runs trio as a guest of another loop: another thread sleeps then.
        assert anyio.run(paused_run, backend=backend) == "a signal"
    finally:
        signal.signal(signal.SIGUSR2, before)


class NeverDone(Hook):
    async def on_epoch_end(self, state: TrainerState) -> None:
        await anyio.sleep_forever()


@pytest.mark.anyio
@pytest.mark.parametrize("ended", [False, True])
async def test_another_thread_limits_how_long_the_end_waits_for_hooks(ended: bool) -> None:
    with anyio.fail_after(DEADLINE):
        async with Trainer(small_config(epochs=2), hooks=[NeverDone()]).start() as run:
            run.limit_drain(10**6)
            if ended:
                while (state := await run.next_state(run.state)) is not None and state.epoch < 2:
                    pass
            await anyio.to_thread.run_sync(run.limit_drain, 0.1)
            await run.result()
    assert run.hook_statistics()["never_done"].abandoned >= 1
