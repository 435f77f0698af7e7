"""Watches whether a run waits for its experience while processor cores have nothing to do, and says so once."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, NamedTuple

from orchestrator.config.paths import PATH
from orchestrator.hooks.hook import Hook
from orchestrator.hooks.included.system_usage import SystemUsage
from orchestrator.workers.cores import available_cores
from orchestrator.workers.event_loop import in_thread

if TYPE_CHECKING:
    from orchestrator.config.settings import TrainerConfig
    from state.trainer_state import TrainerState

_log = logging.getLogger("orchestrator")

SECONDS = 20.0
"""Over which it looks, once."""
_FIRST_EPOCHS = 3
"""Of which it looks at nothing: everything is made and compiled then."""
_WAITING = 0.5
"""Share of the time from which on waiting is worth a word."""
_CORES = 2.0
"""That are idle at least."""


class _Waited(NamedTuple):
    seconds: float
    for_experience: float


class IdleCores(Hook):
    """For a run on one machine with the settings `config`."""

    name = "idle_cores"

    def __init__(self, config: TrainerConfig) -> None:
        self._config = config
        self._usage = SystemUsage()
        self._epochs = 0
        self._before: _Waited | None = None
        self._has_looked = False

    async def on_epoch_end(self, state: TrainerState) -> None:
        self._epochs += 1
        if self._has_looked or state.timer is None or self._epochs <= _FIRST_EPOCHS:
            return
        now = _Waited(state.timer.seconds, state.timer.timer_seconds.get("critical_collect", 0.0))
        if self._before is None:
            self._before = now
            await in_thread(self._usage.look)  # from here on
            return
        seconds = now.seconds - self._before.seconds
        if seconds < SECONDS:
            return
        self._has_looked = True
        share = (now.for_experience - self._before.for_experience) / seconds
        idle, cores = await in_thread(self._idle)
        cures = list(self._cures(int(idle)))
        if share > _WAITING and idle >= _CORES and cures:
            _log.info(
                "in %.0f %% of the last %.0f s, nothing was done but collect experience, while %.0f of %d processor"
                " cores were idle. More of them would be used with %s; a run may be resumed with that",
                100 * share,
                seconds,
                idle,
                cores,
                ", or with ".join(cures),
            )

    def _idle(self) -> tuple[float, int]:
        """Cores that this process may use, but neither the run nor anybody else has used since the last look, and how
        many it may use."""
        seen, cores = self._usage.look(), available_cores()
        of_all = (1.0 - seen["system/cpu"]) * (os.cpu_count() or 1)
        return min(of_all, cores - seen["system/run_cpu"]), cores

    def _cures(self, idle: int) -> list[str]:
        config, collection = self._config, self._config.collection
        cures: list[str] = []
        most = collection.collectors * max(1, collection.environment_workers) + idle
        possible = [
            count
            for count in range(collection.collectors + 1, most + 1)
            if collection.num_environments % count == 0 and count % config.cells == 0
        ]
        if possible and not collection.environment_workers:
            cures.append(f"{PATH.collection.collectors} = {possible[-1]} (now {collection.collectors})")
        workers = min(most // collection.collectors, collection.num_environments // collection.collectors)
        if workers > max(1, collection.environment_workers):
            cures.append(
                f"{PATH.collection.environment_workers} = {workers} (now {collection.environment_workers}) if stepping"
                " the environments is what takes long"
            )
        return cures
