"""Whether checkpoints will have the metric that is to rank them, as far as that can be known before a run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from orchestrator.config.error import ConfigurationError, Problem, nearest
from orchestrator.config.paths import PATH
from orchestrator.hooks.included.metrics_record import EXPERIENCE, POLICY
from state.misspelt import is_slip

if TYPE_CHECKING:
    from collections.abc import Iterable

_FAMILIES = ("rollout", "loss", "eval", "time", "hook")
"""Where environments, losses, evaluations and hooks give names: what there is shows only as the run goes on."""
_ALWAYS = (
    *("epoch", "agent_step", "policy_version", "sps", "overview/reward", "overview/sps", "overview/score"),
    *("rollout/episode_return", "rollout/episode_length", "rollout/episodes"),
    *("rollout/recent_return", "rollout/recent_length"),
    *(f"experience/{name}" for name in (*EXPERIENCE, "staleness")),
    *(f"policy/{name}" for name in (*POLICY, "gradient_norm", "learning_rate", "update_epochs", "minibatches")),
)


def check_best_metric(name: str, scores: Iterable[str]) -> None:
    """Raises ConfigurationError for a `best_metric` that no checkpoint will have. `scores` are those that evaluation
    gives as it is configured."""
    known = dict.fromkeys([*_ALWAYS, *scores])
    family, _, last = name.rpartition("/")
    if name in known or (
        name.partition("/")[0] in _FAMILIES
        and last
        and not any(one.startswith(f"{family}/") and is_slip(last, one.rpartition("/")[2]) for one in known)
    ):
        return
    expected = "a metric that checkpoints have"
    cure = nearest(name, known)
    raise ConfigurationError(
        [Problem(field=str(PATH.checkpoints.best_metric), value=name, expected=expected, cure=cure)]
    )
