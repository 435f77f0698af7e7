"""Environments, networks and losses that change what they are given and reuse what they return, or do neither: then all
else is the same. Named "tests.orchestrator.careless:<function>"."""

from __future__ import annotations

from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from torch import Tensor, nn

from losses import Loss, Minibatch, PolicyEvaluation
from orchestrator.policies import Spaces
from state import FieldSpec

ACTIONS: dict[str, gymnasium.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "multidiscrete": spaces.MultiDiscrete([3, 3]),
    "box": spaces.Box(-np.inf, np.inf, (2,), np.float32),
    "bounded": spaces.Box(-1.0, 1.0, (2,), np.float32),
    "doubles": spaces.Box(-np.inf, np.inf, (2,), np.float64),
}
OBSERVATIONS: dict[str, gymnasium.Space[Any]] = {
    "vector": spaces.Box(-10, 10, (3,), np.float32),
    "dict": spaces.Dict({"a": spaces.Box(-10, 10, (2,), np.float32), "b": spaces.Box(-10, 10, (1,), np.float32)}),
}
_SHARED_INFO: dict[str, Any] = {}
"""Of all careless copies in a process."""


class Careless(gymnasium.Env[Any, Any]):
    """Episodes of 7 to 9 steps, by turns terminated and truncated; the info counts, per episode and per step."""

    def __init__(self, careless: bool, action: str = "box", observation: str = "vector", options: Any = None) -> None:
        self.action_space, self.observation_space = ACTIONS[action], OBSERVATIONS[observation]
        self._careless, self._episode, self._steps = careless, 0, 0
        self._numbers = np.zeros(3, np.float32)
        self._info: dict[str, Any] = _SHARED_INFO if careless else {}
        if options is not None:
            assert options == {"levels": [1, 2]}, "another copy has changed them"
            if careless:
                options["levels"].append(3)
                del options["levels"][0]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._episode, self._steps = self._episode + 1, 0
        return self._observe(np.zeros(1)), self._tell(-1.0)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        meant = np.array(action, np.float64)
        if self._careless and isinstance(action, np.ndarray):
            action *= 100
        self._steps += 1
        ended = self._steps == 7 + self._episode % 3
        reward = float(np.tanh(meant).sum())
        observation = self._observe(meant)
        return (
            observation,
            reward,
            ended and self._episode % 2 == 0,
            ended and self._episode % 2 == 1,
            self._tell(reward),
        )

    def _observe(self, action: Any) -> Any:
        if not self._careless:
            self._numbers = np.zeros(3, np.float32)
        self._numbers[:] = np.tanh(action.sum()), self._steps / 10, self.np_random.normal()
        if isinstance(self.observation_space, spaces.Box):
            return self._numbers
        return {"a": self._numbers[:2], "b": self._numbers[2:]}

    def _tell(self, hint: float) -> dict[str, Any]:
        if not self._careless:
            self._info = {}
        self._info["score"] = self._episode * 100 + self._steps
        self._info.setdefault("more", {})["hint"] = np.float32(hint)
        return self._info


