"""Environments say which actions are possible: no other one is ever taken, and none is learned from as if it could."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from torch import nn

from losses import Loss, Minibatch, PolicyEvaluation
from orchestrator import (
    CheckpointsConfig,
    EvaluationConfig,
    Hook,
    LearningConfig,
    LossesConfig,
    PolicyConfig,
    Trainer,
    evaluate_checkpoint,
)
from orchestrator.environments import EnvironmentFailed, InvalidEnvironment
from orchestrator.environments.adaptation import Adaptation
from orchestrator.evaluation.plan import spaces_of
from orchestrator.policies import Policy, Spaces, build_policy
from tests.orchestrator.training import WaitForCheckpoints, losses_with, small_config

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator import TrainerConfig
    from state import TrainerState

pytestmark = pytest.mark.slow

HERE = "tests.orchestrator.test_action_masks"
MAZE = f"{HERE}:make_maze"
WALLS = np.array(["#######", "#..#..#", "#.##.##", "#....*#", "#######"])
MOVES = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])

FORMS = {
    "key": "action_mask",
    "bytes": "legal",
    "booleans": "action_mask",
    "nested": "about/mask",
    "info": "info/action_mask",
    "nested info": "info/about/mask",
    "list in info": "info/action_mask",
}
TWO_AXES = {
    "key": "action_mask",
    "tuple": "action_mask",
    "tuple in info": "info/action_mask",
    "info": "info/action_mask",
}


class Maze(gymnasium.Env[Any, Any]):
    """Find the star. Walls can't be entered, says the mask; the environment fails if one is.

    With `axes` 2, the second choice is how many cells to go, and at the end of an episode nothing is possible at all.
    """

    def __init__(
        self, form: str = "key", axes: int = 1, fault: str = "", at: int = 0, keeps: bool = False, start: int = 0
    ) -> None:
        self._start = start
        self._form, self._axes, self._fault, self._at, self._keeps = form, axes, fault, at, keeps
        self._sizes = [4] if axes == 1 else [4, 3]
        self.action_space = (
            spaces.Discrete(4, start=start) if axes == 1 else spaces.MultiDiscrete(self._sizes, start=[0, 1])
        )
        choices = sum(self._sizes)
        place = spaces.Box(0.0, 1.0, (2,), np.float32)
        forms: dict[str, spaces.Space[Any]] = {
            "key": spaces.Dict({"place": place, "action_mask": spaces.MultiBinary(choices)}),
            "bytes": spaces.Dict({"place": place, "legal": spaces.Box(0, 1, (choices,), np.uint8)}),
            "booleans": spaces.Dict({"place": place, "action_mask": spaces.Box(0, 1, (choices,), np.bool_)}),
            "nested": spaces.Dict({"place": place, "about": spaces.Dict({"mask": spaces.MultiBinary(choices)})}),
            "tuple": spaces.Dict(
                {"place": place, "action_mask": spaces.Tuple([spaces.MultiBinary(size) for size in self._sizes])}
            ),
            "floats": spaces.Dict({"place": place, "action_mask": spaces.Box(-np.inf, 1.0, (choices,), np.float32)}),
        }
        self.observation_space = forms.get(form, place)
        self._mask = np.zeros(choices, np.int8)
        self._all_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._place = np.array([1, 1])
        self._steps = 0
        return self._observe(False)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        choices = np.atleast_1d(action) - np.array([self._start] if self._axes == 1 else [0, 1])
        offsets = np.cumsum([0, *self._sizes[:-1]])
        assert self._mask[choices + offsets].all(), f"{action} is forbidden by {self._mask}"
        self._steps += 1
        self._all_steps += 1
        self._place = self._place + MOVES[choices[0]]
        found = WALLS[self._place[0]][self._place[1]] == "*"
        cut = self._steps == 40 and not found
        observation, info = self._observe(found or cut)
        return observation, float(found) - 0.01, bool(found), bool(cut), info

    def _observe(self, ended: bool) -> tuple[Any, dict[str, Any]]:
        mask = self._mask if self._keeps else np.zeros_like(self._mask)
        mask[:4] = [WALLS[row][column] != "#" for row, column in self._place + MOVES]
        if self._axes == 2:
            mask[4:] = [True, self._place[1] % 2 == 0, self._place[0] == 1]
        if ended:
            mask[:] = 0  # as some environments have it
        self._mask = mask
        if self._fault and self._all_steps == self._at:
            mask = self._broken(mask.copy())
        parts = tuple(np.split(mask, np.cumsum(self._sizes)[:-1]))
        place = (self._place / 6).astype(np.float32)
        match self._form:
            case "key":
                return {"place": place, "action_mask": mask}, {}
            case "bytes":
                return {"place": place, "legal": mask.astype(np.uint8)}, {}
            case "booleans":
                return {"place": place, "action_mask": mask.astype(np.bool_)}, {}
            case "nested":
                return {"place": place, "about": {"mask": mask}}, {}
            case "tuple":
                return {"place": place, "action_mask": parts}, {}
            case "floats":
                return {"place": place, "action_mask": np.where(mask, 0.0, -1e9).astype(np.float32)}, {}
            case "nested info":
                return place, {"about": {"mask": mask}}
            case "list in info":
                if ended:
                    return place, {"action_mask": "over"} if self._steps % 2 else {}
                return place, {"action_mask": mask.tolist()}
            case "tuple in info":
                return place, {"action_mask": parts}
            case _:
                return place, {} if self._fault == "missing" and self._all_steps == self._at else {"action_mask": mask}

    def _broken(self, mask: Any) -> Any:
        match self._fault:
            case "nothing":
                mask[:] = 0
            case "nothing of axis 1":
                mask[4:] = 0
            case "two":
                mask[1] = 2
            case "short":
                return mask[:3]
            case _:
                pass
        return mask


def make_maze(**options: Any) -> Maze:
    return Maze(**options)


def _copies(mode: AutoresetMode) -> Any:
    def make(num_envs: int, **options: Any) -> SyncVectorEnv:
        return SyncVectorEnv([lambda: Maze(**options)] * num_envs, autoreset_mode=mode)

    return make


for _mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
    gymnasium.register(f"Maze/{_mode.value}-v0", make_maze, vector_entry_point=_copies(_mode))


class Look(Hook):
    """Keeps the masks and actions of the experience, and the newest score."""

    overflow = "block"

    def __init__(self) -> None:
        self.masks: list[Any] = []
        self.actions: list[Any] = []
        self.valid: list[Any] = []
        self.fields: tuple[str, ...] = ()
        self.score: float | None = None

    async def on_rollout_end(self, state: TrainerState) -> None:
        assert state.experience is not None
        self.fields = tuple(state.experience)
        self.masks.append(state.experience["action_mask"].copy())
        self.actions.append(state.experience["action"].copy())
        self.valid.append(state.experience["valid"].copy())

    async def on_training_end(self, state: TrainerState) -> None:
        if state.eval_scores is not None:
            self.score = state.eval_scores.avg_simulation_score


def config_with(
    form: str = "key", mask: str | None = None, folder: Path | None = None, **settings: Any
) -> TrainerConfig:
    axes = settings.pop("axes", 1)
    options = {"form": form, "axes": axes, **settings.pop("options", {})}
    return small_config(
        epochs=settings.pop("epochs", 4),
        environment=settings.pop("environment", MAZE),
        environment_options=options,
        action_mask=mask or (FORMS if axes == 1 else TWO_AXES)[form],
        run_dir=folder,
        checkpoints=settings.pop("checkpoints", CheckpointsConfig(enabled=folder is not None, every=2, keep=0)),
        evaluation=settings.pop("evaluation", EvaluationConfig()),
        **settings,
    )


def never_forbidden(config: TrainerConfig) -> Look:
    """Trains, with environments that fail where a forbidden action is taken; looks at what was recorded, too."""
    look = Look()
    final = anyio.run(Trainer(config, hooks=[look]).run)
    assert final.policy is not None
    assert all(np.isfinite(array).all() for array in final.policy.tensors.values())
    assert final.loss_stats is not None
    assert all(math.isfinite(value) for value in final.loss_stats.values()), final.loss_stats
    sizes = [4] if look.actions[0].ndim == 2 else [4, 3]
    for masks, actions, valid in zip(look.masks, look.actions, look.valid, strict=True):
        assert masks.dtype == np.bool_
        assert not masks.all()
        chosen = np.take_along_axis(
            masks, actions.reshape(*actions.shape[:2], -1) + np.cumsum([0, *sizes[:-1]]), axis=-1
        )
        assert chosen[valid].all()
    return look


def test_a_maze_with_walls_as_masks_never_sees_a_forbidden_action_in_100_000_steps() -> None:
    config = config_with(
        num_environments=32,
        horizon=64,
        backend="process",
        total_agent_steps=100_000,
        evaluation=EvaluationConfig(every=10, episodes=8),
    )
    look = never_forbidden(config)
    assert sum(valid.sum() for valid in look.valid) >= 100_000
    assert look.score is not None
    assert look.score > 0.5, "it has learned to find the star, by most likely actions"


@pytest.mark.parametrize("policy", ["mlp", "lstm"])
@pytest.mark.parametrize("form", FORMS)
def test_masks_come_in_observations_and_in_infos(form: str, policy: str) -> None:
    settings = PolicyConfig(network=policy, hidden_sizes=(8,), lstm_size=4)
    look = never_forbidden(config_with(form, policy=settings, evaluation=EvaluationConfig(every=1, episodes=2)))
    assert look.score is not None
    assert not any("mask" in name or "legal" in name for name in look.fields if name.startswith("observation"))


def test_the_mask_of_a_discrete_with_a_start_begins_with_its_first_choice() -> None:
    never_forbidden(config_with("key", options={"start": -3}, evaluation=EvaluationConfig(every=1, episodes=2)))


@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("form", TWO_AXES)
def test_each_axis_of_a_multidiscrete_has_its_part_of_the_mask(form: str, deterministic: bool) -> None:
    evaluation = EvaluationConfig(every=1, episodes=2, deterministic=deterministic)
    look = never_forbidden(config_with(form, axes=2, evaluation=evaluation))
    assert look.masks[0].shape == (4, 32, 7)


@pytest.mark.parametrize("axes", [1, 2])
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
@pytest.mark.parametrize("form", ["key", "info", "list in info", "tuple", "tuple in info"])
def test_native_vectors_are_masked_in_either_way_of_resetting(form: str, mode: str, axes: int) -> None:
    if form not in (FORMS if axes == 1 else TWO_AXES):
        form = "nested" if axes == 1 else "info"
    environment = f"{HERE}:Maze/{mode}-v0"
    never_forbidden(config_with(form, axes=axes, environment=environment, epochs=6))


@pytest.mark.parametrize(
    "settings",
    [
        {"staleness": 0},
        {"staleness": 2},
        {"staleness": 1, "policy": PolicyConfig(network="lstm", hidden_sizes=(8,), lstm_size=4)},
        {"staleness": 1, "losses": LossesConfig(names=("vtrace_actor", "vtrace_critic"))},
        {"staleness": 1, "losses": LossesConfig(staleness_clip=1.0, target_kl=0.5)},
        {"learning": LearningConfig(update_epochs=2, minibatches=2, priority_exponent=0.5)},
        {"policy": PolicyConfig(hidden_sizes=(8,), normalize_observations=True, normalize_rewards=True)},
        {"collectors": 2},
    ],
    ids=str,
)
def test_what_is_learned_is_finite_with_every_kind_of_learning(settings: dict[str, Any]) -> None:
    never_forbidden(config_with(**settings))


@pytest.mark.parametrize("policy", [PolicyConfig(hidden_sizes=(8,)), PolicyConfig(network="lstm", lstm_size=4)])
@pytest.mark.parametrize(("form", "axes"), [("key", 1), ("info", 2)])
def test_masked_runs_have_the_same_bits_in_processes_and_resumed(
    form: str, axes: int, policy: PolicyConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def bits(state: TrainerState) -> Any:
        assert state.policy is not None
        return {name: array.tobytes() for name, array in state.policy.tensors.items()}

    config = config_with(form, axes=axes, policy=policy, folder=tmp_path / "whole")
    whole = anyio.run(Trainer(config, hooks=[WaitForCheckpoints(config)]).run)
    branch = replace(config, run_dir=tmp_path / "branch")
    resumed = anyio.run(Trainer(branch, resume=tmp_path / "whole" / "checkpoints" / "00000002").run)
    assert bits(whole) == bits(resumed)
    assert "resumed, but" not in caplog.text
    elsewhere = replace(config, run_dir=tmp_path / "process", collection=replace(config.collection, backend="process"))
    assert bits(whole) == bits(anyio.run(Trainer(elsewhere).run))


def test_a_checkpoint_is_evaluated_with_its_mask(tmp_path: Path) -> None:
    anyio.run(Trainer(config_with("nested", folder=tmp_path)).run)
    report = evaluate_checkpoint(tmp_path, episodes=3, deterministic=False)
    assert report["episodes"] == 3


class Reference(Loss):
    """Compares what the learner makes of each minibatch with torch's own distribution over what is allowed."""

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        mask, action = minibatch["action_mask"], minibatch["action"]
        logits = evaluation.action_parameters
        valid = torch.ones_like(mask[..., 0]) if minibatch.valid is None else minibatch.valid
        logits, mask, action = logits[valid].double(), mask[valid], action[valid]
        assert (logits == -math.inf).equal(~mask)
        parts = list(zip(logits.split([4, 3], -1), mask.split([4, 3], -1), strict=True))
        log_prob = torch.zeros(len(action), dtype=torch.float64)
        entropy = torch.zeros(len(action), dtype=torch.float64)
        for axis, (part, allowed) in enumerate(parts):
            for row in range(len(action)):
                # A distribution that has never heard of what is forbidden.
                possible = allowed[row].nonzero().squeeze(-1)
                expected = torch.distributions.Categorical(logits=part[row, possible])
                index = (possible == action[row, axis]).nonzero().item()
                log_prob[row] += expected.log_prob(torch.tensor(index))
                entropy[row] += expected.entropy()
        torch.testing.assert_close(evaluation.log_prob[valid].double(), log_prob, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(evaluation.entropy[valid].double(), entropy, atol=1e-5, rtol=1e-5)
        if minibatch.epoch == 0:  # learned from by the policy that has acted
            assert minibatch["log_prob"].isfinite().all()
        if minibatch.epoch == 0 and minibatch.update_epoch == 0 and minibatch.mb_idx == 0:
            torch.testing.assert_close(minibatch["log_prob"][valid].double(), log_prob, atol=1e-5, rtol=1e-5)
        if minibatch.update_epoch == 0 and minibatch.mb_idx == 0:
            # The policy of the beginning of the epoch: also where an older one has acted.
            torch.testing.assert_close(minibatch["proximal_log_prob"][valid].double(), log_prob, atol=1e-5, rtol=1e-5)
            self.track("compared", torch.ones(()))
        return evaluation.value.sum() * 0.0


@pytest.mark.parametrize("policy", [PolicyConfig(hidden_sizes=(8,)), PolicyConfig(network="lstm", lstm_size=4)])
def test_log_probabilities_and_entropies_are_those_of_what_is_allowed(policy: PolicyConfig) -> None:
    config = config_with("key", axes=2, policy=policy, staleness=2, epochs=5)
    final = anyio.run(Trainer(config, losses=losses_with(Reference())).run)
    assert final.loss_stats is not None
    assert final.loss_stats["reference/compared"] == 1.0


def test_forbidden_choices_get_no_gradient_and_a_single_possible_one_is_certain() -> None:
    policy = build_policy(
        PolicyConfig(hidden_sizes=(8,)), Spaces(spaces.Box(-1, 1, (2,)), spaces.Discrete(3), masked=True), 1
    )
    observation = torch.randn(2, 2)
    mask = torch.tensor([[True, False, True], [False, True, False]])
    evaluation = policy.evaluate(observation, torch.tensor([2, 1]), action_mask=mask)
    assert evaluation.log_prob[1] == 0.0
    assert evaluation.entropy[1] == 0.0
    evaluation.action_parameters.retain_grad()
    (evaluation.log_prob + evaluation.entropy).sum().backward()
    gradient = evaluation.action_parameters.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert not gradient[~mask].any()


@pytest.mark.parametrize("deterministic", [True, False])
def test_no_action_is_forbidden_where_no_mask_is_asked_for(deterministic: bool) -> None:
    """The environment fails, so the mask is what keeps it from that in the other tests."""
    config = replace(config_with("key", epochs=20), action_mask=None)
    with pytest.raises(EnvironmentFailed, match="is forbidden by"):
        anyio.run(Trainer(config).run)


def test_a_mask_that_nothing_heeds_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    vector = spaces_of(MAZE, {"form": "key"})
    assert not vector.masked
    config = replace(config_with("key", epochs=20), action_mask=None)
    with pytest.raises(EnvironmentFailed):
        anyio.run(Trainer(config).run)
    from orchestrator.environments import make_vector

    assert "set action_mask to 'action_mask'" in str(make_vector(MAZE, 1, {"form": "key"}).take_warnings())
    masked = make_vector(MAZE, 1, {"form": "key"}, adaptation=Adaptation(action_mask="action_mask"))
    assert not masked.take_warnings()


@pytest.mark.parametrize("environment", [MAZE, f"{HERE}:Maze/NextStep-v0"])
@pytest.mark.parametrize(("form", "axes"), [("info", 1), ("list in info", 1), ("tuple in info", 2)])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_mask_in_infos_that_nothing_heeds_is_warned_of(environment: str, form: str, axes: int, workers: int) -> None:
    config = config_with(form, axes=axes, environment=environment)
    collection = replace(config.collection, environment_workers=workers)
    with pytest.raises(EnvironmentFailed, match="is forbidden by") as raised:
        anyio.run(Trainer(replace(config, action_mask=None, collection=collection)).run)
    assert "set action_mask to 'info/action_mask'" in "".join(getattr(raised.value, "__notes__", []))


def test_what_is_no_mask_or_is_heeded_is_not_warned_of() -> None:
    from orchestrator.environments import make_vector

    heeded = make_vector(MAZE, 1, {"form": "info"}, adaptation=Adaptation(action_mask="info/action_mask"))
    heeded.reset(1)
    assert not heeded.take_warnings()
    for name in ("with_a_mask_of_other_size", "with_a_mask_in_words"):
        vector = make_vector(f"{HERE}:{name}", 1)
        vector.reset(1)
        assert not vector.take_warnings()


def with_a_mask_of_other_size() -> Any:
    return with_info(np.ones(5))


def with_a_mask_in_words() -> Any:
    return with_info("none")


def with_info(mask: object) -> Any:
    class Other(gymnasium.Wrapper[Any, Any, Any, Any]):
        def reset(self, **keywords: Any) -> Any:
            observation, _ = super().reset(**keywords)
            return observation, {"action_mask": mask}

    return Other(make_maze(form="nested info"))


@pytest.mark.parametrize(
    ("form", "axes", "fault", "expected"),
    [
        ("key", 1, "nothing", "an action mask that forbids all 4 choices; expected at least one"),
        ("info", 1, "nothing", "an action mask that forbids all 4 choices; expected at least one"),
        ("key", 2, "nothing of axis 1", "forbids all 3 choices of axis 1"),
        ("bytes", 1, "two", "returned 2 at place 1 of the action mask; give 1 for each"),
        ("info", 1, "two", r"returned 2.0 at place 1 of the action mask"),
        ("info", 1, "short", r"as the action mask 'action_mask' of the info int8 of shape \[3\], expected 4 numbers"),
        ("info", 1, "missing", r"an info without the action mask 'action_mask', only \[\]"),
    ],
)
@pytest.mark.parametrize("at", [0, 5])
@pytest.mark.parametrize("environment", [MAZE, f"{HERE}:Maze/NextStep-v0"])
def test_a_wrong_mask_is_an_error_that_names_environment_and_step(
    environment: str, at: int, form: str, axes: int, fault: str, expected: str
) -> None:
    config = config_with(form, axes=axes, environment=environment, options={"fault": fault, "at": at})
    when = "step 5 of copy 0 of 4" if environment == MAZE else "step 5 of "
    with pytest.raises(EnvironmentFailed, match=expected) as raised:
        anyio.run(Trainer(config).run)
    assert environment in str(raised.value)
    assert ("reset of " if at == 0 else when) in str(raised.value)


def test_a_wrong_mask_in_an_evaluation_is_named_too(tmp_path: Path) -> None:
    config = config_with(folder=tmp_path)
    anyio.run(Trainer(config).run)
    text = (tmp_path / "config.toml").read_text()
    assert 'action_mask = "action_mask"' in text
    vector = Adaptation(action_mask="action_mask")
    policy = build_policy(config.policy, spaces_of(MAZE, {"form": "key"}, vector), 1)
    from orchestrator.environments import make_vector
    from orchestrator.evaluation.evaluator import evaluate

    broken = make_vector(MAZE, 2, {"form": "key", "fault": "nothing", "at": 3}, "sync", vector)
    with pytest.raises(EnvironmentFailed, match=r"step 3 of copy 0 of 2 returned an action mask that forbids all"):
        evaluate(policy, [broken], 2, [1])


@pytest.mark.parametrize("workers", [0, 1])
def test_an_environment_that_fails_since_its_mask_is_not_set_fails_with_that_as_a_note(workers: int) -> None:
    config = config_with()
    collection = replace(config.collection, environment_workers=workers)
    with pytest.raises(EnvironmentFailed, match="is forbidden by") as raised:
        anyio.run(Trainer(replace(config, action_mask=None, collection=collection)).run)
    assert "set action_mask to 'action_mask'" in "".join(raised.value.__notes__)


@pytest.mark.parametrize(
    ("form", "mask", "expected"),
    [
        (
            "key",
            "mask",
            r"no 'mask' in its observations.*expected one of the keys \['action_mask', 'place'\], or info/",
        ),
        ("info", "action_mask", r"no 'action_mask' in its observations.*expected a Dict with it, where there is"),
        ("key", "place", "observes 2 numbers as 'place'.*expected 4"),
        ("nested", "about/mas", "no 'about/mas' in its observations"),
    ],
)
def test_a_mask_that_is_not_there_is_refused_at_the_start(form: str, mask: str, expected: str) -> None:
    with pytest.raises(InvalidEnvironment, match=expected):
        anyio.run(Trainer(config_with(form, mask)).run)


def test_masks_of_other_than_ones_and_zeros_are_refused() -> None:
    with pytest.raises(EnvironmentFailed, match=r"returned -1000000000.0 at place 0 of the action mask; give 1"):
        anyio.run(Trainer(config_with("floats", "action_mask")).run)


class Bits(Maze):
    action_space = spaces.MultiBinary(4)  # type: ignore[assignment]

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.action_space = spaces.MultiBinary(4)


class OnlyMask(Maze):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Dict({"action_mask": spaces.MultiBinary(4)})


@pytest.mark.parametrize(
    ("name", "expected"),
    [("Bits", "cannot mask; expected Discrete or MultiDiscrete"), ("OnlyMask", "observes nothing besides")],
)
def test_what_cannot_be_masked_is_refused(name: str, expected: str) -> None:
    config = small_config(environment=f"{HERE}:{name}", action_mask="action_mask")
    with pytest.raises(InvalidEnvironment, match=expected):
        anyio.run(Trainer(config).run)


def test_a_mask_that_the_environment_uses_again_is_recorded_as_it_was() -> None:
    one = never_forbidden(config_with("info", staleness=0))
    other = never_forbidden(config_with("info", staleness=0, options={"keeps": True}))
    assert all(np.array_equal(first, second) for first, second in zip(one.masks, other.masks, strict=True))


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("turned", r"observes parts of \[3, 2\] numbers as 'turned'.*expected \[2, 3\], those of the axes"),
        ("named", r"observes the parts \['named/attack', 'named/move'\] as 'named'.*keys of a Dict have no order"),
        (
            "info/turned",
            r"the action mask 'turned' of the info parts of \[3, 2\] numbers, expected \[2, 3\], one array for",
        ),
    ],
)
def test_parts_of_a_mask_that_are_not_those_of_the_axes_in_their_order_are_refused(mask: str, expected: str) -> None:
    with pytest.raises((InvalidEnvironment, EnvironmentFailed), match=expected):
        anyio.run(Trainer(small_config(environment=f"{HERE}:Turned", action_mask=mask)).run)


