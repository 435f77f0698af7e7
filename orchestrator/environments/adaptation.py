"""What the settings put between an environment and its agent, in training and evaluation alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from orchestrator.config.settings import TrainerConfig


@dataclass(frozen=True, slots=True, kw_only=True)
class Adaptation:
    """How copies of an environment are adapted to the agent."""

    wrappers: tuple[str, ...] = ()
    """Functions `package.module:function`, each of which wraps what the one before has returned."""
    max_episode_steps: int | None = None
    """Steps after which an episode is truncated, within the wrappers (None: as the environment has it)."""
    squash: bool = False
    """Whether an agent's numbers are squashed into the bounds of a Box, instead of clipped."""
    action_mask: str | None = None
    """Where the environment says which actions are possible: see `ActionMask`."""
    types: tuple[str, ...] = ()
    """Types of agents with a policy of their own, whose spaces may be others: see `JointSpaces`."""
    threads: int = 1
    """Threads that a vector environment may step its copies with, if it asks."""

    @classmethod
    def of(cls, config: TrainerConfig) -> Adaptation:
        """What a run's settings say."""
        return cls(
            wrappers=config.environment_wrappers,
            max_episode_steps=config.max_episode_steps,
            squash=config.policy.box_actions == "squash",
            action_mask=config.action_mask,
            types=tuple(one.type for one in config.policy.by_type),
        )


NO_ADAPTATION = Adaptation()
