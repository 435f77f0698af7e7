"""Metrics: one record per epoch with everything that is known about it, to `metrics.jsonl` and any other sinks."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, cast

import anyio

from orchestrator.hooks.function_thread import FunctionThread
from orchestrator.hooks.hook import Hook
from orchestrator.hooks.included.metrics_record import metrics, weight_norm
from orchestrator.hooks.included.system_usage import SystemUsage
from orchestrator.metrics.jsonl import JsonLines
from orchestrator.metrics.sink import GuardedSink, RunInfo, ThreadedSink, check_sink

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from orchestrator.hooks.hook import HookResult
    from orchestrator.metrics.sink import Sink
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator.metrics")
CLOSING_SECONDS = 50.0
"""Time that slow sinks have at the end of a run to write what waits."""
CANCELLED_SECONDS = 3.0
"""The same where the run was cancelled."""


class MetricsHook(Hook):
    """Gives each epoch's record to `metrics.jsonl` in the run's folder, if it has one, and to the `sinks`.

    Records are made and written in threads: the file's in step with the training, at most `max_lag` epochs behind,
    the sinks' each in their own time. A sink that fails is reported once and harms neither the run nor the others.
    Every `weight_norm_every` epochs the policy's norm is computed. `settings` are the run's settings as sinks get them.

    Raises TypeError for what is no sink.
    """

    name = "metrics"
    overflow = "block"
    max_lag = 16

    def __init__(
        self,
        sinks: Sequence[Sink] = (),
        *,
        jsonl: bool = True,
        weight_norm_every: int = 10,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        for sink in sinks:
            check_sink(sink)
        self.sinks = tuple(sinks)
        self.configured: tuple[Sink, ...] = ()
        """Sinks that the run's configuration adds."""
        self.settings: Mapping[str, object] = settings or {}
        self._jsonl = jsonl
        self._weight_norm_every = weight_norm_every
        self._weight_norm: float | None = None
        self._videos_of = 0
        """The epoch whose policy plays in the newest videos."""
        self._file: GuardedSink | None = None
        self._others: list[ThreadedSink] = []
        self._left: list[ThreadedSink] = []
        """Those of earlier runs that have not finished."""

    @asynccontextmanager
    async def resources(self) -> AsyncGenerator[None]:
        self._weight_norm = None
        self._videos_of = 0
        self._system = SystemUsage()
        self._thread = FunctionThread("metrics")
        self._system.start()
        try:
            yield
        finally:
            self._system.stop()
            try:
                await self._finish(CANCELLED_SECONDS)
            finally:
                self._leave_sinks()  # also where the thread hangs, so that nobody has closed them
                self._thread.close()

    async def on_new_training_run(self, state: TrainerState) -> None:
        await self._thread.call(self._open, state)

    async def on_epoch_end(self, state: TrainerState) -> None:
        await self._thread.call(self._write, state)

    async def on_training_end(self, state: TrainerState) -> None:
        await self._thread.call(self._write_videos, state)  # the last may have come after the last epoch
        await self._finish(CLOSING_SECONDS)

    async def on_failure(self, state: TrainerState) -> None:
        await self._finish(CLOSING_SECONDS)

    async def _finish(self, seconds: float) -> None:
        """Have the sinks write what waits and close, which they do in their threads."""
        await self._thread.call(self._close)
        with anyio.move_on_after(seconds):
            while any(not sink.done for sink in self._others):  # noqa: ASYNC110 - threads set no event of ours
                await anyio.sleep(0.01)
        late = [sink.name for sink in self._others if not sink.done]
        if late:
            _log.warning("these metrics sinks have not finished in time, and are left: %s", ", ".join(late))
        self._leave_sinks()

    def _leave_sinks(self) -> None:
        for sink in self._others:
            sink.close()
        self._left = [sink for sink in (*self._left, *self._others) if not sink.done]
        self._others = []

    # In the thread.

    def _open(self, state: TrainerState) -> None:
        run = RunInfo(
            run_id=self.run.run_id,
            run_dir=self.run.run_dir,
            epoch=state.epoch,
            settings=dict(self.settings),
            stop=self.run.stop,
        )
        if self._jsonl and run.run_dir is not None:
            self._file = GuardedSink(JsonLines())
            self._file.open(run)
        busy = {id(left.sink): left for left in self._left if not left.done}
        self._others = [ThreadedSink(sink, after=busy.get(id(sink))) for sink in (*self.sinks, *self.configured)]
        for sink in self._others:
            sink.open(run)

    def _write(self, state: TrainerState) -> None:
        if state.policy is not None and (self._weight_norm is None or state.epoch % self._weight_norm_every == 0):
            self._weight_norm = weight_norm(state.policy)
        extra = dict(self._system.latest)
        if self._weight_norm is not None:
            extra["policy/weight_norm"] = self._weight_norm
        record = metrics(state, self.run.hook_statistics(), extra)
        if self._file is not None:
            self._file.write(record)
        for sink in self._others:
            sink.write(record)
        self._write_videos(state)

    def _write_videos(self, state: TrainerState) -> None:
        videos = None if state.results is None else cast("HookResult | None", state.results.get("videos"))
        if videos is not None and videos.epoch > self._videos_of:
            self._videos_of = videos.epoch
            for sink in self._others:
                sink.write_videos({"epoch": state.epoch, "agent_step": state.agent_step}, videos.value)

    def _close(self) -> None:
        for sink in self._others:
            sink.close()
        if self._file is not None:
            self._file.close()
            self._file = None
