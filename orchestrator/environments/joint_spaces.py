"""What agents of several types observe and do, as one observation space and one action space that all rows share."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

import numpy as np
from gymnasium import spaces

from orchestrator.config.paths import PATH
from orchestrator.environments.agents import agent_type
from orchestrator.environments.spaces import (
    ActionConverter,
    Array,
    InvalidEnvironment,
    Path,
    Space,
    agent_action_space,
    agent_observation_space,
    blank_of,
    of_key,
)

POLICY = "policy"
"""The part of a joint observation that says whose it is: the place of the policy among their names, sorted."""
SEEN = "seen"
"""The part with what the agents of each policy observe, by the policy's name; only the row's own means anything."""
USED = "used"
"""The part that says which of the joint action's parameters the agent's own action has; left out where all have all."""
OTHERS = "others"
"""The policy of the types that have none of their own."""


class JointSpaces:
    """The joint spaces of the agents whose own spaces are `of_agents` (observation, action), where those of the `types`
    have a policy for each type, and all others share one.

    The joint action is the agents' own where it is the same for all. Otherwise choices are those of the most choices
    along each axis, and Boxes have the largest size; an agent's own action is the beginning of it.

    Raises InvalidEnvironment naming the `environment` for types that it lacks, where agents with the same policy have
    different spaces, and where some agents choose and others give numbers, or a space is not supported.
    """

    def __init__(
        self,
        environment: str,
        of_agents: Mapping[Any, tuple[Space, Space]],
        types: tuple[str, ...],
        *,
        squash: bool = False,
    ) -> None:
        kinds = {agent: agent_type(str(agent)) for agent in of_agents}
        known = sorted(set(kinds.values()))
        for one in types:
            if one not in known:
                near = difflib.get_close_matches(one, known, 1)
                hint = f"did you mean {near[0]}?" if near else f"expected some of {', '.join(known)}"
                raise InvalidEnvironment(
                    f"environment {environment!r} has no agents of the type {one!r}, which {PATH.policy.by_type} names;"
                    f" {hint}"
                )
        policies = {agent: kind if kind in types else OTHERS for agent, kind in kinds.items()}
        for kind in known:
            if "/" in kind or "." in kind:
                raise InvalidEnvironment(
                    f"environment {environment!r} has agents of the type {kind!r}, which cannot name a policy; expected"
                    " names without / and .: rename them by a function in environment_wrappers"
                )
        left_out = sorted(set(known) - set(types))
        if OTHERS in types and left_out:
            raise InvalidEnvironment(
                f"environment {environment!r} has agents of the type {OTHERS!r}, which {PATH.policy.by_type} names; so"
                f" is the policy called of those that it does not name: name {', '.join(left_out)} there, too"
            )
        own: dict[str, tuple[Space, Space]] = {}
        first_of: dict[str, Any] = {}
        for agent, given in of_agents.items():
            policy = policies[agent]
            first = own.setdefault(policy, given)
            first_agent = first_of.setdefault(policy, agent)
            if given != first:
                named = "name more types there" if policy == OTHERS else "pad them"
                raise InvalidEnvironment(
                    f"environment {environment!r}: agent {agent!r} has the spaces {given[0]} and {given[1]}, agent"
                    f" {first_agent!r} has {first[0]} and {first[1]}; both have one policy ({PATH.policy.by_type}), and"
                    f" so must have the same: {named}"
                )
        names = sorted(own)
        self.own = {name: own[name] for name in names}
        """What the agents of each policy observe and do, by its name."""
        self._places = {agent: names.index(policy) for agent, policy in policies.items()}
        actions = [own[name][1] for name in names]
        self._converters: list[_Part] | None = None
        seen = spaces.Dict({name: own[name][0] for name in names})
        parts: dict[str, Space] = {POLICY: spaces.Discrete(len(names)), SEEN: seen}
        agent_observation_space(spaces.Dict({SEEN: seen}), environment, of_own_part)  # or raises
        self._blank: dict[str, Any] = {SEEN: blank_of(seen)}
        self.action = actions[0]
        if any(action != self.action for action in actions):
            agents_own = [agent_action_space(action, environment) for action in actions]
            self.action = _joined(environment, agents_own)
            self._used = [used_parameters(one, self.action).astype(np.int8) for one in agents_own]
            self._converters = [_Part(action, squash=squash) for action in actions]
            parts[USED] = spaces.MultiBinary(len(self._used[0]))
        self.observation = spaces.Dict(parts)
        self._names = names

    def observation_of(self, agent: Any, observed: Any) -> dict[str, Any]:
        """The joint observation of what an agent has observed."""
        place = self._places[agent]
        joint: dict[str, Any] = {POLICY: place, SEEN: {**self._blank[SEEN], self._names[place]: observed}}
        if self._converters is not None:
            joint[USED] = self._used[place]
        return joint

    def blank_of(self, agent: Any) -> dict[str, Any]:
        """That of an agent that is out: it says whose it is, and nothing else."""
        return self.observation_of(agent, self._blank[SEEN][self._names[self._places[agent]]])

    def action_of(self, agent: Any, action: Any) -> Any:
        """The agent's own action, of its own space, in the joint one."""
        return action if self._converters is None else self._converters[self._places[agent]](action)


