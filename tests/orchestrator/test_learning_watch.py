"""Runs that do not learn say so: in the log, the metrics, the progress and the results."""

from __future__ import annotations

import io
import json
import logging
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import gymnasium
import pytest
from rich.console import Console

from orchestrator import (
    CollectionConfig,
    Hook,
    LearningConfig,
    LossesConfig,
    MetricsConfig,
    PolicyConfig,
    Trainer,
    TrainerConfig,
    TypePolicy,
)
from orchestrator.hooks.included import learning_watch
from orchestrator.hooks.included.learning_problems import KINDS
from orchestrator.hooks.included.progress import ProgressHook
from orchestrator.report.run_record import read_run
from orchestrator.report.summary import rows
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from pathlib import Path

    from state.trainer_state import TrainerState

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


TOO_FAST: dict[str, Any] = {
    "learning": LearningConfig(minibatches=4, learning_rate=0.1, learning_rate_schedule="constant"),
    "policy": PolicyConfig(normalize_observations=False, normalize_rewards=False),
    "collection": CollectionConfig(backend="inline", horizon=128),
}


def without_rewards(environment: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return gymnasium.wrappers.TransformReward(environment, lambda reward: 0.0)


def cartpole(run_dir: Path, epochs: int, **settings: Any) -> TrainerConfig:
    return TrainerConfig(
        total_agent_steps=epochs * 64 * 128,
        run_dir=run_dir,
        collection=settings.pop("collection", CollectionConfig(backend="inline")),
        metrics=settings.pop("metrics", MetricsConfig()),
        **settings,
    )


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.getMessage().startswith("learning (")]


async def test_a_run_with_a_learning_rate_that_is_too_high_says_so_once_everywhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shown = io.StringIO()
    config = cartpole(tmp_path / "run", 10, **TOO_FAST)
    with caplog.at_level(logging.WARNING):
        progress = ProgressHook(config.total_agent_steps, "plain", Console(file=shown, width=400))
        final = await Trainer(config, hooks=[progress]).run()
    [text] = [line for line in warnings(caplog) if line.startswith("learning (policy_change)")]
    assert "set learning.learning_rate to 0.0003 (now 0.1)" in text
    assert final.results is not None
    result: Any = final.results["learning_problems"]
    assert "learning.learning_rate" in result.value["policy_change"]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert "warnings/policy_change" not in records[0]
    assert records[-1]["warnings/policy_change"] == 1.0
    assert {name for name in records[-1] if name.startswith("warnings/")} == {f"warnings/{kind}" for kind in KINDS}
    assert "policy_change" in shown.getvalue().splitlines()[-1]
    assert "policy_change" in dict(rows(read_run(tmp_path / "run")))["warnings"]


async def test_a_run_that_learns_gives_no_warning_and_shows_that_it_learns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shown = io.StringIO()
    config = cartpole(tmp_path / "run", 12)
    with caplog.at_level(logging.WARNING):
        progress = ProgressHook(config.total_agent_steps, "plain", Console(file=shown, width=400))
        final = await Trainer(config, hooks=[progress]).run()
    assert warnings(caplog) == []
    assert final.results is not None
    assert final.results["learning"].value == "better than at the start"
    first, *_, last = shown.getvalue().splitlines()
    assert "learning too early to tell" in first or "learning" not in first, "of an epoch before, or of none"
    assert "learning better than at the start" in last
    assert "learning_problems" not in (final.results or {})
    assert dict(rows(read_run(tmp_path / "run")))["warnings"] == "none"


