"""One root for all errors."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import losses
import orchestrator
import state
from state import OrchestratorError


def test_every_public_error_has_one_root_and_a_builtin_kind() -> None:
    found: set[type[BaseException]] = set()
    for package in (orchestrator, losses, state):
        for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if info.name.endswith("__main__"):
                continue
            for name, member in vars(importlib.import_module(info.name)).items():
                ours = inspect.isclass(member) and member.__module__ == info.name
                if ours and issubclass(member, Exception) and not name.startswith("_"):
                    found.add(member)
    internal = {
        "AlreadyThere",
        "CannotRestore",
        "EvaluationInterrupted",
        "NotCapturable",
        "NotRecordable",
        "OrchestratorError",
        "OutOfRange",
        "WrongEntry",
        "WrongReturn",
    }  # but for the root, they never reach a user
    assert len(found) > 15
    for error in found:
        if error.__name__ not in internal:
            assert issubclass(error, OrchestratorError), error
            assert issubclass(error, (ValueError, RuntimeError, ImportError)), error