class CarelessVector(VectorEnv[Any, Any, Any]):
    """Counts; careless, every array that it returns is one that it writes to later."""

    def __init__(self, num_envs: int, mode: AutoresetMode, careless: bool) -> None:
        self.num_envs, self._careless = num_envs, careless
        self.metadata = {"autoreset_mode": mode}
        self.single_action_space, self.single_observation_space = ACTIONS["box"], OBSERVATIONS["vector"]
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self._same = mode is AutoresetMode.SAME_STEP
        self._ended = np.zeros(num_envs, np.bool_)
        self._steps = np.arange(num_envs)
        self._kept: dict[str, Any] = {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._steps = np.arange(self.num_envs)
        self._ended = np.zeros(self.num_envs, np.bool_)
        return self._keep("observation", np.zeros((self.num_envs, 3), np.float32)), {}

    def step(self, actions: Any) -> Any:
        meant = np.array(actions)
        if self._careless:
            actions *= 100
            for array in self._kept.values():  # what was returned in the last step
                array.fill(1)
        resetting = np.zeros_like(self._ended) if self._same else self._ended
        self._steps = np.where(resetting, 0, self._steps + 1)
        ended = self._steps >= 9
        observation = np.stack((np.tanh(meant.sum(1)), self._steps / 10, meant[:, 0] % 1), 1).astype(np.float32)
        reward = np.where(resetting, 0.0, np.tanh(meant).sum(1)).astype(np.float32)
        numbers = {"score": self._keep("score", self._steps * 1.0), "hint": self._keep("hint", reward.copy())}
        infos: dict[str, Any] = {**numbers}
        if self._same and ended.any():
            infos |= {"final_obs": self._keep("final", observation.copy()), "final_info": numbers}
            infos["hint"], infos["score"] = np.full(self.num_envs, -1.0), np.full(self.num_envs, -1.0)
            infos["hint"][~ended], infos["score"][~ended] = numbers["hint"][~ended], numbers["score"][~ended]
            observation[ended], self._steps = 0.0, np.where(ended, 0, self._steps)
        self._ended = ended
        return (
            self._keep("observation", observation),
            self._keep("reward", reward),
            self._keep("terminated", ended & (np.arange(self.num_envs) % 2 == 0)),
            self._keep("truncated", ended & (np.arange(self.num_envs) % 2 == 1)),
            infos,
        )

    def _keep(self, name: str, values: Any) -> Any:
        if not self._careless:
            return values
        kept = self._kept.setdefault(name, np.empty_like(values))
        kept[...] = values
        return kept


def make_careless(**options: Any) -> Careless:
    return Careless(**options)


def _vector(mode: AutoresetMode) -> Any:
    return lambda num_envs, careless: CarelessVector(num_envs, mode, careless)


for _mode in AutoresetMode:
    gymnasium.register(f"Careless/{_mode.value}-v0", make_careless, vector_entry_point=_vector(_mode))


class CarelessNetwork(nn.Module):
    """Without memory; `shared` has no other way to values than `forward`."""

    def __init__(self, spaces: Spaces, careless: bool) -> None:
        super().__init__()
        self.layer, self._careless = nn.Linear(3, spaces.action_parameters + 1), careless

    def forward(self, observation: Any) -> tuple[Tensor, Tensor]:
        parts = list(observation.values()) if isinstance(observation, dict) else [observation]
        scaled = [part.mul_(0.5) if self._careless else part * 0.5 for part in parts]
        output = self.layer(torch.cat(scaled, 1))
        return output[:, :-1], output[:, -1]


class CarelessSeparate(CarelessNetwork):
    def action_parameters(self, observation: Any) -> Tensor:
        return self.forward(observation)[0]

    def value(self, observation: Any) -> Tensor:
        return self.forward(observation)[1]


class CarelessMemory(nn.Module):
    """Careless, it also returns the same tensor as its state each time."""

    state_size = 2

    def __init__(self, spaces: Spaces, careless: bool) -> None:
        super().__init__()
        self.layer, self._careless = nn.Linear(5, spaces.action_parameters + 3), careless
        self._kept: dict[int, Tensor] = {}

    def forward(self, observation: Tensor, state: Tensor, episode_start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        outputs: list[Tensor] = []
        scaled = observation.mul_(0.5) if self._careless else observation * 0.5
        for step in range(scaled.shape[1]):
            keep = ~episode_start[:, step, None]
            state = state.mul_(keep) if self._careless and not state.requires_grad else state * keep
            output = self.layer(torch.cat((scaled[:, step], state), 1))
            state = torch.tanh(output[:, :2])
            outputs.append(output[:, 2:])
        result = torch.stack(outputs, 1)
        if self._careless:
            episode_start.fill_(True)
            if not torch.is_grad_enabled():
                state = self._kept.setdefault(len(state), torch.zeros_like(state)).copy_(state)
        return result[..., :-1], result[..., -1], state


def shared(spaces: Spaces) -> nn.Module:
    return CarelessNetwork(spaces, False)


def shared_careless(spaces: Spaces) -> nn.Module:
    return CarelessNetwork(spaces, True)


def separate(spaces: Spaces) -> nn.Module:
    return CarelessSeparate(spaces, False)


def separate_careless(spaces: Spaces) -> nn.Module:
    return CarelessSeparate(spaces, True)


def memory(spaces: Spaces) -> nn.Module:
    return CarelessMemory(spaces, False)


def memory_careless(spaces: Spaces) -> nn.Module:
    return CarelessMemory(spaces, True)


class Asking(Loss):
    """Learns nothing, and asks for a field of the infos."""

    def __init__(self, field: str, dtype: str = "float32") -> None:
        super().__init__()
        self._field = FieldSpec(field, (), dtype)

    def experience_fields(self) -> list[FieldSpec]:
        return [self._field]

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        return evaluation.value.sum() * 0.0


class Overwriting(Loss):
    """Learns nothing, and overwrites its minibatch, unless it is `careful`."""

    def __init__(self, careful: bool) -> None:
        super().__init__()
        self._careful = careful

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        for name in ("advantage", "return", "log_prob", "value", "action", "observation"):
            tensor = minibatch[name].clone() if self._careful else minibatch[name]
            tensor.zero_()
            tensor.numpy()[...] = 1
        for tensor in (minibatch.valid, minibatch.weight):
            if tensor is not None and not self._careful:
                tensor.zero_()
        return evaluation.value.sum() * 0.0


class OverwritingEvaluation(Loss):
    """Changes what the policy gave, which the losses after it are given too."""

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        return minibatch.mean(evaluation.value.add_(1.0))


class Curious(gymnasium.Env[Any, Any]):
    """Trains a model of its own while it is stepped and reset, as environments with learned rewards do."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self._model = torch.nn.Linear(2, 1)
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._steps += 1
        return self._observe(), 1.0, self._steps % 5 == 0, False, {}

    def _observe(self) -> Any:
        observation = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        self._model.zero_grad()
        self._model(torch.from_numpy(observation)).square().sum().backward()
        assert self._model.weight.grad is not None
        return observation


def make_curious() -> gymnasium.Env[Any, Any]:
    return Curious()
