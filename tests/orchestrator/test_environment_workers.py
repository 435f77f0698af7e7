"""Environments that processes of their own step for a collector, in groups: same bits, faults, and what is resumed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import gymnasium
import numpy as np
import psutil
import pytest

from losses import Loss, ppo_losses
from orchestrator import CheckpointsConfig, ConfigurationError, PolicyConfig, Trainer, TrainerConfig
from orchestrator.checkpoints import find_checkpoint
from orchestrator.collection.collector import derived_seed
from orchestrator.collection.plan import CollectorPlan
from orchestrator.environments.vector import EnvironmentFailed, copy_seeds
from orchestrator.workers.reply import WorkerCrashed
from state.experience import FieldSpec
from tests.environments import Counting
from tests.orchestrator.training import small_config, worker_processes
from tests.paths import PROJECT

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from losses import Minibatch, PolicyEvaluation
    from state.trainer_state import TrainerState

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
DEADLINE = 120
HANGING = "'collector-0-environments-(0', which has the copies 0 to 2|1', which has the copies 3 to 5) of 6"
in_every_event_loop = pytest.mark.parametrize("anyio_backend", ["asyncio", "trio"])
FAILING = "tests.orchestrator.training:failing_environment"


@pytest.fixture
def anyio_backend() -> str:
    """Environment workers are their collector's; the event loop meets their faults."""
    return "asyncio"


class Rich(gymnasium.Env[Any, Any]):
    """A Dict of observations, a mask in its infos, numbers for the statistics and a field for a loss; truncated."""

    observation_space = gymnasium.spaces.Dict(
        {"near": gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32), "kind": gymnasium.spaces.Discrete(3)}
    )
    action_space = gymnasium.spaces.Discrete(3)

    def __init__(self) -> None:
        self._elapsed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._elapsed = 0
        self._length = int(self.np_random.integers(3, 9))
        return self._observation(), self._info()

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self._mask[action]
        self._elapsed += 1
        over = self._elapsed >= self._length
        return self._observation(), float(action), over and self._length > 5, over, self._info()

    def _observation(self) -> Any:
        near = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        return {"near": near, "kind": int(self.np_random.integers(3))}

    def _info(self) -> dict[str, Any]:
        self._mask = np.ones(3, np.int8)
        self._mask[self.np_random.integers(3)] = 0
        return {"mask": self._mask, "elapsed": self._elapsed, "weight": 1.0 + self._elapsed}


def rich(**options: Any) -> gymnasium.Env[Any, Any]:
    return Rich()


class WeighedLoss(Loss):
    """Asks the environment for a field."""

    def experience_fields(self) -> tuple[FieldSpec, ...]:
        return (FieldSpec("weight", (), "float32"),)

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Any:
        return (minibatch["weight"] * evaluation.value).mean() * 1e-3


def config_of(workers: int, groups: int = 1, *, step_timeout: float = 0.0, **settings: Any) -> TrainerConfig:
    config = small_config(num_environments=settings.pop("num_environments", 6), **settings)
    split = {"environment_workers": workers, "environment_groups": groups, "step_timeout": step_timeout}
    return replace(config, collection=replace(config.collection, mode="sync", **split))


async def final_state(config: TrainerConfig, losses: Any = (), **options: Any) -> TrainerState:
    given = {"losses": losses} if losses else {}
    with anyio.fail_after(DEADLINE):
        return await Trainer(config, **given, **options).run()


def weights_of(state: TrainerState) -> dict[str, NDArray[Any]]:
    assert state.policy is not None
    return {name: array.copy() for name, array in state.policy.tensors.items()}


def assert_same(first: TrainerState, second: TrainerState) -> None:
    mine, theirs = weights_of(first), weights_of(second)
    assert all(np.array_equal(mine[name], theirs[name], equal_nan=True) for name in mine | theirs)
    assert first.rollout_stats == second.rollout_stats


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("network", ["mlp", "lstm"])
async def test_the_bits_do_not_depend_on_the_number_of_environment_workers(groups: int, network: str) -> None:
    policy = PolicyConfig(network=network, hidden_sizes=(8,), lstm_size=8)
    alone = await final_state(config_of(0, groups, policy=policy))
    assert_same(alone, await final_state(config_of(1, groups, policy=policy)))
    assert_same(alone, await final_state(config_of(2, groups, policy=policy, backend="process")))


@pytest.mark.parametrize("groups", [1, 2])
async def test_masks_fields_and_infos_are_the_same_from_environment_workers(groups: int) -> None:
    settings = {"environment": f"{__name__}:rich", "action_mask": "info/mask"}
    losses = (*ppo_losses(), WeighedLoss())
    alone = await final_state(config_of(0, groups, **settings), losses)
    assert_same(alone, await final_state(config_of(2, groups, **settings), losses))
    assert alone.rollout_stats is not None
    assert "elapsed" in alone.rollout_stats


