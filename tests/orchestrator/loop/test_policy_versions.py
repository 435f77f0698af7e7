"""Which policy an epoch is collected with."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import anyio
import pytest

from orchestrator import Trainer
from orchestrator.loop.policy_versions import WHOLE_EPOCHS, behavior_of
from state.policy_point import PolicyPoint
from tests.orchestrator.training import small_config

LATER = WHOLE_EPOCHS + 4


@pytest.mark.parametrize(
    ("staleness", "expected"),
    [
        (0, PolicyPoint(LATER)),
        (1, PolicyPoint(LATER - 1)),
        (3, PolicyPoint(LATER - 3)),
        (0.25, PolicyPoint(LATER - 1, 12)),
        (0.5, PolicyPoint(LATER - 1, 8)),
        (1.25, PolicyPoint(LATER - 2, 12)),
        (0.001, PolicyPoint(LATER)),
        (0.999, PolicyPoint(LATER - 1)),
    ],
)
def test_it_is_so_many_of_16_minibatches_old(staleness: float, expected: PolicyPoint) -> None:
    assert behavior_of(LATER, staleness, 16) == expected


@pytest.mark.parametrize("staleness", [0.25, 0.5, 1])
def test_the_first_epochs_are_collected_with_whole_versions(staleness: float) -> None:
    assert [behavior_of(epoch, staleness, 16) for epoch in range(1, WHOLE_EPOCHS)] == [
        PolicyPoint(epoch) for epoch in range(WHOLE_EPOCHS - 1)
    ]


def test_a_newer_policy_is_greater() -> None:
    points = [PolicyPoint(3), PolicyPoint(3, 1), PolicyPoint(3, 12), PolicyPoint(4)]
    assert all(older < newer for older, newer in pairwise(points))
    assert [str(point) for point in points] == ["3", "3+1", "3+12", "4"]


@pytest.mark.anyio
async def test_a_staleness_beyond_any_run_costs_nothing(tmp_path: Path) -> None:
    with anyio.fail_after(100):
        final = await Trainer(small_config(staleness=10**12, run_dir=tmp_path / "run")).run()
    assert final.experience is not None
    assert final.experience.policy_version == 0
