"""The wrapper in docs/environments.md, trained with by the settings that the document gives."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import anyio
import gymnasium
import numpy as np
import pytest

from orchestrator import EvaluationConfig, Hook, Trainer
from orchestrator.environments import EnvironmentFailed
from tests.documentation import code_blocks, text_of
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from state.trainer_state import TrainerState

pytestmark = pytest.mark.slow


class Turns(gymnasium.Env[Any, Any]):
    """No action twice in a row, says its method."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._last, self._steps = -1, 0
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_masks()[action], "twice in a row"
        self._last = int(action)
        self._steps += 1
        return self._observe(), 1.0, self._steps == 9, False, {}

    def action_masks(self) -> Any:
        return np.arange(3) != self._last

    def _observe(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


def turns() -> Any:
    return gymnasium.wrappers.TimeLimit(Turns(), 100)  # through which the method is found


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "own.py").write_text("\n\n".join(code_blocks(text_of("environments.md"))))
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("own", None)


def test_the_documented_wrapper_gives_the_mask_that_a_method_says(own: None) -> None:
    config = small_config(
        environment="tests.test_environments_documentation:turns",
        environment_wrappers=("own:with_mask",),
        action_mask="info/action_mask",
        evaluation=EvaluationConfig(every=1, episodes=2),
    )
    assert anyio.run(Trainer(config).run).epoch == 4


class Sums(Hook):
    """What both players of each game have got together."""

    def __init__(self) -> None:
        self.of_games: list[float] = []

    async def on_rollout_end(self, state: TrainerState) -> None:
        assert state.rollout_stats is not None
        self.of_games += state.rollout_stats.get("team_return", ())


@pytest.mark.filterwarnings("ignore:The old environment creation API:DeprecationWarning")
@pytest.mark.parametrize("mask", [None, "action_mask"])
def test_the_documented_game_in_turns_is_played_by_its_rules(own: None, mask: str | None) -> None:
    """A move that is not allowed ends it with -1 for whoever makes it, and nothing for the other."""
    pytest.importorskip("pettingzoo")
    sums = Sums()
    anyio.run(Trainer(small_config(environment="own:tictactoe", action_mask=mask), hooks=[sums]).run)
    assert len(sums.of_games) > 20
    assert set(sums.of_games) == ({0.0} if mask else {0.0, -1.0})


def test_without_it_the_environment_fails() -> None:
    config = small_config(epochs=8, environment="tests.test_environments_documentation:turns")
    with pytest.raises(EnvironmentFailed, match="twice in a row"):
        anyio.run(Trainer(config).run)
