"""What a network, or a loss, makes of the policy's parameters and buffers while the run goes on is learned, published
and saved, or refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import anyio
import gymnasium
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from losses import GradientReporter, Loss, Minibatch, PolicyEvaluation
from orchestrator import (
    CheckpointsConfig,
    EvaluationConfig,
    EvaluationTask,
    Hook,
    LearningConfig,
    LossesConfig,
    PolicyConfig,
    Trainer,
    TrainerConfig,
)
from orchestrator.policies import NetworkError, Spaces
from state import TrainerState
from state.module_tensors import named_tensors
from state.parameter_arena import TensorsChanged
from tests.orchestrator.training import losses_with, small_config

pytestmark = pytest.mark.slow

HERE = "tests.orchestrator.test_changing_tensors"


class Plain(nn.Module):
    """Four numbers to two choices and a value."""

    def __init__(self, spaces: Spaces | None = None) -> None:
        super().__init__()
        self.body = nn.Linear(4, 6)
        self.actor = nn.Linear(6, 2)
        self.critic = nn.Linear(6, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = torch.tanh(self.body(self.before(x)))
        return self.actor(hidden), self.critic(hidden).squeeze(-1)

    def before(self, x: Tensor) -> Tensor:
        return x


class Rebound(Plain):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("started", torch.zeros(2, dtype=torch.bool))
        self.register_buffer("sixteen", torch.zeros(3, dtype=torch.float16))

    def before(self, x: Tensor) -> Tensor:
        if self.training:
            self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
            self.steps = self.steps + 1
            self.started = self.started | True
            self.sixteen = self.sixteen + 1
        return x - self.mean


class ReboundWhileActing(Rebound):
    """Also the buffers of a copy that acts."""

    def before(self, x: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0).detach()
        self.sixteen.add_(1)
        return x - self.mean


class Normalised(Plain):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)

    def before(self, x: Tensor) -> Tensor:
        return self.norm(x)


class Parametrised(Plain):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.body = nn.utils.parametrizations.spectral_norm(nn.Linear(4, 6))
        self.critic = nn.utils.parametrizations.weight_norm(nn.Linear(6, 1))


class OldNorms(Plain):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.body = nn.utils.spectral_norm(nn.Linear(4, 6))


class Tied(Plain):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def before(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


class Lazy(Plain):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.body = nn.LazyLinear(6)  # type: ignore[assignment]
        self.norm = nn.LazyBatchNorm1d()

    def before(self, x: Tensor) -> Tensor:
        return self.norm(x)


def make(kind: str) -> Callable[[Spaces], nn.Module]:
    return lambda spaces: KINDS[kind](spaces)


KINDS: dict[str, Callable[[Spaces], nn.Module]] = {
    "plain": Plain,
    "rebound": Rebound,
    "rebound while acting": ReboundWhileActing,
    "batch norm": Normalised,
    "parametrised": Parametrised,
    "old norms": OldNorms,
    "tied": Tied,
    "lazy": Lazy,
}
for _kind in KINDS:
    globals()[f"make_{_kind.replace(' ', '_')}"] = make(_kind)


class Acts(Loss):
    """Does something to the policy at an event, and finds at the end of each epoch that all of it is published."""

    def __init__(self, action: str = "nothing") -> None:
        super().__init__()
        self.action = action
        self.epoch = -1

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        return evaluation.value.sum() * 0.0

    def on_new_training_run(self, state: TrainerState) -> None:
        self._act("start")

    def on_rollout_end(self, state: TrainerState) -> None:
        self.epoch = state.epoch
        self._act("rollout")

    def on_mb_end(self, state: TrainerState) -> None:
        self._act("minibatch")

    def on_epoch_end(self, state: TrainerState) -> None:
        assert state.policy is not None
        own = named_tensors(self.context.policy)
        assert own.keys() == state.policy.tensors.keys()
        for name, array in state.policy.tensors.items():
            np.testing.assert_array_equal(own[name].detach().numpy(), array, err_msg=name)
        self._act("end")

    def _act(self, when: str) -> None:
        network: Any = self.context.policy.network
        with torch.no_grad():
            match self.action, when:
                case "rebind data", "minibatch":
                    network.actor.weight.data = network.actor.weight.data.clamp(-0.3, 0.3)
                case "replace parameter", "rollout":
                    network.actor.weight = nn.Parameter(network.actor.weight * 0.5)
                case "no gradients", "minibatch":
                    network.zero_grad(set_to_none=True)
                case "no gradients", "rollout":
                    network.zero_grad(set_to_none=True)
                case "freeze", "rollout":
                    network.actor.requires_grad_(self.epoch not in (1, 2, 3))
                case "freeze once", "rollout":
                    if self.epoch == 1:
                        network.actor.requires_grad_(False)
                case "freeze from the start", "start":
                    network.critic.requires_grad_(False)
                case "freeze all", "rollout":
                    network.requires_grad_(self.epoch % 2 == 0)
                case "change at the end", "end":
                    network.actor.bias.add_(0.25)
                case "half", "rollout":
                    network.actor.half()
                case "double buffer", "rollout":
                    network.mean = network.mean.double()
                case "longer buffer", "rollout":
                    network.mean = torch.zeros(5)
                case "add", "rollout":
                    network.extra = nn.Linear(2, 2)
                case "remove", "rollout":
                    del network.mean
                case "untie", "rollout":
                    network.second.weight = nn.Parameter(torch.zeros(4, 4))
                case "thaw", "rollout":
                    self.context.policy.get_parameter("network.critic.weight").requires_grad_()
                case _:
                    pass


class Keep(Hook):
    """Keeps the policy of every version, and the values of every rollout."""

    overflow = "block"

    def __init__(self) -> None:
        self.versions: list[dict[str, np.ndarray[Any, Any]]] = []
        self.values: list[np.ndarray[Any, Any]] = []

    async def on_new_training_run(self, state: TrainerState) -> None:
        assert state.policy is not None
        self.versions.append({name: array.copy() for name, array in state.policy.tensors.items()})

    async def on_rollout_end(self, state: TrainerState) -> None:
        assert state.experience is not None
        self.values.append(np.unique(state.experience["value"]))

    async def on_epoch_end(self, state: TrainerState) -> None:
        await self.on_new_training_run(state)


def config_for(kind: str = "plain", **settings: Any) -> TrainerConfig:
    policy = PolicyConfig(network=f"{HERE}:make_{kind.replace(' ', '_')}")
    learning = LearningConfig(update_epochs=2, minibatches=2, weight_decay=0.1, learning_rate=0.01)
    return small_config(policy=policy, learning=learning, **{"epochs": 5, "num_environments": 2, **settings})


def train(
    config: TrainerConfig, action: str = "nothing", *extra: Loss, resume: Path | None = None
) -> tuple[TrainerState, list[dict[str, np.ndarray[Any, Any]]]]:
    """The final state, and the policy of each version."""
    keep = Keep()
    trainer = Trainer(config, losses=[*losses_with(Acts(action)), *extra], hooks=[keep], resume=resume)
    return anyio.run(trainer.run), keep.versions


ACTIONS = ["rebind data", "replace parameter", "no gradients", "freeze", "freeze once"]
ACTIONS += ["freeze from the start", "freeze all", "change at the end"]
CASES = [(kind, "nothing") for kind in KINDS] + [("plain", action) for action in ACTIONS]


@pytest.mark.parametrize(("kind", "action"), CASES)
def test_every_version_has_what_the_learner_has_and_a_resumed_run_too(kind: str, action: str, tmp_path: Path) -> None:
    whole = config_for(kind, epochs=6, checkpoints=CheckpointsConfig(every=0))
    final, versions = train(whole, action)
    assert final.policy is not None
    half = replace(whole, total_agent_steps=3 * 64, run_dir=tmp_path / "run")
    train(half, action)
    resumed, _ = train(replace(whole, run_dir=half.run_dir), action, resume=half.run_dir)
    assert resumed.policy is not None
    assert resumed.epoch == final.epoch == 6
    for name, array in final.policy.tensors.items():
        np.testing.assert_array_equal(resumed.policy.tensors[name], array, err_msg=name)
    moved = {name for name in versions[0] if not np.array_equal(versions[0][name], versions[-1][name])}
    stays: set[str] = set()
    if action == "freeze from the start":
        stays = {"network.critic.weight", "network.critic.bias"}
    if kind == "rebound while acting":
        stays = {"network.steps", "network.started"}
    assert moved == versions[0].keys() - stays


def test_what_is_frozen_does_not_move_and_is_learned_again_when_it_is_thawed() -> None:
    _, versions = train(config_for(epochs=6, staleness=0), "freeze", GradientReporter(every=1))
    frozen, learned = "network.actor.weight", "network.critic.weight"
    same = [np.array_equal(before[frozen], after[frozen]) for before, after in pairwise(versions)]
    assert same == [False, True, True, True, False, False]
    assert not any(np.array_equal(before[learned], after[learned]) for before, after in pairwise(versions))


def test_gradients_set_to_none_after_each_step_change_nothing() -> None:
    plain, _ = train(config_for())
    without, _ = train(config_for(), "no gradients")
    assert plain.policy is not None
    assert without.policy is not None
    for name, array in plain.policy.tensors.items():
        np.testing.assert_array_equal(without.policy.tensors[name], array, err_msg=name)


@pytest.mark.parametrize(
    ("kind", "action", "message"),
    [
        ("plain", "half", r"network\.actor\.weight was float32\[2, 6\] on cpu and is float16\[2, 6\] on cpu"),
        ("rebound", "double buffer", r"network\.mean was float32\[4\] on cpu and is float64\[4\] on cpu"),
        ("rebound", "longer buffer", r"network\.mean was float32\[4\] on cpu and is float32\[5\] on cpu"),
        ("plain", "add", r"network\.extra\.weight is new; network\.extra\.bias is new"),
        ("tied", "untie", r"network\.second\.weight is new"),
        ("rebound", "remove", r"network\.mean is gone"),
        ("frozen critic", "thaw", r"network\.critic\.weight was frozen at the start and now requires a gradient"),
    ],
)
def test_what_has_no_place_in_a_snapshot_is_refused_by_name(kind: str, action: str, message: str) -> None:
    with pytest.raises(TensorsChanged, match=message):
        train(config_for(kind), action)


def test_a_policy_that_a_loss_changes_at_the_start_is_the_one_that_acts_first() -> None:
    class Loads(Acts):
        def on_new_training_run(self, state: TrainerState) -> None:
            network: Any = self.context.policy.network
            with torch.no_grad():
                network.critic.weight.zero_()
                network.critic.bias.fill_(7.0)

    keep = Keep()
    anyio.run(Trainer(config_for(epochs=1, staleness=0), losses=losses_with(Loads()), hooks=[keep]).run)
    assert keep.values[0].tolist() == [7.0]


class Versioned(Plain):
    """Counts its updates; acting tells the count, as the value, and by always taking action 1 from the first on.

    It counts what it has acted, too, and takes action 0 after five times.
    """

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.register_buffer("updates", torch.zeros(()))
        self.register_buffer("acted", torch.zeros(()))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, value = super().forward(x)
        if self.training:
            self.updates = self.updates + 1
            return logits, value
        self.acted = self.acted + 1
        chosen = torch.tensor([-9.0, 9.0]) if self.acted <= 5 and self.updates > 0 else torch.tensor([9.0, -9.0])
        return chosen.expand_as(logits), value * 0.0 + self.updates


class Echo(gymnasium.Env[Any, Any]):
    """The reward is the action; five steps."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(4, np.float32), float(action), self.steps == 5, False, {}


