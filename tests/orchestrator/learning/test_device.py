"""Learning on a device that is not the CPU: an emulated one everywhere, the real one where there is any."""

from __future__ import annotations

import dataclasses
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from orchestrator import CollectionConfig, LearningConfig, LossesConfig, PolicyConfig, TrainerConfig
from orchestrator.collection.experience_fields import experience_fields
from orchestrator.learning.default_losses import default_losses
from orchestrator.learning.learner import Learner
from orchestrator.learning.messages import LearnerPlan, LearnRequest
from orchestrator.policies import Spaces, capture, replays
from orchestrator.workers.interrupt import Interrupt
from orchestrator.workers.slots import SlotRef
from state.experience import ExperienceSpec
from state.policy_point import PolicyPoint
from state.shared_memory import SharedBuffer
from state.trainer_state import TrainerState
from tests.orchestrator.emulated_device import DEVICE, emulated
from tests.orchestrator.recorded_graph import RecordedOperations

pytestmark = pytest.mark.slow

SEGMENTS, HORIZON = 4, 16
LEARNING = LearningConfig(update_epochs=2, minibatches=2, learning_rate=1e-3)
VECTOR = gymnasium.spaces.Box(-1.0, 1.0, (3,))
VARIANTS = {
    "mlp": {},
    "box actions": {"action": gymnasium.spaces.Box(-1.0, 1.0, (2,))},
    "bits": {"action": gymnasium.spaces.MultiBinary(2)},
    "masked": {"masked": True},
    "masked lstm": {"masked": True, "policy": PolicyConfig(network="lstm", lstm_size=4)},
    "lstm": {"policy": PolicyConfig(network="lstm", lstm_size=4)},
    "images": {"observation": gymnasium.spaces.Box(0, 255, (36, 36, 1), np.uint8)},
    "normalised": {"policy": PolicyConfig(hidden_sizes=(8,), normalize_observations=True, normalize_rewards=True)},
    "v-trace": {"losses": LossesConfig(names=("vtrace_actor", "vtrace_critic"))},
    "value clipping": {"losses": LossesConfig(value_clip=0.1)},
    "prioritised": {"learning": dataclasses.replace(LEARNING, priority_exponent=0.8)},
}


def learned(
    device: str,
    *,
    resumed: bool = False,
    learning: LearningConfig = LEARNING,
    policy: PolicyConfig = PolicyConfig(hidden_sizes=(8,)),  # noqa: B008
    losses: LossesConfig = LossesConfig(),  # noqa: B008
    observation: gymnasium.Space[Any] = VECTOR,
    action: gymnasium.Space[Any] = gymnasium.spaces.Discrete(3),  # noqa: B008
    masked: bool = False,
) -> dict[str, np.ndarray[Any, Any]]:
    """The weights and moments after two epochs on the same experience; `resumed`: by another learner after one."""
    spaces = Spaces(observation, action, masked)
    config = TrainerConfig(
        total_agent_steps=1000,
        collection=CollectionConfig(num_environments=SEGMENTS, horizon=HORIZON, backend="inline"),
        learning=dataclasses.replace(learning, threads=1),
        policy=policy,
        losses=losses,
    )
    plan = LearnerPlan(
        config=config,
        losses=default_losses(config),
        spaces=spaces,
        device=device,
        max_threads=1,
        interrupt=Interrupt(),
    )
    learner = Learner(plan)
    described = learner.describe()
    own = experience_fields(spaces, described.recurrent_state_size, refreshes=config.refreshes)
    fields = [*own, *described.fields]
    spec = ExperienceSpec.merge(SEGMENTS, HORIZON, {"test": fields})
    experience, weights, moments = (
        SharedBuffer.create(nbytes) for nbytes in (spec.nbytes, described.layout.nbytes, described.moments_nbytes)
    )
    slots = {
        "experience": SlotRef("experience", 0, experience),
        "publish_to": SlotRef("policy", 0, weights),
        "moments_to": SlotRef("moments", 0, moments),
    }
    fill(spec.arrays(experience.map_shared()), spaces)
    learner.prepare(spec)
    for epoch in range(2):
        request = LearnRequest(
            state=TrainerState(epoch=epoch),
            behavior=PolicyPoint(0),
            version=epoch + 1,
            steps_before=0,
            rollout_start=None,
            **slots,
        )
        state = learner.learn(request).learner_state
        if resumed and epoch == 0:
            learner.close()
            learner = Learner(dataclasses.replace(plan, config=dataclasses.replace(config, seed=2)))
            learner.prepare(spec)
            learner.restore(slots["publish_to"], slots["moments_to"], state)
    learner.close()
    arrays = described.layout.arrays(weights.map_shared())
    return {**arrays, "moments": np.frombuffer(moments.map_shared(), np.float32)}


