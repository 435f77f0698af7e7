"""A training process that is killed, again and again, loses nothing that it has said is saved."""

from __future__ import annotations

import contextlib
import multiprocessing
import random
import shutil
import signal
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio
import numpy as np
import pytest

from orchestrator import CheckpointsConfig, Hook, Trainer
from orchestrator.checkpoints import CheckpointError
from orchestrator.snapshots.resume import find_resume_source
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from pathlib import Path

    from orchestrator import TrainerConfig
    from state.trainer_state import TrainerState

pytestmark = pytest.mark.slow

KILLS = 25
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["orchestrator.trainer", "orchestrator.learning.learner"])


class Announce(Hook):
    """Tells the test of every checkpoint as soon as the run says that it exists."""

    overflow = "block"

    def __init__(self, to: Connection) -> None:
        self._to = to

    async def on_checkpoint_committed(self, state: TrainerState) -> None:
        assert state.latest_checkpoint_uri is not None
        self._to.send(int(state.latest_checkpoint_uri.rpartition("/")[2].partition("-")[0]))


def config_in(folder: Path, agent_steps: int) -> TrainerConfig:
    checkpoints = CheckpointsConfig(every=1, keep=3)
    return small_config(total_agent_steps=agent_steps, horizon=16, staleness=1, run_dir=folder, checkpoints=checkpoints)


def train(folder: Path, agent_steps: int, announce: Connection) -> None:
    """The body of the process: go on with the run where there is something to go on with."""
    config = config_in(folder, agent_steps)
    try:
        trainer = Trainer(config, hooks=[Announce(announce)], resume=folder)
    except CheckpointError:  # it was killed before its first checkpoint
        shutil.rmtree(folder, ignore_errors=True)
        trainer = Trainer(config, hooks=[Announce(announce)])
    anyio.run(trainer.run)


class Life:
    """One training process, and the newest epoch that it has announced to be saved."""

    def __init__(self, folder: Path, agent_steps: int) -> None:
        self._receive, send = context.Pipe(duplex=False)
        self.process = context.Process(target=train, args=(folder, agent_steps, send))
        self.process.start()
        send.close()
        self.announced = 0

    def listen(self, seconds: float | None) -> None:
        """For so long, or up to the next announcement, or the process's end."""
        if self._receive.poll(seconds):
            with contextlib.suppress(EOFError):
                self.announced = self._receive.recv()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        with contextlib.suppress(EOFError):
            while True:  # what was said before it died counts
                self.announced = self._receive.recv()


@pytest.mark.timeout(600)
def test_a_run_killed_again_and_again_goes_on_from_what_it_had_announced_and_is_as_if_nothing_had_happened(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    moments = random.Random(5)
    announced = 0
    for number in range(KILLS):
        life = Life(folder, 10**9)
        if number % 3:  # at any moment of the run
            life.listen(None)
            time.sleep(moments.uniform(0, 0.1))
        else:  # often while it starts
            life.listen(moments.uniform(0.05, 0.8))
        life.kill()
        assert life.process.exitcode == -signal.SIGKILL
        announced = max(announced, life.announced)
        if announced:
            assert find_resume_source(folder).checkpoint.manifest["epoch"] >= announced
    assert announced > KILLS / 2

    agent_steps = find_resume_source(folder).checkpoint.manifest["agent_step"] + 200
    last = Life(folder, agent_steps)
    last.process.join()
    assert last.process.exitcode == 0
    undisturbed = anyio.run(Trainer(replace(config_in(tmp_path / "other", agent_steps), run_dir=None)).run)
    assert undisturbed.policy is not None
    module = undisturbed.policy.factory()
    final = find_resume_source(folder).checkpoint
    final.load_into(module)
    assert final.manifest["epoch"] == undisturbed.epoch
    weights = dict([*module.named_parameters(), *module.named_buffers()])
    for name, array in undisturbed.policy.tensors.items():
        assert np.array_equal(weights[name].detach().numpy(), array), name