@pytest.mark.parametrize("mask", ["across", "info/across", "info/lists"])
def test_a_mask_whose_rows_are_no_axes_of_the_action_is_refused(mask: str) -> None:
    with pytest.raises(
        (InvalidEnvironment, EnvironmentFailed), match=r"of shape \[3, 2\].* expected \[6\], the choices"
    ):
        anyio.run(Trainer(small_config(environment=f"{HERE}:Across", action_mask=mask)).run)


@pytest.mark.parametrize("mask", ["along", "info/along", "info/lists along"])
def test_a_mask_may_have_a_row_for_each_axis_of_the_action(mask: str) -> None:
    anyio.run(Trainer(small_config(environment=f"{HERE}:Across", action_mask=mask)).run)


class Across(gymnasium.Env[Any, Any]):
    """Forbids the last choice of the first of two axes: by rows or columns. Fails where it is taken."""

    def __init__(self) -> None:
        self.action_space = spaces.MultiDiscrete([3, 3])
        masks = {"along": spaces.MultiBinary([2, 3]), "across": spaces.MultiBinary([3, 2])}
        self.observation_space = spaces.Dict({"x": spaces.Box(-1.0, 1.0, (2,)), **masks})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        mask = np.array([[1, 1, 0], [1, 1, 1]], np.int8)
        masks = {"along": mask, "across": mask.T}
        lists = {"lists": mask.T.tolist(), "lists along": mask.tolist()}
        return {"x": np.zeros(2, np.float32), **masks}, masks | lists

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action[0] < 2
        observation, info = self.reset()
        return observation, 0.0, False, False, info


