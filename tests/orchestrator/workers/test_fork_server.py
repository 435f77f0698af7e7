"""Workers of programs of every kind: whatever else these do with processes, and however they were started."""

from __future__ import annotations

import os
import subprocess
import sys
import zipapp
from pathlib import Path
from typing import Any

import pytest

from tests.paths import PROJECT

pytestmark = pytest.mark.slow

TRAINING = """
import os, sys
import anyio
from losses import Loss, ppo_losses
from orchestrator import CollectionConfig, PolicyConfig, Trainer, TrainerConfig

class Own(Loss):
    def compute(self, minibatch, evaluation):
        self.track("seen", 42.0)
        return evaluation.value.square().mean() * 1e-3

def train(what):
    config = TrainerConfig(
        environment="CartPole-v1",
        total_agent_steps=64,
        collection=CollectionConfig(num_environments=2, horizon=32),
        policy=PolicyConfig(hidden_sizes=(8,)),
    )
    final = anyio.run(Trainer(config, losses=[*ppo_losses(), Own()]).run)
    print(what, final.loss_stats["own/seen"], flush=True)
"""


def run(*command: object, **options: Any) -> str:
    """What a program has printed."""
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), **options.pop("environment", {})}
    words = [sys.executable, *map(str, command)]
    result = subprocess.run(words, capture_output=True, text=True, timeout=300, env=environment, check=False, **options)
    assert result.returncode == 0, result.stderr
    assert not result.stderr, "no warnings of leaks, processes or threads"
    return result.stdout


@pytest.mark.timeout(400)
def test_a_program_that_uses_multiprocessing_itself_trains_before_and_after_a_fork_and_when_the_server_was_killed(
    tmp_path: Path,
) -> None:
    """And where the folder for temporary files is too long for the address of a socket."""
    script = tmp_path / "program.py"
    script.write_text(
        TRAINING
        + """
import multiprocessing, signal
import psutil

def train_in_child(what):
    pid = os.fork()
    if not pid:
        train(what)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

if __name__ == "__main__":
    multiprocessing.set_start_method("forkserver")
    multiprocessing.set_forkserver_preload(["json"])
    train("first")
    train_in_child("forked")
    (server,) = psutil.Process().children()
    server.kill()
    train("again")
    child = multiprocessing.get_context("fork").Process(target=train, args=["multiprocessing"])
    child.start()
    child.join()
    assert child.exitcode == 0
    assert multiprocessing.get_start_method() == "forkserver"
"""
    )
    long = tmp_path / ("t" * 150)
    long.mkdir()
    output = run(script, environment={"TMPDIR": str(long)})
    assert output.splitlines() == ["first 42.0", "forked 42.0", "again 42.0", "multiprocessing 42.0"]


@pytest.mark.parametrize("how", ["module of a package", "archive", "standard input"])
def test_what_the_main_module_defines_reaches_the_workers_however_it_was_started(how: str, tmp_path: Path) -> None:
    program = f"{TRAINING}\nif __name__ == '__main__':\n    train('main')\n"
    package = tmp_path / "package"
    package.mkdir()
    (package / "__main__.py").write_text(program)
    if how == "module of a package":
        output = run("-m", "package", cwd=tmp_path)
    elif how == "archive":
        zipapp.create_archive(package, tmp_path / "program.pyz")
        output = run(tmp_path / "program.pyz")
    else:
        output = run("-", input=program, cwd=package)
    assert output == "main 42.0\n"
