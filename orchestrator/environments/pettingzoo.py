"""Games of many agents, through PettingZoo's interface for agents that act at the same time (ParallelEnv)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, cast

import gymnasium
import numpy as np

from orchestrator.environments.action_mask import USUAL_MASK
from orchestrator.environments.adaptation import NO_ADAPTATION, Adaptation
from orchestrator.environments.capture import EnvironmentState
from orchestrator.environments.games import Game, shared_spaces, spaces_of_agents
from orchestrator.environments.joint_spaces import JointSpaces, of_own_part
from orchestrator.environments.observations import ObservationReader, ObservationRows
from orchestrator.environments.returned import (
    WrongEntry,
    WrongReturn,
    check_info,
    flag_of,
    narrow,
    reset_parts,
    reward_of,
    step_parts,
)
from orchestrator.environments.serial import close_all, looked_up
from orchestrator.environments.space_seeds import SpaceSeeds
from orchestrator.environments.spaces import (
    ActionConverter,
    Array,
    ObservationArrays,
    arrays_of,
    blank_of,
    of_key,
)
from orchestrator.environments.vector import EnvironmentFailed, Step, VectorEnvironment, copy_seeds
from state.stats_tracker import accumulate_rollout_stats
from state.user_code import described, is_signal


class PettingZooEnvironment(VectorEnvironment):
    """Steps `games` of many agents, in order; each is reset in the step after which no agent is left in it.

    All agents share the spaces, or have `JointSpaces` where types of agents have policies of their own. An agent that
    is not in the game is idle: before it comes, and after it has died. With a limit of steps, a game that has lasted so
    long is truncated for all agents that are left in it.

    Raises InvalidEnvironment where the agents' spaces differ.
    """

    native: ClassVar[bool] = False

    def __init__(self, name: str, games: Sequence[Game], adaptation: Adaptation = NO_ADAPTATION) -> None:
        self._ids = tuple(games[0].possible_agents)
        self._joint: JointSpaces | None = None
        if adaptation.types:
            of_agents = spaces_of_agents(name, games)
            self._joint = JointSpaces(name, of_agents, adaptation.types, squash=adaptation.squash)
            observed, taken = self._joint.observation, self._joint.action
        else:
            observed, taken = shared_spaces(name, games)
        own = {} if self._joint is None else self._joint.own
        super().__init__(name, len(games), observed, taken, adaptation, tuple(map(str, self._ids)), own)
        self._environments = tuple(games)
        self._state = EnvironmentState(games)
        self._space_seeds = SpaceSeeds(games)
        self._to_environment = ActionConverter(taken, squash=adaptation.squash)
        self._scalar_box = isinstance(taken, gymnasium.spaces.Box) and not taken.shape
        self._key_of_mask = None if self._mask is None else self._mask.key_of_info
        self._limit = adaptation.max_episode_steps
        reader = ObservationReader(observed, self.warn, of_part=of_key if self._joint is None else of_own_part)
        self._blanks = dict.fromkeys(self._ids, blank_of(observed))
        if self._joint is not None:
            self._blanks = {agent: self._joint.blank_of(agent) for agent in self._ids}
        self._observations = ObservationRows(reader, self.count)
        self._final_observations = ObservationRows(reader, self.count)
        self._observation = self._without_mask(self._observations.observation)
        self._final_observation = self._without_mask(self._final_observations.observation)
        self._given_reward = np.zeros(self.count)
        self._reward = np.zeros(self.count, np.float32)
        self._terminated, self._truncated, self._valid = (np.zeros(self.count, np.bool_) for _ in range(3))
        self._games_ended = np.zeros(self.games, np.bool_)
        self._elapsed = np.zeros(self.games, np.int64)
        """Steps of the games in progress."""
        self._rows = [
            {agent: game * len(self._ids) + at for at, agent in enumerate(self._ids)} for game in range(self.games)
        ]

    def reset(self, seed: int | None = None) -> ObservationArrays:
        seeds = [None] * self.games if seed is None else self._seeds_of_copies(seed)
        if seed is not None and self._space_seeds.seed(self._seeds_of_copies(seed), copy_seeds(seed, 1)[0]):
            self._state = EnvironmentState(self._environments)  # to which these seeds are no change
        for game in range(self.games):
            self._reset_game(game, seeds[game])
        self._finish_observations(reset=True)
        return self._observation

    def step(self, actions: Array) -> Step:
        self._steps += 1
        self._check_allowed(actions)
        converted = self._to_environment(actions)
        if self._scalar_box:
            converted = [np.asarray(action) for action in converted]  # numpy's numbers are no arrays
        np.logical_not(self.idle, out=self._valid)
        for array in (self._terminated, self._truncated, self._games_ended, self._given_reward):
            array.fill(0)
        for array in self._given_fields.values():
            array.fill(0)
        stats: dict[str, list[float]] = {}
        for game in range(self.games):
            self._step_game(game, converted, stats)
        ended = bool(self._terminated.any() or self._truncated.any())
        self._finish_step(ended)
        return Step(
            self._observation,
            self._reward,
            self._terminated,
            self._truncated,
            self._valid,
            self._final_observation if ended else None,
            stats,
            self._fields,
            self._games_ended,
        )

    def get_state(self) -> dict[str, object]:
        return self._state.capture() | {"idle": self.idle.copy(), "elapsed": self._elapsed.copy()}

    def set_state(self, state: Mapping[str, object]) -> None:
        self._state.restore(state)
        self.idle[...] = cast("Array", state["idle"])
        self._elapsed[...] = cast("Array", state["elapsed"])
        for row in np.flatnonzero(self.idle):
            self._leave(int(row))

    def close(self) -> None:
        close_all([game for game in self._environments if hasattr(game, "close")])  # it may have nothing to close

    def _step_game(self, game: int, converted: Any, stats: dict[str, list[float]]) -> None:
        environment, rows, idle = self._environments[game], self._rows[game], self.idle
        acting = {agent: converted[row] for agent, row in rows.items() if not idle[row]}
        if self._joint is not None:
            acting = {agent: self._joint.action_of(agent, action) for agent, action in acting.items()}
        acted = tuple(acting)  # the game may do with its dict what it likes
        row = -1
        try:
            observed, rewards, terminations, truncations, infos = step_parts(environment.step(acting))
            infos = _of_agents("infos", infos)
            for what, given in (("observations", observed), ("rewards", rewards), ("terminations", terminations)):
                _of_agents(what, given)
            self._elapsed[game] += 1
            over_limit = self._limit is not None and self._elapsed[game] >= self._limit
            left = self._left(game)
            for agent in acted:
                row = rows[agent]
                gain, done, cut = _given(agent, rewards, terminations, _of_agents("truncations", truncations))
                info = _info_of(agent, infos)
                self._given_reward[row] = reward_of(gain, self.warn)
                for name, array in self._given_fields.items():
                    array[row] = self._field(name, looked_up(info, name), info)
                done, cut = flag_of("terminated", done, self.warn), flag_of("truncated", cut, self.warn)
                ends = done or cut
                if not ends and agent not in left:
                    raise WrongReturn(
                        "agents without it, though neither its termination nor its truncation is True; set the one"
                        " that is meant"
                    )
                cut = cut or (over_limit and not done)
                self._terminated[row], self._truncated[row] = done, cut
                self._observations.write(row, self._observation_of(agent, observed))
                if done or cut:
                    accumulate_rollout_stats((info,), stats)
                    self._final_observations.copy_row(row, self._observations)
                    self._leave(row)
                    if ends and agent in left:
                        left[agent] = True
                else:
                    self._read_mask(row, info)
            row = -1
            if over_limit or all(left.values()):
                self._games_ended[game] = True
            else:
                self._come("step", game, left, observed, infos)
        except EnvironmentFailed:
            raise
        except BaseException as error:
            if is_signal(error):
                raise
            raise self._failed("step", game, row, error) from error
        if self._games_ended[game]:
            self._reset_game(game, None)

    def _left(self, game: int) -> dict[Any, bool]:
        """Who is in the game from now on; True will be said of those whose flags say that they are not."""
        agents = list(self._environments[game].agents)
        unknown = [agent for agent in agents if agent not in self._rows[game]]
        if unknown:
            raise WrongReturn(
                f"{unknown} among its agents, which are not among its possible_agents {list(self._ids)}; add them there"
            )
        return dict.fromkeys(agents, False)

    def _come(
        self, what: str, game: int, left: Mapping[Any, bool], observed: Mapping[Any, Any], infos: Mapping[Any, Any]
    ) -> None:
        """Agents that were not in the game are from now on, by a "step" or "reset". Raises WrongReturn where one has
        ended and stays, and EnvironmentFailed naming the agent of which something else is returned."""
        for agent, ended in left.items():
            if ended:
                raise WrongReturn(
                    f"agents with {agent!r} in it, which has just terminated or been truncated while others go on;"
                    " take it out of env.agents in that step (it may come back in a later one)"
                )
            row = self._rows[game][agent]
            if self.idle[row]:
                try:
                    self._observations.write(row, self._observation_of(agent, observed))
                    info = _info_of(agent, infos)
                    if self._mask is None and USUAL_MASK in info:
                        self._hint_at_mask(info[USUAL_MASK])
                    self._read_mask(row, info)
                except WrongReturn as error:
                    raise self._failed(what, game, row, error) from error
                self.idle[row] = False

    def _observation_of(self, agent: Any, observed: Mapping[Any, Any]) -> Any:
        if agent not in observed:
            raise WrongReturn(
                f"no observation of {agent!r}; return one of each agent that has acted, also of its last step, and of"
                " each that is in env.agents"
            )
        return observed[agent] if self._joint is None else self._joint.observation_of(agent, observed[agent])

    def _leave(self, row: int) -> None:
        self.idle[row] = True
        self._observations.write(row, self._blanks[self._ids[row % len(self._ids)]])

    def _reset_game(self, game: int, seed: int | None) -> None:
        environment = self._environments[game]
        try:
            observed, infos = reset_parts(environment.reset(seed=seed))
            _of_agents("observations", observed)
            self._elapsed[game] = 0
            for row in self._rows[game].values():
                self._leave(row)
            left = self._left(game)
            if not left:
                raise WrongReturn("no agents; expected one at least: env.agents says who is in the game")
            self._come("reset", game, left, observed, infos)
        except EnvironmentFailed:
            raise
        except BaseException as error:
            if is_signal(error):
                raise
            raise self._failed("reset", game, -1, error) from error

    def _read_mask(self, row: int, info: Mapping[str, object]) -> None:
        if self._mask is not None and self._key_of_mask is not None:
            self._mask.write(row, looked_up(info, self._key_of_mask), info)

    def _finish_step(self, any_ended: bool) -> None:
        try:
            narrow(self._given_reward, self._reward, "the reward")
            self._finish_fields()
            if any_ended:
                self._final_observations.finish()
        except WrongEntry as error:
            raise self._failed("step", -1, error.place[0], error) from None
        self._finish_observations()

    def _finish_observations(self, reset: bool = False) -> None:
        try:
            self._observations.finish()
            if self._mask is not None:
                self._mask.finish(arrays_of(self._observations.observation), self.idle)
        except WrongEntry as error:
            row = error.place[0]
            reset = reset or bool(self._games_ended[row // len(self._ids)])
            raise self._failed("reset" if reset else "step", -1, row, error) from None

    def _failed(self, what: str, game: int, row: int, error: BaseException) -> EnvironmentFailed:
        who = f"copy {self.first_copy + game}" if row < 0 else self.row_name(row)
        place = f"{what} {self._steps}" if what == "step" else what
        when = f" after step {self._steps}" if what == "reset" and self._steps else ""
        came = f"returned {error}" if isinstance(error, WrongReturn) else f"failed with {described(error)}"
        return EnvironmentFailed(f"environment {self.name!r}: {place} of {who} of {self.copies_of_run}{when} {came}")


def _of_agents(what: str, given: object) -> Mapping[Any, Any]:
    if not isinstance(given, Mapping):
        raise WrongReturn(f"a {type(given).__name__} as the {what}, expected a dict by agent")
    return cast("Mapping[Any, Any]", given)


def _info_of(agent: Any, infos: Mapping[Any, Any]) -> Mapping[str, Any]:
    info = infos.get(agent)
    if info is None:
        return {}
    check_info(info)
    return info


def _given(agent: Any, *of_agents: Mapping[Any, Any]) -> tuple[Any, ...]:
    """What reward, termination and truncation are of an agent that has acted."""
    try:
        return tuple(given[agent] for given in of_agents)
    except KeyError:
        lacking = ("reward", "termination", "truncation")[[agent in given for given in of_agents].index(False)]
        raise WrongReturn(f"no {lacking} of it, though it has acted; return one for each agent that has") from None
