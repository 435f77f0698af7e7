"""Several copies of one environment stepped together, whichever way the copies are run and reset."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from orchestrator.environments.action_mask import (
    FROM_INFO,
    USUAL_MASK,
    ActionMask,
    choices_of,
    mask_size,
    observes_mask,
)
from orchestrator.environments.adaptation import NO_ADAPTATION, Adaptation
from orchestrator.environments.agents import SINGLE_AGENT
from orchestrator.environments.joint_spaces import of_own_part
from orchestrator.environments.masks_by_type import MasksByType
from orchestrator.environments.recorded_spaces import recorded_spaces
from orchestrator.environments.returned import WrongReturn, exact, narrow
from orchestrator.environments.spaces import (
    Array,
    ObservationArrays,
    Space,
    agent_action_space,
    agent_observation_space,
    arrays_of,
    observation_of,
    of_key,
    without_parts,
)
from orchestrator.environments.values import ValueCheck, not_finite
from state.error import OrchestratorError
from state.frozen_mapping import FrozenMapping

if TYPE_CHECKING:
    from state.experience import FieldSpec


LOGS = "_orchestrator/logs"
"""In infos: dicts of what is to be statistics, though of no one copy, and though no episode ends in the step. (Infos of
gymnasium's vectors have a mask "_x" for each "x".)"""


class EnvironmentFailed(OrchestratorError, RuntimeError):
    """An environment raised, or gave something that is no transition; the message names it."""


@dataclass(frozen=True, slots=True)
class Step:
    """One step of every row; arrays have the leading dimension `[n]` and are overwritten by the next step."""

    observation: ObservationArrays
    """What to act on next: where an episode ended, the first of the next one, or its last where the row is `idle`."""
    reward: Array
    """float32."""
    terminated: Array
    truncated: Array
    valid: Array
    """False where the row was `idle` before: not a transition."""
    final_observation: ObservationArrays | None
    """The last observations of the episodes that ended, in their rows; None where none did, and where they are the
    `observation`."""
    stats: Mapping[str, list[float]]
    """The numbers in the last infos of the episodes that ended, in the order of the copies, and in `LOGS`."""
    fields: Mapping[str, Array]
    """What `record` asked for, `[n, *shape]` each; 0 where not valid."""
    games_ended: Array | None = None
    """`[games]`: which games ended, where they have many agents (None: with one agent, when its episode does)."""

    def episode_starts(self, idle: Array, out: Array) -> None:
        """Write `[n]` where the observation is an episode's first, the rows being `idle` from now on."""
        np.logical_or(self.terminated, self.truncated, out=out)
        out |= ~self.valid
        out &= ~idle


@dataclass(frozen=True, slots=True)
class EnvironmentGroup:
    """Copies that are stepped together, while the policy acts for those of another group."""

    games: slice
    rows: slice


class VectorEnvironment(ABC):
    """`games` copies of the environment `name`, each with the same `agents`. Observations and actions are those of the
    agent's spaces, which all agents share.

    Each agent of each game is a row: those of the first game come first. A row's episode is the life of its agent,
    which may begin after the game does, and end before it.

    The copies are divided into `groups`, most often one of all. `send` gives a group its actions, and `recv` waits for
    the step that they led to, of the group's rows; each of these in turn, group by group as one likes.

    Raises InvalidEnvironment for spaces that are not supported.
    """

    native: ClassVar[bool]
    """Whether the environment steps all copies itself."""
    agents: tuple[str, ...]
    """The names of the agents of one game; `SINGLE_AGENT` where there is only one, which has no name."""
    count: int
    """Rows."""
    idle: Array
    """bool `[n]`, overwritten by the next step, which takes no action here: it only resets the copy, or the agent is
    out (or not yet there). What is observed there must be finite, and counts for nothing."""

    def __init__(
        self,
        name: str,
        games: int,
        observation_space: Space,
        action_space: Space,
        adaptation: Adaptation = NO_ADAPTATION,
        agents: tuple[str, ...] = SINGLE_AGENT,
        spaces_of_policies: Mapping[str, tuple[Space, Space]] = FrozenMapping({}),
    ) -> None:
        self.name = name
        self.games = games
        self.agents = agents
        self.count = games * len(agents)
        self.idle = np.zeros(self.count, np.bool_)
        self.first_copy = 0
        """Of the run's copies, as messages number them."""
        self.copies_of_run = games
        self.seeded_from = 0
        """The place of the first copy among those that are reset with the same seed, in other processes maybe."""
        self.groups = (EnvironmentGroup(slice(0, games), slice(0, self.count)),)
        self._received: Step | None = None
        self.own_spaces = observation_space, action_space
        """The environment's, of observations and actions."""
        self.own_spaces_of_policies = spaces_of_policies
        """Those of the agents of each policy, where types of agents have their own: the ones above are joint ones."""
        of_part = of_own_part if spaces_of_policies else of_key
        self.observation_space = agent_observation_space(observation_space, name, of_part)
        self.action_space = agent_action_space(action_space, name)
        self._mask: ActionMask | MasksByType | None = None
        self._mask_looked_at = False
        """Whether what an info has as the usual mask has been, where no mask is asked for."""
        where, observed, taken = adaptation.action_mask, self.observation_space, self.action_space
        if where is not None:
            if spaces_of_policies:
                self._mask = MasksByType(where, name, spaces_of_policies, taken, agents * games)
            else:
                self._mask = ActionMask(where, name, observed, taken, self.count)
            self.observation_space = without_parts(observed, self._mask.keys)
        self._values = ValueCheck(observation_space, self.warn, of_part)
        self._fields: dict[str, Array] = {}
        self._given_fields: dict[str, Array] = {}
        """Where the fields are written: with more digits than they have, in which they may be given."""
        self._steps = 0
        self._warned: set[str] = set()
        self._warnings: dict[str, str] = {}
        observing = [
            of
            for of, (seen, own) in (spaces_of_policies or {"": self.own_spaces}).items()
            if observes_mask(agent_observation_space(seen, name), agent_action_space(own, name))
        ]
        if where is None and observing:
            self.warn(
                "action mask",
                f"observes {USUAL_MASK!r}, which forbids no action: set action_mask to {USUAL_MASK!r}, unless the"
                " network forbids them by itself",
            )
        unmasked = [of for of in observing if isinstance(self._mask, MasksByType) and of not in self._mask.masked]
        if unmasked:
            self.warn(
                "action mask",
                f"has agents with the policies {unmasked} that observe {USUAL_MASK!r}, which forbids them no action,"
                f" since action_mask is {where!r}: give the masks of all types one key, unless the network forbids them"
                " by itself",
            )

    @property
    def action_mask(self) -> Array | None:
        """`[n, choices]`: False for what is not possible as the next action, overwritten by the next step; None where
        the environment is not asked for it."""
        return None if self._mask is None else self._mask.allowed

    @abstractmethod
    def reset(self, seed: int | None = None) -> ObservationArrays:
        """Begin an episode in every copy; the same `seed` gives the same episodes under the same actions."""

    @abstractmethod
    def step(self, actions: Array) -> Step:
        """Take the agent's `actions` `[n, ...]`, Box actions clipped to their bounds.

        Raises EnvironmentFailed from whatever the environment raised, and for actions that the mask forbids.
        """

    def send(self, actions: Array, group: int = 0) -> None:
        """Begin to take the actions of the rows of a group. Raises as `step`."""
        self._received = self.step(actions)

    def recv(self, group: int = 0) -> Step:
        """What came of the actions that were sent to the group. Raises as `step`."""
        assert self._received is not None, "send() comes before recv()"
        return self._received

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

    def recorded_spaces(self) -> dict[str, Any]:
        """The environment's own spaces as JSON, as checkpoints record them."""
        return recorded_spaces(*self.own_spaces, self.own_spaces_of_policies)

    def record(self, fields: Sequence[FieldSpec]) -> None:
        """Have each step give these values of the infos; the name "a/b" stands for `info["a"]["b"]`.

        A step whose infos lack them raises EnvironmentFailed.
        """
        self._fields = {one.name: np.zeros((self.count, *one.shape), one.dtype) for one in fields}
        self._given_fields = {
            name: array.astype(np.float64) if array.dtype.kind == "f" else array for name, array in self._fields.items()
        }

    def row_name(self, row: int) -> str:
        """What messages call a row: "copy 3", or "agent 'red_0' of copy 3"."""
        game, agent = divmod(int(row), len(self.agents))
        game += self.first_copy
        return f"copy {game}" if self.agents == SINGLE_AGENT else f"agent {self.agents[agent]!r} of copy {game}"

    def copies_name(self) -> str:
        """What messages call all copies: "its 8 copies", or where the run has others, "copies 4 to 7 of 8"."""
        if self.games == self.copies_of_run:
            return f"its {self.games} copies"
        return f"copies {self.first_copy} to {self.first_copy + self.games - 1} of {self.copies_of_run}"

    def check(
        self, observation: Mapping[str, Array], reward: Array | None, rows: Array, first_step: int, of: str
    ) -> None:
        """Raise EnvironmentFailed for values in agents' arrays `[steps, len(rows), ...]` that nothing can be learned
        from; the message numbers the steps from `first_step`, and says what they are steps of."""
        found = {self._values.named(key): self._values.observation(key, array) for key, array in observation.items()}
        if reward is not None:
            found["reward"] = not_finite(reward)
        for name, problem in found.items():
            if problem is not None:
                row = self.row_name(rows[problem.place[1]])
                raise EnvironmentFailed(
                    f"environment {self.name!r} gave {problem.value} in the {name} of {row}, step"
                    f" {first_step + problem.place[0]} of the {of}; expected {problem.expected}"
                )

    def warn(self, about: str, text: str) -> None:
        """Keep a warning for `take_warnings`, the first about each thing; `text` follows the environment's name."""
        if about not in self._warned:
            self._warned.add(about)
            self._warnings[about] = f"environment {self.name!r} {text}"

    def take_warnings(self) -> dict[str, str]:
        """What there was to warn of since the last call, by what it is about."""
        warnings, self._warnings = self._warnings, {}
        return warnings

    @contextmanager
    def warnings_noted(self) -> Generator[None]:
        """What fails within has what there was to warn of as notes: it may be the reason, and nobody will ask again."""
        try:
            yield
        except Exception as error:
            for text in self.take_warnings().values():
                error.add_note(text)
            raise

    @contextmanager
    def closed_on_failure(self) -> Generator[None]:
        """What fails within closes the copies, of which nobody else knows yet; that they fail to close is not told."""
        try:
            yield
        except BaseException:
            with suppress(Exception):
                self.close()
            raise

    def _seeds_of_copies(self, seed: int) -> list[int]:
        return copy_seeds(seed, self.seeded_from + self.games)[self.seeded_from :]

    def _without_mask(self, observation: ObservationArrays) -> ObservationArrays:
        """What the agent sees of an observation."""
        if self._mask is None or not self._mask.keys:
            return observation
        return observation_of(
            {key: array for key, array in arrays_of(observation).items() if key not in self._mask.keys}
        )

    def _check_allowed(self, actions: Array) -> None:
        """Raises EnvironmentFailed for an action that the mask forbids: only a policy that is broken draws one."""
        forbidden = None if self._mask is None else self._mask.forbidden(actions)
        if forbidden is not None:
            row = int(forbidden[0])
            raise EnvironmentFailed(
                f"environment {self.name!r}: the action {actions[row].tolist()} of {self.row_name(row)}, which its"
                f" action mask forbids, was to be taken in step {self._steps}; expected one that is allowed: does the"
                " network forbid those, or give NaN?"
            )

    def _hint_at_mask(self, value: object) -> None:
        """Warn of what an info has as `USUAL_MASK`, which nobody has asked for. Looks at the first."""
        if self._mask_looked_at:
            return
        self._mask_looked_at = True
        sizes = {
            sum(choices_of(agent_action_space(own, self.name)))
            for _, own in (self.own_spaces_of_policies or {"": self.own_spaces}).values()
        }
        if mask_size(value) in sizes - {0}:
            self.warn(
                "action mask",
                f"gives {USUAL_MASK!r} in its infos, which forbids no action: set action_mask to"
                f" '{FROM_INFO}{USUAL_MASK}', unless those actions may be taken, too",
            )

    def _finish_fields(self) -> None:
        """Raises OutOfRange, with the copy as the first place."""
        for name, array in self._fields.items():
            given = self._given_fields[name]
            if given is not array:
                narrow(given, array, f"the experience field {name!r}")

    def _field(self, name: str, value: Any, info: Mapping[str, object]) -> Array:
        """The `value` of the field `name`; raises EnvironmentFailed if it is not numbers of its shape and dtype."""
        array = self._fields[name]
        try:
            return exact(value, array.shape[1:], array.dtype)
        except WrongReturn as error:
            given = f"only {sorted(map(str, info))}" if value is None else str(error)
            raise EnvironmentFailed(
                f"environment {self.name!r}: a loss asks for the experience field {name!r} of shape"
                f" {list(array.shape[1:])} and {array.dtype}, which the environment must give in the info of every"
                f" step; it gave {given}"
            ) from None


def copy_seeds(seed: int, count: int) -> list[int]:
    """Independent seeds for `count` copies, below 2**31, which every environment takes."""
    state = np.random.SeedSequence(seed).generate_state(count, np.uint32)
    return [int(word) >> 1 for word in state]
