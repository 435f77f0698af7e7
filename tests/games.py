"""Games of many agents for tests: with PettingZoo's interface, which needs no base class; and some of its own."""

from __future__ import annotations

import functools
import warnings
from typing import Any, ClassVar

import numpy as np
from gymnasium import spaces

SEEN, CHOSEN = spaces.Box(-1.0, 1.0, (3,), np.float32), spaces.Discrete(2)


class Matching:
    """All agents see one bit and are paid, together, the share of them that name it. 8 steps."""

    metadata: ClassVar[dict[str, Any]] = {"name": "matching", "render_fps": 10}
    render_mode = "rgb_array"

    def __init__(self, agents: tuple[str, ...] = ("left_0", "right_0", "right_1"), **_: Any) -> None:
        self.possible_agents = list(agents)
        self.agents: list[str] = []
        self.generator = np.random.default_rng()
        self.bit, self.steps = 0, 0

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return SEEN

    def action_space(self, agent: str) -> spaces.Space[Any]:
        return CHOSEN

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.generator = np.random.default_rng(seed)
        self.agents, self.steps = list(self.possible_agents), 0
        return self.seen(), {agent: {} for agent in self.agents}

    def seen(self) -> dict[str, Any]:
        self.bit = int(self.generator.integers(2))
        observed = np.array([self.bit, 1 - self.bit, self.steps / 8], np.float32)
        return {agent: observed.copy() for agent in self.agents}

    def step(self, actions: dict[str, Any]) -> Any:
        assert sorted(actions) == sorted(self.agents)
        self.steps += 1
        share = float(np.mean([int(action) == self.bit for action in actions.values()]))
        over = self.steps == 8
        acted, observed = list(self.agents), self.seen()
        if over:
            self.agents = []
        return (
            observed,
            dict.fromkeys(acted, share),
            dict.fromkeys(acted, over),
            dict.fromkeys(acted, False),
            {agent: {"share": share} for agent in acted},
        )

    def render(self) -> Any:
        return np.full((32, 32, 3), 20 * self.steps, np.uint8)

    def close(self) -> None:
        pass


class Dying(Matching):
    """`a_0` terminates in step 2, `a_1` is truncated in step 3, `b_0` comes in step 2 and is truncated in step 5, when
    the game ends; `a_0` comes back in step 4. Everyone observes who it is and the step, and is paid 1 a step."""

    def __init__(self, fault: str = "", at: int = 2, masked: bool = False, **_: Any) -> None:
        super().__init__(("a_0", "a_1", "b_0"))
        self.fault, self.at, self.masked = fault, at, masked

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        self.agents, self.steps = ["a_0", "a_1"], 0
        return self.seen(), {agent: self.info(agent) for agent in self.agents}

    def seen(self) -> dict[str, Any]:
        return {agent: self.one(agent) for agent in self.agents}

    def one(self, agent: str) -> Any:
        return np.array([self.possible_agents.index(agent) / 4 + 0.25, self.steps / 8, 0.5], np.float32)

    def info(self, agent: str) -> dict[str, Any]:
        return {"lived": float(self.steps), "action_mask": np.array([1, self.possible_agents.index(agent) % 2])}

    def step(self, actions: dict[str, Any]) -> Any:
        assert sorted(actions) == sorted(self.agents)
        if self.masked:
            assert actions.get("a_0", 0) == actions.get("b_0", 0) == 0
        self.steps += 1
        acted, fault = list(self.agents), self.fault if self.steps == self.at else ""
        terminated = {agent: agent == "a_0" and self.steps == 2 for agent in acted}
        truncated = {agent: (agent == "a_1" and self.steps == 3) or self.steps == 5 for agent in acted}
        observed = {agent: self.one(agent) for agent in acted}
        self.agents = [agent for agent in acted if not terminated[agent] and not truncated[agent]]
        if self.steps in (2, 4):
            comes = "b_0" if self.steps == 2 else "a_0"
            self.agents.append(comes)
            observed[comes] = self.one(comes)
        rewards = dict.fromkeys(acted, 1.0)
        infos = {agent: self.info(agent) for agent in {*acted, *self.agents}}
        if fault == "vanishes":
            self.agents.remove("a_1")
        elif fault == "stays":
            self.agents.append("a_0")
        elif fault == "stranger":
            self.agents.append("c_0")
        elif fault == "unseen":
            del observed["b_0"]
        elif fault == "unpaid":
            del rewards["a_1"]
        elif fault == "nan":
            observed["a_1"] = np.full(3, np.nan, np.float32)
        elif fault == "raises":
            raise OSError("the simulator is gone")
        elif fault == "infos":
            infos["a_1"] = [1.0]  # type: ignore[assignment]
        elif fault == "shape":
            observed["a_1"] = np.zeros(4, np.float32)
        return observed, rewards, terminated, truncated, infos


