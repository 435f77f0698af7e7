from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from dataclasses import replace

import anyio
import pytest

from orchestrator.hooks.hook import Hook, HookResult, StateUpdate
from orchestrator.hooks.runner import HookOverflow
from state.eval_rewards import EvalRewardSummary
from state.frozen_mapping import FrozenMapping
from state.trainer_state import TrainerState
from tests.orchestrator.hooks.driving import (
    AtCommit,
    AtEpochEnd,
    Everything,
    FakeRun,
    make_engine,
    publish_epochs,
    quiet,
    running,
)

pytestmark = pytest.mark.anyio


def scores(score: float, version: int) -> EvalRewardSummary:
    return EvalRewardSummary.from_simulations({("task", "env"): score}, policy_version=version)


def commit(state: TrainerState) -> StateUpdate:
    return StateUpdate(latest_checkpoint_uri=f"file:///c/{state.epoch}")


async def test_what_a_hook_returns_is_in_the_next_state_that_is_published() -> None:
    hook = AtEpochEnd(
        "hook",
        act=lambda state: StateUpdate(
            eval_scores=scores(1.5, state.policy_version),
            latest_checkpoint_uri="file:///c/1",
            latest_wandb_uri="https://w/1",
            results={"ratio": 0.5},
        ),
    )
    async with running(hook) as engine:
        before = TrainerState(epoch=3)
        assert engine.fold(before) is before
        await publish_epochs(engine, 3)
        await engine.drain(10)
        state = engine.fold(TrainerState(epoch=4))
    assert state.epoch == 4
    assert state.eval_scores is not None
    assert state.eval_scores.avg_category_score == 1.5
    assert (state.latest_checkpoint_uri, state.latest_wandb_uri) == ("file:///c/1", "https://w/1")
    assert state.results is not None
    assert state.results["ratio"] == HookResult(value=0.5, hook="hook", epoch=3, policy_version=3), (
        "it says which state it speaks of"
    )


async def test_nothing_returned_is_ever_lost_from_later_states() -> None:
    hook = AtEpochEnd("hook", act=lambda state: StateUpdate(results={f"epoch {state.epoch}": True}))
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(10)
        state = engine.fold(TrainerState())
        await publish_epochs(engine, 2)
        await engine.drain(10)
        assert sorted(engine.fold(state).results or {}) == ["epoch 1", "epoch 2"]


async def test_a_late_result_about_an_older_event_does_not_overwrite_a_newer_one() -> None:
    def act(state: TrainerState) -> StateUpdate:
        return StateUpdate(eval_scores=scores(state.epoch, state.epoch), results={"epoch": state.epoch})

    slow, quick = AtEpochEnd("slow", gated=True, act=act), AtEpochEnd("quick", act=act)
    async with running(quick, slow) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        await publish_epochs(engine, 2)
        await quiet()
        slow.open()
        await quiet()
        assert slow.epochs == [1]
        state = engine.fold(TrainerState())
        assert state.results is not None
        assert state.results["epoch"].value == 2
        assert state.eval_scores is not None
        assert state.eval_scores.policy_version == 2


@pytest.mark.parametrize("first_to_finish", ["one", "two"])
async def test_for_the_same_event_the_hook_registered_last_has_the_last_word(first_to_finish: str) -> None:
    one = AtEpochEnd("one", gated=True, act=lambda _: StateUpdate(results={"who": "one", "only": "one"}))
    two = AtEpochEnd("two", gated=True, act=lambda _: StateUpdate(results={"who": "two"}))
    hooks = {"one": one, "two": two}
    async with running(one, two) as engine:
        await publish_epochs(engine, 1)
        await quiet()
        hooks.pop(first_to_finish).open()
        await quiet()
        engine.fold(TrainerState())
        for hook in hooks.values():
            hook.open()
        await quiet()
        results = engine.fold(TrainerState()).results or {}
    assert {name: result.value for name, result in results.items()} == {"who": "two", "only": "one"}


async def test_results_are_frozen() -> None:
    mutable = {"curve": [1.0, 2.0], "names": {"a"}}
    hook = AtEpochEnd("hook", act=lambda _: StateUpdate(results={"report": mutable}))
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(10)
        mutable["curve"] = []
        results = engine.fold(TrainerState()).results or {}
    value = results["report"].value
    assert value == {"curve": (1.0, 2.0), "names": frozenset({"a"})}
    assert isinstance(value, FrozenMapping)
    with pytest.raises(TypeError):
        results["other"] = 1  # type: ignore[index]


