"""Checks a configuration before anything starts, and reports everything that is wrong with it at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.checks.cells import cluster_problems, share_problems
from orchestrator.checks.checkpoints import checkpoint_problems
from orchestrator.checks.evaluation import evaluation_problems
from orchestrator.checks.graphs import graph_problems
from orchestrator.checks.imports import (
    adaptation_problems,
    device_problems,
    environment_problems,
    option_problems,
    own_code_problems,
    own_loss_classes,
    precision_problems,
    sink_problems,
)
from orchestrator.checks.multiples import divisors, multiples
from orchestrator.config.annotations import FUNCTION
from orchestrator.config.error import ConfigurationError, Problem
from orchestrator.config.fields import problems_of
from orchestrator.config.paths import PATH, problem_with
from orchestrator.config.reads import Problems, reads
from orchestrator.config.run_folder import folder_problems
from orchestrator.config.settings import LOSSES, TrainerConfig

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from losses.callback import LearnerCallback
    from losses.loss import Loss

__all__ = [
    "ConfigurationError",
    "Problem",
    "check_config",
    "check_losses",
    "check_minibatches",
    "check_shards",
    "segment_reasons",
]

_TRACE_LOSSES = "vtrace_"
_OF_MINIBATCH = ("observe", "on_mb_end")


def check_config(
    config: TrainerConfig,
    *,
    losses: Sequence[Loss] | None = None,
    resuming: bool = False,
    known: Sequence[Problem] = (),
    file: Path | None = None,
) -> None:
    """Raises `ConfigurationError` with everything that keeps the configuration from working.

    Looks at every value, at how they fit together, at the environment, the device, and the run's folder (which
    must hold no run; with `resuming`, it must hold one of the same settings). `losses` are the ones in use, if
    they exist already; otherwise the names in the configuration say which. Imports the modules of code that is
    not ours, and torch only for a device other than `auto` and `cpu`, and for tasks of the evaluation. Problems `known`
    from reading it, from `file` where it was in one, come first.
    """
    problems = _settings_problems(config, known)
    for check in (
        own_code_problems,
        environment_problems,
        option_problems,
        adaptation_problems,
        device_problems,
        precision_problems,
        evaluation_problems,
    ):
        problems.check(check, config)
    problems.check(_own_minibatches, config, losses)
    problems.check(_own_staleness, config, losses)
    problems.check(folder_problems, config, resuming)
    _raise(problems, file)


def has_problems(config: TrainerConfig, *, losses: Sequence[Loss] | None = None) -> bool:
    """Whether `check_config` will raise, as far as that can be known without importing anything."""
    problems = _settings_problems(config, ())
    if not problems and (losses is not None or set(config.losses.names) <= set(LOSSES)):
        problems.check(_own_minibatches, config, losses)
        problems.check(_own_staleness, config, losses)
    return bool(problems)


def _settings_problems(config: TrainerConfig, known: Sequence[Problem]) -> Problems:
    """Of the values, and of how they fit together."""
    problems = Problems([*known, *problems_of(config, TrainerConfig)])
    for check in (
        sink_problems,
        _share_of_collectors,
        _share_of_environment_workers,
        _step_timeout,
        _one_epoch,
        share_problems,
        cluster_problems,
        graph_problems,
        _accumulation,
        _trace_clipping,
        _files_without_folder,
        checkpoint_problems,
    ):
        problems.check(check, config)
    return problems


def check_losses(losses: Sequence[Loss], staleness: float | str) -> None:
    """Raises `ConfigurationError` if a loss follows the policy gradient and cannot correct for stale experience."""
    _raise(list(_staleness_of_losses(losses, staleness)))


def check_shards(config: TrainerConfig, members: Sequence[LearnerCallback]) -> None:
    """Raises `ConfigurationError` if one of the losses and callbacks looks at minibatches as a whole, though each is
    computed in several shards."""
    if config.shards > 1:
        overriding = [
            f"{member.name} ({', '.join(of_minibatch)})"
            for member in members
            if (of_minibatch := [name for name in _OF_MINIBATCH if _overrides(member, name)])
        ]
        if overriding:
            _raise(
                [
                    problem_with(
                        config,
                        PATH.learning.shards,
                        expected=f"1, because of what looks at each minibatch as a whole: {', '.join(overriding)}",
                        cure=f"leave it out of the losses, or set {PATH.cells} and {PATH.learning.shards} to 1",
                    )
                ]
            )


def _overrides(member: LearnerCallback, name: str) -> bool:
    from losses.callback import LearnerCallback

    return getattr(type(member), name) is not getattr(LearnerCallback, name)


def check_minibatches(config: TrainerConfig, needs_segments: Sequence[str], agents: int | None = None) -> None:
    """Raises `ConfigurationError` if the experience cannot be divided into the minibatches.

    For what is known only once the policy, the losses and the environments exist: `needs_segments` names what needs
    whole segments (`a recurrent policy`), nothing does if it is empty; `agents` is how many a game has (None: not known
    yet, so that only an environment that surely has one is looked at).
    """
    _raise(list(_minibatches(config, needs_segments, agents)))


def _raise(problems: Sequence[Problem], file: Path | None = None) -> None:
    if problems:
        raise ConfigurationError(problems, file)


@reads(PATH.collection.num_environments, PATH.collection.collectors)
def _share_of_collectors(config: TrainerConfig) -> Iterator[Problem]:
    environments, collectors = config.collection.num_environments, config.collection.collectors
    if environments % collectors:
        yield problem_with(
            config,
            PATH.collection.num_environments,
            expected=f"a multiple of {PATH.collection.collectors}: {environments} / {collectors} = "
            f"{environments / collectors:.2f} environments for each collector",
            cure=f"set it to {multiples(environments, collectors)}, "
            f"or {PATH.collection.collectors} to {divisors(environments, collectors)}",
        )


@reads(
    PATH.collection.num_environments,
    PATH.collection.collectors,
    PATH.collection.environment_workers,
    PATH.collection.environment_groups,
)
def _share_of_environment_workers(config: TrainerConfig) -> Iterator[Problem]:
    collection = config.collection
    environments = collection.num_environments // collection.collectors
    workers, groups = max(1, collection.environment_workers), collection.environment_groups
    if workers * groups > environments:
        yield problem_with(
            config,
            PATH.collection.environment_workers if workers > groups else PATH.collection.environment_groups,
            expected=f"at least one environment for each worker and group, {workers} x {groups} of the {environments}"
            " that a collector has",
            cure=f"lower {PATH.collection.environment_workers} or {PATH.collection.environment_groups}, or raise"
            f" {PATH.collection.num_environments}",
        )


@reads(PATH.collection.step_timeout, PATH.collection.environment_workers)
def _step_timeout(config: TrainerConfig) -> Iterator[Problem]:
    if config.collection.step_timeout and not config.collection.environment_workers:
        yield problem_with(
            config,
            PATH.collection.step_timeout,
            expected=f"0 while {PATH.collection.environment_workers} is 0: collectors can't end steps of their own",
            cure=f"set {PATH.collection.environment_workers} to 1 or more",
        )


@reads(PATH.total_agent_steps, PATH.collection.num_environments, PATH.collection.horizon)
def _one_epoch(config: TrainerConfig) -> Iterator[Problem]:
    environments, horizon = config.collection.num_environments, config.collection.horizon
    steps = environments * horizon
    if config.total_agent_steps < steps:
        yield problem_with(
            config,
            PATH.total_agent_steps,
            expected=f"at least one epoch: {environments} environments x {horizon} steps = {steps} agent steps",
            cure=f"set it to {steps} or more, or lower {PATH.collection.num_environments} or {PATH.collection.horizon}",
        )


@reads(
    PATH.environment,
    PATH.collection.num_environments,
    PATH.collection.horizon,
    PATH.cells,
    PATH.learning.shards,
    PATH.learning.minibatches,
    PATH.learning.shuffle,
    PATH.learning.priority_exponent,
    PATH.policy.network,
    PATH.policy.by_type,
    PATH.losses.names,
)
def _own_minibatches(config: TrainerConfig, losses: Sequence[Loss] | None) -> Iterator[Problem]:
    return _minibatches(config, segment_reasons(config, losses), None)


def _minibatches(config: TrainerConfig, needs_segments: Sequence[str], agents: int | None) -> Iterator[Problem]:
    count, shuffle = config.learning.minibatches, config.learning.shuffle
    if shuffle == "steps" and needs_segments:
        expected = f"segments, because of {' and '.join(needs_segments)}"
        yield problem_with(config, PATH.learning.shuffle, expected=expected, cure="set it to auto or segments")
    if agents is None and FUNCTION.fullmatch(config.environment):
        return  # which may make games of many agents
    shards = config.learning.shards or config.cells
    environments, horizon = config.collection.num_environments // shards, config.collection.horizon
    epoch = "an epoch" if shards == 1 else f"each of {shards} shards of an epoch"
    many = agents is not None and agents > 1
    rows, of_each = (f"{environments} x {agents}", "agent") if many else (f"{environments}", "environment")
    whole, steps_too = environments * (agents or 1), ""
    if shuffle == "segments" or needs_segments:
        parts = f"the {rows} segments of {epoch} (one for each {of_each})"
        if not many:
            all_environments = multiples(environments * shards, count * shards)
            steps_too = f", or {PATH.collection.num_environments} to {all_environments}"
    else:
        whole *= horizon
        parts = f"the {rows} x {horizon} = {whole} agent steps of {epoch}"
    if whole % count:
        expected = f"a divisor of {parts}: {whole} / {count} = {whole / count:.2f}"
        cure = f"set it to {divisors(whole, count)}{steps_too}"
        yield problem_with(config, PATH.learning.minibatches, expected=expected, cure=cure)


def segment_reasons(config: TrainerConfig, losses: Sequence[Loss] | None) -> list[str]:
    """What needs whole segments, among the settings and the `losses` (None: those that the settings name)."""
    reasons: list[str] = []
    if config.policy.network == "lstm":
        reasons.append(f"the recurrent {PATH.policy.network} = lstm")
    elif any(one.network == "lstm" for one in config.policy.by_type):
        reasons.append(f"the recurrent network = lstm in {PATH.policy.by_type}")
    if config.learning.priority_exponent > 0:
        reasons.append(f"{PATH.learning.priority_exponent} above 0")
    if losses is None:
        reasons.extend(f"the loss {name}" for name in config.losses.names if name.startswith(_TRACE_LOSSES))
    known_losses = own_loss_classes(config) if losses is None else losses
    return reasons + [f"the loss {_name_of(loss)}" for loss in known_losses if loss.needs_segments]


def _name_of(loss: Loss | type[Loss]) -> str:
    return loss.__name__ if isinstance(loss, type) else loss.name


@reads(PATH.learning.minibatches, PATH.learning.accumulate_minibatches)
def _accumulation(config: TrainerConfig) -> Iterator[Problem]:
    minibatches, accumulated = config.learning.minibatches, config.learning.accumulate_minibatches
    if minibatches % accumulated:
        yield problem_with(
            config,
            PATH.learning.accumulate_minibatches,
            expected=f"a divisor of {PATH.learning.minibatches}: {minibatches} / {accumulated} = "
            f"{minibatches / accumulated:.2f} optimizer steps in each update epoch",
            cure=f"set it to {divisors(minibatches, accumulated)}, "
            f"or {PATH.learning.minibatches} to {multiples(minibatches, accumulated)}",
        )


@reads(PATH.losses.names, PATH.losses.rho_clip, PATH.losses.c_clip)
def _trace_clipping(config: TrainerConfig) -> Iterator[Problem]:
    rho_clip, c_clip = config.losses.rho_clip, config.losses.c_clip
    if c_clip > rho_clip and any(name.startswith(_TRACE_LOSSES) for name in config.losses.names):
        expected = f"at most {PATH.losses.rho_clip} = {rho_clip}, as V-trace assumes"
        cure = f"set it to {rho_clip}, or {PATH.losses.rho_clip} to {c_clip}"
        yield problem_with(config, PATH.losses.c_clip, expected=expected, cure=cure)


@reads(PATH.staleness, PATH.losses.names)
def _own_staleness(config: TrainerConfig, losses: Sequence[Loss] | None) -> Iterator[Problem]:
    return _staleness_of_losses(own_loss_classes(config) if losses is None else losses, config.staleness)


def _staleness_of_losses(losses: Iterable[Loss | type[Loss]], staleness: float | str) -> Iterator[Problem]:
    uncorrected = [_name_of(loss) for loss in losses if loss.policy_gradient and not loss.corrects_staleness]
    if staleness != 0 and uncorrected:
        yield Problem(
            field=str(PATH.staleness),
            value=staleness,
            expected=f"0, because the policy gradient of {', '.join(uncorrected)} does not correct for experience "
            "of an older policy",
            cure="set it to 0, or use losses that correct for it (ppo_actor, vtrace_actor; a loss of your own says "
            "so by corrects_staleness = True)",
        )


@reads(PATH.run_dir, PATH.learning.profile_epochs, PATH.metrics.trace)
def _files_without_folder(config: TrainerConfig) -> Iterator[Problem]:
    if config.run_dir is None:
        expected, cure = "a run with a folder, since it writes a file", f"give the run a {PATH.run_dir}"
        if config.learning.profile_epochs:
            yield problem_with(config, PATH.learning.profile_epochs, expected=expected, cure=cure)
        if config.metrics.trace:
            yield problem_with(config, PATH.metrics.trace, expected=expected, cure=cure)