class Remembering(Matching):
    """Remembers its spaces as PettingZoo's games do, and draws from one of them."""

    @functools.lru_cache(maxsize=None)  # noqa: B019, UP033
    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-1.0, 1.0, (3,), np.float32)

    @functools.lru_cache(maxsize=None)  # noqa: B019, UP033
    def action_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Discrete(2)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        if seed is not None:
            self.action_space(self.possible_agents[0]).seed(seed)
        return super().reset(seed, options)

    def seen(self) -> dict[str, Any]:
        drawn = self.action_space(self.possible_agents[0]).sample()
        return {agent: np.append(seen[:2], np.float32(drawn)) for agent, seen in super().seen().items()}


class Unequal(Matching):
    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return spaces.Box(-1.0, 1.0, (3 if agent == self.possible_agents[0] else 4,), np.float32)


class TakesTurns(Matching):
    def agent_iter(self) -> None: ...


class Nobody(Matching):
    possible_agents = None  # type: ignore[assignment]

    def __init__(self) -> None:
        pass


class Named(Matching):
    """Says in some way or other who may take part."""

    def __init__(self, form: str = "array") -> None:
        names = ("a_0", "a_1", "a_0") if form == "twice" else ("a_0", "a_1")
        super().__init__(names)
        self.possible_agents: Any = {"array": np.array, "set": set, "twice": list}[form](names)


class Doubled:
    """Doubles all rewards."""

    def __init__(self, env: Any) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        if name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def reset(self, seed: int | None = None, options: Any = None) -> Any:
        return self.env.reset(seed=seed, options=options)

    def step(self, actions: dict[str, Any]) -> Any:
        observed, rewards, *rest = self.env.step(actions)
        return observed, {agent: 2 * reward for agent, reward in rewards.items()}, *rest


class Emptying(Matching):
    """Takes the actions out of the dict that it is given, and returns dicts that it keeps."""

    def step(self, actions: dict[str, Any]) -> Any:
        taken = {agent: actions.pop(agent) for agent in list(actions)}
        parts = super().step(taken)
        self.kept: tuple[dict[str, Any], ...] = getattr(self, "kept", tuple({} for _ in parts))
        for kept, part in zip(self.kept, parts, strict=True):
            kept.clear()
            kept.update(part)
        return self.kept


def spread(**options: Any) -> Any:
    """Cooperative: agents cover landmarks."""
    from mpe2 import simple_spread_v3

    return simple_spread_v3.parallel_env(**options)


def rock_paper_scissors(**options: Any) -> Any:
    """Competitive."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        from pettingzoo.classic.rps.rps import parallel_env
    return parallel_env(**options)


def knights_archers_zombies(**options: Any) -> Any:
    """Agents die when zombies reach them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pettingzoo.butterfly.knights_archers_zombies.knights_archers_zombies import parallel_env
    return parallel_env(**options)


def battle(**options: Any) -> Any:
    """Two armies."""
    from magent2.environments import battle_v4

    return battle_v4.parallel_env(map_size=12, max_cycles=40, **options)


def number(env: Any) -> int:
    return 0