def make_echo() -> Echo:
    return Echo()


def make_versioned(spaces: Spaces) -> Versioned:
    return Versioned(spaces)


@pytest.mark.parametrize("backend", ["inline", "process"])
def test_whoever_acts_begins_with_what_was_published_however_acting_has_changed_it(backend: str) -> None:
    task = EvaluationTask(name="one"), EvaluationTask(name="two")
    config = config_for(
        "versioned",
        environment=f"{HERE}:make_echo",
        backend=backend,
        staleness=0,
        evaluation=EvaluationConfig(every=1, episodes=1, num_environments=1, tasks=task),
    )
    keep = Keep()
    final = anyio.run(Trainer(config, hooks=[keep]).run)
    assert [values.tolist() for values in keep.values] == [[4.0 * epoch] for epoch in range(final.epoch)]
    assert final.eval_scores is not None
    assert set(final.eval_scores.simulation_scores.values()) == {5.0}


class Sharing(Plain):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.second = nn.Linear(4, 6)
        self.second.weight.data = self.body.weight.data


class Alias(Plain):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.transposed = self.body.weight.detach().t()


class BFloat(Plain):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(2, dtype=torch.bfloat16))


class Complex(Plain):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))


class Unused(Plain):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.other = nn.LazyLinear(3)


class DetachedCritic(Plain):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parameters, value = super().forward(x)
        return parameters, value.detach()


