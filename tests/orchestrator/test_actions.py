"""Actions that reach the environment: never one that the network forbids, always one in the action space."""

from __future__ import annotations

import math
from typing import Any

import anyio
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import Tensor, nn

from losses import Loss, Minibatch, PolicyEvaluation
from orchestrator import EvaluationConfig, Hook, LearningConfig, LossesConfig, PolicyConfig, Trainer
from orchestrator.policies import Spaces
from orchestrator.policies.acting import PolicyFailed
from state import TrainerState
from tests.orchestrator.training import FailingEnvironment, losses_with, small_config

pytestmark = pytest.mark.slow

FORBIDDING = "tests.orchestrator.test_actions:make_forbidding"
STRICT = "tests.orchestrator.test_actions:make_strict"
ACTIONS: dict[str, Any] = {"discrete": spaces.Discrete(4), "multidiscrete": spaces.MultiDiscrete([2, 3])}


class Forbidding(gymnasium.Env[Any, Any]):
    """Says in its observation which actions are possible, and fails on others. At the end of an episode none is.

    `trap`: none is possible in the fourth step either.
    """

    def __init__(self, action: str = "discrete", trap: bool = False) -> None:
        self.action_space = ACTIONS[action]
        self._sizes = [4] if action == "discrete" else [2, 3]
        count = sum(self._sizes)
        self.observation_space = spaces.Dict(
            {"x": spaces.Box(-1, 1, (3,), np.float32), "mask": spaces.MultiBinary(count)}
        )
        self._trap = trap

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(False), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        offsets = np.cumsum([0, *self._sizes[:-1]])
        assert self._possible[np.atleast_1d(action) + offsets].all(), f"{action} is forbidden"
        self._steps += 1
        ended = self._steps == 7
        return self._observe(ended or (self._trap and self._steps == 4)), float(np.sum(action)), ended, False, {}

    def _observe(self, nothing_possible: bool) -> dict[str, Any]:
        parts = [np.arange(size) == self.np_random.integers(size) for size in self._sizes]
        parts[0] = np.arange(self._sizes[0]) < 2 if len(self._sizes) == 1 else parts[0]
        self._possible = np.concatenate(parts)
        if nothing_possible:
            self._possible[: self._sizes[0]] = False
        return {"x": self.np_random.uniform(-1, 1, 3).astype(np.float32), "mask": self._possible.astype(np.int8)}


def make_forbidding(**options: Any) -> Forbidding:
    return Forbidding(**options)


def _forbidding_copies(num_envs: int, **options: Any) -> SyncVectorEnv:
    makers = [lambda: make_forbidding(**options)] * num_envs
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.NEXT_STEP)


gymnasium.register("Forbidding/NextStep-v0", make_forbidding, vector_entry_point=_forbidding_copies)


class Masked(nn.Module):
    """Forbids by adding the logarithm of the mask, through which a gradient that is not finite would pass."""

    def __init__(self, spaces: Spaces, size: int = 0) -> None:
        super().__init__()
        self.state_size = size or None
        self.body = nn.Linear(3, 8)
        self.actor = nn.Linear(8, spaces.action_parameters)
        self.critic = nn.Linear(8, 1)

    def forward(self, observation: dict[str, Tensor], *memory: Tensor) -> tuple[Tensor, ...]:
        hidden = torch.tanh(self.body(observation["x"]))
        logits = self.actor(hidden) + observation["mask"].float().log()
        return logits, self.critic(hidden).squeeze(-1), *memory[:1]


class RaisingNaN(Masked):
    def forward(self, observation: dict[str, Tensor], *memory: Tensor) -> tuple[Tensor, ...]:
        parameters, *rest = super().forward({"x": observation["x"], "mask": torch.ones(1, 4)})
        return parameters * float("nan"), *rest


