"""Collects experience: steps environments with a policy and writes what happened into a slot's arrays."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from orchestrator.collection.episodes import EpisodeCounter, without_own_names
from orchestrator.collection.experience_fields import (
    FOLLOWING_OBSERVATION,
    RECURRENT_STATE,
    experience_fields,
    observation_field,
)
from orchestrator.collection.graphs import ActingGraphs, graphs_for
from orchestrator.collection.group_stepping import STEPS_OF, GroupStepping, one_step
from orchestrator.collection.observation_scales import ObservationScales
from orchestrator.collection.plan import CollectorPlan
from orchestrator.collection.rollout import Rollout
from orchestrator.environments.capture import CannotRestore, NotCapturable
from orchestrator.environments.spaces import Array, ObservationArrays, arrays_of, observation_of
from orchestrator.environments.split import make_copies, restore_copies
from orchestrator.policies.acting import ActingPolicy, PolicyFailed, as_tensors, check_defined, on_host
from orchestrator.policies.network import Spaces
from orchestrator.policies.policy import Policy, build_policy
from orchestrator.workers.interrupt import InterruptChecks
from state.experience import ExperienceSpec, FieldSpec
from state.user_code import user_code

_SCALES_LOOKED_AT = 5
"""The first rollouts, in which scales of observations are looked at."""


class CollectReport(NamedTuple):
    """What came of one rollout."""

    agent_steps: int
    """Transitions; steps that only reset a copy are not counted."""
    rollout_stats: dict[str, list[float]]
    """Of the episodes that ended, in that order: "episode_return", "episode_length" and their infos' numbers; also
    what environments log, and "replayed_steps"."""
    began: float
    """`time.monotonic()`, one clock for all processes of a machine; `ended` too."""
    ended: float
    interrupted: bool
    """Whether `stop` cut the rollout short, so that the slot holds nothing of use."""
    warnings: Mapping[str, str] = {}
    """What the user should know of the environment and the policy, by what it is about."""
    longest_step: float = 0.0
    """Seconds; the longest between two times that `stop` was asked."""


class Collector:
    """Steps `plan.games` copies of an environment, rollout after rollout; episodes continue from one to the next.

    `waits_for` is told which environment worker it waits for, once that takes a moment, and "" afterwards. Raises
    InvalidEnvironment when the environment cannot be made, and WorkerCrashed, also later, when an environment worker
    has died.
    """

    def __init__(self, plan: CollectorPlan, waits_for: Callable[[str], None] = lambda who: None) -> None:
        self._plan = plan
        self._graphs: ActingGraphs | None = None
        self._environment = make_copies(plan.copies(), plan.games, plan.split(waits_for))
        self._generator = torch.Generator()
        self._generator.manual_seed(derived_seed(plan.seed, 0))
        self._rollouts = 0
        self._acting: ActingPolicy | None = None
        self._scales: ObservationScales | None = None
        # Each agent of each copy is a row, and a segment of the experience.
        self._count = self._environment.count
        self._first_row = plan.index * self._count
        self._rollout = Rollout(plan.config.collection.horizon, self._count, plan.games, self._environment.groups)
        self._rows = np.arange(self._count)
        self._network = f"the network {plan.config.policy.network!r}"
        # What is acted on next lives in arrays that stay, so that their tensors do too.
        with self._environment.closed_on_failure():
            self._current = {key: array.copy() for key, array in arrays_of(self._reset()).items()}
        self._episode_start = ~self._environment.idle
        self._episodes = EpisodeCounter(plan.games, self._environment.agents)

    def spaces(self) -> Spaces:
        """The spaces of the agent's observations and actions."""
        return Spaces.of(self._environment)

    def agents(self) -> tuple[str, ...]:
        """The names of the agents of one game, each a row of experience: see `VectorEnvironment`."""
        return self._environment.agents

    def recorded_spaces(self) -> Mapping[str, Any]:
        """The environment's own spaces, as checkpoints record them."""
        return self._environment.recorded_spaces()

    def prepare(self, spec: ExperienceSpec) -> None:
        """Build the policy that acts; its parameters come with each rollout.

        Raises ValueError when `spec` has no room for what this collector writes, or wants what it cannot give, and
        GraphsError where the device has no graphs.
        """
        config = self._plan.config
        policy = build_policy(config.policy, self.spaces(), self._plan.seed, config.learning.discount).eval()
        own = experience_fields(self.spaces(), policy.state_size, refreshes=config.refreshes)
        names = {one.name for one in own}
        self._check_spec(spec, own)
        extras = [one for one in spec.fields if one.name not in names]
        for extra in extras:
            if extra.per != "step":
                raise ValueError(
                    f"the experience field {extra.name!r} is per {extra.per}; a field that environments fill from"
                    " their infos must be per step"
                )
        self._environment.record(extras)
        if policy.observation_normalizer is None:
            self._scales = ObservationScales(self.spaces().observation)
        device = self._plan.acts_on(self.spaces())
        self._current = {key: _staged(array, device) for key, array in self._current.items()}
        self._episode_start = _staged(self._episode_start, device)
        self._acting = ActingPolicy(policy.to(device), self._count, device)
        self._graphs = graphs_for(config.collection, self._acting)

    def collect(
        self, experience: Mapping[str, Array], load: Callable[[Policy], None], stop: Callable[[], bool]
    ) -> CollectReport:
        """Fill this collector's rows of `experience` (writable, `[segments, horizon, ...]`) with one rollout.

        `load` gives the policy its parameters; `stop` is asked before every step, and ends the rollout early.
        Raises EnvironmentFailed when an environment fails, or gives what is not of its spaces or not finite, and
        PolicyFailed when the policy's numbers make no distribution.
        """
        began = time.monotonic()
        acting = self._prepared()
        load(acting.policy)
        rows = slice(self._first_row, self._first_row + self._count)
        slot = {name: array[rows] for name, array in experience.items()}
        rollout = self._rollout
        checks = InterruptChecks(stop)
        with torch.inference_mode(), acting.policy.fixed(), self._environment.warnings_noted():
            if acting.state is not None:
                slot[RECURRENT_STATE][...] = np.where(self._episode_start[:, None], 0.0, on_host(acting.state))
            self._run(acting, slot, checks)
            if rollout.complete:
                observations = {key: slot[observation_field(key)] for key in self._current}
                following = as_tensors(observation_of(self._current))
                with user_code(self._network):
                    rollout.write(slot, acting, as_tensors(observation_of(observations)), following)
                if self._plan.config.refreshes:
                    for key, array in self._current.items():
                        slot[observation_field(key, FOLLOWING_OBSERVATION)][...] = array
                    rollout.write_final_observations(slot)
                if np.isnan(slot["log_prob"]).any():
                    self._check_policy(acting, slot)
                self._check_values(slot)
                if self._scales is not None and self._rollouts < _SCALES_LOOKED_AT:
                    self._look_at_scales(self._scales, observations)
        self._rollouts += 1
        episodes = self._episodes.add(rollout.reward, rollout.ended, rollout.valid, rollout.games_ended)
        replayed, warnings = ({}, {}) if self._graphs is None else (self._graphs.take_replayed(), self._graphs.warnings)
        checks()
        return CollectReport(
            agent_steps=int(np.count_nonzero(rollout.valid)),
            rollout_stats=without_own_names(rollout.stats, self._environment.warn) | episodes | replayed,
            began=began,
            ended=time.monotonic(),
            interrupted=not rollout.complete,
            warnings=self._environment.take_warnings() | warnings,
            longest_step=checks.longest,
        )

    def state(self) -> dict[str, object]:
        """What the next rollouts depend on besides the policy: numbers, None, arrays, and lists and dicts of those.

        "environment" is None for environments whose state cannot be had, "uncaptured" then says why; see `load_state`.
        """
        acting = self._prepared()
        environment, uncaptured, mask = None, None, self._environment.action_mask
        try:
            environment = self._environment.get_state()
        except NotCapturable as error:
            uncaptured = str(error)
        return {
            "rollouts": self._rollouts,
            "generator": self._generator.get_state().numpy(),
            "environment": environment,
            "uncaptured": uncaptured,
            "observation": {key: array.copy() for key, array in self._current.items()},
            "action_mask": None if mask is None else mask.copy(),
            "episode_start": self._episode_start.copy(),
            "episode_returns": self._episodes.returns.copy(),
            "episode_lengths": self._episodes.lengths.copy(),
            "team_returns": self._episodes.team_returns.copy(),
            "agent_lives": self._episodes.lives.copy(),
            "recurrent_state": None if acting.state is None else on_host(acting.state).copy(),
        }

    def load_state(self, state: Mapping[str, Any]) -> str | None:
        """Resume from a `state()` of a collector with the same plan; call after `prepare`.

        Returns why the episodes in progress can't continue exactly, where new ones begin instead, with seeds that the
        run has not used yet: the environments could not give their state, or are others now. None: they continue.
        """
        acting = self._prepared()
        environment = cast("Mapping[str, object] | None", state["environment"])
        reason: str | None = None
        if environment is None:
            reason = f"the environment can't give its state: {state.get('uncaptured') or 'it is not plain data'}"
        else:
            try:
                restore_copies(self._environment, environment)
            except CannotRestore as error:
                reason = f"the environment can't take its saved state: {error}"
        if reason is not None:
            self.begin_new_episodes(int(state["rollouts"]))
            self._generator.set_state(torch.from_numpy(np.array(state["generator"])))
            return reason
        self._rollouts = int(state["rollouts"])
        self._generator.set_state(torch.from_numpy(np.array(state["generator"])))
        self._set_current(observation_of(state["observation"]))
        if self._environment.action_mask is not None:
            self._environment.action_mask[...] = state["action_mask"]
        self._episode_start[:] = state["episode_start"]
        self._episodes.returns = np.array(state["episode_returns"])
        self._episodes.lengths = np.array(state["episode_lengths"])
        if "team_returns" in state:  # earlier releases have not written it, nor the next
            self._episodes.team_returns = np.array(state["team_returns"])
        if "agent_lives" in state:
            self._episodes.lives = np.array(state["agent_lives"])
        if acting.state is not None:
            acting.remember(np.array(state["recurrent_state"]))
        return None

    def begin_new_episodes(self, rollouts: int) -> None:
        """New episodes after so many rollouts of the run, with seeds and noise that it has not used yet; call after
        `prepare`."""
        acting = self._prepared()
        self._rollouts = rollouts
        self._generator.manual_seed(derived_seed(derived_seed(self._plan.seed, 0), 1 + rollouts))
        self._set_current(self._reset())
        np.logical_not(self._environment.idle, out=self._episode_start)
        self._episodes = EpisodeCounter(self._plan.games, self._environment.agents)
        acting.remember(None)

    def close(self) -> None:
        """Close the environments."""
        self._environment.close()

    def _prepared(self) -> ActingPolicy:
        if self._acting is None:
            raise RuntimeError("the collector has no policy yet: call prepare() first")
        return self._acting

    def _check_spec(self, spec: ExperienceSpec, own: list[FieldSpec]) -> None:
        plan, horizon = self._plan, self._plan.config.collection.horizon
        end = self._first_row + self._count
        if spec.horizon != horizon or spec.segments < end:
            raise ValueError(
                f"the experience is {spec.segments} segments by {spec.horizon} steps, the collector writes the"
                f" segments {self._first_row} to {end - 1} by {horizon} steps"
            )
        missing = [one.name for one in own if one not in spec.fields]
        if missing:
            raise ValueError(
                f"the experience lacks the fields {missing} as {plan.config.environment!r} and its policy need them"
            )

    def _reset(self) -> ObservationArrays:
        with self._environment.warnings_noted():
            return self._environment.reset(derived_seed(self._plan.seed, 1 + self._rollouts))

    def _set_current(self, observation: ObservationArrays) -> None:
        for key, array in arrays_of(observation).items():
            self._current[key][...] = array

    def _run(self, acting: ActingPolicy, slot: Mapping[str, Array], stop: Callable[[], bool]) -> None:
        """Step the environments until the horizon or `stop`, recording each step. This is the hot loop.

        One group of copies steps while the policy acts for the next.
        """
        environment, rollout, distribution = self._environment, self._rollout, acting.policy.distribution
        horizon = self._plan.config.collection.horizon
        # Drawn on the host, whatever the device: the same noise everywhere.
        noises = acting.there(distribution.noise((horizon, self._count), self._generator)).unbind(0)
        decide = acting.decide if self._graphs is None else self._graphs.decide
        groups = [
            GroupStepping(
                environment, index, acting, decide, rollout, self._current, self._episode_start, slot, self._network
            )
            for index in range(len(environment.groups))
        ]
        rollout.begin()
        stepping = deque[GroupStepping]()
        for noise in noises:
            if stop():
                break
            for group in groups:
                group.act(noise)
                stepping.append(group)
                if len(stepping) == len(groups):
                    stepping.popleft().receive()
        while stepping:
            stepping.popleft().receive()

    def _check_policy(self, acting: ActingPolicy, slot: Mapping[str, Array]) -> None:
        valid = torch.from_numpy(self._rollout.valid)
        try:
            check_defined(acting.policy.distribution, self._rollout.parameters, valid, self._environment)
        except PolicyFailed as error:
            # The policy can make nothing of wrong ones; the rewards follow from its own actions.
            self._environment.check(self._recorded(slot, error.step + 1), None, self._rows, 0, STEPS_OF)
            raise

    def _check_values(self, slot: Mapping[str, Array]) -> None:
        """Of all that values are computed from: what was recorded, final observations, and what the next rollout
        begins with."""
        reward = slot["reward"].swapaxes(0, 1)
        self._environment.check(
            self._recorded(slot, self._plan.config.collection.horizon), reward, self._rows, 0, STEPS_OF
        )
        for cut in self._rollout.cut:
            self._environment.check(one_step(cut.final_observation), None, cut.rows, cut.step, STEPS_OF)
        self._check_current(self._plan.config.collection.horizon)

    def _look_at_scales(self, scales: ObservationScales, observations: Mapping[str, Array]) -> None:
        scales.add(observations)
        problem = scales.problem()
        if problem is not None:
            self._environment.warn("scales of observations", problem)

    def _recorded(self, slot: Mapping[str, Array], steps: int) -> dict[str, Array]:
        """The observations of the first steps, `[steps, count, ...]`."""
        return {key: slot[observation_field(key)][:, :steps].swapaxes(0, 1) for key in self._current}

    def _check_current(self, step: int) -> None:
        self._environment.check(one_step(self._current), None, self._rows, step, STEPS_OF)


def _staged(array: Array, device: torch.device) -> Array:
    """The numbers in memory that a device reads from fastest."""
    return torch.from_numpy(array).pin_memory().numpy() if device.type == "cuda" else array


def derived_seed(seed: int, stream: int) -> int:
    """Independent seeds for the independent uses of one; below 2**31, which every environment takes."""
    return int(np.random.SeedSequence((seed, stream)).generate_state(1, np.uint32)[0]) >> 1