class DetachedActor(Plain):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        parameters, value = super().forward(x)
        return parameters.detach(), value


class FrozenCritic(Plain):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.body.requires_grad_(False)
        self.critic.requires_grad_(False)


KINDS |= {
    "sharing": Sharing,
    "alias": Alias,
    "bfloat16": BFloat,
    "complex": Complex,
    "unused": Unused,
    "detached critic": DetachedCritic,
    "detached actor": DetachedActor,
    "frozen critic": FrozenCritic,
}
for _kind in KINDS:
    globals().setdefault(f"make_{_kind.replace(' ', '_')}", make(_kind))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("sharing", r"body\.weight and second\.weight of the network .* are different tensors in the same memory"),
        ("alias", r"(body\.weight and transposed|transposed and body\.weight) of the network"),
        ("bfloat16", r"'scale' has dtype bfloat16, which a snapshot cannot hold"),
        ("complex", r"'phase' has dtype complex64, which a snapshot cannot hold"),
        ("unused", r"other\.weight, other\.bias of the network .* got no shape"),
        ("detached critic", r"the value that the network .* have no gradient, so that the loss 'ppo_critic'"),
        ("detached actor", r"the action parameters that the network .* have no gradient, so that the loss 'ppo_actor'"),
    ],
)
def test_a_network_whose_tensors_cannot_be_learned_or_published_is_refused_by_name(kind: str, message: str) -> None:
    with pytest.raises(NetworkError, match=message):
        anyio.run(Trainer(config_for(kind)).run)


@pytest.mark.parametrize(
    ("kind", "losses"), [("detached critic", LossesConfig(names=("ppo_actor",))), ("frozen critic", LossesConfig())]
)
def test_what_no_loss_learns_needs_no_gradient(kind: str, losses: LossesConfig) -> None:
    final = anyio.run(Trainer(config_for(kind, losses=losses, epochs=2)).run)
    assert final.epoch >= 1


def test_a_lazy_network_begins_with_weights_that_depend_on_the_seed_alone() -> None:
    weights = []
    for seed in (1, 1, 2):
        torch.rand(seed + 3)
        _, versions = train(config_for("lazy", epochs=1, seed=seed))
        weights.append(versions[0]["network.body.weight"])
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])