def of_own_part(path: Path) -> str:
    """As `of_key`, of a joint observation: the part as the game has it, and whose it is."""
    if path[:1] != (SEEN,) or len(path) < 2:
        return of_key(path)
    return f"{of_key(path[2:])} ({'policy' if path[1] == OTHERS else 'type'} {path[1]!r})"


class _Part:
    """The beginning of a joint action as an action of the space `own`."""

    def __init__(self, own: Space, *, squash: bool) -> None:
        self._converter = ActionConverter(own, squash=squash)
        self._single = isinstance(own, spaces.Discrete)
        self._shape = () if isinstance(own, spaces.Discrete) else tuple(own.shape or ())

    def __call__(self, action: Any) -> Any:
        part = np.ravel(action)[: math.prod(self._shape)].reshape(1, *self._shape)
        converted = self._converter(part)[0]
        return converted if self._single else np.asarray(converted)  # numpy's numbers are no members of a Box


def used_parameters(own: Space, joint: Space, *, along_others: int = 1) -> Array:
    """bool `[P]`: which parameters of the joint action an agent's own, in the agent's form, has; and so many
    `along_others`, the axes that only others choose along."""
    if isinstance(joint, spaces.Box):
        count, most = (math.prod(space.shape or ()) for space in (own, joint))
        return np.tile(np.arange(most) < count, 2)
    columns = zip_longest(_choices(joint) or (), _choices(own) or (), fillvalue=along_others)
    return np.concatenate([np.arange(most) < choices for most, choices in columns])


def _joined(environment: str, actions: list[Space]) -> Space:
    """An action space in which each of the agents' `actions` has a place."""
    sizes = [_choices(action) for action in actions]
    if all(one is not None for one in sizes):
        largest = [max(column) for column in zip_longest(*(one or () for one in sizes), fillvalue=1)]
        single = all(isinstance(action, spaces.Discrete) for action in actions)
        return spaces.Discrete(largest[0]) if single else spaces.MultiDiscrete(largest)
    if any(one is not None for one in sizes):
        raise InvalidEnvironment(
            f"environment {environment!r} has the action spaces {', '.join(map(str, actions))}: some of its agents"
            " choose, and others give the numbers of a Box, which cannot be learned together; let all choose, or all"
            " give numbers, by a function in environment_wrappers"
        )
    largest_count = max(math.prod(action.shape or ()) for action in actions)
    return spaces.Box(-math.inf, math.inf, (largest_count,), np.float32)


def _choices(action: Space) -> tuple[int, ...] | None:
    if isinstance(action, spaces.Discrete):
        return (int(action.n),)
    if isinstance(action, spaces.MultiDiscrete):
        return tuple(map(int, action.nvec))
    return (2,) * math.prod(action.shape) if isinstance(action, spaces.MultiBinary) else None
