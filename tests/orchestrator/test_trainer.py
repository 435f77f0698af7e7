from __future__ import annotations

import dataclasses
import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from orchestrator import Hook, PolicyConfig, StateUpdate, Trainer, TrainerConfig
from orchestrator.hooks.hook import EVENTS
from tests.orchestrator.training import (
    STATE_FIELDS,
    KeepingLoss,
    RecordingLoss,
    describe,
    losses_with,
    small_config,
)

if TYPE_CHECKING:
    from orchestrator.run import Run
    from state.trainer_state import TrainerState
    from tests.orchestrator.training import Backend

pytestmark = pytest.mark.anyio


class RecordingHook(Hook):
    overflow = "block"
    max_lag = 1000

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def events(self) -> list[str]:
        return [record["event"] for record in self.records]

    async def on_new_training_run(self, state: TrainerState) -> None:
        self.records.append(describe("on_new_training_run", state))

    async def on_rollout_start(self, state: TrainerState) -> None:
        self.records.append(describe("on_rollout_start", state))

    async def on_rollout_end(self, state: TrainerState) -> None:
        self.records.append(describe("on_rollout_end", state))

    async def on_train_phase_end(self, state: TrainerState) -> None:
        self.records.append(describe("on_train_phase_end", state))

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.records.append(describe("on_epoch_end", state))

    async def on_training_end(self, state: TrainerState) -> None:
        self.records.append(describe("on_training_end", state))

    async def on_failure(self, state: TrainerState) -> None:
        self.records.append(describe("on_failure", state))


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


EPOCH = ["on_rollout_start", "on_rollout_end", "on_train_phase_end", "on_epoch_end"]


async def test_taking_turns_the_hooks_see_the_events_in_the_order_of_the_loop() -> None:
    hook = RecordingHook()
    final = await Trainer(small_config(staleness=0, epochs=3), hooks=[hook]).run()
    assert final.epoch == 3
    assert hook.events() == ["on_new_training_run", *EPOCH * 3, "on_training_end"]


async def test_overlapping_the_events_of_each_epoch_keep_their_order_and_epochs_theirs() -> None:
    hook = RecordingHook()
    final = await Trainer(small_config(staleness=1, epochs=5), hooks=[hook]).run()
    assert hook.events()[0] == "on_new_training_run"
    assert hook.events()[-1] == "on_training_end"
    assert final.epoch >= 5
    for index in range(final.epoch):
        own = [
            record["event"]
            for record in hook.records
            if record["event"] in EPOCH and record["epoch"] - (record["event"] == "on_epoch_end") == index
        ]
        assert own == EPOCH
    for event in EPOCH:
        epochs = [record["epoch"] for record in hook.records if record["event"] == event]
        assert epochs == sorted(epochs)


@pytest.mark.parametrize("staleness", [0, 2])
async def test_the_losses_see_every_callback_in_the_order_of_the_loop(staleness: int, tmp_path: Path) -> None:
    path = tmp_path / "callbacks"
    config = small_config(staleness=staleness, epochs=2, total_agent_steps=129)
    await Trainer(config, losses=losses_with(RecordingLoss(path))).run()
    minibatches = ["on_mb_end"] * 4
    epoch = ["on_rollout_start", "on_rollout_end", *minibatches, "on_train_phase_end", "on_epoch_end"]
    records = read(path)
    assert [record["event"] for record in records] == ["on_new_training_run", *epoch * 2]
    assert [(r["update_epoch"], r["mb_idx"]) for r in records if r["event"] == "on_mb_end"][:4] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["inline", "process"])
async def test_each_field_is_filled_before_its_callback(backend: Any, tmp_path: Path) -> None:
    class Publisher(Hook):
        async def on_rollout_end(self, state: TrainerState) -> StateUpdate:
            return StateUpdate(latest_wandb_uri=f"wandb://epoch-{state.epoch}")

    config = small_config(staleness=0, epochs=3, backend=backend, run_dir=tmp_path / "run")
    config = dataclasses.replace(
        config,
        checkpoints=dataclasses.replace(config.checkpoints, every=1),
        evaluation=dataclasses.replace(config.evaluation, every=1, episodes=1, num_environments=1),
    )
    hook = RecordingHook()
    path = tmp_path / "callbacks"
    trainer = Trainer(config, hooks=[hook, Publisher()], losses=losses_with(RecordingLoss(path)))
    await trainer.run()
    known_at = {
        "on_rollout_end": {"rollout_stats", "experience", "stats_tracker", "timer"},
        "on_epoch_end": {"rollout_stats", "loss_stats", "experience", "policy", "stats_tracker", "timer"},
    }
    for record in [*hook.records, *read(path)]:
        assert "timer" in record["filled"], record
        assert known_at.get(record["event"], set()) <= set(record["filled"]), record
    last = next(record for record in hook.records if record["event"] == "on_training_end")
    assert set(last["filled"]) == set(STATE_FIELDS)