def fill(arrays: dict[str, np.ndarray[Any, Any]], spaces: Spaces) -> None:
    draw = np.random.default_rng(1)
    for name, array in arrays.items():
        if name == "action" and array.dtype == np.int64:
            array[...] = draw.integers(0, spaces.action.n, array.shape)  # type: ignore[attr-defined]
        elif name == "action_mask":
            array[...] = draw.random(array.shape) < 0.6
            np.put_along_axis(array, arrays["action"][..., None], True, axis=-1)
        elif array.dtype == np.uint8:
            array[...] = draw.integers(0, 256, array.shape)
        elif name == "final_observations":
            array[...] = HORIZON
        elif name == "valid":
            array[...] = draw.random(array.shape) < 0.9
        elif array.dtype == np.bool_:
            array[...] = draw.random(array.shape) < 0.1
        else:
            array[...] = draw.normal(size=array.shape)


@pytest.mark.parametrize("resumed", [False, True], ids=["through", "resumed"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_a_device_learns_what_the_cpu_learns(variant: str, resumed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = VARIANTS[variant]
    expected = learned("cpu", **settings)
    with emulated(monkeypatch):
        found = learned(DEVICE, resumed=resumed, **settings)
    assert found.keys() == expected.keys()
    # A device's own kernel for one step of an LSTM rounds otherwise than the CPU's operations.
    tolerance = 1e-4 if "lstm" in variant else 0.0
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0.0, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_host_never_waits_for_a_minibatch(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = VARIANTS[variant]
    reads: list[int] = []
    for passes in (1, 4):
        learning = dataclasses.replace(settings.get("learning", LEARNING), update_epochs=passes)
        with emulated(monkeypatch) as emulation:
            learned(DEVICE, **settings | {"learning": learning})
        reads.append(emulation.reads)
    assert reads[0] == reads[1] > 0


@pytest.mark.parametrize("variant", VARIANTS)
def test_minibatches_that_a_device_repeats_are_those_that_it_is_told(
    variant: str, monkeypatch: pytest.MonkeyPatch, recorded: list[float]
) -> None:
    """Operation by operation with another learner, from which no minibatch is recorded: with the same bits."""
    settings: dict[str, Any] = VARIANTS[variant]
    learning = dataclasses.replace(settings.get("learning", LEARNING), graphs=True, update_epochs=4)
    found: list[dict[str, Any]] = []
    for warm_up in (3, 10**6):
        monkeypatch.setattr(replays, "WARM_UP", warm_up)
        with emulated(monkeypatch):
            found.append(learned(DEVICE, **settings | {"learning": learning}))
    replayed, told = found
    for name, array in told.items():
        np.testing.assert_array_equal(replayed[name], array, err_msg=name)
    assert recorded[:2] == [3.0, 8.0]
    assert recorded[2:] == [0.0, 0.0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", VARIANTS)
def test_cuda_repeats_minibatches_as_it_is_told_them(
    variant: str, monkeypatch: pytest.MonkeyPatch, recorded: list[float]
) -> None:
    settings: dict[str, Any] = VARIANTS[variant]
    learning = dataclasses.replace(settings.get("learning", LEARNING), graphs=True, update_epochs=4)
    replayed = learned("cuda", **settings | {"learning": learning})
    assert recorded == [3.0, 8.0]
    monkeypatch.setattr(replays, "WARM_UP", 10**6)
    told = learned("cuda", **settings | {"learning": learning})
    if variant == "images":  # whose convolutions do not give the same bits twice
        assert distance(replayed, told) <= 1e-3 * distance(replayed, {name: 0.0 * one for name, one in told.items()})
        return
    for name, array in told.items():
        np.testing.assert_array_equal(replayed[name], array, err_msg=name)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How many minibatches were replayed in each epoch."""
    monkeypatch.setitem(capture.CAPTURES, "emulated", RecordedOperations)
    counts: list[float] = []
    learn = Learner.learn

    def counted(self: Learner, request: LearnRequest) -> Any:
        report = learn(self, request)
        counts.append(report.loss_stats["replayed_minibatches"])  # type: ignore[union-attr]
        assert not report.warnings  # type: ignore[union-attr]
        return report

    monkeypatch.setattr(Learner, "learn", counted)
    return counts


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("variant", VARIANTS)
def test_cuda_learns_what_the_cpu_learns(variant: str) -> None:
    settings: dict[str, Any] = VARIANTS[variant]
    # In one minibatch, since generators draw other orders on other devices.
    learning = dataclasses.replace(settings.get("learning", LEARNING), update_epochs=4, minibatches=1)
    found = learned("cuda", **settings | {"learning": learning})
    assert all(np.isfinite(array).all() for array in found.values())
    if learning.priority_exponent:  # draws with replacement, so others
        return
    expected = learned("cpu", **settings | {"learning": learning})
    before = learned("cpu", **settings | {"learning": dataclasses.replace(learning, learning_rate=0.0)})
    assert distance(found, expected) <= 0.05 * distance(before, expected)


def distance(one: dict[str, np.ndarray[Any, Any]], other: dict[str, np.ndarray[Any, Any]]) -> float:
    """Between the trained weights, of all tensors together."""
    names = [name for name in one if name != "moments" and "normalizer" not in name]
    return float(np.sqrt(sum(np.square(one[name] - other[name]).sum() for name in names)))
