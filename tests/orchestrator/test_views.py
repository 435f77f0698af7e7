"""Views of experience and policy, as hooks and losses get them: whatever one does to its own, nobody else sees it."""

from __future__ import annotations

import copy
import ctypes
import dataclasses
import gc
import pickle
import warnings
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
import torch

from losses import Loss
from orchestrator import Hook, StateUpdate, Trainer, run_in_worker
from state.stats_tracker import StatsTracker
from state.trainer_state import TrainerState
from tests.orchestrator.training import losses_with, small_config

if TYPE_CHECKING:
    from collections.abc import Callable

    from losses import Minibatch, PolicyEvaluation

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def through_torch(array: np.ndarray[Any, Any]) -> None:
    with warnings.catch_warnings(action="ignore"):  # torch says that the array is read-only, and gives it all the same
        tensor = torch.from_numpy(array)
    tensor.add_(1)


def through_its_address(array: np.ndarray[Any, Any]) -> None:
    ctypes.memset(array.ctypes.data, 0x3F, array.nbytes)


def through_its_base(array: np.ndarray[Any, Any]) -> None:
    base: Any = array
    while not isinstance(base, memoryview):
        base = base.base
    np.frombuffer(memoryview(base.obj), np.uint8)[...] = 0x3F


WAYS = (through_torch, through_its_address, through_its_base)


def content(state: TrainerState) -> bytes:
    assert state.experience is not None
    tensors = {} if state.policy is None else state.policy.tensors  # a loss gets no policy before the end of an epoch
    return b"".join(array.tobytes() for view in (state.experience, tensors) for array in view.values())


def spoil(state: TrainerState, way: Callable[[np.ndarray[Any, Any]], None]) -> None:
    assert state.experience is not None
    before = content(state)
    taken = [state.experience["reward"], *(() if state.policy is None else state.policy.tensors.values())]
    mine = [array.copy() for array in taken]
    for array in taken:
        way(array)
    assert any((array != old).any() for array, old in zip(taken, mine, strict=True)), "the writes happen"
    state.experience.tensor("observation").fill_(99.0)
    if state.policy is not None:
        for tensor in (*state.policy.state_dict().values(), *state.policy.load().parameters()):
            tensor.detach().zero_()
    assert content(state) == before, "not even the state's own views have changed"


class Witness(Hook):
    """Keeps what the state of each epoch's end holds."""

    overflow = "block"

    def __init__(self, name: str, after: tuple[str, ...] = ()) -> None:
        self.name = name
        self.after = after
        self.seen: list[bytes] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.seen.append(content(state))


class Vandal(Hook):
    name = "vandal"
    after = ("before",)
    overflow = "block"
    on_error = "raise"

    def __init__(self, way: Callable[[np.ndarray[Any, Any]], None]) -> None:
        self.way = way

    async def on_epoch_end(self, state: TrainerState) -> None:
        spoil(state, self.way)


@pytest.mark.parametrize("way", WAYS)
async def test_what_a_hook_does_to_its_views_is_seen_by_no_other_hook_nor_by_the_training(
    way: Callable[[np.ndarray[Any, Any]], None],
) -> None:
    before, after = Witness("before"), Witness("after", after=("vandal",))
    spoiled = await Trainer(small_config(), hooks=[before, Vandal(way), after]).run()
    sound = await Trainer(small_config()).run()
    assert len(after.seen) == sound.epoch
    assert after.seen == before.seen
    assert spoiled.policy == sound.policy


class Harmless(Loss):
    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> torch.Tensor:
        return evaluation.value.sum() * 0.0


class Vandalising(Harmless):
    def __init__(self, way: Callable[[np.ndarray[Any, Any]], None]) -> None:
        super().__init__()
        self.way = way

    def on_rollout_end(self, state: TrainerState) -> None:
        spoil(state, self.way)

    def on_epoch_end(self, state: TrainerState) -> None:
        spoil(state, self.way)


@pytest.mark.parametrize("way", WAYS)
async def test_nor_is_what_a_loss_does_to_its_views(way: Callable[[np.ndarray[Any, Any]], None]) -> None:
    spoiled = await Trainer(small_config(), losses=losses_with(Vandalising(way))).run()
    sound = await Trainer(small_config(), losses=losses_with(Harmless())).run()
    assert spoiled.policy == sound.policy


async def test_the_memory_behind_a_view_cannot_be_mapped_to_be_written() -> None:
    attempts: list[str] = []

    class Mapping(Hook):
        overflow = "block"
        on_error = "raise"

        async def on_epoch_end(self, state: TrainerState) -> None:
            assert state.experience is not None
            assert state.policy is not None
            for view in (state.experience.memory, state.policy.memory):
                with pytest.raises(PermissionError):
                    view.buffer.map_shared()
            with pytest.raises(PermissionError):
                await run_in_worker(map_to_write, state.policy)
            attempts.append("made")

    final = await Trainer(small_config(epochs=2), hooks=[Mapping()]).run()
    assert len(attempts) == final.epoch


def map_to_write(policy: Any) -> None:
    policy.memory.buffer.map_shared()


async def test_a_hook_may_hold_more_arrays_than_a_process_may_have_files() -> None:
    rows: list[np.ndarray[Any, Any]] = []

    class Hoard(Hook):
        on_error = "raise"

        async def on_training_end(self, state: TrainerState) -> None:
            assert state.experience is not None
            rows.extend(state.experience["reward"][0] for _ in range(5000))

    await Trainer(small_config(epochs=2), hooks=[Hoard()]).run()
    assert len(rows) == 5000
    assert all((row == rows[0]).all() for row in rows)