async def test_the_counters_and_the_timer_mean_what_they_say() -> None:
    hook = RecordingHook()
    await Trainer(small_config(staleness=0, epochs=3), hooks=[hook]).run()
    by_event = {event: [r for r in hook.records if r["event"] == event] for event in EVENTS}
    assert [r["epoch"] for r in by_event["on_rollout_end"]] == [0, 1, 2]
    assert [r["epoch"] for r in by_event["on_epoch_end"]] == [1, 2, 3], "after the epoch counter"
    assert [r["policy_version"] for r in by_event["on_rollout_start"]] == [0, 1, 2]
    assert [r["policy_version"] for r in by_event["on_epoch_end"]] == [1, 2, 3]
    steps = [r["steps"] for r in by_event["on_rollout_end"]]
    assert [r["agent_step"] for r in by_event["on_epoch_end"]] == [sum(steps[: i + 1]) for i in range(3)]
    assert len(by_event["on_train_phase_end"]) == 3
    for train_phase, epoch_end in zip(by_event["on_train_phase_end"], by_event["on_epoch_end"], strict=True):
        assert train_phase["timer"]["learn"] == epoch_end["timer"]["learn"], "epoch_end is outside the training timer"
        assert (train_phase["update_epoch"], train_phase["mb_idx"]) == (2, 4)


async def test_a_hook_cannot_change_the_state_the_experience_or_the_policy() -> None:
    attempts: list[str] = []

    class Vandal(Hook):
        overflow = "block"

        async def on_epoch_end(self, state: TrainerState) -> None:
            assert state.experience is not None
            assert state.policy is not None
            with pytest.raises(dataclasses.FrozenInstanceError):
                state.epoch = 99  # type: ignore[misc]
            with pytest.raises(TypeError):
                state.loss_stats["ppo_actor"] = 0.0  # type: ignore[index]
            with pytest.raises(TypeError):
                state.rollout_stats["episode_return"] = ()  # type: ignore[index]
            with pytest.raises(ValueError, match="read-only"):
                state.experience["reward"][:] = 99
            for tensor in state.policy.tensors.values():
                with pytest.raises(ValueError, match="read-only"):
                    tensor[...] = 0
            state.experience.tensor("observation").fill_(99)
            attempts.append("made")

    vandal, peace = Trainer(small_config(), hooks=[Vandal()]), Trainer(small_config())
    spoiled, sound = await vandal.run(), await peace.run()
    assert len(attempts) == sound.epoch
    assert spoiled.policy is not None
    assert sound.policy is not None
    for name, tensor in sound.policy.tensors.items():
        assert (spoiled.policy.tensors[name] == tensor).all()


async def test_states_that_are_kept_stay_as_they_were() -> None:
    kept: list[tuple[TrainerState, float]] = []

    class Collect(Hook):
        overflow = "block"

        async def on_epoch_end(self, state: TrainerState) -> None:
            if state.experience is not None:
                kept.append((state, float(state.experience["log_prob"].sum())))

    final = await Trainer(small_config(epochs=12), hooks=[Collect()]).run()
    assert final.epoch >= 12
    assert 6 <= len(kept) <= 10, "some states come without a view once too many are held"
    for state, checksum in kept:
        assert state.experience is not None
        assert float(state.experience["log_prob"].sum()) == checksum


@pytest.mark.parametrize("backend", ["inline", "process"])
async def test_states_that_a_loss_keeps_stay_as_they_were(backend: Backend) -> None:
    final = await Trainer(small_config(epochs=6, backend=backend), losses=[KeepingLoss()]).run()
    assert final.epoch >= 6


