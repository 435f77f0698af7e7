"""Environments that start processes of their own: these work, are closed, and outlive nobody."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import gymnasium
import numpy as np
import psutil
import pytest

from orchestrator import Hook, Trainer
from tests.orchestrator.training import small_config, worker_processes

if TYPE_CHECKING:
    from orchestrator import TrainerConfig
    from state.trainer_state import TrainerState

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


def square(number: float) -> float:
    return number * number


class Simulators(gymnasium.Env[Any, Any]):
    """Has a simulator in a process of every kind, and notes in `folder` their ids and how they ended.

    kinds: `program` (a child), `daemon` (which has left its parent and its session), `stubborn` (ignores SIGTERM),
    `pool` (of multiprocessing).
    """

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, folder: str, kinds: list[str], close: bool) -> None:
        self.folder = Path(folder)
        self.close_them = close
        self.pool: Any = None
        self.programs: list[subprocess.Popen[bytes]] = []
        self.steps = 0
        self._note("worker", os.getpid())
        for kind in kinds:
            if kind == "pool":
                self.pool = multiprocessing.get_context("fork").Pool(1)
            elif kind == "program":
                self.programs += [subprocess.Popen(["sleep", "1000"]) for _ in range(2)]
            elif kind == "daemon":
                pid = self.folder / f"daemon-{os.getpid()}"
                subprocess.run(["sh", "-c", f"setsid sleep 1000 >/dev/null 2>&1 & echo $! > {pid}"], check=True)
            elif kind == "stubborn":
                self.programs.append(subprocess.Popen(["sh", "-c", "trap '' TERM; while true; do sleep 1; done"]))
        for program in self.programs:
            self._note("simulator", program.pid)

    def _note(self, what: str, value: object) -> None:
        with (self.folder / what).open("a") as file:
            file.write(f"{value}\n")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        value = 0.25 if self.pool is None else self.pool.apply(square, (0.5,))
        assert value == 0.25
        return np.full(2, value, np.float32), 1.0, self.steps % 10 == 0, False, {}

    def close(self) -> None:
        if self.close_them:
            for program, number in zip(self.programs, (signal.SIGTERM, signal.SIGINT), strict=True):
                program.send_signal(number)
                self._note("ended", program.wait(60))
            if self.pool is not None:
                self.pool.terminate()
                self.pool.join()
            self._note("closed", os.getpid())


def make(folder: str, kinds: list[str], close: bool = False) -> gymnasium.Env[Any, Any]:
    return Simulators(folder, kinds, close)


def config_with(folder: Path, *kinds: str, close: bool = False, epochs: int = 3) -> TrainerConfig:
    options = {"folder": str(folder), "kinds": list(kinds), "close": close}
    config = small_config(epochs=epochs, num_environments=1, backend="process", environment_options=options)
    config = replace(config, environment=f"{__name__}:make")
    return replace(config, collection=replace(config.collection, environment_options=options))


def noted(folder: Path, what: str) -> list[int]:
    return [int(line) for path in folder.glob(f"{what}*") for line in path.read_text().split()]


async def until_gone(pids: list[int]) -> None:
    assert pids
    with anyio.fail_after(60):
        while [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != "zombie"]:
            await anyio.sleep(0.02)


async def test_an_environment_with_processes_of_its_own_trains_and_ends_them_when_it_is_closed(tmp_path: Path) -> None:
    await Trainer(config_with(tmp_path, "pool", "program", close=True)).run()
    assert noted(tmp_path, "ended") == [-signal.SIGTERM, -signal.SIGINT], "neither signal is ignored"
    assert noted(tmp_path, "closed") == noted(tmp_path, "worker")
    assert not worker_processes()


async def test_simulators_that_an_environment_leaves_open_end_with_the_run(tmp_path: Path) -> None:
    await Trainer(config_with(tmp_path, "program", "daemon", "stubborn", "pool")).run()
    left = [pid for pid in noted(tmp_path, "simulator") + noted(tmp_path, "daemon") if psutil.pid_exists(pid)]
    assert not left
    assert len(noted(tmp_path, "simulator")) == 3


async def test_simulators_end_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    """Also when one of them has the worker's connection, as forks of it have: the host learns of the death."""
    killed: list[int] = []

    class Killer(Hook):
        async def on_epoch_end(self, state: TrainerState) -> None:
            if not killed:
                killed.extend(noted(tmp_path, "worker"))
                os.kill(killed[0], signal.SIGKILL)

    config = config_with(tmp_path, "program", "daemon", "pool", epochs=10)
    with anyio.fail_after(100):
        async with Trainer(config, hooks=[Killer()]).start() as run:
            async for _ in run.states():
                if len(noted(tmp_path, "worker")) == 2:
                    await until_gone(noted(tmp_path, "simulator")[:2] + killed)
                    run.stop()
    assert len(noted(tmp_path, "worker")) == 2


async def test_neither_workers_nor_simulators_outlive_a_killed_host_though_a_fork_of_it_lives_on(
    tmp_path: Path,
) -> None:
    script = tmp_path / "host.py"
    script.write_text(
        "import anyio, os, subprocess, sys, time\n"
        "from pathlib import Path\n"
        "from orchestrator import Hook, Trainer\n"
        "from tests.orchestrator.workers.test_simulators import config_with\n"
        "class Forks(Hook):\n"
        "    async def on_epoch_end(self, state):\n"
        "        if state.epoch == 1:\n"
        "            child = os.fork()\n"
        "            if not child:\n"
        "                time.sleep(1000)\n"
        "            heir = subprocess.Popen(['sleep', '1000'], close_fds=False)\n"
        "            print(child, heir.pid, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    config = config_with(Path(sys.argv[1]), 'program', 'daemon', 'stubborn', epochs=100_000)\n"
        "    anyio.run(Trainer(config, hooks=[Forks()]).run)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd())}
    words = [sys.executable, str(script), str(tmp_path)]
    host = await anyio.to_thread.run_sync(lambda: subprocess.Popen(words, stdout=subprocess.PIPE, env=environment))
    assert host.stdout is not None
    heirs = [int(word) for word in (await anyio.to_thread.run_sync(host.stdout.readline)).split()]
    try:
        family = [child.pid for child in psutil.Process(host.pid).children(recursive=True)]
        host.kill()
        host.wait()
        mortal = {*family, *noted(tmp_path, "worker"), *noted(tmp_path, "simulator"), *noted(tmp_path, "daemon")}
        await until_gone(sorted(mortal - set(heirs)))
        assert all(psutil.pid_exists(pid) for pid in heirs)
    finally:
        for pid in heirs:
            os.kill(pid, signal.SIGKILL)
        host.stdout.close()


async def test_an_environment_that_has_used_up_the_file_descriptors_fails_the_run_with_the_limit(
    tmp_path: Path,
) -> None:
    config = replace(config_with(tmp_path, epochs=10), environment=f"{__name__}:make_leaky")
    with pytest.raises(OSError, match=r"file descriptors left: at most 100 may be open .* `ulimit -n`"):
        await Trainer(config).run()


class Leaky(Simulators):
    """Opens a file at every step, and never closes it, where at most 100 may be open."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        import resource

        resource.setrlimit(resource.RLIMIT_NOFILE, (100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        try:
            while True:
                os.dup(2)
        except OSError:
            return super().step(action)


def make_leaky(**options: Any) -> gymnasium.Env[Any, Any]:
    return Leaky(**options)
