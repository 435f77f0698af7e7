"""Measures a policy: plays whole episodes with it, without recording experience."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from orchestrator.config.paths import PATH
from orchestrator.environments import VectorEnvironment
from orchestrator.environments.agents import SINGLE_AGENT, agent_type
from orchestrator.environments.spaces import Array, arrays_of, observation_of
from orchestrator.policies.acting import ActingPolicy, as_tensors, check_defined
from orchestrator.policies.policy import Policy
from state.stats_tracker import TEAM_RETURN
from state.user_code import raise_failure

EPISODE_LIMIT = 108_000
"""Agent steps after which an episode is cut: half an hour of an Atari game."""
LONG_EPISODES = 10_000
"""Steps without the end of any episode after which whoever waits is told why."""
CUT = "cut episodes"
"""What the warning of episodes that were cut is about."""
_CURE = f"set {PATH.max_episode_steps} where episodes need not end, or end without being terminated or truncated"


@dataclass(frozen=True, slots=True, kw_only=True)
class EpisodeScores:
    """The episodes played in one environment, in an order that does not depend on their lengths."""

    environment: str
    returns: tuple[float, ...]
    """Of each episode; where games have many agents, of each agent's life."""
    lengths: tuple[int, ...]
    """Agent steps."""
    cut: int
    """Games that were unfinished at the limit, and count with the returns so far."""
    games: int
    """That were played: the episodes, where they have one agent."""
    of_agents: Mapping[str, float] = field(default_factory=dict[str, float])
    """Where agents have names: the mean return of each type ("red" for "red_0" and "red_1"), and "team_return", the
    mean over the games of what all agents got together."""
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
    tell: Callable[[str], object] = lambda text: None,
    limit: int = EPISODE_LIMIT,
) -> list[EpisodeScores]:
    """Play exactly `episodes` episodes in each environment, each environment reset with its seed; where it has many
    agents, so many whole games.

    How many episodes a copy plays is fixed before the first step, so that short episodes are not counted more
    often than long ones. Those that do not end are cut at the `limit`, of which the scores have a warning; `tell` is
    told long before. `deterministic` takes the most likely action, else actions are sampled. The same seed
    gives the same scores. Raises EvaluationInterrupted when `stop`, asked before every step, says so, and PolicyFailed
    when the policy's numbers make no distribution.
    """
    if episodes < 1 or limit < 1:
        raise ValueError(f"episodes is {episodes} and limit is {limit}, expected at least 1")
    policy.eval()
    with torch.inference_mode(), policy.fixed():
        return [
            _play(policy, environment, episodes, seed, deterministic, stop, tell, limit)
            for environment, seed in zip(environments, seeds, strict=True)
        ]


def _play(
    policy: Policy,
    environment: VectorEnvironment,
    episodes: int,
    seed: int,
    deterministic: bool,
    stop: Callable[[], bool],
    tell: Callable[[str], object],
    limit: int,
) -> EpisodeScores:
    count, games, agents = environment.count, environment.games, len(environment.agents)
    quotas = np.array([len(range(copy, episodes, games)) for copy in range(games)])
    returns: list[list[float]] = [[] for _ in range(count)]
    lengths: list[list[int]] = [[] for _ in range(count)]
    team_returns: list[list[float]] = [[] for _ in range(games)]
    running_return, running_length = np.zeros(count), np.zeros(count, np.int64)
    team_return, game_length = np.zeros(games), np.zeros(games, np.int64)
    cut = 0
    acting = ActingPolicy(policy, count)
    distribution = policy.distribution
    generator = torch.Generator().manual_seed(seed)
    # In separate memory, as networks may change what they are given.
    with torch.inference_mode(False):
        first = environment.reset(seed)
    current = {key: array.copy() for key, array in arrays_of(first).items()}
    start = ~environment.idle
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
        acts = torch.from_numpy(~environment.idle)
        check_defined(distribution, parameters[None], acts[None], environment, steps)
        with torch.inference_mode(False):  # as in training
            step = environment.step(action.numpy())
        for key, array in arrays_of(step.observation).items():
            current[key][...] = array
        steps += 1
        _check(environment, current, step.reward, steps)
        ended = step.terminated | step.truncated
        game_ended = ended if step.games_ended is None else step.games_ended
        gain = np.where(step.valid, step.reward, 0.0)
        running_return += gain
        running_length += step.valid
        team_return += gain.reshape(games, agents).sum(1)
        game_length += step.valid.reshape(games, agents).any(1)
        step.episode_starts(environment.idle, out=start)
        over_limit = (game_length >= limit) & ~game_ended
        is_cut = np.repeat(over_limit, agents) & (running_length > 0)
        for row in np.flatnonzero((ended | is_cut) & np.repeat(quotas > 0, agents)):
            returns[row].append(float(running_return[row]))
            lengths[row].append(int(running_length[row]))
        for game in np.flatnonzero((game_ended | over_limit) & (quotas > 0)):
            team_returns[game].append(float(team_return[game]))
            quotas[game] -= 1
            if over_limit[game]:
                # No interface ends one copy's episode: what this copy still had to play is left out.
                cut += 1
                quotas[game] = 0
        running_return[ended] = 0.0
        running_length[ended] = 0
        team_return[game_ended] = 0.0
        game_length[game_ended] = 0
        if steps == LONG_EPISODES and not any(team_returns):
            tell(
                f"environment {environment.name!r} has not ended any episode of the evaluation in {steps:,} steps; they"
                f" are cut after {limit:,}: {_CURE}"
            )
    if cut:
        played = sum(map(len, team_returns))
        environment.warn(
            CUT,
            f"had not ended {cut} episodes of the evaluation after {limit:,} agent steps: they count with their returns"
            f" so far, and only {played} of {episodes} episodes were played; {_CURE}",
        )
    return EpisodeScores(
        environment=environment.name,
        returns=tuple(value for played in returns for value in played),
        lengths=tuple(value for played in lengths for value in played),
        cut=cut,
        games=sum(map(len, team_returns)),
        of_agents=_of_agents(environment.agents, returns, team_returns),
        warnings=environment.take_warnings(),
    )


def _of_agents(
    agents: tuple[str, ...], returns: list[list[float]], team_returns: list[list[float]]
) -> Mapping[str, float]:
    if agents == SINGLE_AGENT:
        return {}
    of_types: dict[str, list[float]] = {}
    for row, played in enumerate(returns):
        of_types.setdefault(agent_type(agents[row % len(agents)]), []).extend(played)
    of_types[TEAM_RETURN] = [value for played in team_returns for value in played]
    return {name: sum(played) / len(played) for name, played in of_types.items() if played}


def _check(environment: VectorEnvironment, observation: Mapping[str, Array], reward: Array | None, step: int) -> None:
    one_step = {key: array[None] for key, array in observation.items()}
    one_reward = None if reward is None else reward[None]
    environment.check(one_step, one_reward, np.arange(environment.count), step, "evaluation")