async def test_a_state_is_small_beside_the_views_it_refers_to() -> None:
    final = await Trainer(small_config(epochs=2, num_environments=64, horizon=128)).run()
    assert final.experience is not None
    assert final.experience.spec.nbytes > 200_000
    assert final.__sizeof__() < 1000
    # With the statistics of the episodes that have ended, of which it has one copy per run and not per state.
    assert len(pickle.dumps(dataclasses.replace(final, experience=None, policy=None))) < 20_000


async def goes_on(run: Run) -> bool:
    """Whether an epoch ends in the time of many."""
    epoch = run.state.epoch
    with anyio.move_on_after(0.5):
        await run.result()
    return run.state.epoch > epoch


@pytest.mark.parametrize(
    ("config", "cure"),
    [
        ("CartPole-v1", "write Trainer(TrainerConfig(environment='CartPole-v1'))"),
        ("runs/first/config.toml", "write Trainer(read_config(Path('runs/first/config.toml')))"),
        (Path("config.toml"), "write Trainer(read_config(Path('config.toml')))"),
        ({"seed": 1}, "write Trainer(from_table(...))"),
        (PolicyConfig(), "write Trainer(TrainerConfig(...))"),
        (TrainerConfig, "write Trainer(TrainerConfig(...))"),
    ],
)
def test_something_else_than_a_configuration_is_refused_with_what_to_write(config: Any, cure: str) -> None:
    with pytest.raises(TypeError) as caught:
        Trainer(config)
    assert str(caught.value).startswith(f"config must be a TrainerConfig, not {config!r}: ")
    assert cure in str(caught.value)


@pytest.mark.slow
async def test_a_run_can_be_watched_paused_and_stopped() -> None:
    begun: list[int] = []
    trainer = Trainer(small_config(epochs=100_000))

    @trainer.on_rollout_start(overflow="block")
    async def note(state: TrainerState) -> None:
        begun.append(state.epoch)

    async with trainer.start() as run:
        seen: list[int] = []
        async for state in run.states():
            seen.append(state.epoch)
            if len(seen) == 2:
                run.pause()
                with anyio.fail_after(60):  # what had begun is finished, and then nothing begins
                    while await goes_on(run) or len(begun) > run.state.epoch:
                        pass
                run.resume()
            if len(seen) == 5:
                run.stop("enough")
    assert seen == sorted(set(seen))
    final = await run.result()
    assert final.epoch == seen[-1]
    assert (run.status, run.stop_reason) == ("ended", "enough")


@pytest.mark.slow
async def test_two_trainers_run_in_one_program_with_the_results_they_have_alone() -> None:
    alone = [await Trainer(small_config(seed=seed)).run() for seed in (1, 2)]
    together: dict[int, TrainerState] = {}

    async def train(seed: int) -> None:
        together[seed] = await Trainer(small_config(seed=seed)).run()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(train, 1)
        tasks.start_soon(train, 2)
    for seed, state in zip((1, 2), alone, strict=True):
        assert state.policy is not None
        other = together[seed].policy
        assert other is not None
        assert all((other.tensors[name] == tensor).all() for name, tensor in state.policy.tensors.items())


async def test_decorated_functions_are_hooks_async_or_plain() -> None:
    trainer = Trainer(small_config(epochs=4, staleness=0))
    asynchronous: list[int] = []
    plain: list[int] = []

    @trainer.on_epoch_end(every=2, overflow="block")
    async def every_other(state: TrainerState) -> None:
        asynchronous.append(state.epoch)

    @trainer.on_rollout_end
    def in_a_thread(state: TrainerState) -> None:
        plain.append(state.epoch)

    await trainer.run()
    assert asynchronous == [2, 4]
    assert plain
    with pytest.raises(TypeError, match="does not take"):
        trainer.on_epoch_end(evry=2)(every_other)


async def test_a_hook_that_asks_for_it_stops_the_run_after_the_epoch() -> None:
    class StopAtThree(Hook):
        overflow = "block"

        async def on_epoch_end(self, state: TrainerState) -> StateUpdate | None:
            return StateUpdate(stop=True) if state.epoch == 3 else None

    final = await Trainer(small_config(epochs=1000, staleness=0), hooks=[StopAtThree()]).run()
    assert 3 <= final.epoch <= 5
