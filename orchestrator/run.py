"""A run in progress: what an embedding program and the hooks see of it, and request of it."""

from __future__ import annotations

import logging
import operator
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from orchestrator.config.paths import PATH
from orchestrator.loop.run_parts import RunParts
from orchestrator.snapshots.checkpoint_files import checkpoint_content
from orchestrator.workers.worker import start_worker
from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from orchestrator.config.settings import TrainerConfig
    from orchestrator.hooks.engine import EngineStatistics
    from orchestrator.hooks.hook import Hook
    from orchestrator.hooks.statistics import HookStatistics
    from orchestrator.snapshots.checkpoint_files import CheckpointContent
    from orchestrator.workers.worker import Worker, WorkerStatistics
    from state.eval_rewards import EvalRewardSummary
    from state.shared_memory import SlotRingStatistics
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator")

RunStatus: TypeAlias = Literal["starting", "running", "paused", "stopping", "ended", "failed", "cancelled"]


class RunCancelled(OrchestratorError, RuntimeError):
    """Raised in those that wait for a run's result when the run was cancelled and they were not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics:
    """What a run is doing; `engine` tells how each hook keeps up.

    `workers` has each collector (`collector-0`, ...), the learner and what hooks have opened (`evaluator`); `slots` the
    rings of shared memory, `experience` and `policy`. Both are empty until the workers have started, and stay as they
    were last once the run has ended.
    """

    epoch: int
    agent_step: int
    paused: bool
    stop_requested: str
    engine: EngineStatistics
    workers: Mapping[str, WorkerStatistics]
    slots: Mapping[str, SlotRingStatistics]


class Run:
    """A run in progress: watch it, pause it, stop it. Made by `Trainer.start()`."""

    def __init__(self, config: TrainerConfig, hooks: Sequence[Hook], first_epoch: int = 0) -> None:
        self.run_id = uuid.uuid4().hex[:12]
        """Differs for every run, also where one resumes another."""
        self.run_dir: Path | None = config.run_dir
        """The run's folder; None for a run without files."""
        self.config = config
        self._first_epoch = first_epoch
        self._warns_unsaved = not any(hook.saves for hook in hooks)
        """Whether nothing saves the run, and the log has not said so."""
        self._parts = RunParts(config, hooks, self, first_epoch)

    def __repr__(self) -> str:
        return f"<Run {self.run_id}: epoch {self.state.epoch}, {self.status}>"

    @property
    def status(self) -> RunStatus:
        """What the run is doing, or how it has ended; "starting" until its workers are ready for the first epoch."""
        if self._parts.ended.is_set():
            if self.error is None:
                return "ended"
            failed = isinstance(self.error, (Exception, SystemExit, KeyboardInterrupt))
            return "failed" if failed else "cancelled"
        if self._parts.control.stopping:
            return "stopping"
        return "paused" if self.paused else "running" if self._parts.training else "starting"

    @property
    def paused(self) -> bool:
        """Whether `pause()` was called last, and not `resume()`. What has begun may still be at work."""
        return self._parts.control.paused

    @property
    def stop_reason(self) -> str:
        """Why the run is to end, as `stop()` or `stop_now()` was told; empty where nobody has asked for it."""
        return self._parts.control.reason

    @property
    def error(self) -> BaseException | None:
        """What the run failed with, or was cancelled by, once it has ended."""
        return self._parts.error

    @property
    def state(self) -> TrainerState:
        """The newest state of a completed epoch, with what hooks have returned by now."""
        return self._parts.newest.derive()

    def states(self) -> States:
        """The state after each epoch, up to the last. A slow reader misses states; it never holds up the run."""
        return States(self)

    async def next_state(self, seen: TrainerState | None) -> TrainerState | None:
        """The newest state of a completed epoch as soon as it is not `seen`; None after the last."""
        newest = self._parts.newest
        while newest.state.epoch == (self._first_epoch if seen is None else seen.epoch):
            if self._parts.ended.is_set():
                return None
            await newest.news()
        return self.state

    async def result(self) -> TrainerState:
        """Wait for the end: the last state, or what the run failed with."""
        await self._parts.ended.wait()
        if isinstance(self.error, Exception):
            raise self.error
        if self.error is not None:
            ends = isinstance(self.error, (SystemExit, KeyboardInterrupt))
            raise RunCancelled(f"the run was {f'ended by {self.error!r}' if ends else 'cancelled'}") from self.error
        return self.state

    def pause(self) -> None:
        """Begin no further epoch until `resume`; what has been collected is still learned from."""
        self._parts.control.pause()

    def resume(self) -> None:
        """Continue after `pause`."""
        self._parts.control.resume()

    def stop(self, reason: str = "") -> None:
        """Finish the present epoch and end the run."""
        self._parts.control.stop(reason)

    def stop_now(self, reason: str = "") -> None:
        """End the run after the present minibatch: the epoch that is being learned ends there."""
        self._parts.control.stop_now(reason)

    def request_checkpoint(self) -> None:
        """Take a checkpoint at the end of the present epoch; while the run is paused, of the last one.

        Where nothing saves the run, as without a folder, the log says that there will be none.
        """
        if self._warns_unsaved and not self._parts.ended.is_set():
            self._warns_unsaved = False
            without = PATH.run_dir if self.run_dir is None else PATH.checkpoints.enabled
            _log.warning("a checkpoint was requested, but none will be taken: set %s in the run's settings", without)
        self._parts.control.request_checkpoint()

    @property
    def learning_rate_scale(self) -> float:
        """What the scheduled learning rate is multiplied with; a checkpoint keeps it."""
        return self._parts.control.learning_rate_scale

    def scale_learning_rate(self, factor: float) -> None:
        """Set `learning_rate_scale`, for the epochs that are learned from now on.

        Raises ValueError for what is negative or not finite.
        """
        self._parts.control.scale_learning_rate(factor)

    def start_worker(
        self, name: str, factory: Callable[..., object], *args: object
    ) -> AbstractAsyncContextManager[Worker]:
        """A worker on the run's backend, for a hook's heavy computation."""
        return start_worker(self.config.collection.backend, name, factory, *args)

    async def open_worker(self, name: str, factory: Callable[..., object], *args: object) -> Worker:
        """As `start_worker`, for a worker that lives until the hook closes it, or as long as the run.

        Raises RuntimeError where the run has ended.
        """
        return await self._parts.open_worker(name, factory, *args)

    def hook_statistics(self) -> Mapping[str, HookStatistics]:
        """How each hook keeps up, by name."""
        return self._parts.engine.statistics().hooks

    def eval_scores(self) -> Mapping[int, EvalRewardSummary]:
        """As `RunContext` says."""
        return self._parts.engine.eval_scores()

    def epochs_in_hand(self) -> frozenset[int]:
        """As `RunContext` says."""
        return self._parts.engine.epochs_in_hand()

    def checkpoint_content(self, state: TrainerState) -> CheckpointContent:
        """What a checkpoint of `state`, which has a policy, is made of; see `RunContext`."""
        parts = self._parts
        snapshot, hooks = parts.snapshots.get(state.epoch), parts.engine.hook_states()
        return checkpoint_content(state, snapshot, self.config, hooks, parts.recorded_spaces)

    def statistics(self) -> RunStatistics:
        """What the run is doing, how each hook keeps up, and what workers and shared memory do."""
        return RunStatistics(
            epoch=self.state.epoch,
            agent_step=self.state.agent_step,
            paused=self.paused,
            stop_requested=self._parts.control.stop_requested,
            engine=self._parts.engine.statistics(),
            workers=self._parts.worker_statistics(),
            slots=self._parts.loop_statistics().slots,
        )

    def limit_drain(self, seconds: float) -> None:
        """Give hooks this long to finish after the training, not `drain_timeout`; also when it has ended already."""
        self._parts.limit_drain(seconds)


parts_of = cast("Callable[[Run], RunParts]", operator.attrgetter("_parts"))
"""What a run consists of: for the trainer and the command, and nobody else."""


class States:
    """Iterates over the newest states of a run. (Not a generator: leaving one half-way needs closing.)"""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._seen: TrainerState | None = None

    def __aiter__(self) -> States:
        return self

    async def __anext__(self) -> TrainerState:
        state = await self._run.next_state(self._seen)
        if state is None:
            raise StopAsyncIteration
        self._seen = state
        return state
