"""Settings that reach into every cell of a Ray cluster, and what happens beside the cells. The cluster is several
raylets on one machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from orchestrator import (
    CheckpointsConfig,
    EvaluationConfig,
    LearningConfig,
    MetricsConfig,
    PolicyConfig,
    Trainer,
    TrainerConfig,
    TypePolicy,
)
from tests.machines import Machines, config_on
from tests.orchestrator.test_cells import assert_same, trained

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.slow, pytest.mark.anyio]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    made = Machines(2, cores=8)
    yield made
    made.close()


def config_for(
    cells: int, machines: Machines, *, shards: int = 2, collectors: int = 2, **settings: Any
) -> TrainerConfig:
    return config_on(machines, cells=cells, shards=shards, collectors=collectors, **{"epochs": 4} | settings)


KINDS: dict[str, dict[str, Any]] = {
    "types": {
        "environment": "tests.games:HideAndSeek",
        "policy": PolicyConfig(by_type=(TypePolicy(type="seeker"), TypePolicy(type="hider", hidden_sizes=(4,)))),
    },
    "bfloat16": {"learning": LearningConfig(update_epochs=2, minibatches=2, precision="bfloat16", threads=1)},
    "compiled": {"learning": LearningConfig(update_epochs=2, minibatches=2, compile=True, threads=1)},
}


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
async def test_what_each_learner_computes_may_be_set(settings: dict[str, Any], machines: Machines) -> None:
    one, two = [await trained(config_for(cells, machines, **settings)) for cells in (1, 2)]
    assert_same(one, two)
    await machines.assert_nothing_left()


async def test_eight_cells_learn_the_same_bits_as_one(machines: Machines) -> None:
    one, eight = [
        await trained(config_for(cells, machines, shards=8, collectors=8, num_environments=16, horizon=16))
        for cells in (1, 8)
    ]
    assert_same(one, eight)
    await machines.assert_nothing_left()


async def test_evaluations_videos_and_dashboards_are_where_the_command_is(
    machines: Machines, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "of-wandb"))
    config = config_for(
        2,
        machines,
        environment="tests.evaluated_environments:make_drawing",
        run_dir=tmp_path / "run",
        evaluation=EvaluationConfig(every=2, episodes=2, num_environments=2, video_every=2),
        metrics=MetricsConfig(wandb="offline", wandb_project="tests"),
        checkpoints=CheckpointsConfig(every=2, wandb_project="tests"),
    )
    with anyio.fail_after(200):
        final = await Trainer(config).run()
    assert final.eval_scores is not None
    assert list((tmp_path / "run" / "videos").glob("*.mp4"))
    assert list((tmp_path / "run").glob("wandb/offline-run-*/run-*.wandb"))
    await machines.assert_nothing_left()


async def test_two_runs_of_a_program_share_a_cluster(machines: Machines) -> None:
    found: list[Any] = []

    async def run() -> None:
        found.append(await trained(config_for(2, machines)))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        tasks.start_soon(run)
    assert_same(*found)
    await machines.assert_nothing_left()
