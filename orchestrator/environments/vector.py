"""Several copies of one environment stepped together, whichever way the copies are run and reset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from orchestrator.environments.spaces import (
    Array,
    Observation,
    Space,
    agent_action_space,
    agent_observation_space,
)
from state.error import OrchestratorError


class EnvironmentFailed(OrchestratorError, RuntimeError):
    """An environment raised, or gave something that is no transition; the message names it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of every copy; arrays have the leading dimension `[n]` and are overwritten by the next step."""

    observation: Observation
    """What to act on next: where an episode ended, the first of the next one (`same_step`) or its last."""
    reward: Array
    """float32."""
    terminated: Array
    truncated: Array
    valid: Array
    """False where this call only reset the copy: not a transition."""
    final_observation: Observation | None
    """Only where resets happen in the same step, and an episode ended: its last observation, in its row."""
    infos: Sequence[Mapping[str, object]]
    """The last step's info of each episode that ended, in the order of the copies."""


class VectorEnvironment(ABC):
    """`count` copies of the environment `name`. Observations and actions are those of the agent's spaces.

    Raises InvalidEnvironment for spaces that are not supported.
    """

    native: ClassVar[bool]
    """Whether the environment steps all copies itself."""
    same_step: bool
    """Whether a copy is reset in the step that ends its episode; else in the next one, which is then not valid."""

    def __init__(self, name: str, count: int, observation_space: Space, action_space: Space) -> None:
        self.name = name
        self.count = count
        self.observation_space = agent_observation_space(observation_space, name)
        self.action_space = agent_action_space(action_space, name)

    @abstractmethod
    def reset(self, seed: int | None = None) -> Observation:
        """Begin an episode in every copy; the same `seed` gives the same episodes under the same actions."""

    @abstractmethod
    def step(self, actions: Array) -> Step:
        """Take the agent's `actions` `[n, ...]`, Box actions clipped to their bounds.

        Raises EnvironmentFailed from whatever the environment raised.
        """

    @abstractmethod
    def info(self, name: str, shape: tuple[int, ...]) -> Array:
        """The value `[n, *shape]` of `name` ("a/b" is `info["a"]["b"]`) in the latest step's info; 0 if not valid.

        Raises EnvironmentFailed naming it when a copy did not give it.
        """

    @abstractmethod
    def get_state(self) -> dict[str, object]:
        """All that the copies' future depends on, as plain data.

        Raises NotCapturable where an environment holds more than that.
        """

    @abstractmethod
    def set_state(self, state: Mapping[str, object]) -> None:
        """Go on from what `get_state` gave, here or in another process.

        Raises CannotRestore where it is the state of other environments or of other code; nothing is changed then.
        """

    @abstractmethod
    def close(self) -> None:
        """Release what the copies hold; closing twice is allowed."""

    def info_array(self, name: str, value: Any, shape: tuple[int, ...], info: Mapping[str, object]) -> Array:
        """The `value` of `name` as an array; raises EnvironmentFailed if it is not numbers of the `shape`."""
        array = np.asarray(value)
        if array.shape != shape or array.dtype.kind not in "biuf":
            given = f"only {sorted(map(str, info))}" if value is None else f"{value!r}"
            raise EnvironmentFailed(
                f"environment {self.name!r}: a loss asks for the experience field {name!r} of shape {list(shape)},"
                f" which the environment must give as numbers in the info of every step; it gave {given}"
            )
        return array


def copy_seeds(seed: int, count: int) -> list[int]:
    """Independent seeds for `count` copies, below 2**31, which every environment takes."""
    state = np.random.SeedSequence(seed).generate_state(count, np.uint32)
    return [int(word) >> 1 for word in state]
