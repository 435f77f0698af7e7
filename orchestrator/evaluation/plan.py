"""What an evaluation is made of: environments with names and categories, episodes, seeds; for hooks and for the
command line alike."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from orchestrator.environments import Adaptation, InvalidEnvironment, VectorEnvironment, make_vector
from orchestrator.environments.adaptation import NO_ADAPTATION
from orchestrator.environments.compatibility import space_differences
from orchestrator.evaluation.evaluator import EpisodeScores, evaluate
from orchestrator.policies import Spaces
from state.user_code import user_code

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Mapping

    from orchestrator.config.settings import TrainerConfig
    from orchestrator.policies import Policy

    class SupportsClose(Protocol):
        def close(self) -> object: ...


_log = logging.getLogger("orchestrator")


@contextmanager
def closed_in_any_case(name: str, environment: SupportsClose) -> Generator[None]:
    """Closes an environment afterwards; that it fails to close is reported, and loses no result."""
    try:
        yield
    finally:
        try:
            with user_code("close"):
                environment.close()
        except Exception as error:
            _log.error("environment %r failed to close", name, exc_info=error)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationPlan:
    """Episodes to play in an environment, at most `copies` side by side."""

    environment: str
    episodes: int
    copies: int
    seed: int
    deterministic: bool
    options: Mapping[str, object] = field(default_factory=dict[str, object])
    adaptation: Adaptation = NO_ADAPTATION
    """The training's, whatever the environment: a policy fits what it was trained with."""
    category: str = "training"
    name: str = ""
    """Empty: that of the environment."""

    @property
    def key(self) -> tuple[str, str]:
        """Category and name."""
        return self.category, self.name or self.environment

    def play_episodes(self, policy: Policy, tell: Callable[[str], object] = lambda text: None) -> EpisodeScores:
        """Play the episodes, with the environment's own rewards and the policy's normalization as it is; `tell` is told
        where they do not end.

        Blocks, and computes. Raises InvalidEnvironment where the policy was made for other spaces.
        """
        # New copies each time: what an environment keeps besides its seed would carry over into the scores.
        copies = min(self.copies, self.episodes)
        environment = make_vector(self.environment, copies, self.options, "sync", self.adaptation)
        with closed_in_any_case(self.environment, environment):
            check_spaces(policy.spaces, environment)
            return evaluate(policy, [environment], self.episodes, [self.seed], self.deterministic, tell=tell)[0]

    def on(self, environment: str | None) -> EvaluationPlan:
        """The same in another environment, to which the options do not apply; None: in this one."""
        if environment in (None, self.environment):
            return self
        return replace(self, environment=environment, options={})


def evaluation_plans(config: TrainerConfig) -> tuple[EvaluationPlan, ...]:
    """What a run's configuration asks for: its tasks, or the environment of the training."""
    settings = config.evaluation
    training = EvaluationPlan(
        environment=config.environment,
        episodes=settings.episodes,
        copies=settings.num_environments,
        seed=settings.seed,
        deterministic=settings.deterministic,
        options=config.collection.environment_options,
        adaptation=Adaptation.of(config),
    )
    if not settings.tasks:
        return (training,)
    plans: list[EvaluationPlan] = []
    for task in settings.tasks:
        own = {name: getattr(task, name) for name in ("options", "episodes", "seed", "deterministic")}
        changes: dict[str, Any] = {name: value for name, value in own.items() if value is not None}
        plan = training.on(task.environment)
        plans.append(replace(plan, name=task.name or plan.environment, category=task.category, **changes))
    return tuple(plans)


def spaces_of(environment: str, options: Mapping[str, object], adaptation: Adaptation = NO_ADAPTATION) -> Spaces:
    """What an agent sees and does in an environment. Makes one. Raises InvalidEnvironment."""
    vector = make_vector(environment, 1, options, "sync", adaptation)
    with closed_in_any_case(environment, vector):
        return Spaces.of(vector)


def check_spaces(needed: Spaces, environment: VectorEnvironment) -> None:
    """Raises InvalidEnvironment if a policy for the spaces `needed` cannot act in `environment`."""
    differences = differing_spaces(needed, Spaces.of(environment))
    if differences:
        raise InvalidEnvironment(
            f"environment {environment.name!r} does not fit the policy, which was made for other spaces: {differences}"
        )


def differing_spaces(needed: Spaces, found: Spaces) -> str:
    """What keeps a policy for the spaces `needed` from those `found`; empty where nothing does."""
    differences = [f"observations {text}" for text in space_differences(needed.observation, found.observation)]
    differences += [f"actions {text}" for text in space_differences(needed.action, found.action)]
    return "; ".join(differences)
