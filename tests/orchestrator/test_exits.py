"""Runs in which something calls sys.exit(), is interrupted, or loses its terminal: each ends, in order, or goes on."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import threading
from contextlib import ExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.to_thread
import psutil
import pytest

from losses import Loss
from orchestrator import CheckpointsConfig, Hook, HookFailed, Trainer
from orchestrator.checkpoints import CheckpointFolder
from orchestrator.hooks.included.metrics import MetricsHook
from orchestrator.hooks.included.stop_request import StopRequest
from tests.orchestrator.training import losses_with, small_config

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping
    from pathlib import Path

    from torch import Tensor

    from losses import Minibatch, PolicyEvaluation
    from orchestrator import TrainerConfig
    from orchestrator.metrics.sink import RunInfo
    from state.trainer_state import TrainerState

pytestmark = pytest.mark.slow

DEADLINE = 90.0
"""Seconds after which a program is taken for one that hangs."""


def leave() -> None:
    raise SystemExit(7)


class Callback(Hook):
    async def on_epoch_end(self, state: TrainerState) -> None:
        if state.epoch == 3:
            leave()


class Interrupted(Hook):
    async def on_rollout_end(self, state: TrainerState) -> None:
        if state.epoch == 3:
            raise KeyboardInterrupt


class PlainFunction(Hook):
    def on_epoch_end(self, state: TrainerState) -> None:  # type: ignore[override]
        if state.epoch == 3:
            leave()


class PoolThread(Hook):
    async def on_epoch_end(self, state: TrainerState) -> None:
        if state.epoch == 3:
            await anyio.to_thread.run_sync(leave)


class BesideTasks(Hook):
    async def on_epoch_end(self, state: TrainerState) -> None:
        if state.epoch == 3:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                leave()


class AtTheEnd(Hook):
    async def on_training_end(self, state: TrainerState) -> None:
        leave()


class Entering(Callback):
    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        await anyio.lowlevel.checkpoint()
        leave()
        yield


class Leaving(Callback):
    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        yield
        leave()


class LeavingSink:
    def open(self, run: RunInfo) -> None: ...

    def write(self, record: object) -> None:
        leave()

    def close(self) -> None:
        leave()


class LeavingSource:
    def __init__(self) -> None:
        self.asked = threading.Event()

    def should_stop(self) -> bool:
        self.asked.set()
        raise SystemExit(7)


class WithState(Hook):
    name = "with_state"

    async def on_epoch_end(self, state: TrainerState) -> None: ...

    def state_dict(self) -> Mapping[str, object]:
        raise SystemExit(7)


def eight_epochs(folder: Path) -> TrainerConfig:
    return small_config(epochs=8, run_dir=folder / "run", checkpoints=CheckpointsConfig(every=0))


def saved_epochs(folder: Path) -> list[int]:
    return [int(path.name) for path in CheckpointFolder(folder / "run" / "checkpoints").list()]


IN_ORDER = [Callback, Interrupted, PlainFunction, PoolThread, BesideTasks, AtTheEnd, Leaving]


@pytest.mark.anyio
@pytest.mark.parametrize("kind", IN_ORDER)
async def test_a_hook_that_calls_sys_exit_ends_the_run_in_order_and_as_failed(kind: type[Hook], tmp_path: Path) -> None:
    with anyio.fail_after(DEADLINE), pytest.raises(HookFailed, match="SystemExit|KeyboardInterrupt") as caught:
        await Trainer(eight_epochs(tmp_path), hooks=[kind()]).run()
    assert isinstance(caught.value.__cause__, (SystemExit, KeyboardInterrupt))
    assert saved_epochs(tmp_path), "a final checkpoint"


@pytest.mark.anyio
async def test_a_hook_that_calls_sys_exit_at_the_start_ends_the_run_before_its_first_epoch(tmp_path: Path) -> None:
    with anyio.fail_after(DEADLINE), pytest.raises(HookFailed, match="SystemExit"):
        await Trainer(eight_epochs(tmp_path), hooks=[Entering()]).run()


@pytest.mark.anyio
async def test_a_run_goes_on_when_a_sink_a_stop_source_or_the_state_of_a_hook_calls_sys_exit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = LeavingSource()
    hooks = [MetricsHook([LeavingSink()]), StopRequest(source, 0.01), WithState()]
    with anyio.fail_after(DEADLINE):
        final = await Trainer(eight_epochs(tmp_path), hooks=hooks).run()
    assert source.asked.is_set()
    assert final.epoch == 8
    assert saved_epochs(tmp_path) == [8]
    for what in ("sink LeavingSink failed", "could not be asked whether to stop", "without the state of hook"):
        assert what in caplog.text


def close_nothing() -> None:
    raise GeneratorExit


class ClosingCallback(Hook):
    name = "closing"

    async def on_epoch_end(self, state: TrainerState) -> None:
        close_nothing()


class ClosingAfterWaiting(Hook):
    name = "closing"

    async def on_epoch_end(self, state: TrainerState) -> None:
        await anyio.lowlevel.checkpoint()
        close_nothing()


class ClosingFunction(Hook):
    name = "closing"

    def on_epoch_end(self, state: TrainerState) -> None:  # type: ignore[override]
        close_nothing()


class ClosingBesideTasks(Hook):
    name = "closing"

    async def on_epoch_end(self, state: TrainerState) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            close_nothing()


@pytest.mark.anyio
@pytest.mark.parametrize("kind", [ClosingCallback, ClosingAfterWaiting, ClosingFunction, ClosingBesideTasks])
async def test_a_hook_that_raises_generator_exit_fails_as_with_any_other_error(
    kind: type[Hook], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with anyio.fail_after(DEADLINE):
        final = await Trainer(eight_epochs(tmp_path), hooks=[kind()]).run()
    assert final.epoch == 8
    assert saved_epochs(tmp_path) == [8]
    assert (
        "hook 'closing' failed to handle on_epoch_end of epoch 1: RuntimeError('it raised GeneratorExit" in caplog.text
    )


class ClosingLoss(Loss):
    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        if self._where == "compute" and minibatch.epoch == 1:
            close_nothing()
        return evaluation.value.sum() * 0.0

    def on_epoch_end(self, state: TrainerState) -> None:
        if self._where == "on_epoch_end" and state.epoch == 2:
            close_nothing()


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["compute", "on_epoch_end"])
async def test_a_loss_that_raises_generator_exit_fails_the_run_by_name(where: str, tmp_path: Path) -> None:
    with anyio.fail_after(DEADLINE), pytest.raises(RuntimeError, match="GeneratorExit") as caught:
        await Trainer(eight_epochs(tmp_path), losses=losses_with(ClosingLoss(where))).run()
    assert "in worker 'learner'" in caught.value.__notes__[0]


# Programs of their own.

PROGRAM = '''
import asyncio, sys, time
from contextlib import asynccontextmanager
import anyio, anyio.to_thread
from orchestrator import CollectionConfig, Hook, LearningConfig, PolicyConfig, Trainer, TrainerConfig

class Child(Hook):
    """In a task of its own, out of which SystemExit breaks off asyncio's event loop."""
    @asynccontextmanager
    async def resources(self):
        self.third = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.leave)
            yield
            tasks.cancel_scope.cancel()
    async def leave(self):
        await self.third.wait()
        sys.exit(7)
    async def on_epoch_end(self, state):
        if state.epoch == 3:
            self.third.set()
