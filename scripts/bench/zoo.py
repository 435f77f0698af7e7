"""stable-baselines3's PPO with the settings that its zoo has tuned for an environment (RL Baselines3 Zoo,
hyperparams/ppo.yml, of April 2026), as a contender in learning.py."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

ZOO: dict[str, dict[str, Any]] = {
    "CartPole-v1": {
        "n_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "gae_lambda": 0.8,
        "gamma": 0.98,
        "n_epochs": 20,
        "falling": {"learning_rate": 1e-3, "clip_range": 0.2},
    },
    "Acrobot-v1": {"normalize": True, "n_envs": 16, "n_steps": 256, "gae_lambda": 0.94, "n_epochs": 4},
    "Pendulum-v1": {
        "n_envs": 4,
        "n_steps": 1024,
        "gamma": 0.9,
        "learning_rate": 1e-3,
        "use_sde": True,
        "sde_sample_freq": 4,
    },
    "LunarLander-v3": {
        "n_envs": 16,
        "n_steps": 1024,
        "batch_size": 64,
        "gae_lambda": 0.98,
        "gamma": 0.999,
        "n_epochs": 4,
        "ent_coef": 0.01,
    },
    "MountainCarContinuous-v0": {
        "normalize": True,
        "n_envs": 1,
        "n_steps": 8,
        "batch_size": 256,
        "gamma": 0.9999,
        "learning_rate": 7.77e-5,
        "ent_coef": 0.00429,
        "clip_range": 0.1,
        "gae_lambda": 0.9,
        "max_grad_norm": 5,
        "vf_coef": 0.19,
        "use_sde": True,
        "policy_kwargs": {"log_std_init": -3.29, "ortho_init": False},
    },
    # The zoo's for HalfCheetah-v4.
    "HalfCheetah-v5": {
        "normalize": True,
        "n_envs": 1,
        "n_steps": 512,
        "batch_size": 64,
        "gamma": 0.98,
        "learning_rate": 2.0633e-5,
        "ent_coef": 0.000401762,
        "clip_range": 0.1,
        "n_epochs": 20,
        "gae_lambda": 0.92,
        "max_grad_norm": 0.8,
        "vf_coef": 0.58096,
        "policy_kwargs": {"log_std_init": -2, "ortho_init": False, "net_arch": {"pi": [256, 256], "vf": [256, 256]}},
        "relu": True,
    },
}
"""By environment. What is not named is as stable-baselines3 has it."""

EPISODES = 100
"""That stable-baselines3 remembers."""


def curve(
    environment: str, seed: int, steps: int, *, until: float = math.inf, threads: int = 1
) -> list[tuple[int, float, float | None]]:
    """Train for `steps` agent steps, or until the mean return reaches `until`: steps, seconds of training and mean
    return of the last 100 episodes (None: there were fewer), after every iteration."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import BaseCallback
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize

    torch.set_num_threads(threads)
    settings = dict(ZOO[environment])
    environments: Any = make_vec_env(environment, settings.pop("n_envs"), seed=seed)
    if settings.pop("normalize", False):
        environments = VecNormalize(environments, gamma=settings.get("gamma", 0.99))
    for name, initial in settings.pop("falling", {}).items():
        settings[name] = lambda left, initial=initial: left * initial
    if settings.pop("relu", False):
        settings["policy_kwargs"] = settings["policy_kwargs"] | {"activation_fn": torch.nn.ReLU}
    model = PPO("MlpPolicy", environments, device="cpu", seed=seed, **settings)
    points: list[tuple[int, float, float | None]] = []
    began = time.perf_counter()

    class Watch(BaseCallback):
        def _on_step(self) -> bool:
            return not points or (points[-1][2] or -math.inf) < until

        def _on_rollout_start(self) -> None:
            returns = [episode["r"] for episode in self.model.ep_info_buffer or ()]
            mean = statistics.fmean(returns) if len(returns) == EPISODES else None
            if self.num_timesteps:
                points.append((self.num_timesteps, round(time.perf_counter() - began, 2), mean))

        def _on_training_end(self) -> None:
            self._on_rollout_start()

    model.learn(steps, callback=Watch())
    return points
