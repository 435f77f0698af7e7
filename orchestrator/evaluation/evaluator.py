"""Measures a policy: plays whole episodes with it, without recording experience."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from orchestrator.environments import VectorEnvironment
from orchestrator.environments.spaces import Array, arrays_of, observation_of
from orchestrator.policies.acting import ActingPolicy, as_tensors, check_defined
from orchestrator.policies.policy import Policy
from state.user_code import raise_failure

EPISODE_LIMIT = 108_000
"""Agent steps after which an episode is cut: half an hour of an Atari game."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeScores:
    """The episodes played in one environment, in an order that does not depend on their lengths."""

    environment: str
    returns: tuple[float, ...]
    lengths: tuple[int, ...]
    """Agent steps."""
    cut: int
    """Episodes that were unfinished at the limit, and count with the return so far."""
    warnings: Mapping[str, str] = field(default_factory=dict[str, str])
    """What the user should know of the environment, by what it is about."""

    @property
    def mean_return(self) -> float:
        return sum(self.returns) / len(self.returns)


class EvaluationInterrupted(Exception):
    """`stop` asked for the evaluation to end before all episodes were played."""


def evaluate(
    policy: Policy,
    environments: Sequence[VectorEnvironment],
    episodes: int,
    seeds: Sequence[int],
    deterministic: bool = True,
    *,
    stop: Callable[[], bool] = lambda: False,
    limit: int = EPISODE_LIMIT,
) -> list[EpisodeScores]:
    """Play exactly `episodes` episodes in each environment, each environment reset with its seed.

    How many episodes a copy plays is fixed before the first step, so that short episodes are not counted more
    often than long ones. `deterministic` takes the most likely action, else actions are sampled. The same seed
    gives the same scores. Raises EvaluationInterrupted when `stop`, asked before every step, says so, and PolicyFailed
    when the policy's numbers make no distribution.
    """
    if episodes < 1 or limit < 1:
        raise ValueError(f"episodes is {episodes} and limit is {limit}, expected at least 1")
    policy.eval()
    return [
        _play(policy, environment, episodes, seed, deterministic, stop, limit)
        for environment, seed in zip(environments, seeds, strict=True)
    ]


@torch.inference_mode()
def _play(
    policy: Policy,
    environment: VectorEnvironment,
    episodes: int,
    seed: int,
    deterministic: bool,
    stop: Callable[[], bool],
    limit: int,
) -> EpisodeScores:
    count = environment.count
    quotas = np.array([len(range(copy, episodes, count)) for copy in range(count)])
    returns: list[list[float]] = [[] for _ in range(count)]
    lengths: list[list[int]] = [[] for _ in range(count)]
    running_return, running_length = np.zeros(count), np.zeros(count, np.int64)
    cut = 0
    acting = ActingPolicy(policy, count)
    distribution = policy.distribution
    generator = torch.Generator().manual_seed(seed)
    start, ended = np.ones(count, np.bool_), np.zeros(count, np.bool_)
    # In separate memory, as networks may change what they are given.
    with torch.inference_mode(False):
        first = environment.reset(seed)
    current = {key: array.copy() for key, array in arrays_of(first).items()}
    observation, steps = as_tensors(observation_of(current)), 0
    mask = None if environment.action_mask is None else torch.from_numpy(environment.action_mask)
    _check(environment, current, None, steps)
    while quotas.any():
        if stop():
            raise EvaluationInterrupted
        try:
            parameters, _ = acting.act(observation, torch.from_numpy(start), mask)
        except BaseException as error:
            raise_failure(error, f"the network in step {steps} of the evaluation")
        if deterministic:
            action = distribution.mode(parameters)
        else:
            action = distribution.sample(parameters, distribution.noise((count,), generator))
        acted = np.logical_or(environment.same_step, ~ended)  # the others are only reset now
        check_defined(distribution, parameters[None], torch.from_numpy(acted)[None], environment.name, steps)
        with torch.inference_mode(False):  # as in training
            step = environment.step(action.numpy())
        for key, array in arrays_of(step.observation).items():
            current[key][...] = array
        steps += 1
        _check(environment, current, step.reward, steps)
        ended = step.terminated | step.truncated
        running_return += np.where(step.valid, step.reward, 0.0)
        running_length += step.valid
        start = ended if environment.same_step else ~step.valid
        over_limit = (running_length >= limit) & ~ended
        for copy in np.flatnonzero((ended | over_limit) & (quotas > 0)):
            returns[copy].append(float(running_return[copy]))
            lengths[copy].append(int(running_length[copy]))
            quotas[copy] -= 1
            if over_limit[copy]:
                # No interface ends one copy's episode: what this copy still had to play is left out.
                cut += 1
                quotas[copy] = 0
        running_return[ended] = 0.0
        running_length[ended] = 0
    return EpisodeScores(
        environment=environment.name,
        returns=tuple(value for played in returns for value in played),
        lengths=tuple(value for played in lengths for value in played),
        cut=cut,
        warnings=environment.take_warnings(),
    )


def _check(environment: VectorEnvironment, observation: Mapping[str, Array], reward: Array | None, step: int) -> None:
    one_step = {key: array[None] for key, array in observation.items()}
    one_reward = None if reward is None else reward[None]
    environment.check(one_step, one_reward, np.arange(environment.count), step, "evaluation")