def test_the_bits_are_the_same_in_every_event_loop_with_environment_workers() -> None:
    run = partial(final_state, config_of(2, 2, backend="process"))
    assert_same(*(anyio.run(run, backend=backend) for backend in ("asyncio", "trio")))


async def test_games_of_many_agents_are_stepped_by_environment_workers() -> None:
    pytest.importorskip("pettingzoo")
    config = partial(config_of, environment="tests.games:rock_paper_scissors", num_environments=4)
    assert_same(await final_state(config(0)), await final_state(config(2)))


@pytest.mark.parametrize("backend", ["inline", "process"])
async def test_an_environment_that_raises_in_a_worker_is_named_with_the_runs_number_of_its_copy(backend: Any) -> None:
    options = {"how": "raise", "fail_at": 20}
    config = config_of(2, environment=FAILING, environment_options=options, backend=backend, num_environments=4)
    with pytest.raises(EnvironmentFailed, match=r"step 20 of copy 0 of 4 failed with .*the simulator is gone"):
        await final_state(config)


class FailsWithSeed(gymnasium.Env[Any, Any]):
    """Raises where the seed of its first reset was `failing`."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, failing: int) -> None:
        self._failing = failing
        self._seed: int | None = None

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._seed = seed
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._seed == self._failing:
            raise OSError("this one")
        return np.zeros(2, np.float32), 0.0, False, False, {}


def fails_with_seed(failing: int) -> gymnasium.Env[Any, Any]:
    return FailsWithSeed(failing)


@pytest.mark.parametrize("workers", [0, 2])
async def test_copies_are_numbered_across_collectors_and_workers(workers: int) -> None:
    second = CollectorPlan(config=TrainerConfig(), index=1)
    options = {"failing": copy_seeds(derived_seed(second.seed, 1), 4)[3]}
    environment = f"{__name__}:fails_with_seed"
    config = config_of(workers, environment=environment, environment_options=options, num_environments=8, collectors=2)
    with pytest.raises(EnvironmentFailed, match=r"step 1 of copy 7 of 8 failed with .*this one"):
        await final_state(config)


@in_every_event_loop
async def test_an_environment_worker_that_is_killed_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"how": "kill", "fail_at": 40, "once": str(tmp_path / "killed")}
    config = config_of(2, environment=FAILING, environment_options=options, backend="process", epochs=4)
    final = await final_state(config)
    assert final.epoch >= 4
    assert re.search("worker 'collector-0-environments-[01]' died during 'step': killed by SIGKILL", caplog.text)
    assert "its episodes begin again" in caplog.text
    assert not worker_processes()


async def test_an_environment_worker_that_keeps_dying_ends_the_run() -> None:
    options = {"how": "exit", "fail_at": 3}
    config = config_of(2, environment=FAILING, environment_options=options, backend="process")
    with pytest.raises((WorkerCrashed, EnvironmentFailed), match="environments-0|SystemExit"):
        await final_state(config)


@in_every_event_loop
async def test_a_worker_whose_step_takes_longer_than_the_timeout_is_named_and_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"how": "hang", "fail_at": 40, "once": str(tmp_path / "hangs")}
    config = config_of(2, environment=FAILING, environment_options=options, backend="process", step_timeout=5.0)
    final = await final_state(config)
    assert final.epoch >= 4
    assert re.search(
        f"worker {HANGING}, was ended: step 40 of environment .* collection.step_timeout = 5 s", caplog.text
    )
    assert not worker_processes()


@in_every_event_loop
async def test_stopping_a_run_names_the_environment_worker_that_hangs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    hangs = tmp_path / "hangs"
    options = {"how": "hang", "fail_at": 80, "once": str(hangs)}
    config = config_of(2, environment=FAILING, environment_options=options, backend="process", staleness=0, epochs=99)
    config = replace(config, run_dir=tmp_path / "run", checkpoints=CheckpointsConfig(every=0))
    with anyio.fail_after(DEADLINE):
        async with Trainer(config).start() as run:
            while not hangs.exists():
                await anyio.sleep(0.02)
            run.stop_now()
            await run.result()
    assert re.search(f"worker 'collector-0' has not answered 'collect' .* it waits for {HANGING}", caplog.text)
    assert find_checkpoint(tmp_path / "run").manifest["epoch"] == 2
    with anyio.fail_after(DEADLINE):
        while worker_processes():
            await anyio.sleep(0.02)


@pytest.mark.parametrize(("before", "after"), [((2, 1), (2, 1)), ((2, 1), (0, 1)), ((0, 1), (3, 1)), ((1, 2), (2, 2))])
@pytest.mark.parametrize("game", ["CartPole-v1", f"{__name__}:rich"])
async def test_a_run_resumes_exactly_with_another_number_of_environment_workers(
    before: tuple[int, int], after: tuple[int, int], game: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def config(split: tuple[int, int], epochs: int, folder: Path) -> TrainerConfig:
        mask = {"action_mask": "info/mask"} if game.endswith("rich") else {}
        found = config_of(*split, epochs=epochs, environment=game, run_dir=folder, staleness=0, **mask)
        return replace(found, metrics=replace(found.metrics, progress="off"))

    whole = await final_state(config(after, 6, tmp_path / "whole"))
    await final_state(config(before, 3, tmp_path / "parts"))
    resumed = await final_state(config(after, 6, tmp_path / "parts"), resume=tmp_path / "parts")
    assert "new episodes" not in caplog.text
    assert_same(whole, resumed)


@pytest.mark.parametrize("groups", [1, 2])
async def test_environments_that_cannot_give_their_state_are_stepped_by_several_workers_and_begin_again(
    groups: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    checkpoints = CheckpointsConfig(every=1)
    settings: dict[str, Any] = {"environment": "tests.environments:make_opaque", "checkpoints": checkpoints}
    await final_state(config_of(2, groups, epochs=3, run_dir=tmp_path, **settings))
    final = await final_state(config_of(2, groups, epochs=6, run_dir=tmp_path, **settings), resume=tmp_path)
    assert final.epoch == 6
    assert "episodes that were in progress begin again: the environment can't give its state" in caplog.text


async def test_too_many_environment_workers_and_a_timeout_without_them_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="at least one environment for each worker and group, 4 x 2 of the 6"):
        await final_state(config_of(4, 2))
    with pytest.raises(ConfigurationError, match=r"(?s)step_timeout.*set collection.environment_workers to 1 or more"):
        await final_state(config_of(0, step_timeout=3.0))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_no_process_is_left_of_a_command_that_a_signal_ends(number: signal.Signals, tmp_path: Path) -> None:
    settings = {"total_agent_steps": 10**8, "collection.mode": "sync", "collection.environment_workers": 2}
    settings |= {"run_dir": tmp_path / "run", "metrics.progress": "off"}
    flags = [f"--{name}={value}" for name, value in settings.items()]
    command = [sys.executable, "-m", "orchestrator", "train", *flags]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        metrics = tmp_path / "run" / "metrics.jsonl"
        _wait_until(lambda: metrics.exists() and metrics.stat().st_size > 0)
        started = psutil.Process(process.pid).children(recursive=True)
        assert len(started) >= 2 * 4 + 1  # a collector, its two and the learner with their keepers, and the server
        os.kill(process.pid, number)
        process.wait(DEADLINE)
        _, left = psutil.wait_procs(started, DEADLINE)
        assert not left
    finally:
        process.kill()
        process.wait()


class Surplus(gymnasium.Env[Any, Any]):
    """Its observations have a key too many, of which there is a warning, and a wrong shape: of resets, or of steps."""

    observation_space = gymnasium.spaces.Dict({"near": gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)})
    action_space = gymnasium.spaces.Discrete(2)
    opened: ClassVar[set[gymnasium.Env[Any, Any]]] = set()

    def __init__(self, at: str) -> None:
        self._wrong_reset = at == "reset"
        self.opened.add(self)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        return self._near(self._wrong_reset), {}

    def step(self, action: Any) -> Any:
        return self._near(True), 1.0, False, False, {}

    def close(self) -> None:
        self.opened.discard(self)

    def _near(self, wrong: bool) -> Any:
        near = np.zeros(2, np.float32)
        return {"near": np.zeros(3, np.float32), "far": near} if wrong else {"near": near}


@pytest.mark.parametrize("split", [(0, 1), (1, 1), (0, 2)])
@pytest.mark.parametrize("at", ["reset", "step"])
async def test_an_environment_that_fails_is_closed_and_its_error_notes_what_there_was_to_warn_of(
    at: str, split: tuple[int, int]
) -> None:
    Surplus.opened.clear()
    config = config_of(*split, environment=f"{__name__}:Surplus", environment_options={"at": at})
    with pytest.raises(EnvironmentFailed, match=f"{at}.* returned") as raised:
        await Trainer(config).run()
    assert "returns observations with the keys ['far']" in "".join(raised.value.__notes__)
    assert not Surplus.opened


def _wait_until(there: Any) -> None:
    async def wait() -> None:
        with anyio.fail_after(DEADLINE):
            while not there():
                await anyio.sleep(0.05)

    anyio.run(wait)


class CannotClose(Counting):
    def close(self) -> None:
        raise OSError("the simulator is gone")


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("backend", ["inline", "process"])
def test_an_environment_that_cannot_be_closed_in_the_end_is_told_of_in_a_line(
    workers: int, backend: str, tmp_path: Path
) -> None:
    settings = f"--run-dir {tmp_path}/run --total-agent-steps 512 --collection.num-environments 8"
    settings += f" --collection.environment-workers {workers} --collection.backend {backend}"
    words = [sys.executable, "-m", "orchestrator", "train", "--environment", f"{__name__}:CannotClose"]
    done = subprocess.run(
        [*words, *settings.split()], cwd=PROJECT, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "could not be closed: OSError: the simulator is gone (raised by close of copy 0 of" in said
    assert "Traceback" not in said