class OtherTask(Hook):
    def __init__(self, how):
        self.how = how
    async def child(self):
        sys.exit(7)
    async def on_epoch_end(self, state):
        if state.epoch == 3:
            if self.how == "create_task":
                self.task = asyncio.create_task(self.child())
            elif self.how == "task_group":
                async with asyncio.TaskGroup() as tasks:
                    tasks.create_task(self.child())
            else:
                asyncio.get_running_loop().call_soon(sys.exit, 7)
class Plus(Hook):
    async def on_epoch_end(self, state):
        await anyio.to_thread.run_sync(self.say, state.epoch)
    def say(self, epoch):
        print("epoch", epoch, flush=True)
        time.sleep(0.1)  # the event loop waits: trio would raise KeyboardInterrupt in a hook at work, as its failure

async def main(kind):
    config = TrainerConfig(environment="CartPole-v1", total_agent_steps=10**9, policy=PolicyConfig(hidden_sizes=(8,)),
        collection=CollectionConfig(num_environments=2, horizon=32),
        learning=LearningConfig(update_epochs=1, minibatches=1))
    hook = Child() if kind == "child" else Plus() if kind == "plus" else OtherTask(kind)
    async with Trainer(config, hooks=[hook]).start() as run:
        async for state in run.states():
            pass

def train(how, kind):
    if how == "loop":
        asyncio.new_event_loop().run_until_complete(main(kind))
    elif how == "asyncio":
        asyncio.run(main(kind))
    else:
        anyio.run(main, kind, backend=how)

if __name__ == "__main__":
    for words in sys.argv[1:]:
        how, kind = words.split()
        try:
            train(how, kind)
        except BaseException as error:
            print(how, kind, "ended by", repr(error), flush=True)
            last = error
    raise last