async def test_a_result_that_cannot_reach_the_learner_is_a_failure_of_its_hook(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hook = AtEpochEnd("hook", act=lambda _: StateUpdate(results={"lock": threading.Lock()}, stop=True))
    async with running(hook) as engine:
        await publish_epochs(engine, 1)
        await engine.drain(10)
        assert engine.statistics().hooks["hook"].failed == 1
        assert engine.fold(TrainerState()).results is None
        assert isinstance(engine.run, FakeRun)
        assert engine.run.wishes == []
    assert "result 'lock' must be plain data that can be pickled" in caplog.text


async def test_an_update_with_a_wrong_type_is_refused_where_it_is_made() -> None:
    with pytest.raises(TypeError, match="eval_scores must be of type EvalRewardSummary, not float: "):
        StateUpdate(eval_scores=3.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="latest_checkpoint_uri must be of type str"):
        StateUpdate(latest_checkpoint_uri=b"file:///x")  # type: ignore[arg-type]


async def test_a_commit_is_announced_with_its_address_to_everyone_but_who_made_it() -> None:
    saver = Everything("saver", act=lambda state: StateUpdate(latest_checkpoint_uri=f"file:///c/{state.epoch}"))
    watcher = Everything("watcher")
    async with running(saver, watcher) as engine:
        await publish_epochs(engine, 3)
        assert await engine.drain(10) == ()
    assert saver.done == [("on_epoch_end", 3)]
    assert watcher.done == [("on_epoch_end", 3), ("on_checkpoint_committed", 3)]
    assert watcher.states[1].latest_checkpoint_uri == "file:///c/3"


async def test_draining_includes_the_commit_that_the_last_event_made() -> None:
    saver = Everything("saver", act=lambda _: StateUpdate(latest_checkpoint_uri="file:///c/last"))
    uploader = Everything("uploader", gated=True)
    async with running(saver, uploader) as engine:
        await publish_epochs(engine, 3, event="on_training_end")
        await quiet()
        assert await engine.drain(0) == ("uploader",)
        uploader.open_for_good()
        assert await engine.drain(10) == ()
    assert uploader.done == [("on_training_end", 3), ("on_checkpoint_committed", 3)]


async def test_an_address_that_is_reported_again_is_no_new_checkpoint() -> None:
    saver = AtEpochEnd("saver", act=lambda state: commit(replace(state, epoch=state.epoch // 2)))
    watcher = AtCommit("watcher", max_lag=100)
    async with running(saver, watcher) as engine:
        for epoch in (2, 3, 4, 5):
            await publish_epochs(engine, epoch)
            await engine.drain(10)
    assert watcher.epochs == [2, 4]


async def test_a_copy_elsewhere_is_announced_too() -> None:
    saver = AtEpochEnd("saver", act=lambda _: StateUpdate(latest_checkpoint_uri="file:///c/1"))

    class Uploader(Hook):
        uploads = 0

        async def on_checkpoint_committed(self, state: TrainerState) -> StateUpdate:
            self.uploads += 1
            return StateUpdate(latest_checkpoint_uri="s3://bucket/1")

    uploader, watcher = Uploader(), Everything("watcher", max_lag=100)
    async with running(saver, uploader, watcher) as engine:
        await publish_epochs(engine, 1)
        assert await engine.drain(10) == ()
        assert engine.fold(TrainerState()).latest_checkpoint_uri == "s3://bucket/1"
    assert uploader.uploads == 1, "it does not upload its own upload"
    assert [state.latest_checkpoint_uri for state in watcher.states] == [None, "file:///c/1", "s3://bucket/1"]


async def test_commits_hold_up_the_training_where_a_hook_that_must_see_them_all_is_behind() -> None:
    saver = AtEpochEnd("saver", act=commit)
    keeper = AtCommit("keeper", gated=True, overflow="block", max_lag=1)
    async with running(saver, keeper) as engine, anyio.create_task_group() as tasks:
        for epoch in (1, 2, 3):
            await publish_epochs(engine, epoch)
            await quiet()
        published: list[int] = []

        async def publish() -> None:
            await publish_epochs(engine, 4)
            published.append(4)

        tasks.start_soon(publish)
        await quiet()
        assert published == [], "the keeper is at the first commit, and two wait"
        keeper.open()
        await quiet()
        keeper.open()
        await quiet()
        assert published == [4]
        keeper.open_for_good()
        assert await engine.drain(10) == ()
    assert keeper.epochs == [1, 2, 3, 4]


async def test_a_commit_that_a_strict_hook_cannot_take_fails_the_run() -> None:
    saver = AtEpochEnd("saver", act=commit)
    strict = AtCommit("strict", gated=True, overflow="error", max_lag=1)
    with pytest.raises(ExceptionGroup) as caught:
        async with running(saver, strict) as engine:
            for epoch in (1, 2, 3):
                await publish_epochs(engine, epoch)
                await quiet()
            await anyio.sleep_forever()
    assert caught.group_contains(HookOverflow, match="hook 'strict' is too far behind")


class Counting(Hook):
    name = "counting"

    def __init__(self) -> None:
        self.count = 0

    async def on_epoch_end(self, state: TrainerState) -> None:
        self.count += 1

    def state_dict(self) -> Mapping[str, object]:
        return {"count": self.count, "pair": (1, 2)}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        assert isinstance(state["count"], int)
        self.count = state["count"]


async def test_hook_states_go_into_a_checkpoint_under_the_hooks_names_and_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with running(Counting(), AtEpochEnd("stateless")) as engine:
        for epoch in range(3):
            await publish_epochs(engine, epoch)
            await engine.drain(10)
        states = engine.hook_states()
    assert states == {"counting": {"count": 3, "pair": [1, 2]}}
    hook = Counting()
    make_engine([hook]).load_hook_states({**states, "gone": {"x": 1}})
    assert hook.count == 3
    assert "state of hooks that this run does not have: gone" in caplog.text


async def test_a_hook_that_fails_to_give_its_state_costs_no_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    class Odd(Counting):
        name = "odd"

        def state_dict(self) -> Mapping[str, object]:
            return {"lock": threading.Lock()}

    with caplog.at_level(logging.ERROR):
        assert list(make_engine([Odd(), Counting()]).hook_states()) == ["counting"]
    assert "a checkpoint is without the state of hook 'odd'" in caplog.text


async def test_a_state_that_a_hook_cannot_take_over_is_an_error_with_its_name() -> None:
    with pytest.raises(KeyError) as caught:
        make_engine([Counting()]).load_hook_states({"counting": {}})
    assert caught.value.__notes__ == ["while hook 'counting' took over its state from a checkpoint"]
