"""What `run.statistics()` tells of workers and of the memory between them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
import pytest

from orchestrator import EvaluationConfig, Trainer
from tests.orchestrator.training import small_config
from tests.test_embedding_documentation import documented

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from orchestrator import Run
    from state.trainer_state import TrainerState

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
DEADLINE = 200.0
__all__ = ["documented"]


async def epochs(run: Run, count: int) -> TrainerState:
    seen: TrainerState | None = None
    while seen is None or seen.epoch < count:
        seen = await run.next_state(seen)
        assert seen is not None
    return seen


async def test_workers_are_told_of_by_name_with_what_they_have_done(documented: dict[str, Any]) -> None:
    evaluation = EvaluationConfig(every=1, episodes=1)
    config = small_config(epochs=10**6, num_environments=4, collectors=2, evaluation=evaluation)
    with anyio.fail_after(DEADLINE):
        async with Trainer(config).start() as run:
            assert run.statistics().workers.keys() <= {"collector-0", "collector-1", "learner"}
            await epochs(run, 3)
            before = run.statistics().workers
            assert {"collector-0", "collector-1", "learner"} <= before.keys()
            assert all(worker.alive for worker in before.values())
            assert all(worker.restarts == 0 for worker in before.values())
            assert all(worker.busy_seconds > 0.0 and worker.waiting_seconds > 0.0 for worker in before.values())
            await epochs(run, 6)
            after = run.statistics().workers
            for name in ("collector-0", "collector-1", "learner"):
                assert after[name].calls > before[name].calls
                assert after[name].busy_seconds > before[name].busy_seconds
            while "evaluator" not in run.statistics().workers:
                await anyio.sleep(0.001)
            assert documented["busiest"](run) in run.statistics().workers
            run.stop()
    ended = run.statistics().workers
    assert {ended[name].state for name in ("collector-0", "collector-1", "learner")} == {"closed"}
    assert run.statistics() == run.statistics(), "nothing changes any more"


async def test_slots_that_a_program_keeps_are_leased_and_free_again_when_it_lets_them_go() -> None:
    with anyio.fail_after(DEADLINE):
        async with Trainer(small_config(epochs=10**6)).start() as run:
            kept = [await epochs(run, 2)]
            run.pause()
            slots = run.statistics().slots
            assert slots.keys() == {"experience", "policy"}
            assert slots["experience"].leased >= 1
            assert slots["policy"].leased >= 1
            for ring in slots.values():
                assert ring.free <= ring.slots <= ring.working + ring.leased + ring.free
                assert ring.nbytes > 0
                assert ring.withheld == 0
            leased = slots["experience"].leased
            run.resume()
            kept += [await epochs(run, 5), await epochs(run, 8), await epochs(run, 11)]
            full = run.statistics().slots["experience"]
            assert full.leased > leased
            kept.clear()
            while run.statistics().slots["experience"].leased >= full.leased:
                await epochs(run, run.state.epoch + 1)
            assert run.statistics().slots["experience"].free > 0
            run.stop()


async def test_a_collector_that_was_killed_counts_its_restarts(tmp_path: Path) -> None:
    options = {"how": "kill", "once": str(tmp_path / "died")}
    environment = "tests.orchestrator.training:FailingEnvironment"
    config = small_config(epochs=8, backend="process", environment=environment, environment_options=options)
    trainer = Trainer(config)
    with anyio.fail_after(DEADLINE):
        await trainer.run()
    workers = trainer.statistics().workers
    assert (workers["collector-0"].restarts, workers["learner"].restarts) == (1, 0)