class HideAndSeek(Matching):
    """The seeker sees a bit in three numbers, and is paid for naming it among two; the hiders see one of three signs,
    the first hider for one step less than the game has. They are paid for naming it among three. 8 steps."""

    numbers = False

    def __init__(self, numbers: bool = False, mixed: bool = False, **_: Any) -> None:
        super().__init__(("seeker_0", "hider_0", "hider_1"))
        self.numbers, self.mixed, self.sign = numbers, mixed, 0

    def observation_space(self, agent: str) -> spaces.Space[Any]:
        return SEEN if agent == "seeker_0" else spaces.Dict({"sign": spaces.Box(-1.0, 1.0, (4,), np.float32)})

    def action_space(self, agent: str) -> spaces.Space[Any]:
        sizes = (1, 2) if agent == "seeker_0" else (2, 3)
        if self.numbers or (self.mixed and agent == "seeker_0"):
            return spaces.Box(-1.0, 1.0, sizes[:1], np.float32)
        return spaces.Discrete(sizes[1])

    def seen(self) -> dict[str, Any]:
        whole = super().seen()
        self.sign = int(self.generator.integers(3))
        signs = np.append(np.eye(3, dtype=np.float32)[self.sign], np.float32(self.steps / 8))
        return {agent: seen if agent == "seeker_0" else {"sign": signs.copy()} for agent, seen in whole.items()}

    def step(self, actions: dict[str, Any]) -> Any:
        assert sorted(actions) == sorted(self.agents)
        assert all(self.action_space(agent).contains(action) for agent, action in actions.items()), actions
        wanted = {agent: self.bit if agent == "seeker_0" else self.sign for agent in actions}
        self.steps += 1
        acted, over = list(self.agents), self.steps == 8
        if self.numbers:
            rewards = {agent: 1.0 - abs(float(action[-1]) - wanted[agent] / 2) for agent, action in actions.items()}
        else:
            rewards = {agent: float(int(action) == wanted[agent]) for agent, action in actions.items()}
        observed = self.seen()
        ends = {agent: over or (agent == "hider_0" and self.steps == 7) for agent in acted}
        self.agents = [agent for agent in acted if not ends[agent]]
        return observed, rewards, ends, dict.fromkeys(acted, False), {agent: {} for agent in acted}


class Pennies(Matching):
    """Of two agents, each of a type of its own, one is paid what the other loses: `even_0` where both choose the same.
    8 steps. Where they `share`, the other is paid as much. `even_0` has a `wage` besides."""

    def __init__(self, share: bool = False, wage: float = 0.0, **_: Any) -> None:
        super().__init__(("even_0", "odd_0"))
        self.share = share
        self.wage = wage

    def step(self, actions: dict[str, Any]) -> Any:
        observed, _, *rest = super().step(actions)
        gain = 1.0 if actions["even_0"] == actions["odd_0"] else -1.0
        if self.share:  # by chance, whatever they do
            gain = float(self.generator.choice((-1.0, 1.0)))
        return observed, {"even_0": gain + self.wage, "odd_0": gain if self.share else -gain}, *rest


class Respawning(Matching):
    """Agents are paid 1 a step whatever they do. One dies now and then, and comes back in the next step with the pay
    that it has missed. 16 steps."""

    def __init__(self, **_: Any) -> None:
        super().__init__(("soldier_0", "soldier_1"))
        self.missed: dict[str, float] = {}

    def step(self, actions: dict[str, Any]) -> Any:
        acted, self.steps = list(self.agents), self.steps + 1
        over = self.steps == 16
        rewards = {agent: 1.0 + self.missed.pop(agent, 0.0) for agent in acted}
        dying = len(acted) == 2 and self.steps < 15 and self.generator.random() < 0.2
        dead = {agent: over or (dying and agent == acted[0]) for agent in acted}
        back = [agent for agent in self.possible_agents if agent not in acted]
        self.missed = dict.fromkeys(back, 1.0)
        self.agents = [] if over else [agent for agent in acted if not dead[agent]] + back
        observed = {agent: np.full(3, self.steps / 16, np.float32) for agent in {*acted, *back}}
        return observed, rewards, dead, dict.fromkeys(acted, False), {}


class Spoiled(Matching):
    """`spoiled_0` is paid for choosing 1, less what it has been used to: it always wants to, and is never better off.
    Three of the type `still` are paid nothing. 8 steps."""

    def __init__(self, **_: Any) -> None:
        super().__init__(("spoiled_0", "still_0", "still_1", "still_2"))
        self.used_to = 0.5

    def step(self, actions: dict[str, Any]) -> Any:
        observed, rewards, *rest = super().step(actions)
        pay = float(actions["spoiled_0"]) - self.used_to
        self.used_to += pay / 16
        return observed, dict.fromkeys(rewards, 0.0) | {"spoiled_0": pay}, *rest


def tag(**options: Any) -> Any:
    from mpe2 import simple_tag_v3

    return simple_tag_v3.parallel_env(**options)