class Turned(gymnasium.Env[Any, Any]):
    """Has as many numbers in its masks as there are choices, though not in the order of the axes."""

    def __init__(self) -> None:
        self.action_space = spaces.MultiDiscrete([2, 3])
        parts = [spaces.MultiBinary(3), spaces.MultiBinary(2)]
        named = spaces.Dict({"move": spaces.MultiBinary(2), "attack": spaces.MultiBinary(3)})
        self.observation_space = spaces.Dict(
            {"x": spaces.Box(-1.0, 1.0, (2,)), "turned": spaces.Tuple(parts), "named": named}
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        two, three = np.ones(2, np.int8), np.ones(3, np.int8)
        observation = {"x": np.zeros(2, np.float32), "turned": (three, two), "named": {"move": two, "attack": three}}
        return observation, {"turned": (three, two)}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, info = self.reset()
        return observation, 0.0, False, False, info


class Wide(gymnasium.Env[Any, Any]):
    """More axes than there are digits, each with one choice that is possible."""

    def __init__(self) -> None:
        self.action_space = spaces.MultiDiscrete(range(2, 14))
        masks = spaces.Tuple([spaces.MultiBinary(size) for size in range(2, 14)])
        self.observation_space = spaces.Dict({"x": spaces.Box(-1.0, 1.0, (2,)), "mask": masks})

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action.tolist() == self._possible.tolist()
        return self._observe(), 1.0, bool(self.np_random.random() < 0.1), False, {}

    def _observe(self) -> Any:
        self._possible = self.np_random.integers(0, np.arange(2, 14))
        masks = tuple(np.eye(size, dtype=np.int8)[one] for size, one in zip(range(2, 14), self._possible, strict=True))
        return {"x": self.np_random.uniform(-1, 1, 2).astype(np.float32), "mask": masks}


def test_the_parts_of_a_mask_are_in_the_order_of_the_axes_however_many_there_are() -> None:
    config = small_config(environment=f"{HERE}:Wide", action_mask="mask")
    final = anyio.run(Trainer(config).run)
    assert final.loss_stats is not None
    assert all(math.isfinite(value) for value in final.loss_stats.values())


class Stubborn(nn.Module):
    """Forbids by itself whatever the environment allows."""

    def __init__(self, _: Spaces) -> None:
        super().__init__()
        self.critic = nn.Linear(2, 1)

    def forward(self, observation: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        value = self.critic(observation["place"]).squeeze(-1)
        return torch.full((len(value), 4), -math.inf) + 0 * value[:, None], value


def make_stubborn(given: Spaces) -> nn.Module:
    assert isinstance(given.observation, spaces.Dict)
    assert list(given.observation.spaces) == ["place"]
    assert given.masked
    return Stubborn(given)


def test_a_network_that_forbids_what_the_mask_allows_is_to_blame() -> None:
    config = config_with("key", policy=PolicyConfig(network=f"{HERE}:make_stubborn"))
    with pytest.raises(Exception, match=r"the policy gave \[-inf, -inf, -inf, -inf\]"):
        anyio.run(Trainer(config).run)


def test_the_mask_may_not_change_on_resume(tmp_path: Path) -> None:
    config = config_with("key", folder=tmp_path / "run")
    anyio.run(Trainer(config).run)
    other = replace(config, action_mask="info/action_mask", total_agent_steps=10_000)
    with pytest.raises(Exception, match="action_mask = .info/action_mask.\n *expected: *.action_mask.: a resumed run"):
        anyio.run(Trainer(other, resume=tmp_path / "run").run)


def test_the_network_does_not_see_the_mask() -> None:
    spaces_seen = spaces_of(MAZE, {"form": "nested"}, Adaptation(action_mask="about/mask"))
    assert spaces_seen.masked
    assert isinstance(spaces_seen.observation, spaces.Dict)
    assert list(spaces_seen.observation) == ["place"]
    assert isinstance(build_policy(PolicyConfig(), spaces_seen, 1), Policy)
