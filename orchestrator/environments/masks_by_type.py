"""Which actions a game allows its agents next, where types of agents have policies of their own, and `JointSpaces`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from orchestrator.environments.action_mask import FROM_INFO, ActionMask, AllowedActions, choices_of, keys_of_mask
from orchestrator.environments.agents import agent_type
from orchestrator.environments.joint_spaces import OTHERS, SEEN, used_parameters
from orchestrator.environments.returned import WrongEntry
from orchestrator.environments.spaces import (
    Array,
    InvalidEnvironment,
    Space,
    agent_action_space,
    agent_observation_space,
    array_specs,
)


class MasksByType(AllowedActions):
    """The masks `where` of the rows of `agents`, of the choices of the joint `action`, in the agent's form. The spaces
    `of_policies` are the agents' own (observation, action), by the name of their policy.

    Each policy whose agents observe the mask has one of their own choices, or each whose agents choose, where infos
    have it. The rows of the others may take what their own action has.

    Raises InvalidEnvironment naming the `environment` where no agent has such a mask, or its actions cannot be masked.
    """

    def __init__(
        self,
        where: str,
        environment: str,
        of_policies: Mapping[str, tuple[Space, Space]],
        action: Space,
        agents: Sequence[str],
    ) -> None:
        super().__init__(action, len(agents))
        self._types = [agent_type(agent) for agent in agents]
        policies = np.array([kind if kind in of_policies else OTHERS for kind in self._types], np.str_)
        self._owns: list[_Own] = []
        self._own_of_row: dict[int, tuple[ActionMask, int]] = {}
        keys: list[str] = []
        masked = masked_policies(where, environment, of_policies)
        self.masked = tuple(masked)
        """The policies whose agents have masks."""
        for name, (_, taken) in of_policies.items():
            rows = np.flatnonzero(policies == name)
            used = used_parameters(agent_action_space(taken, environment), action) if self._sizes else np.ones(0, bool)
            self.allowed[rows] = used
            if name not in masked:
                continue
            mask = mask_of_policy(where, environment, name, *masked[name], len(rows))
            of_own = used_parameters(masked[name][1], action, along_others=0)
            own = _Own(mask, rows, np.flatnonzero(of_own), {key: joint_key(name, key) for key in mask.keys})
            self._owns.append(own)
            self._own_of_row |= {int(row): (mask, index) for index, row in enumerate(rows)}
            keys += own.keys.values()
        self.keys = tuple(keys)
        """The parts of the joint observation that they consist of; none where infos have them."""
        self.key_of_info = self._owns[0].mask.key_of_info

    def write(self, index: int, value: object, info: Mapping[str, object]) -> None:
        """Take the `value` of an `info` of the row `index`, as `ActionMask` does."""
        if index in self._own_of_row:
            mask, own = self._own_of_row[index]
            mask.write(own, value, info)

    def finish(self, arrays: Mapping[str, Array], idle: Array | None = None) -> None:
        """Take the masks in the joint observation `arrays`, or those that were written, as `ActionMask` does."""
        for own in self._owns:
            observed = {key: arrays[joint][own.rows] for key, joint in own.keys.items()}
            try:
                own.mask.finish(observed, None if idle is None else idle[own.rows])
            except WrongEntry as error:
                row, *place = error.place
                row = int(own.rows[row])
                kind = self._types[row]
                raise WrongEntry(f"{error} (the agent is of the type {kind!r})", (row, *place)) from None
            self.allowed[own.rows[:, None], own.columns] = own.mask.allowed


class _Own:
    """The mask of the `rows` of one policy, whose choices are `columns` of the joint ones; where its `keys` are in the
    joint observation."""

    def __init__(self, mask: ActionMask, rows: Array, columns: Array, keys: Mapping[str, str]) -> None:
        self.mask, self.rows, self.columns, self.keys = mask, rows, columns, keys


def masked_policies(
    where: str, environment: str, of_policies: Mapping[str, tuple[Space, Space]]
) -> dict[str, tuple[Space, Space]]:
    """The spaces in the agent's form of those policies whose agents have the mask `where`.

    Raises InvalidEnvironment where none has.
    """
    agents_own = {
        name: (agent_observation_space(seen, environment), agent_action_space(taken, environment))
        for name, (seen, taken) in of_policies.items()
    }
    found = {name: own for name, own in agents_own.items() if keys_of_mask(where, own[0])}
    if not found and where.startswith(FROM_INFO):
        found = {name: own for name, own in agents_own.items() if choices_of(own[1])}
        if not found:
            actions = ", ".join(f"{name}: {taken}" for name, (_, taken) in of_policies.items())
            raise InvalidEnvironment(
                f"environment {environment!r} has the action spaces {actions}, which action_mask = {where!r} cannot"
                " mask; expected a type with Discrete or MultiDiscrete: leave action_mask out"
            )
    if not found:
        there = "; ".join(
            f"{name}: {[key for key in array_specs(seen) if key]}" for name, (seen, _) in agents_own.items()
        )
        raise InvalidEnvironment(
            f"environment {environment!r} has no {where!r} in the observations of any type of agents, which action_mask"
            f" names; expected one of the keys of a type's own ({there}), or {FROM_INFO}<key> for what is in infos"
        )
    return found


def mask_of_policy(
    where: str, environment: str, name: str, observation: Space, action: Space, count: int
) -> ActionMask:
    """That of the agents of one policy. Raises InvalidEnvironment, naming it too."""
    try:
        return ActionMask(where, environment, observation, action, count)
    except InvalidEnvironment as error:
        raise InvalidEnvironment(f"{error} (these are spaces of the agents with the policy {name!r})") from None


def joint_key(name: str, key: str) -> str:
    """Where the joint observation has the part `key` of what the agents of a policy observe."""
    return f"{SEEN}/{name}/{key}"
