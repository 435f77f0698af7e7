"""What of a learner can be recorded once and repeated."""

from __future__ import annotations

import torch

from losses import PPOCritic, vtrace_losses
from orchestrator.learning.capturable import numbers_of


def test_what_losses_have_as_attributes_is_compared() -> None:
    critic, (actor, _) = PPOCritic(), vtrace_losses()
    critic.goal = torch.zeros(2)  # type: ignore[attr-defined]

    def changed() -> bool:
        nonlocal before
        before, last = numbers_of([critic, actor]), before
        return before != last

    before = numbers_of([critic, actor])
    assert not changed()
    critic.stop_requested = True
    critic.goal += 1.0  # type: ignore[attr-defined]
    assert not changed()
    critic.clip = 0.1
    assert changed()
    critic.weight = 2.0
    assert changed()
    critic.goal = torch.zeros(2)  # type: ignore[attr-defined]
    assert changed()
    actor.targets.rho_clip = 2.0
    assert changed()
    assert not changed()
