"""The scores of one evaluation: per simulation, per category of simulations, and on average."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

from state.frozen_mapping import FrozenMapping
from state.saved_values import SavedValues

_NO_CATEGORIES: FrozenMapping[str, float] = FrozenMapping()
_NO_SIMULATIONS: FrozenMapping[tuple[str, str], float] = FrozenMapping()


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalRewardSummary:
    """Mean episode returns of one evaluated policy; the mappings are copied and frozen.

    Raises `ValueError` for an empty name, and for names that would give two scores the same metric name.
    """

    category_scores: Mapping[str, float] = _NO_CATEGORIES
    """Score of each category."""
    simulation_scores: Mapping[tuple[str, str], float] = _NO_SIMULATIONS
    """Score of each simulation, by (category, simulation name)."""
    agent_scores: Mapping[tuple[str, str], float] = _NO_SIMULATIONS
    """Of simulations with many agents, by (category, "<simulation>/<type>"), the mean return of each type of agents,
    and as "<simulation>/team_return" that of all agents together."""
    policy_version: int | None = None
    """The version of the policy that was evaluated."""
    epoch: int | None = None
    """The epoch after which it was evaluated."""

    def __post_init__(self) -> None:
        categories = {name: float(score) for name, score in self.category_scores.items()}
        simulations = {names: float(score) for names, score in self.simulation_scores.items()}
        object.__setattr__(self, "category_scores", FrozenMapping(categories))
        object.__setattr__(self, "simulation_scores", FrozenMapping(simulations))
        agents = {names: float(score) for names, score in self.agent_scores.items()}
        object.__setattr__(self, "agent_scores", FrozenMapping(agents))
        _check_names(categories, [*simulations, *agents])

    @classmethod
    def from_simulations(
        cls,
        simulation_scores: Mapping[tuple[str, str], float],
        *,
        agent_scores: Mapping[tuple[str, str], float] = _NO_SIMULATIONS,
        policy_version: int | None = None,
        epoch: int | None = None,
    ) -> EvalRewardSummary:
        """The summary in which a category's score is the mean over its simulations."""
        by_category: dict[str, list[float]] = {}
        for (category, _), score in simulation_scores.items():
            by_category.setdefault(category, []).append(float(score))
        return cls(
            category_scores={name: sum(scores) / len(scores) for name, scores in by_category.items()},
            simulation_scores=simulation_scores,
            agent_scores=agent_scores,
            policy_version=policy_version,
            epoch=epoch,
        )

    @property
    def avg_category_score(self) -> float | None:
        """Mean over categories, each counting the same; None without any."""
        return _mean(self.category_scores.values())

    @property
    def avg_simulation_score(self) -> float | None:
        """Mean over simulations, each counting the same; None without any."""
        return _mean(self.simulation_scores.values())

    def metrics(self) -> dict[str, float]:
        """Flat names: `eval/<category>/<simulation>` (of agents `eval/<category>/<simulation>/<type>`),
        `eval/<category>`, and `eval/score` over the categories."""
        of_names = [*self.simulation_scores.items(), *self.agent_scores.items()]
        metrics = {_simulation_metric(*names): score for names, score in of_names}
        metrics |= {_category_metric(name): score for name, score in self.category_scores.items()}
        score = self.avg_category_score
        return metrics if score is None else metrics | {_SCORE_METRIC: score}

    def to_dict(self) -> dict[str, object]:
        """What `from_dict` reads, made of JSON's types."""
        return {
            "category_scores": dict(self.category_scores),
            "simulation_scores": _to_tables(self.simulation_scores),
            "agent_scores": _to_tables(self.agent_scores),
            "policy_version": self.policy_version,
            "epoch": self.epoch,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> EvalRewardSummary:
        """Read what `to_dict` wrote. Raises `ValueError` naming the entry that is missing or wrong."""
        saved = SavedValues(data, "evaluation scores")
        return cls(
            category_scores=saved.numbers("category_scores"),
            simulation_scores=_from_tables(saved.number_tables("simulation_scores")),
            # An earlier release has not written it.
            agent_scores=_from_tables(saved.number_tables("agent_scores")) if "agent_scores" in data else {},
            policy_version=saved.optional_integer("policy_version"),
            epoch=saved.optional_integer("epoch"),
        )


def _to_tables(scores: Mapping[tuple[str, str], float]) -> dict[str, dict[str, float]]:
    tables: dict[str, dict[str, float]] = {}
    for (category, name), score in scores.items():
        tables.setdefault(category, {})[name] = score
    return tables


def _from_tables(tables: Mapping[str, Mapping[str, float]]) -> dict[tuple[str, str], float]:
    return {(category, name): score for category, scores in tables.items() for name, score in scores.items()}


_SCORE_METRIC = "eval/score"


def _category_metric(category: str) -> str:
    return f"eval/{category}"


def _simulation_metric(category: str, simulation: str) -> str:
    return f"eval/{category}/{simulation}"


def _mean(scores: Iterable[float]) -> float | None:
    values = tuple(scores)
    return sum(values) / len(values) if values else None


def _check_names(categories: Iterable[str], simulations: Iterable[tuple[str, str]]) -> None:
    # Names may contain "/" (environment identifiers do), so that two of them can meet in one metric.
    owners = {_SCORE_METRIC: "the average over the categories"}
    named = [(_category_metric(name), f"category {name!r}", (name,)) for name in categories]
    named += [(_simulation_metric(*names), f"simulation {names!r}", names) for names in simulations]
    for metric, owner, names in cast("list[tuple[str, str, tuple[str, ...]]]", named):
        if not all(names):
            raise ValueError(f"{owner} has an empty name; every category and simulation needs one")
        if metric in owners:
            raise ValueError(f"{owner} and {owners[metric]} would both be {metric!r}; rename one of them")
        owners[metric] = owner
