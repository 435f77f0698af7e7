"""The hooks that a configuration asks for."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast
from urllib.parse import quote

from orchestrator.checkpoints import CheckpointFolder, retention_of
from orchestrator.config.error import shown
from orchestrator.config.fields import leaves
from orchestrator.config.own_code import OwnCodeError, call_function
from orchestrator.config.plugins import code_named
from orchestrator.evaluation.plan import evaluation_plans
from orchestrator.hooks.hook import Hook
from orchestrator.hooks.included.best_metric import check_best_metric
from orchestrator.hooks.included.checkpoint import CheckpointHook
from orchestrator.hooks.included.evaluation import EvaluationHook
from orchestrator.hooks.included.heartbeat import Heartbeat
from orchestrator.hooks.included.idle_cores import IdleCores
from orchestrator.hooks.included.learning_watch import LearningWatch
from orchestrator.hooks.included.metrics import MetricsHook
from orchestrator.hooks.included.metrics_record import score_metrics
from orchestrator.hooks.included.progress import ProgressHook
from orchestrator.hooks.included.trace import TraceHook
from orchestrator.hooks.included.upload import UploadHook
from orchestrator.hooks.included.wandb_artifacts import WandbCheckpointHook
from orchestrator.metrics import Prometheus, Sink, TensorBoard, Trackio, Wandb
from orchestrator.metrics.sink import check_sink
from state.eval_rewards import EvalRewardSummary

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from orchestrator.config.settings import TrainerConfig


def default_hooks(config: TrainerConfig, resumed: Path | None = None, given: Sequence[Hook] = ()) -> list[Hook]:
    """Evaluation where it is switched on; checkpoints, copies of them, metrics and trace where the run has a folder;
    metrics where it has sinks; warnings of a run that does not learn where it has metrics or shows progress. `resumed`
    is the checkpoint that the run resumes from.

    A MetricsHook among the hooks that are `given` takes the place of the default one, and gets its sinks as well.
    Metrics and checkpoints go to one W&B run; raises ValueError where they are to go to two projects, and
    ConfigurationError for a metric to rank checkpoints by that these will not have.
    """
    hooks: list[Hook] = []
    sinks = default_sinks(config)
    own = next((hook for hook in given if isinstance(hook, MetricsHook)), None)
    if own is not None and any(isinstance(sink, Wandb) for sink in own.sinks):
        sinks = tuple(sink for sink in sinks if not isinstance(sink, Wandb))  # a run has one W&B run
    if config.evaluation.every:
        settings = config.evaluation
        hooks.append(
            EvaluationHook(
                evaluation_plans(config),
                settings.every,
                video_every=settings.video_every,
                trained_on=config.environment,
            )
        )
    if config.run_dir is not None and config.checkpoints.enabled:
        folder = CheckpointFolder(
            config.run_dir / "checkpoints",
            retention=retention_of(config.checkpoints),
            protect=[] if resumed is None else [resumed],
        )
        parent = None if resumed is None else resumed.name
        best_metric, scores = config.checkpoints.best_metric, _scores_to_come(config)
        if best_metric is not None:
            check_best_metric(best_metric, scores)
        hooks.append(
            CheckpointHook(
                folder,
                config.checkpoints.every,
                parent,
                best_metric=best_metric,
                expected=scores,
                others_may_score=any(not isinstance(hook, (MetricsHook, ProgressHook)) for hook in given),
            )
        )
        if config.checkpoints.upload is not None:
            address = f"{config.checkpoints.upload.rstrip('/')}/{quote(config.run_dir.absolute().name)}"
            hooks.append(UploadHook(folder.path, address))
        if config.checkpoints.wandb_project is not None:
            project = config.checkpoints.wandb_project
            all_sinks = (*sinks, *(() if own is None else own.sinks))
            wandb = next((sink for sink in all_sinks if isinstance(sink, Wandb)), None)
            if wandb is not None:
                wandb.use_project(project)
            hooks.append(WandbCheckpointHook(folder.path, wandb or project, _settings(config)))
    if config.run_dir is not None and config.metrics.trace:
        hooks.append(TraceHook(config.run_dir / "trace.json", config.metrics.trace_megabytes * 1_000_000))
    if config.run_dir is not None and config.metrics.heartbeat:
        hooks.append(Heartbeat(config.run_dir / "heartbeat.json", config.metrics.heartbeat))
    if own is None and (sinks or (config.run_dir is not None and config.metrics.jsonl)):
        metrics = config.metrics
        own = MetricsHook(jsonl=metrics.jsonl, weight_norm_every=metrics.weight_norm_every)
        hooks.append(own)
    if own is not None:
        own.configured = sinks
        own.settings = own.settings or _settings(config)
    if config.metrics.warnings and (own is not None or any(isinstance(hook, ProgressHook) for hook in given)):
        watch = LearningWatch(config)
        hooks.append(watch)
        if config.cluster is None:
            hooks.append(IdleCores(config))
        for hook in hooks:
            if isinstance(hook, CheckpointHook):
                hook.after = (watch.name,)  # so that what it has seen of an epoch is in that epoch's checkpoint
    return hooks


def _scores_to_come(config: TrainerConfig) -> frozenset[str]:
    """The metrics that evaluations will give."""
    if not config.evaluation.every:
        return frozenset()
    keys = {plan.key: 0.0 for plan in evaluation_plans(config)}
    return frozenset(score_metrics(EvalRewardSummary.from_simulations(keys)))


def default_sinks(config: TrainerConfig) -> tuple[Sink, ...]:
    """The sinks in addition to metrics.jsonl.

    Raises MissingExtra, and OwnCodeError for a function that can't be had, fails, or returns no sink.
    """
    settings = config.metrics
    sinks: list[Sink] = []
    if settings.tensorboard:
        sinks.append(TensorBoard())
    if settings.wandb != "off":
        sinks.append(Wandb(project=settings.wandb_project, mode=settings.wandb))
    if settings.trackio:
        sinks.append(Trackio(project=settings.trackio_project))
    if settings.prometheus:
        sinks.append(Prometheus(host=settings.prometheus_host, port=settings.prometheus_port))
    for name in settings.sinks:
        sink = call_function(code_named(name, "sinks"))
        try:
            check_sink(sink)
        except TypeError as error:
            raise OwnCodeError(f"{name} returned {shown(sink)}: {error}; correct the function") from None
        sinks.append(cast("Sink", sink))
    return tuple(sinks)


def named_hooks(config: TrainerConfig) -> list[Hook]:
    """The hooks that `config.hooks` names.

    Raises OwnCodeError for a function that can't be had, fails, or returns no hook.
    """
    hooks: list[Hook] = []
    for name in config.hooks:
        hook = call_function(code_named(name, "hooks"))
        if not isinstance(hook, Hook):
            raise OwnCodeError(f"{name} returned {shown(hook)}, expected a Hook: correct the function")
        hooks.append(hook)
    return hooks


def _settings(config: TrainerConfig) -> Mapping[str, object]:
    """By dotted path, as plain data."""
    plain = (bool, int, float, str, type(None))
    return {path: value if isinstance(value, plain) else shown(value, str) for path, _, value in leaves(config)}
