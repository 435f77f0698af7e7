"""LeanRL's PPO, as a peer: the script `leanrl/ppo_atari_envpool_torchcompile.py` of a checkout of
github.com/meta-pytorch/LeanRL.

It runs as it is, without torch.compile, which gains nothing on a CPU, on our environments instead of envpool's, and
with the two changes that newer versions of torch and tensordict ask for. For observations that are no images, it gets
another network. It needs the package tensordict.
"""

from __future__ import annotations

import re
import sys
import time
import types
from importlib.machinery import ModuleSpec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator


def iteration_seconds(
    script: Path,
    environment: str,
    environments: int,
    threads: int,
    iterations: int,
    *,
    warm_up: int,
    horizon: int = 128,
    learning_rate: float = 2.5e-4,
    network: type | None = None,
) -> list[float]:
    """Seconds of each of the iterations after the first `warm_up`, with four minibatches and four update epochs.

    `network` takes the place of the script's convolutions. What the script imports beside torch has stand-ins.
    """
    import gymnasium
    import torch

    torch.set_num_threads(threads)
    starts: list[float] = []

    class Progress:
        """In place of tqdm: the loop that the script iterates over."""

        def __init__(self, iterations: range) -> None:
            self._iterations = iterations

        def __iter__(self) -> Iterator[int]:
            for iteration in self._iterations:
                starts.append(time.perf_counter())
                yield iteration

        def set_description(self, text: str) -> None: ...

    sys.modules["envpool"] = _module("envpool", make=lambda *_, num_envs, **__: _EnvpoolLike(environment, num_envs))
    sys.modules["gym"] = _module("gym", Wrapper=_GymWrapper, spaces=gymnasium.spaces)
    sys.modules["tqdm"] = _module("tqdm", tqdm=Progress)
    sys.modules["wandb"] = _module("wandb", init=lambda **_: None, log=lambda *_, **__: None)
    options = {
        "num-envs": environments,
        "num-steps": horizon,
        "total-timesteps": environments * horizon * (warm_up + iterations + 1),
        "num-minibatches": 4,
        "update-epochs": 4,
        "learning-rate": learning_rate,
    }
    sys.argv = [str(script), *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
    source = script.read_text(encoding="utf-8")
    source = re.sub(r"^Categorical\.(logits|probs) = .*$", "", source, flags=re.MULTILINE)
    source = re.sub(r"= (agent_inference\.get_\w+)$", r"= torch.no_grad()(\1)", source, flags=re.MULTILINE)
    if network is not None:
        source = source.replace("dtype=torch.uint8", "dtype=torch.float32")
        source = source.replace('if __name__ == "__main__":', 'Agent = Network\nif __name__ == "__main__":')
    exec(compile(source, str(script), "exec"), {"__name__": "__main__", "__file__": str(script), "Network": network})
    return [after - before for before, after in pairwise(starts[warm_up:])]


def mlp() -> type:
    """A network for few numbers and few actions: an actor and a critic of two layers of 64 each, as stable-baselines3
    has."""
    import torch
    from torch import nn

    def layers(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(inputs, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))

    class Network(nn.Module):
        def __init__(self, envs: Any, device: Any = None) -> None:
            super().__init__()
            (inputs,) = envs.single_observation_space.shape
            self.actor = layers(inputs, int(envs.single_action_space.n)).to(device)
            self.critic = layers(inputs, 1).to(device)

        def get_value(self, x: Any) -> Any:
            return self.critic(x)

        def get_action_and_value(self, obs: Any, action: Any = None) -> Any:
            chosen = torch.distributions.Categorical(logits=self.actor(obs), validate_args=False)
            if action is None:
                action = chosen.sample()
            return action, chosen.log_prob(action), chosen.entropy(), self.critic(obs)

    return Network


class _EnvpoolLike:
    """Our environments one after another, with the interface of envpool's that LeanRL uses."""

    def __init__(self, environment: str, count: int) -> None:
        from orchestrator.environments import Adaptation, make_vector
        from orchestrator.workers.cores import available_cores

        self._environments = make_vector(environment, count, adaptation=Adaptation(threads=available_cores()))
        self.action_space = self._environments.action_space
        self.observation_space = self._environments.observation_space

    def reset(self) -> Any:
        return self._own(self._environments.reset(1))

    def step(self, actions: Any) -> tuple[Any, Any, Any, dict[str, Any]]:
        import numpy as np

        step = self._environments.step(actions)
        ended = step.terminated | step.truncated
        infos = {"reward": step.reward, "terminated": ended, "lives": np.zeros(len(ended), np.int32)}
        return self._own(step.observation), step.reward.copy(), ended, infos

    def close(self) -> None:
        self._environments.close()

    def _own(self, observation: Any) -> Any:
        """A copy, with an image's channels first."""
        channels_last = observation.ndim == 4 and observation.shape[1] > observation.shape[3]
        return (observation.transpose(0, 3, 1, 2) if channels_last else observation).copy()


class _GymWrapper:
    def __init__(self, env: Any) -> None:
        self.env = env

    def __getattr__(self, name: str) -> Any:
        return getattr(self.env, name)

    def reset(self, **options: Any) -> Any:
        return self.env.reset(**options)

    def step(self, action: Any) -> Any:
        return self.env.step(action)


def _module(name: str, **contents: Any) -> types.ModuleType:
    module = types.ModuleType(name)
    module.__spec__ = ModuleSpec(name, None)  # torch asks whether tqdm could be imported
    vars(module).update(contents)
    return module