class NaNAction(nn.Module):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.critic = nn.Linear(3, 1)

    def forward(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        value = self.critic(observation)
        return torch.cat([value * float("nan"), value], -1), value


def make_masked(spaces: Spaces) -> Masked:
    return Masked(spaces)


def make_masked_recurrent(spaces: Spaces) -> Masked:
    return Masked(spaces, 2)


def make_raising_nan(spaces: Spaces) -> RaisingNaN:
    return RaisingNaN(spaces)


def make_nan_action(spaces: Spaces) -> NaNAction:
    return NaNAction(spaces)


def masked(network: str = "make_masked") -> PolicyConfig:
    return PolicyConfig(network=f"tests.orchestrator.test_actions:{network}")


class LikeTorch(Loss):
    """Fails where log-probability, entropy or their gradients are not those of torch's own Categorical."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        parameters = evaluation.action_parameters
        action = minibatch["action"].reshape(*minibatch["action"].shape[: parameters.dim() - 1], -1)
        theirs = [torch.distributions.Categorical(logits=part) for part in parameters.split(self.sizes, -1)]
        entropy = sum(part.entropy() for part in theirs)
        log_prob = sum(part.log_prob(action[..., index]) for index, part in enumerate(theirs))
        torch.testing.assert_close(evaluation.entropy, entropy)
        torch.testing.assert_close(evaluation.log_prob, log_prob)
        for own, other in ((evaluation.entropy, entropy), (evaluation.log_prob, log_prob)):
            gradients = [
                torch.autograd.grad(one.sum(), parameters, retain_graph=True)[0]
                for one in (own, other)
                if isinstance(one, Tensor)
            ]
            torch.testing.assert_close(*gradients)
        return evaluation.value.sum() * 0.0


@pytest.mark.parametrize(("action", "sizes"), [("discrete", [4]), ("multidiscrete", [2, 3])])
def test_a_network_forbids_actions_by_minus_infinity_and_learns_as_with_torchs_distributions(
    action: str, sizes: list[int]
) -> None:
    config = small_config(
        environment=FORBIDDING,
        environment_options={"action": action},
        policy=masked(),
        evaluation=EvaluationConfig(every=1, episodes=2),
        losses=LossesConfig(target_kl=0.5),
        staleness=0,
    )
    final = anyio.run(Trainer(config, losses=losses_with(LikeTorch(sizes))).run)
    assert final.loss_stats is not None
    assert final.eval_scores is not None
    assert all(math.isfinite(value) for value in final.loss_stats.values())
    # Two of four choices, or one of two and one of three: the rest counts 0.
    assert 0.0 <= final.loss_stats["ppo_actor/entropy"] <= math.log(2) + 1e-6
    assert action == "discrete" or final.loss_stats["ppo_actor/entropy"] == 0.0


@pytest.mark.parametrize(
    ("network", "losses"),
    [
        ("make_masked", LossesConfig()),
        ("make_masked", LossesConfig(names=("vtrace_actor", "vtrace_critic"))),
        ("make_masked_recurrent", LossesConfig()),
    ],
)
def test_where_a_copy_is_only_reset_nothing_need_be_possible(network: str, losses: LossesConfig) -> None:
    config = small_config(
        environment="tests.orchestrator.test_actions:Forbidding/NextStep-v0",
        policy=masked(network),
        losses=losses,
        evaluation=EvaluationConfig(every=1, episodes=2),
    )
    final = anyio.run(Trainer(config).run)
    assert final.loss_stats is not None
    assert all(math.isfinite(value) for value in final.loss_stats.values())


def test_forbidding_every_action_is_an_error_that_names_the_row() -> None:
    config = small_config(environment=FORBIDDING, environment_options={"trap": True}, policy=masked())
    with pytest.raises(
        PolicyFailed, match=r"\[-inf, -inf, -inf, -inf\] for copy 0 of environment '.*make_forbidding', step 4:"
    ):
        anyio.run(Trainer(config).run)


@pytest.mark.parametrize(
    ("environment", "network", "numbers"),
    [(FORBIDDING, "make_raising_nan", "nan, nan, nan, nan"), ("Pendulum-v1", "make_nan_action", "nan, ")],
)
def test_a_network_that_gives_nan_is_named_and_not_the_environment(
    environment: str, network: str, numbers: str
) -> None:
    config = small_config(environment=environment, policy=masked(network))
    with pytest.raises(PolicyFailed, match=rf"the policy gave \[{numbers}.*no action can be drawn"):
        anyio.run(Trainer(config).run)


BOXES: dict[str, Any] = {
    "float64": spaces.Box(-0.1, 0.1, (1,), np.float64),
    "float16": spaces.Box(-0.1, 0.1, (2,), np.float16),
    "float32": spaces.Box(-0.1, 0.1, (2, 2), np.float32),
    "beyond float32": spaces.Box(-1e300, 1e300, (1,), np.float64),
    "far from 0": spaces.Box(1e300, 2e300, (1,), np.float64),
    "far apart": spaces.Box(np.array([-1e-300, 1e-40]), np.array([1e-300, 1e200]), dtype=np.float64),
    "one side": spaces.Box(np.array([-np.inf, 0.1]), np.array([-0.1, np.inf]), dtype=np.float64),
    "nothing to choose": spaces.Box(0.1, 0.1, (1,), np.float64),
    "uint8": spaces.Box(0, 255, (3,), np.uint8),
    "int8": spaces.Box(-1, 1, (2,), np.int8),
    "int64": spaces.Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (1,), np.int64),
    "uint64": spaces.Box(2**63, 2**64 - 1, (1,), np.uint64),
}


class Strict(gymnasium.Env[Any, Any]):
    """Fails on an action that is not in its space."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)

    def __init__(self, box: str) -> None:
        self.action_space = BOXES[box]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.dtype == self.action_space.dtype
        assert self.action_space.contains(action), f"{action!r} is not in {self.action_space}"
        self._steps += 1
        return np.zeros(2, np.float32), 0.0, self._steps == 10, False, {}


def make_strict(**options: Any) -> Strict:
    return Strict(**options)


def _strict_copies(num_envs: int, **options: Any) -> SyncVectorEnv:
    makers = [lambda: make_strict(**options)] * num_envs
    return SyncVectorEnv(makers, autoreset_mode=AutoresetMode.SAME_STEP)


gymnasium.register("Strict/SameStep-v0", make_strict, vector_entry_point=_strict_copies)


class Scores(Hook):
    def __init__(self) -> None:
        self.seen = False

    async def on_training_end(self, state: TrainerState) -> None:
        self.seen = state.eval_scores is not None


@pytest.mark.parametrize(
    ("environment", "deterministic"), [(STRICT, True), ("tests.orchestrator.test_actions:Strict/SameStep-v0", False)]
)
@pytest.mark.parametrize("box", BOXES)
def test_the_environment_gets_actions_in_its_space_and_of_its_dtype(
    box: str, environment: str, deterministic: bool
) -> None:
    config = small_config(
        epochs=1,
        environment=environment,
        environment_options={"box": box},
        learning=LearningConfig(update_epochs=1, minibatches=1),
        evaluation=EvaluationConfig(every=1, episodes=2, deterministic=deterministic),
    )
    scores = Scores()
    anyio.run(Trainer(config, hooks=[scores]).run)
    assert scores.seen


def test_numbers_for_a_box_of_integers_are_rounded_to_the_nearest() -> None:
    from orchestrator.environments.spaces import ActionConverter

    convert = ActionConverter(spaces.Box(-3, 5, (1,), np.int16))
    numbers = np.array([[-9.0], [-0.6], [0.4], [2.5], [3.5], [5.4], [1e30]], np.float32)
    assert convert(numbers)[:, 0].tolist() == [-3, -1, 0, 2, 4, 5, 5]
    huge = ActionConverter(spaces.Box(-(2**63), 2**63 - 1, (1,), np.int64))
    assert huge(np.array([[2.0**62], [-np.inf], [np.inf]], np.float32))[:, 0].tolist() == [2**62, -(2**63), 2**63 - 1]


class FarChoices(FailingEnvironment):
    action_space = gymnasium.spaces.MultiDiscrete(  # type: ignore[assignment]
        np.array([3, 2]), dtype=np.uint64, start=np.array([2**63 + 1, 1], np.uint64)
    )

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), action
        return super().step(action)


def far_choices() -> FarChoices:
    return FarChoices()


@pytest.mark.anyio
async def test_choices_that_begin_beyond_63_bits_reach_the_environment_as_they_are() -> None:
    config = small_config(epochs=2, environment="tests.orchestrator.test_actions:far_choices")
    assert (await Trainer(config).run()).epoch == 2
