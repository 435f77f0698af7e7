"""What can be imported from the packages themselves."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import anyio
import pytest

import losses
import orchestrator
import orchestrator.checkpoints
import orchestrator.environments
import orchestrator.metrics
import orchestrator.policies
import orchestrator.report
import state
from tests.documentation import code_blocks, pages
from tests.orchestrator.training import small_config
from tests.paths import PROJECT

pytestmark = pytest.mark.slow

PACKAGES = ("orchestrator", "losses", "state")
DOCUMENTS = pages()
FOR_USERS = [page for page in DOCUMENTS if page.name not in ("architecture.md", "benchmarks.md", "CONTRIBUTING.md")]
OF_OTHERS = {"Categorical", "run", "PufferEnv"}  # torch's, and a method: names that something of ours has, too


@pytest.mark.parametrize(
    ("package", "some"),
    [
        (orchestrator, {"Trainer", "TrainerConfig", "Hook", "StateUpdate", "OrchestratorError", "run_in_worker"}),
        (state, {"TrainerState", "FieldSpec", "PolicySnapshot", "OrchestratorError", "freeze"}),
        (losses, {"Loss", "LossSet", "GradientReporter", "ppo_losses"}),
        (orchestrator.checkpoints, {"CheckpointFolder", "find_checkpoint", "KeepAny"}),
        (orchestrator.environments, {"make_vector", "check_environment"}),
        (orchestrator.metrics, {"Sink", "Wandb"}),
        (orchestrator.policies, {"Network", "Spaces", "build_policy"}),
        (orchestrator.report, {"read_run", "write_page"}),
    ],
)
def test_every_public_name_of_a_package_can_be_had_from_it(package: ModuleType, some: set[str]) -> None:
    everything: dict[str, object] = {}
    exec(f"from {package.__name__} import *", everything)
    assert some <= everything.keys()
    assert some <= set(dir(package))
    assert set(dir(package)) == set(package.__all__), "nothing that is not public is offered"
    for name in package.__all__:
        assert everything[name] is getattr(package, name)


def defined() -> set[str]:
    """All classes and functions of the project, public or not."""
    files = [file for package in PACKAGES for file in (PROJECT / package).rglob("*.py")]
    nodes = [node for file in files for node in ast.parse(file.read_text()).body]
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return {node.name for node in nodes if isinstance(node, kinds)}


def public() -> set[str]:
    return {name for package in (orchestrator, losses, state) for name in dir(package)}


@pytest.mark.parametrize("page", DOCUMENTS, ids=lambda page: page.name)
def test_code_in_the_documents_imports_what_is_public_from_where_it_is_public(page: Path) -> None:
    for block in code_blocks(page.read_text()):
        for node in ast.walk(ast.parse(block)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
            if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PACKAGES:
                assert node.module in PACKAGES, f"{page.name}: {node.module}"
                assert set(names) <= set(dir(sys.modules[node.module])), page.name


@pytest.mark.parametrize("page", FOR_USERS, ids=lambda page: page.name)
def test_every_class_and_function_that_a_page_for_users_names_can_be_imported(page: Path) -> None:
    text = page.read_text()
    ours, found = defined() - OF_OTHERS, set[str]()
    for code in [*re.findall(r"`([^`\n]+)`", text), *code_blocks(text)]:
        for name, called in re.findall(r"(?<![\w./])([A-Za-z_]\w*)(\(?)", code):
            if name in ours and (name[0].isupper() or called) and f"def {name}" not in text:
                found.add(name)
    assert found <= public()


def test_a_name_that_a_package_does_not_have_is_refused() -> None:
    with pytest.raises(AttributeError, match="module 'orchestrator' has no attribute 'Trainr'"):
        orchestrator.Trainr  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'TrainrState' from 'state'"):
        exec("from state import TrainrState")


def test_torch_is_imported_only_with_a_name_that_needs_it() -> None:
    lines = ["import sys, orchestrator, state", "from orchestrator import TrainerConfig, ConfigurationError"]
    lines += ["assert 'torch' not in sys.modules", "orchestrator.Trainer", "assert 'torch' in sys.modules"]
    subprocess.run([sys.executable, "-c", "\n".join(lines)], cwd=PROJECT, check=True, timeout=100)


def test_a_run_shows_what_embedding_programs_and_hooks_need_and_nothing_else() -> None:
    watching = {"run_id", "run_dir", "config", "state", "states", "next_state", "result", "status", "paused", "error"}
    steering = {"pause", "resume", "stop", "stop_now", "stop_reason", "request_checkpoint", "limit_drain"}
    steering |= {"learning_rate_scale", "scale_learning_rate", "start_worker", "open_worker"}
    delivery = {"statistics", "hook_statistics", "eval_scores", "epochs_in_hand", "checkpoint_content"}

    async def names() -> set[str]:
        async with orchestrator.Trainer(small_config(epochs=1)).start() as run:
            return {name for name in dir(run) if not name.startswith("_")}

    assert anyio.run(names) == watching | steering | delivery


async def statuses(trainer: orchestrator.Trainer) -> list[str]:
    seen: list[str] = []
    async with trainer.start() as run:
        seen.append(run.status)
        await run.next_state(None)
        seen.append(run.status)
        run.pause()
        seen.append(run.status)
        assert run.paused
        run.resume()
        seen.append(run.status)
        run.stop("enough")
        seen.append(run.status)
        await run.result()
        seen.append(run.status)
    assert run.stop_reason == "enough"
    return seen


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_run_says_what_it_is_doing_and_how_it_has_ended(backend: str) -> None:
    expected = ["starting", "running", "paused", "running", "stopping", "ended"]
    assert anyio.run(statuses, orchestrator.Trainer(small_config(epochs=10_000)), backend=backend) == expected


def test_a_run_that_fails_or_is_cancelled_says_so() -> None:
    class Failing(orchestrator.Hook):
        on_error = "stop"

        async def on_epoch_end(self, state: state.TrainerState) -> None:
            raise OSError("no more")

    failing = orchestrator.Trainer(small_config(epochs=10_000), hooks=[Failing()])
    with pytest.raises(orchestrator.HookFailed):
        anyio.run(failing.run)
    assert failing.current_run.status == "failed"
    assert isinstance(failing.current_run.error, orchestrator.HookFailed)

    cancelled = orchestrator.Trainer(small_config(epochs=10_000))

    async def cancel() -> None:
        with anyio.CancelScope() as scope:
            async with cancelled.start() as run:
                assert await run.next_state(None) is not None
                scope.cancel()

    anyio.run(cancel)
    assert cancelled.current_run.status == "cancelled"
