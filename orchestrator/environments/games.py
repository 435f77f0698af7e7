"""What a game of many agents is, and what its agents observe and do."""

from __future__ import annotations

import importlib
from collections.abc import Sequence, Set
from typing import Any, Protocol, cast

import gymnasium

from orchestrator.config.paths import PATH
from orchestrator.environments.agents import agent_type
from orchestrator.environments.spaces import InvalidEnvironment, Space
from state.user_code import user_code


class Game(Protocol):
    """What is used of a ParallelEnv."""

    agents: list[Any]
    possible_agents: list[Any]

    def observation_space(self, agent: Any) -> object: ...
    def action_space(self, agent: Any) -> object: ...
    def reset(self, seed: int | None = None) -> object: ...
    def step(self, actions: dict[Any, Any]) -> object: ...
    def close(self) -> None: ...


def is_of_agents(made: object) -> bool:
    """Whether a function has returned an environment of PettingZoo's, or one with its interface."""
    if isinstance(made, (type, gymnasium.Env)):
        return False
    return callable(getattr(made, "action_space", None)) and callable(getattr(made, "observation_space", None))


def as_game(environment: str, made: Any) -> Game:
    """What a function has returned as a game in which all agents act at the same time.

    Raises InvalidEnvironment for one in which they take turns, and for one that does not say who may take part.
    """
    if hasattr(made, "agent_iter"):
        if not getattr(made, "metadata", {}).get("is_parallelizable", False):
            raise InvalidEnvironment(
                f"environment {environment!r} returned an AECEnv whose agents take turns (its metadata has no"
                " 'is_parallelizable': True); expected a ParallelEnv, in which all act at the same time: return"
                " pettingzoo.utils.turn_based_aec_to_parallel(env), in which actions out of turn count for nothing, or"
                " set that entry where each agent acts once before anything changes"
            )
        made = importlib.import_module("pettingzoo.utils.conversions").aec_to_parallel(made)
    agents = getattr(made, "possible_agents", None)
    names: list[Any] = [] if agents is None else list(agents)
    kind = type(made).__name__
    if not names:
        raise InvalidEnvironment(
            f"environment {environment!r} returned a {kind} without possible_agents; expected the names of all agents"
            " that may ever take part, each of which is a row of the experience: assign them in its constructor"
        )
    if isinstance(agents, Set) or len(set(names)) < len(names):
        wrong = "with an order that is another in each process" if isinstance(agents, Set) else "with a name twice"
        raise InvalidEnvironment(
            f"environment {environment!r} returned a {kind} whose possible_agents are {agents!r}, {wrong}; expected a"
            " list of different names"
        )
    return made


def shared_spaces(name: str, games: Sequence[Game]) -> tuple[Space, Space]:
    """Those of every agent of every game. Raises InvalidEnvironment where they differ."""
    of_agents = spaces_of_agents(name, games)
    first_agent, first = next(iter(of_agents.items()))
    for agent, spaces in of_agents.items():
        if spaces != first:
            kinds = list(dict.fromkeys(agent_type(str(one)) for one in of_agents))
            cure = "pad them, as by a function in environment_wrappers that calls supersuit's pad_observations_v0 and"
            cure += " pad_action_space_v0"
            if agent_type(str(agent)) != agent_type(str(first_agent)):
                cure += f", or give the types a policy each in {PATH.policy.by_type}: {', '.join(kinds)}"
            raise InvalidEnvironment(
                f"environment {name!r}: agent {agent!r} has the spaces {spaces[0]} and {spaces[1]}, agent"
                f" {first_agent!r} has {first[0]} and {first[1]}; all agents share one policy, and so must have the"
                f" same: {cure}"
            )
    return first


def spaces_of_agents(name: str, games: Sequence[Game]) -> dict[Any, tuple[Space, Space]]:
    """What each agent observes and does, in every game. Raises InvalidEnvironment where that differs."""
    found: dict[Any, tuple[Space, Space]] = {}
    ids = list(games[0].possible_agents)
    for copy, game in enumerate(games):
        if list(game.possible_agents) != ids:
            raise InvalidEnvironment(
                f"environment {name!r}: copy {copy} has the possible_agents {list(game.possible_agents)}, copy 0 has"
                f" {ids}; all copies must have the same: let them depend on the options alone"
            )
        for agent in ids:
            with user_code(f"spaces of agent {agent!r} of environment {name!r}"):
                spaces = game.observation_space(agent), game.action_space(agent)
            for what, space in zip(("observation_space", "action_space"), spaces, strict=True):
                if not isinstance(space, gymnasium.Space):
                    raise InvalidEnvironment(
                        f"environment {name!r}: its {what}({agent!r}) is {space!r}; expected a space of"
                        " gymnasium.spaces"
                    )
            spaces = cast("tuple[Space, Space]", spaces)
            first = found.setdefault(agent, spaces)
            if spaces != first:
                raise InvalidEnvironment(
                    f"environment {name!r}: agent {agent!r} has the spaces {spaces[0]} and {spaces[1]} in copy {copy},"
                    f" but {first[0]} and {first[1]} in copy 0; all copies must have the same: let them depend on the"
                    " options alone"
                )
    return found
