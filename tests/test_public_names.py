"""What can be imported from the packages themselves."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import losses
import orchestrator
import state
from tests.paths import PROJECT


@pytest.mark.parametrize(
    ("package", "some"),
    [
        (orchestrator, {"Trainer", "TrainerConfig", "Hook", "StateUpdate", "OrchestratorError", "run_in_worker"}),
        (state, {"TrainerState", "FieldSpec", "PolicySnapshot", "OrchestratorError", "freeze"}),
        (losses, {"Loss", "LossSet", "GradientReporter", "ppo_losses"}),
    ],
)
def test_every_public_name_of_a_package_can_be_had_from_it(package: ModuleType, some: set[str]) -> None:
    everything: dict[str, object] = {}
    exec(f"from {package.__name__} import *", everything)
    assert some <= everything.keys()
    assert some <= set(dir(package))
    for name in package.__all__:
        assert everything[name] is getattr(package, name)


def test_a_name_that_a_package_does_not_have_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'orchestrator' has no attribute 'Trainr'"):
        orchestrator.Trainr  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'TrainrState' from 'state'"):
        exec("from state import TrainrState")


def test_torch_is_imported_only_with_a_name_that_needs_it() -> None:
    lines = ["import sys, orchestrator, state", "from orchestrator import TrainerConfig, ConfigurationError"]
    lines += ["assert 'torch' not in sys.modules", "orchestrator.Trainer", "assert 'torch' in sys.modules"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=PROJECT, check=True, timeout=100)