'''


def start(folder: Path, *runs: str) -> subprocess.Popen[str]:
    """A program of several runs, one after another, which ends as the last of them has ended."""
    script = folder / "program.py"
    script.write_text(PROGRAM)
    arguments = [sys.executable, str(script), *runs]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def result(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a program that ends."""
    try:
        output, errors = process.communicate(timeout=DEADLINE)
    except subprocess.TimeoutExpired:
        process.kill()
        pytest.fail("the program hangs")
    return process.returncode, output + errors


def test_sys_exit_that_breaks_off_the_event_loop_ends_the_run_and_the_program(tmp_path: Path) -> None:
    runs = [f"asyncio {what}" for what in ("child", "create_task", "task_group", "call_soon")]
    code, text = result(start(tmp_path, *runs))
    assert code == 7, text
    assert [line for line in text.splitlines() if "ended by" in line] == [
        f"{run} ended by SystemExit(7)" for run in runs
    ]


def test_ctrl_c_ends_a_run_in_every_kind_of_event_loop(tmp_path: Path) -> None:
    runs = ["loop plus", "asyncio plus", "trio plus"]
    with start(tmp_path, *runs) as process, ExitStack() as afterwards:
        afterwards.callback(process.kill)
        assert process.stdout is not None
        family: set[psutil.Process] = set()
        for run in runs:
            assert "epoch" in process.stdout.readline(), run
            family.update(psutil.Process(process.pid).children(recursive=True))
            process.send_signal(signal.SIGINT)
            while "ended by" not in (line := process.stdout.readline()):
                assert line, f"{run} has ended the program"
            assert line.startswith(f"{run} ended by {'CtrlC' if 'loop' in run else 'KeyboardInterrupt'}"), line
        code, text = result(process)
    assert code in (1, -signal.SIGINT, 128 + signal.SIGINT), text
    assert "KeyboardInterrupt" in text
    _, alive = psutil.wait_procs(family, timeout=30)
    assert not [one for one in alive if one.status() != "zombie"]


# The command.

TRAIN = ["--collection.num_environments", "8", "--collection.horizon", "32", "--collection.backend", "inline"]


def train(folder: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "orchestrator", "train", "--run-dir", str(folder / "run"), *TRAIN, *more]


@pytest.mark.parametrize("progress", ["plain", "live"])
def test_a_run_goes_on_to_its_end_when_nobody_reads_its_progress_any_more(progress: str, tmp_path: Path) -> None:
    reading, writing = os.pipe()
    words = train(tmp_path, "--total-agent-steps", "6000", "--metrics.progress", progress)
    process = subprocess.Popen(words, stdout=writing, stderr=writing)
    os.close(writing)
    assert os.read(reading, 1)
    os.close(reading)
    assert process.wait(DEADLINE) == 0
    assert saved_epochs(tmp_path) == [24]


def test_a_run_goes_on_to_its_end_when_its_terminal_is_lost(tmp_path: Path) -> None:
    master, terminal = pty.openpty()
    words = train(tmp_path, "--total-agent-steps", "6000")
    process = subprocess.Popen(words, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    assert os.read(master, 1)
    os.close(master)
    assert process.wait(DEADLINE) == 0
    assert saved_epochs(tmp_path) == [24]


def test_a_run_without_the_standard_streams_reaches_its_end(tmp_path: Path) -> None:
    words = train(tmp_path, "--total-agent-steps", "600")
    shell = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *words]
    assert subprocess.Popen(shell).wait(DEADLINE) == 0
    assert saved_epochs(tmp_path)


def test_the_exit_code_of_the_command_is_that_of_a_hook_that_calls_sys_exit(tmp_path: Path) -> None:
    script = tmp_path / "exits.py"
    script.write_text(
        "import sys\n"
        "from pathlib import Path\n"
        "import orchestrator.command.run_script as script\n"
        "from orchestrator import Hook, TrainerConfig\n"
        "class Leaves(Hook):\n"
        "    async def on_epoch_end(self, state):\n"
        "        sys.exit(7)\n"
        "if __name__ == '__main__':\n"
        "    script.ProgressHook = lambda *_: Leaves()\n"
        "    sys.exit(script.run_training(TrainerConfig(total_agent_steps=10**9, run_dir=Path(sys.argv[1]))))\n"
    )
    words = [sys.executable, str(script), str(tmp_path / "run")]
    code, text = result(subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    assert code == 7, text
    assert saved_epochs(tmp_path)
