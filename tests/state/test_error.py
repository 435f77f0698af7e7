"""One root for all errors."""

from __future__ import annotations

import importlib
import inspect
import pkgutil

import losses
import orchestrator
import state
from state import OrchestratorError
from state.error import only_error


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


def test_an_error_that_two_tasks_fail_with_is_one() -> None:
    lost, other = RuntimeError("the machine is lost"), RuntimeError("another")
    of_both = ExceptionGroup("tasks", [lost, lost])
    assert only_error(ExceptionGroup("run", [of_both])) is lost
    of_two = ExceptionGroup("tasks", [lost, other])
    assert only_error(ExceptionGroup("run", [of_two])) is of_two
