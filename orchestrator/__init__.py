"""An asynchronous training orchestrator for reinforcement learning: what most users need is importable from here.

Names are imported when they are first used, so that the console command can start its workers before torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from orchestrator.companions import check_companions

if TYPE_CHECKING:
    from orchestrator.config.error import ConfigurationError
    from orchestrator.config.settings import (
        CheckpointsConfig,
        CollectionConfig,
        EvaluationConfig,
        EvaluationTask,
        LearningConfig,
        LossesConfig,
        MetricsConfig,
        PolicyConfig,
        TrainerConfig,
    )
    from orchestrator.hooks.engine import HookConfigurationError
    from orchestrator.hooks.hook import Every, Hook, HookResult, RunContext, StateUpdate
    from orchestrator.hooks.included.heartbeat import Heartbeat
    from orchestrator.hooks.included.metrics import MetricsHook
    from orchestrator.hooks.included.progress import ProgressHook
    from orchestrator.hooks.included.stop_request import StopFile, StopRequest
    from orchestrator.hooks.run_in_worker import run_in_worker
    from orchestrator.hooks.runner import HookFailed, HookOverflow
    from orchestrator.hooks.statistics import HookStatistics
    from orchestrator.learning.optimization import NonFiniteLossError
    from orchestrator.loop.ctrl_c import CtrlC
    from orchestrator.run import Run
    from orchestrator.trainer import Trainer
    from orchestrator.workers.worker import WorkerCrashed
    from state.error import OrchestratorError

check_companions()

__all__ = [
    "CheckpointsConfig",
    "CollectionConfig",
    "ConfigurationError",
    "CtrlC",
    "EvaluationConfig",
    "EvaluationTask",
    "Every",
    "Heartbeat",
    "Hook",
    "HookConfigurationError",
    "HookFailed",
    "HookOverflow",
    "HookResult",
    "HookStatistics",
    "LearningConfig",
    "LossesConfig",
    "MetricsConfig",
    "MetricsHook",
    "NonFiniteLossError",
    "OrchestratorError",
    "PolicyConfig",
    "ProgressHook",
    "Run",
    "RunContext",
    "StateUpdate",
    "StopFile",
    "StopRequest",
    "Trainer",
    "TrainerConfig",
    "WorkerCrashed",
    "run_in_worker",
]

_MODULES = {
    "ConfigurationError": "config.error",
    "CtrlC": "loop.ctrl_c",
    "Every": "hooks.hook",
    "Heartbeat": "hooks.included.heartbeat",
    "Hook": "hooks.hook",
    "HookConfigurationError": "hooks.engine",
    "HookFailed": "hooks.runner",
    "HookOverflow": "hooks.runner",
    "HookResult": "hooks.hook",
    "HookStatistics": "hooks.statistics",
    "MetricsHook": "hooks.included.metrics",
    "NonFiniteLossError": "learning.optimization",
    "OrchestratorError": "config.error",
    "ProgressHook": "hooks.included.progress",
    "Run": "run",
    "RunContext": "hooks.hook",
    "StateUpdate": "hooks.hook",
    "StopFile": "hooks.included.stop_request",
    "StopRequest": "hooks.included.stop_request",
    "Trainer": "trainer",
    "WorkerCrashed": "workers.worker",
    "run_in_worker": "hooks.run_in_worker",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES.get(name, 'config.settings')}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
