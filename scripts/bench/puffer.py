"""PufferLib's trainer, as a peer on its own CartPole: the unpacked source distribution of its version 3.0.

Its setup downloads what CartPole does not need; so the two files in C and C++ that it does need are compiled here, into
the unpacked folder, by gcc and g++. What the trainer imports for its command and its sweeps has stand-ins. It needs the
package rich.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import sysconfig
import time
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

_COMMON = ["-O2", "-shared", "-fPIC", "-w", "-fwrapv"]


def iteration_seconds(
    folder: Path, environments: int, threads: int, iterations: int, *, warm_up: int, horizon: int = 128
) -> list[float]:
    """Seconds of each of the iterations after the first `warm_up`, with four minibatches and four update epochs, and a
    network of two layers of 64 for each of actor and critic."""
    import gymnasium
    import torch

    compile_in(folder)
    torch.set_num_threads(threads)
    sys.path.insert(0, str(folder))
    os.chdir(folder)  # it makes a link to its resources where it is started
    for name in (
        "pyro",
        "pyro.contrib",
        "pyro.contrib.gp.kernels",
        "pyro.contrib.gp.models",
        "rich_argparse",
        "pygame",
    ):
        sys.modules[name] = MagicMock()
    sys.modules["gym"] = gymnasium
    from pufferlib import pufferl, vector
    from pufferlib.ocean.cartpole.cartpole import Cartpole

    environment = vector.make(Cartpole, env_kwargs={"num_envs": environments}, backend=vector.PufferEnv)
    batch = environments * horizon
    # What its default.ini and cartpole.ini say, but for the sizes, and Adam instead of an optimizer of another package.
    config: dict[str, Any] = {
        "seed": 1,
        "torch_deterministic": True,
        "cpu_offload": False,
        "device": "cpu",
        "optimizer": "adam",
        "anneal_lr": True,
        "precision": "float32",
        "total_timesteps": 1000 * batch,
        "learning_rate": 3e-4,
        "gamma": 0.95,
        "gae_lambda": 0.9,
        "update_epochs": 4,
        "clip_coef": 0.2,
        "vf_coef": 2.0,
        "vf_clip_coef": 0.2,
        "max_grad_norm": 1.5,
        "ent_coef": 0.001,
        "adam_beta1": 0.95,
        "adam_beta2": 0.999,
        "adam_eps": 1e-12,
        "checkpoint_interval": 10**9,
        "batch_size": batch,
        "minibatch_size": batch // 4,
        "max_minibatch_size": batch,
        "bptt_horizon": horizon,
        "compile": False,
        "vtrace_rho_clip": 1.0,
        "vtrace_c_clip": 1.0,
        "prio_alpha": 0.8,
        "prio_beta0": 0.2,
        "use_rnn": False,
        "data_dir": os.devnull,
        "env": "puffer_cartpole",
    }
    with Path(os.devnull).open("w", encoding="utf-8") as nowhere, contextlib.redirect_stdout(nowhere):
        trainer = pufferl.PuffeRL(config, environment, _network())
        starts: list[float] = []
        for _ in range(warm_up + iterations + 1):
            starts.append(time.perf_counter())
            trainer.evaluate()
            trainer.train()
    # It watches the machine in a thread of its own, and has no other way of ending that.
    trainer.utilization.stop()
    return [after - before for before, after in pairwise(starts[warm_up:])]


def compile_in(folder: Path) -> None:
    """Raises CalledProcessError where a compiler does not find what it needs."""
    import numpy as np
    from torch.utils.cpp_extension import include_paths, library_paths

    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    python = ["-I", sysconfig.get_path("include"), "-I", np.get_include()]
    package, raylib = folder / "pufferlib", folder / "raylib-5.5_linux_amd64"
    torch_paths = [word for path in include_paths() for word in ("-I", path)]
    torch_paths += [word for path in library_paths() for word in ("-L", path)]
    cartpole = package / "ocean" / "cartpole"
    raylib_paths = ["-I", raylib / "include", raylib / "lib" / "libraylib.a", "-lm", "-lpthread", "-ldl"]
    commands = {
        package / f"_C{suffix}": [
            "g++",
            "-std=c++20",
            package / "extensions" / "pufferlib.cpp",
            *torch_paths,
            "-lc10",
            "-ltorch_cpu",
        ],
        cartpole / f"binding{suffix}": ["gcc", "-DPLATFORM_DESKTOP", cartpole / "binding.c", *raylib_paths],
    }
    for target, command in commands.items():
        if not target.exists():
            subprocess.run([*map(str, command), *_COMMON, *python, "-o", str(target)], check=True)


def _network() -> Any:
    import torch
    from torch import nn

    def layers(outputs: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, outputs))

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.actor, self.critic = layers(2), layers(1)

        def forward_eval(self, observations: torch.Tensor, state: object = None) -> tuple[torch.Tensor, torch.Tensor]:
            return self.actor(observations), self.critic(observations)

        forward = forward_eval

    return Network()
