"""Checks a configuration before anything starts, and reports everything that is wrong with it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.checks.checkpoints import CHECKED_TOGETHER, checkpoint_problems
from orchestrator.checks.evaluation import evaluation_problems
from orchestrator.checks.imports import (
    device_problems,
    environment_problems,
    own_code_problems,
    own_loss_classes,
    sink_problems,
)
from orchestrator.config.error import ConfigurationError, Problem
from orchestrator.config.rules import name_problems, value_problems
from orchestrator.config.run_folder import folder_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from losses.loss import Loss
    from orchestrator.config.settings import TrainerConfig

__all__ = ["ConfigurationError", "Problem", "check_config", "check_losses", "check_minibatches"]

_TRACE_LOSSES = "vtrace_"


def check_config(config: TrainerConfig, *, losses: Sequence[Loss] | None = None, resuming: bool = False) -> None:
    """Raises `ConfigurationError` with everything that keeps the configuration from working.

    Looks at every value, at how they fit together, at the environment, the device, and the run's folder (which
    must hold no run; with `resuming`, it must hold one of the same settings). `losses` are the ones in use, if
    they exist already; otherwise the names in the configuration say which. Imports the modules of code that is
    not ours, and torch only for a device other than `auto` and `cpu`, and for tasks of the evaluation.
    """
    problems = list(value_problems(config))
    wrong = {problem.field for problem in problems}

    def sound(*paths: str) -> bool:
        """Whether values are right in themselves, so that a check can build on them."""
        return not any(path in wrong or path.partition(".")[0] in wrong for path in paths)

    named = sound("policy.network", "losses.names", "metrics.sinks")
    if named and sound("device"):
        problems.extend(name_problems(config))
    if named:
        problems.extend(own_code_problems(config))
    if sound("metrics.tensorboard", "metrics.wandb", "metrics.prometheus", "metrics.heartbeat", "run_dir"):
        problems.extend(sink_problems(config))
    if sound("environment"):
        problems.extend(environment_problems(config.environment))
    if sound("collection.environments", "collection.collectors"):
        problems.extend(_share_of_collectors(config))
    if sound("collection.environments", "collection.horizon"):
        if sound("total_agent_steps"):
            problems.extend(_one_epoch(config))
        if named and sound("learning.minibatches", "learning.shuffle", "learning.prioritization"):
            problems.extend(_minibatches(config, _segment_reasons(config, losses)))
    if sound("learning.minibatches", "learning.accumulate_minibatches"):
        problems.extend(_accumulation(config))
    if sound("losses.names", "losses.rho_clip", "losses.c_clip"):
        problems.extend(_trace_clipping(config))
    if named and sound("staleness"):
        known_losses = own_loss_classes(config) if losses is None else losses
        problems.extend(_staleness_of_losses(known_losses, config.staleness))
    if sound("run_dir", "learning.profile_epochs", "metrics.trace"):
        problems.extend(_files_without_folder(config))
    if sound("device"):
        problems.extend(device_problems(config))
    if sound(*(f"checkpoints.{name}" for name in CHECKED_TOGETHER)):
        problems.extend(checkpoint_problems(config))
    if not any(path.startswith(("environment", "evaluation")) for path in wrong):
        problems.extend(evaluation_problems(config))
    if sound("run_dir", "collection.environment_options"):
        found = folder_problems(config, resuming=resuming)
        problems.extend(problem for problem in found if problem.field.partition("[")[0] not in wrong)
    _raise(problems)


def check_losses(losses: Sequence[Loss], staleness: int) -> None:
    """Raises `ConfigurationError` if a loss follows the policy gradient and cannot correct for stale experience."""
    _raise(list(_staleness_of_losses(losses, staleness)))


def check_minibatches(config: TrainerConfig, segment_reasons: Sequence[str]) -> None:
    """Raises `ConfigurationError` if the experience cannot be divided into the minibatches.

    For what is known only once the policy and the losses exist: `segment_reasons` names what needs whole segments
    (`a recurrent policy`); nothing does if it is empty.
    """
    _raise(list(_minibatches(config, segment_reasons)))


def _raise(problems: Sequence[Problem]) -> None:
    if problems:
        raise ConfigurationError(problems)


def _share_of_collectors(config: TrainerConfig) -> Iterator[Problem]:
    environments, collectors = config.collection.environments, config.collection.collectors
    if environments % collectors:
        yield Problem(
            field="collection.environments",
            value=environments,
            expected=f"a multiple of collection.collectors: {environments} / {collectors} = "
            f"{environments / collectors:.2f} environments for each collector",
            cure=f"set it to {_multiples(environments, collectors)}, "
            f"or collection.collectors to {_divisors(environments, collectors)}",
        )


def _one_epoch(config: TrainerConfig) -> Iterator[Problem]:
    environments, horizon = config.collection.environments, config.collection.horizon
    if config.total_agent_steps < config.steps_per_epoch:
        yield Problem(
            field="total_agent_steps",
            value=config.total_agent_steps,
            expected=f"at least one epoch: {environments} environments x {horizon} steps = "
            f"{config.steps_per_epoch} agent steps",
            cure=f"set it to {config.steps_per_epoch} or more, or lower collection.environments or collection.horizon",
        )


def _minibatches(config: TrainerConfig, segment_reasons: Sequence[str]) -> Iterator[Problem]:
    count, shuffle = config.learning.minibatches, config.learning.shuffle
    if shuffle == "steps" and segment_reasons:
        yield Problem(
            field="learning.shuffle",
            value=shuffle,
            expected=f"segments, because of {' and '.join(segment_reasons)}",
            cure="set it to auto or segments",
        )
    environments, horizon = config.collection.environments, config.collection.horizon
    if shuffle == "segments" or segment_reasons:
        whole, parts = environments, f"the {environments} segments of an epoch (one for each environment)"
        steps_too = f", or collection.environments to {_multiples(environments, count)}"
    else:
        whole = config.steps_per_epoch
        parts, steps_too = f"the {environments} x {horizon} = {whole} agent steps of an epoch", ""
    if whole % count:
        yield Problem(
            field="learning.minibatches",
            value=count,
            expected=f"a divisor of {parts}: {whole} / {count} = {whole / count:.2f}",
            cure=f"set it to {_divisors(whole, count)}{steps_too}",
        )


def _segment_reasons(config: TrainerConfig, losses: Sequence[Loss] | None) -> list[str]:
    reasons: list[str] = []
    if config.policy.network == "lstm":
        reasons.append("the recurrent policy.network = lstm")
    if config.learning.prioritization > 0:
        reasons.append("learning.prioritization above 0")
    if losses is None:
        reasons.extend(f"the loss {name}" for name in config.losses.names if name.startswith(_TRACE_LOSSES))
    known_losses = own_loss_classes(config) if losses is None else losses
    return reasons + [f"the loss {_name_of(loss)}" for loss in known_losses if loss.needs_segments]


def _name_of(loss: Loss | type[Loss]) -> str:
    return loss.__name__ if isinstance(loss, type) else loss.name


def _accumulation(config: TrainerConfig) -> Iterator[Problem]:
    minibatches, accumulated = config.learning.minibatches, config.learning.accumulate_minibatches
    if minibatches % accumulated:
        yield Problem(
            field="learning.accumulate_minibatches",
            value=accumulated,
            expected=f"a divisor of learning.minibatches: {minibatches} / {accumulated} = "
            f"{minibatches / accumulated:.2f} optimizer steps in each update epoch",
            cure=f"set it to {_divisors(minibatches, accumulated)}, "
            f"or learning.minibatches to {_multiples(minibatches, accumulated)}",
        )


def _trace_clipping(config: TrainerConfig) -> Iterator[Problem]:
    rho_clip, c_clip = config.losses.rho_clip, config.losses.c_clip
    if c_clip > rho_clip and any(name.startswith(_TRACE_LOSSES) for name in config.losses.names):
        expected = f"at most losses.rho_clip = {rho_clip}, as V-trace assumes"
        cure = f"set it to {rho_clip}, or losses.rho_clip to {c_clip}"
        yield Problem(field="losses.c_clip", value=c_clip, expected=expected, cure=cure)


def _staleness_of_losses(losses: Iterable[Loss | type[Loss]], staleness: int) -> Iterator[Problem]:
    uncorrected = [_name_of(loss) for loss in losses if loss.policy_gradient and not loss.corrects_staleness]
    if staleness > 0 and uncorrected:
        yield Problem(
            field="staleness",
            value=staleness,
            expected=f"0, because the policy gradient of {', '.join(uncorrected)} does not correct for experience "
            "of an older policy",
            cure="set it to 0, or use losses that correct for it (ppo_actor, vtrace_actor; a loss of your own says "
            "so by corrects_staleness = True)",
        )


def _files_without_folder(config: TrainerConfig) -> Iterator[Problem]:
    if config.run_dir is not None:
        return
    for path, value in (
        ("learning.profile_epochs", config.learning.profile_epochs),
        ("metrics.trace", config.metrics.trace),
    ):
        if value:
            yield Problem(
                field=path,
                value=value,
                expected="a run with a folder, since it writes a file",
                cure="give the run a run_dir",
            )


def _multiples(value: int, divisor: int) -> str:
    below = value // divisor * divisor
    return " or ".join(str(multiple) for multiple in (below, below + divisor) if multiple)


def _divisors(value: int, wanted: int) -> str:
    """The divisors of `value` next to a wanted one, below and above."""
    below = max(divisor for divisor in range(1, min(wanted, value) + 1) if value % divisor == 0)
    above = next((divisor for divisor in range(wanted + 1, value + 1) if value % divisor == 0), None)
    return str(below) if above is None else f"{below} or {above}"