@pytest.mark.parametrize(
    "value",
    [np.zeros(3), torch.zeros(3), bytearray(b"x"), {"curve": [np.zeros(3)]}, (1, {"deep": {"deeper": bytearray()}})],
    ids=lambda value: type(value).__name__,
)
async def test_a_result_that_others_could_change_is_a_failure_of_its_hook(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    class Publisher(Hook):
        async def on_epoch_end(self, state: TrainerState) -> StateUpdate:
            return StateUpdate(results={"curve": value})

    final = await Trainer(small_config(epochs=2), hooks=[Publisher()]).run()
    assert final.results is None
    assert "result 'curve' contains an object of type" in caplog.text
    assert "which can be changed: other hooks read the same result" in caplog.text


class Keep(Hook):
    overflow = "block"

    def __init__(self) -> None:
        self.states: list[TrainerState] = []

    async def on_rollout_end(self, state: TrainerState) -> None:
        self.states.append(state)

    async def on_epoch_end(self, state: TrainerState) -> StateUpdate:
        self.states.append(state)
        return StateUpdate(results={"epoch": state.epoch, "nested": {"list": [1, 2]}})


async def states_of(seed: int, epochs: int = 3) -> list[TrainerState]:
    hook = Keep()
    final = await Trainer(small_config(epochs=epochs, seed=seed, staleness=0), hooks=[hook]).run()
    return [*hook.states, final]


async def test_states_can_be_compared_hashed_copied_and_printed() -> None:
    states, same, others = await states_of(seed=1), await states_of(seed=1), await states_of(seed=2)
    assert len({*states, *states}) == len(states), "each is in the set once"
    assert [states.index(state) for state in states] == list(range(len(states)))
    for state, twin, other in zip(states, same, others, strict=True):
        assert state == copy.copy(state) == copy.deepcopy(state) == dataclasses.replace(state)
        assert len({state, copy.deepcopy(state)}) == 1
        assert dataclasses.replace(state, experience=None) != state
        assert dataclasses.replace(state, loss_stats={"x": 1.0}) != state
        assert (state.experience, state.policy) == (twin.experience, twin.policy), "the same seed, another run"
        assert (state.experience, state.policy) != (other.experience, other.policy)
        assert state != other
        assert state not in (None, 3, "state", {})
        assert str(state.epoch) in repr(state)
        assert len(repr(state.experience)) < 300
        assert len(repr(state.policy)) < 100
        without = dataclasses.replace(state, experience=None, policy=None)
        assert pickle.loads(pickle.dumps(without)) == without
        with pytest.raises(TypeError, match=r"dataclasses.replace\(state, experience=None, policy=None\)"):
            pickle.dumps(state)
    last = states[-1]
    assert hash(dataclasses.replace(last, loss_stats={"x": [1.0]}, results={"y": {1}})), "what it is given is frozen"
    assert isinstance(last.stats_tracker, StatsTracker)
    assert last.stats_tracker == copy.deepcopy(last.stats_tracker)
    assert hash(last.stats_tracker) == hash(pickle.loads(pickle.dumps(last.stats_tracker)))


async def test_a_deep_copy_of_a_state_can_be_kept_of_every_epoch() -> None:
    copies: list[tuple[TrainerState, bytes]] = []

    class Collect(Hook):
        overflow = "block"
        on_error = "raise"

        async def on_epoch_end(self, state: TrainerState) -> None:
            copies.append((copy.deepcopy(state), content(state)))

    final = await Trainer(small_config(epochs=20), hooks=[Collect()]).run()
    assert len(copies) == final.epoch >= 20, "more than leases may be held"
    assert all(content(state) == expected for state, expected in copies)


def test_a_state_reaches_a_worker_equal_to_what_was_sent() -> None:
    equal: list[bool] = []

    class Send(Hook):
        on_error = "raise"

        async def on_training_end(self, state: TrainerState) -> None:
            back = await run_in_worker(returned, state)
            equal.append(back == state and hash(back) == hash(state))

    anyio.run(Trainer(small_config(epochs=2), hooks=[Send()]).run)
    assert equal == [True]


def returned(state: TrainerState) -> TrainerState:
    return state


class Listens(Hook):
    overflow = "block"

    def __init__(self) -> None:
        self.complete: list[bool] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.complete.append(state.experience is not None and state.policy is not None)


@pytest.mark.parametrize("kind", ["async", "plain", "timeout"])
async def test_a_hook_that_raises_takes_no_views_from_the_others(kind: str) -> None:
    listens = Listens()
    trainer = Trainer(small_config(epochs=30), hooks=[listens])

    if kind == "plain":

        @trainer.on_epoch_end(name="raises", overflow="block")
        def raises(state: TrainerState) -> None:
            assert state.experience is not None
            raise ValueError(state.experience["reward"].shape)
    else:

        @trainer.on_epoch_end(name="raises", overflow="block", timeout=0.001 if kind == "timeout" else None)
        async def raises_too(state: TrainerState) -> None:
            assert state.experience is not None
            if kind == "timeout":
                await anyio.sleep(3600)
            raise ValueError(state.experience["reward"].shape)

    gc.disable()  # views must not depend on when it comes
    try:
        await trainer.run()
    finally:
        gc.enable()
    failed = trainer.statistics().engine.hooks["raises"].failed
    assert failed == len(listens.complete) >= 25
    assert all(listens.complete)
