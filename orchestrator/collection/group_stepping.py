"""One group of a collector's copies in a rollout: the policy acts for them, they step, and the step is recorded."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from orchestrator.collection.experience_fields import ACTION_MASK, observation_field
from orchestrator.collection.rollout import Rollout
from orchestrator.environments import EnvironmentFailed, VectorEnvironment
from orchestrator.environments.spaces import Array, arrays_of, observation_of
from orchestrator.policies.acting import ActingPolicy, Decision, as_tensors, check_defined, on_host
from orchestrator.policies.network import Observation
from state.user_code import raise_failure

STEPS_OF = "rollout"
"""What messages number steps of."""


class GroupStepping:
    """The group `index` of an `environment` in one rollout, which `act` and `receive` take step by step, in turn.

    `decide` is as that of the `acting` policy, and called instead of it: its results are used until the next call.
    `current` and `episode_start` are of all the collector's rows `[n, ...]`, `slot` of their experience
    `[n, horizon, ...]`; the group's own rows are read and written.
    """

    def __init__(
        self,
        environment: VectorEnvironment,
        index: int,
        acting: ActingPolicy,
        decide: Callable[[Observation, Tensor, Tensor | None, slice | None, Tensor], Decision],
        rollout: Rollout,
        current: Mapping[str, Array],
        episode_start: Array,
        slot: Mapping[str, Array],
        network: str,
    ) -> None:
        rows = environment.groups[index].rows
        self._environment, self._index, self._acting, self._rollout = environment, index, acting, rollout
        self._decide = decide
        self._distribution, self._network = acting.policy.distribution, network
        self._rows = rows
        self._only_rows = None if len(environment.groups) == 1 else rows
        self._slot = {name: array[rows] for name, array in slot.items()}
        self._current = {key: array[rows] for key, array in current.items()}
        self._observation = as_tensors(observation_of(self._current))
        self._start, self._idle = episode_start[rows], environment.idle[rows]
        self._start_tensor = torch.from_numpy(self._start)
        recorded = [(self._slot[observation_field(key)], array) for key, array in self._current.items()]
        # Once the copies step, there is time to record, but a network on the CPU may have changed what it was given.
        after = acting.device.type != "cpu"
        self._record_before, self._record_after = ([], recorded) if after else (recorded, [])
        self._mask: Tensor | None = None
        if environment.action_mask is not None:
            mask = environment.action_mask[rows]
            self._record_before.append((self._slot[ACTION_MASK], mask))
            self._mask = torch.from_numpy(mask)
        self._decision: Decision
        self._step = 0

    def act(self, noise: Tensor) -> None:
        """Record what is observed, and have the copies step with actions drawn by their rows of `noise` `[n, ...]`."""
        for rows, array in self._record_before:
            rows[:, self._step] = array
        try:
            self._decision = self._decide(
                self._observation, self._start_tensor, self._mask, self._only_rows, noise[self._rows]
            )
        except BaseException as error:
            if isinstance(error, Exception):
                self._check_current()
            # The observation is not to blame.
            raise_failure(error, f"{self._network} in step {self._step} of the rollout")
        try:
            with torch.inference_mode(False):  # an environment may train its own model
                self._environment.send(on_host(self._decision.action), self._index)
        except EnvironmentFailed:
            self._check_policy()
            raise
        for rows, array in self._record_after:
            rows[:, self._step] = array

    def receive(self) -> None:
        """Wait for the step, and record it."""
        try:
            step = self._environment.recv(self._index)
        except EnvironmentFailed:
            self._check_policy()
            raise
        self._rollout.add(self._index, self._acting, self._start, self._decision, step)
        for key, array in arrays_of(step.observation).items():
            self._current[key][...] = array
        step.episode_starts(self._idle, out=self._start)
        for name, values in step.fields.items():
            self._slot[name][:, self._step] = values
        self._step += 1

    def _check_policy(self) -> None:
        """An environment may well fail because no action was possible."""
        acting = torch.from_numpy(~self._idle)
        first_row = self._rows.start
        check_defined(
            self._distribution, self._decision.parameters[None], acting[None], self._environment, self._step, first_row
        )

    def _check_current(self) -> None:
        rows = np.arange(self._rows.start, self._rows.stop)
        self._environment.check(one_step(self._current), None, rows, self._step, STEPS_OF)


def one_step(observation: Mapping[str, Array]) -> dict[str, Array]:
    """The observations `[rows, ...]` of one step as those of several `[1, rows, ...]`."""
    return {key: array[None] for key, array in observation.items()}
