"""What each setting may be on its own: the admissible range of every number and the form of every name."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from orchestrator.config.error import Problem, nearest
from orchestrator.config.fields import default_of, describe, fits, leaves, table_leaves
from orchestrator.config.settings import TrainerConfig

NETWORKS = ("auto", "mlp", "cnn", "lstm")
LOSSES = ("ppo_actor", "ppo_critic", "vtrace_actor", "vtrace_critic")
DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
FUNCTION = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*(\.[^\W\d]\w*)*")
"""`package.module:function`, the way to name code of one's own."""

_SEED_END = 2**31  # the narrowest of what environments take as a seed


@dataclass(frozen=True, slots=True)
class _Rule:
    holds: Callable[[Any], bool]
    expected: str


def _at_least(low: int, or_none: bool = False) -> _Rule:
    return _Rule(lambda value: (or_none and value is None) or value >= low, f"at least {low}")


def _above_zero(or_none: bool = False, infinite: bool = False) -> _Rule:
    def holds(value: float | None) -> bool:
        return or_none if value is None else 0 < value < math.inf or (infinite and value == math.inf)

    return _Rule(holds, f"a {'' if infinite else 'finite '}number above 0")


_COUNT = _at_least(1)
_PERIOD = _at_least(0)
_NOT_NEGATIVE = _Rule(lambda value: 0 <= value < math.inf, "a finite number, 0 or above")
_FRACTION = _Rule(lambda value: 0 <= value <= 1, "a number between 0 and 1")
_SEED = _Rule(lambda value: value is None or 0 <= value < _SEED_END, f"a whole number from 0 to {_SEED_END - 1}")
_NAME = _Rule(lambda value: value is None or bool(value.strip()), "a name")

RULES = {
    "environment": _Rule(lambda value: bool(value.strip()), "the name of an environment"),
    "total_agent_steps": _COUNT,
    "seed": _SEED,
    "init_from": _Rule(_NAME.holds, "a run's folder, a checkpoint, or the URI of one"),
    "staleness": _PERIOD,
    "collection.environments": _COUNT,
    "collection.collectors": _COUNT,
    "collection.horizon": _COUNT,
    "collection.held_epochs": _COUNT,
    "learning.update_epochs": _COUNT,
    "learning.minibatches": _COUNT,
    "learning.learning_rate": _above_zero(),
    "learning.adam_betas": _Rule(
        lambda value: all(0 <= beta < 1 for beta in value), "two numbers, each 0 or above and below 1"
    ),
    "learning.adam_eps": _above_zero(),
    "learning.weight_decay": _NOT_NEGATIVE,
    "learning.max_grad_norm": _above_zero(infinite=True),
    "learning.accumulate_minibatches": _COUNT,
    "learning.discount": _FRACTION,
    "learning.gae_lambda": _FRACTION,
    "learning.prioritization": _NOT_NEGATIVE,
    "learning.prioritization_correction": _FRACTION,
    "learning.threads": _at_least(1, or_none=True),
    "learning.profile_epochs": _Rule(lambda value: all(epoch >= 1 for epoch in value), "epochs of at least 1"),
    "losses.clip": _above_zero(),
    "losses.value_clip": _above_zero(or_none=True),
    "losses.value_coefficient": _NOT_NEGATIVE,
    "losses.entropy_coefficient": _NOT_NEGATIVE,
    "losses.target_kl": _above_zero(or_none=True),
    "losses.rho_clip": _above_zero(),
    "losses.c_clip": _above_zero(),
    "policy.hidden": _Rule(lambda value: all(width >= 1 for width in value), "widths of at least 1"),
    "policy.lstm_size": _COUNT,
    "checkpoints.every": _PERIOD,
    "checkpoints.keep": _PERIOD,
    "checkpoints.keep_best": _PERIOD,
    "checkpoints.keep_every": _PERIOD,
    "evaluation.every": _PERIOD,
    "evaluation.episodes": _COUNT,
    "evaluation.environments": _COUNT,
    "evaluation.seed": _SEED,
    "evaluation.video_every": _PERIOD,
    "metrics.trace_megabytes": _COUNT,
    "metrics.prometheus_port": _Rule(lambda value: 0 <= value < 65536, "0 (any free one) to 65535"),
    "metrics.weight_norm_every": _COUNT,
    "metrics.heartbeat": _NOT_NEGATIVE,
}
"""By the path of the field; a field that is not here may be whatever its annotation says."""

TABLE_RULES = {
    "evaluation.tasks[].name": _NAME,
    "evaluation.tasks[].category": _NAME,
    "evaluation.tasks[].environment": _Rule(_NAME.holds, "the name of an environment"),
    "evaluation.tasks[].episodes": _at_least(1, or_none=True),
    "evaluation.tasks[].seed": _SEED,
}
"""As `RULES`, for the fields of every table in a list of them."""


def value_problems(config: TrainerConfig) -> Iterator[Problem]:
    """Values of another type than the field is annotated with, or outside what it admits."""
    for path, hint, value in itertools.chain(leaves(config), table_leaves(config)):
        rule = RULES.get(path) or TABLE_RULES.get(re.sub(r"\[\d+\]", "[]", path))
        if not fits(hint, value):
            yield Problem(field=path, value=value, expected=describe(hint), cure=default_of(path))
        elif rule is not None and not rule.holds(value):
            yield Problem(field=path, value=value, expected=rule.expected, cure=default_of(path))


def name_problems(config: TrainerConfig) -> Iterator[Problem]:
    """Names of networks, losses, sinks and devices that do not exist, before anything is imported."""
    network, losses, device = config.policy.network, config.losses.names, config.device
    if network not in NETWORKS and not FUNCTION.fullmatch(network):
        yield _unknown("policy.network", network, NETWORKS)
    for name in losses:
        if name not in LOSSES and not FUNCTION.fullmatch(name):
            yield _unknown("losses.names", name, LOSSES)
    for name in config.metrics.sinks:
        if not FUNCTION.fullmatch(name):
            cure = "leave it out, or name a function without arguments that returns a sink"
            yield Problem(field="metrics.sinks", value=name, expected="package.module:function", cure=cure)
    if not losses or len(set(losses)) < len(losses):
        expected = "at least one loss, and each once"
        yield Problem(field="losses.names", value=list(losses), expected=expected, cure=default_of("losses.names"))
    if not DEVICE.fullmatch(device):
        cure = "set it to auto, which leaves the choice to the run"
        yield Problem(field="device", value=device, expected="auto, cpu, cuda, cuda:<index> or mps", cure=cure)


def _unknown(path: str, name: str, known: tuple[str, ...]) -> Problem:
    expected = f"one of {', '.join(known)}, or package.module:function"
    return Problem(field=path, value=name, expected=expected, cure=nearest(name, known))
