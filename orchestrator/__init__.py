"""An asynchronous training orchestrator for reinforcement learning: what most users need is importable from here.

Names are imported when they are first used, so that the console command can start its workers before torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.companions import check_companions

if TYPE_CHECKING:
    from orchestrator.checkpoints.checkpoint import Checkpoint as Checkpoint
    from orchestrator.checkpoints.find import find_checkpoint as find_checkpoint
    from orchestrator.checkpoints.folder import CheckpointFolder as CheckpointFolder
    from orchestrator.checkpoints.manifest import CheckpointDamaged as CheckpointDamaged
    from orchestrator.checkpoints.manifest import CheckpointError as CheckpointError
    from orchestrator.checkpoints.retention import KeepAll as KeepAll
    from orchestrator.checkpoints.retention import KeepAny as KeepAny
    from orchestrator.checkpoints.retention import KeepBest as KeepBest
    from orchestrator.checkpoints.retention import KeepEvery as KeepEvery
    from orchestrator.checkpoints.retention import KeepLast as KeepLast
    from orchestrator.command.evaluation import evaluate_checkpoint as evaluate_checkpoint
    from orchestrator.config.error import ConfigurationError as ConfigurationError
    from orchestrator.config.error import Problem as Problem
    from orchestrator.config.file import from_table as from_table
    from orchestrator.config.file import read_config as read_config
    from orchestrator.config.presets import read_preset as read_preset
    from orchestrator.config.settings import CheckpointsConfig as CheckpointsConfig
    from orchestrator.config.settings import CollectionConfig as CollectionConfig
    from orchestrator.config.settings import EvaluationConfig as EvaluationConfig
    from orchestrator.config.settings import EvaluationTask as EvaluationTask
    from orchestrator.config.settings import LearningConfig as LearningConfig
    from orchestrator.config.settings import LossesConfig as LossesConfig
    from orchestrator.config.settings import MetricsConfig as MetricsConfig
    from orchestrator.config.settings import PolicyConfig as PolicyConfig
    from orchestrator.config.settings import TrainerConfig as TrainerConfig
    from orchestrator.config.settings import TypePolicy as TypePolicy
    from orchestrator.deployment.load import load_policy as load_policy
    from orchestrator.deployment.loaded_policy import LoadedPolicy as LoadedPolicy
    from orchestrator.deployment.loaded_policy import WrongObservation as WrongObservation
    from orchestrator.environments.spaces import InvalidEnvironment as InvalidEnvironment
    from orchestrator.environments.vector import EnvironmentFailed as EnvironmentFailed
    from orchestrator.hooks.engine import HookConfigurationError as HookConfigurationError
    from orchestrator.hooks.hook import Every as Every
    from orchestrator.hooks.hook import Hook as Hook
    from orchestrator.hooks.hook import HookResult as HookResult
    from orchestrator.hooks.hook import RunContext as RunContext
    from orchestrator.hooks.hook import StateUpdate as StateUpdate
    from orchestrator.hooks.included.heartbeat import Heartbeat as Heartbeat
    from orchestrator.hooks.included.metrics import MetricsHook as MetricsHook
    from orchestrator.hooks.included.progress import ProgressHook as ProgressHook
    from orchestrator.hooks.included.stop_request import StopFile as StopFile
    from orchestrator.hooks.included.stop_request import StopRequest as StopRequest
    from orchestrator.hooks.included.trace import TraceHook as TraceHook
    from orchestrator.hooks.run_in_worker import run_in_worker as run_in_worker
    from orchestrator.hooks.runner import HookFailed as HookFailed
    from orchestrator.hooks.runner import HookOverflow as HookOverflow
    from orchestrator.hooks.statistics import HookStatistics as HookStatistics
    from orchestrator.learning.compilation import CompilationError as CompilationError
    from orchestrator.learning.optimization import NonFiniteLossError as NonFiniteLossError
    from orchestrator.learning.precision import PrecisionError as PrecisionError
    from orchestrator.loop.ctrl_c import CtrlC as CtrlC
    from orchestrator.loop.memory import OutOfMemory as OutOfMemory
    from orchestrator.loop.patience import WorkerHangs as WorkerHangs
    from orchestrator.metrics.jsonl import JsonLines as JsonLines
    from orchestrator.metrics.prometheus import Prometheus as Prometheus
    from orchestrator.metrics.sink import Record as Record
    from orchestrator.metrics.sink import RunInfo as RunInfo
    from orchestrator.metrics.sink import Sink as Sink
    from orchestrator.metrics.tensorboard import TensorBoard as TensorBoard
    from orchestrator.metrics.trackio import Trackio as Trackio
    from orchestrator.metrics.wandb import Wandb as Wandb
    from orchestrator.policies.network import Network as Network
    from orchestrator.policies.network import NetworkError as NetworkError
    from orchestrator.policies.network import Observation as Observation
    from orchestrator.policies.network import RecurrentNetwork as RecurrentNetwork
    from orchestrator.policies.network import SeparateNetwork as SeparateNetwork
    from orchestrator.policies.network import Spaces as Spaces
    from orchestrator.run import Run as Run
    from orchestrator.run import RunCancelled as RunCancelled
    from orchestrator.run import RunStatistics as RunStatistics
    from orchestrator.run import RunStatus as RunStatus
    from orchestrator.snapshots.resume import ResumeSource as ResumeSource
    from orchestrator.snapshots.resume import find_resume_source as find_resume_source
    from orchestrator.trainer import Trainer as Trainer
    from orchestrator.workers.worker import WorkerCrashed as WorkerCrashed
    from orchestrator.workers.worker import WorkerStatistics as WorkerStatistics
    from state.error import OrchestratorError as OrchestratorError
else:
    check_companions()
    from state.lazy_names import lazy_names

    __getattr__, __dir__ = lazy_names(__name__)