async def test_rewards_that_are_always_0_are_reported(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = small_config(
        epochs=42,
        num_environments=8,
        run_dir=tmp_path / "run",
        environment_wrappers=(f"{__name__}:{without_rewards.__name__}",),
    )
    with caplog.at_level(logging.WARNING):
        await Trainer(config).run()
    [text] = [line for line in warnings(caplog) if line.startswith("learning (return)")]
    assert "Every episode has the same return" in text


def with_one_observation(environment: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return gymnasium.wrappers.TransformObservation(environment, lambda seen: 0 * seen, None)


async def test_observations_that_never_change_are_reported_also_where_the_run_was_resumed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(
        total_agent_steps=22 * 8 * 32,
        num_environments=8,
        run_dir=tmp_path / "run",
        environment_wrappers=(f"{__name__}:{with_one_observation.__name__}",),
    )
    with caplog.at_level(logging.WARNING):
        await Trainer(replace(config, total_agent_steps=15 * 8 * 32)).run()
        assert warnings(caplog) == []
        await Trainer(config, resume=tmp_path / "run").run()
    [text] = [line for line in warnings(caplog) if line.startswith("learning (observations)")]
    assert "epoch 20: all observations of the first 20 epochs are the same" in text
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["warnings/observations"] == 1.0


async def test_observations_are_compared_outside_of_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared = learning_watch.has_one_observation
    threads: list[threading.Thread] = []

    def noted(experience: Any) -> bool:
        threads.append(threading.current_thread())
        return compared(experience)

    monkeypatch.setattr(learning_watch, "has_one_observation", noted)
    wrapped = (f"{__name__}:{with_one_observation.__name__}",)
    await Trainer(small_config(run_dir=tmp_path / "run", environment_wrappers=wrapped)).run()
    assert threads
    assert threading.current_thread() not in threads


async def test_a_resumed_run_is_judged_by_its_beginning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = small_config(
        epochs=42,
        num_environments=8,
        run_dir=tmp_path / "run",
        environment_wrappers=(f"{__name__}:{without_rewards.__name__}",),
    )

    class StopsEarly(Hook):
        async def on_epoch_end(self, state: TrainerState) -> None:
            if state.epoch == 15:
                self.run.stop()

    with caplog.at_level(logging.WARNING):
        await Trainer(config, hooks=[StopsEarly()]).run()
        assert warnings(caplog) == []
        await Trainer(config, resume=tmp_path / "run").run()
    [text] = [line for line in warnings(caplog) if line.startswith("learning (return)")]
    assert "Every episode has the same return" in text


async def test_a_policy_that_goes_wrong_is_named_where_types_have_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    by_type = (TypePolicy(type="spoiled", entropy_coefficient=0.0), TypePolicy(type="still", entropy_coefficient=1.0))
    config = small_config(
        environment="tests.games:Spoiled",
        total_agent_steps=24 * 16 * 32 * 4,
        num_environments=16,
        learning=LearningConfig(learning_rate=0.05, learning_rate_schedule="constant", minibatches=8),
        policy=PolicyConfig(by_type=by_type, hidden_sizes=(16,), normalize_observations=False),
        run_dir=tmp_path / "run",
    )
    entropies: list[float] = []

    class Entropies(Hook):
        async def on_epoch_end(self, state: TrainerState) -> None:
            assert state.loss_stats is not None
            entropies.append(state.loss_stats["ppo_actor/entropy"])

    with caplog.at_level(logging.WARNING):
        final = await Trainer(config, hooks=[Entropies()]).run()
    [text] = [line for line in warnings(caplog) if line.startswith("learning (entropy)")]
    assert ": spoiled: the policy has stopped exploring" in text
    assert "or set policy.by_type[0].entropy_coefficient to 0.01" in text
    assert min(entropies) > 0.3, "of all agents together, it does not tell"
    assert final.results is not None
    result: Any = final.results["learning_problems"]
    assert result.value["entropy"].startswith("spoiled: ")
    assert "still: " not in result.value["entropy"]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["warnings/entropy"] == 1.0


@pytest.mark.parametrize("by_type", [(), (TypePolicy(type="even"), TypePolicy(type="odd"))])
async def test_types_that_compete_are_not_judged_by_their_returns(
    by_type: tuple[TypePolicy, ...], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def verdict(share: bool, wage: float = 0.0) -> Any:
        config = small_config(
            environment="tests.games:Pennies",
            total_agent_steps=30 * 8 * 32 * 2,
            num_environments=8,
            run_dir=tmp_path / f"run-{share}-{wage}",
            environment_options={"share": share, "wage": wage},
            policy=PolicyConfig(by_type=by_type, hidden_sizes=(8,)),
        )
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            final = await Trainer(config).run()
        assert final.results is not None
        return final.results["learning"].value

    assert await verdict(share=False) == "agents compete"
    assert not any(line.startswith("learning (return)") for line in warnings(caplog))
    assert await verdict(share=False, wage=10.0) == "agents compete"
    assert await verdict(share=True, wage=10.0) == "no better than at the start", "one is given more, by nobody"
    assert await verdict(share=True) == "no better than at the start"
    stuck = [line for line in warnings(caplog) if line.startswith("learning (return)")]
    assert len(stuck) == max(1, len(by_type))
    assert [f": {one.type}: the return" in line for one, line in zip(by_type, stuck, strict=False)] == [True] * len(
        by_type
    )


async def test_agents_that_come_back_do_not_compete_for_what_they_have_in_each_of_their_lives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(
        environment="tests.games:Respawning",
        total_agent_steps=50 * 8 * 32 * 2,
        num_environments=8,
        run_dir=tmp_path / "run",
    )
    with caplog.at_level(logging.WARNING):
        await Trainer(replace(config, total_agent_steps=20 * 8 * 32 * 2)).run()
        final = await Trainer(config, resume=tmp_path / "run").run()
    assert final.results is not None
    assert final.results["learning"].value == "no better than at the start"
    assert any(line.startswith("learning (return)") for line in warnings(caplog))


async def test_the_warnings_can_be_switched_off(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = cartpole(tmp_path / "run", 6, **TOO_FAST, metrics=MetricsConfig(warnings=False))
    with caplog.at_level(logging.WARNING):
        await Trainer(config).run()
    assert warnings(caplog) == []


def test_only_runs_that_report_something_are_watched(tmp_path: Path) -> None:
    def watched(config: TrainerConfig, *hooks: Any) -> bool:
        return any(hook.name == "learning_watch" for hook in Trainer(config, hooks=hooks).hooks)

    config = small_config(losses=LossesConfig())
    assert not watched(config)
    assert watched(config, ProgressHook(1000, "plain"))
    assert watched(replace(config, run_dir=tmp_path / "run"))
    assert not watched(replace(config, run_dir=tmp_path / "run", metrics=MetricsConfig(jsonl=False)))
