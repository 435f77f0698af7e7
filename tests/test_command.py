"""The console command as its users meet it: real processes, files and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

from orchestrator.checkpoints import CheckpointFolder
from orchestrator.command.evaluation import evaluate_checkpoint

if TYPE_CHECKING:
    from collections.abc import Sequence

pytestmark = pytest.mark.slow

DEADLINE = 200.0
"""Seconds after which a program is taken for one that hangs, on a machine with much else to do."""
SMALL = ["--collection.num_environments", "8", "--collection.horizon", "32"]


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "orchestrator", *map(str, arguments)]


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, timeout=DEADLINE, check=False)


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def records(folder: Path) -> list[dict[str, float]]:
    path = folder / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_epochs(folder: Path, count: int) -> None:
    deadline = time.monotonic() + DEADLINE
    while len(records(folder)) < count:
        assert time.monotonic() < deadline, "the run does not get going"
        time.sleep(0.02)


def assert_family_ends(family: Sequence[psutil.Process]) -> None:
    deadline = time.monotonic() + DEADLINE
    while [process for process in family if process.is_running() and process.status() != "zombie"]:
        assert time.monotonic() < deadline, "orphans"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    result = run("train", "--run-dir", folder, "--total-agent-steps", 4096, *SMALL)
    assert result.returncode == 0, result.stderr
    assert "trained 4," in result.stdout
    assert "epoch 1 " in result.stderr
    return folder


def test_the_last_line_says_which_checkpoints_are_not_in_the_store_and_why(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    store = (tmp_path / "file" / "store").as_uri()
    steps = ["--total-agent-steps", 1024, *SMALL]
    result = run("train", "--run-dir", tmp_path / "first", *steps, "--checkpoints.upload", store)
    assert result.returncode == 0, result.stderr
    last = result.stdout.splitlines()[-1]
    assert last.startswith(f"0 of 1 checkpoint was copied to {store}/first: ")
    assert "Not a directory" in last
    assert str(tmp_path / "first" / "checkpoints") in last


def test_a_run_leaves_its_configuration_metrics_and_a_checkpoint(trained: Path) -> None:
    assert 'environment = "CartPole-v1"' in (trained / "config.toml").read_text()
    lines = records(trained)
    assert [line["epoch"] for line in lines] == list(range(1, len(lines) + 1))
    always = {"epoch", "agent_step", "time/seconds", "rollout/episode_return", "rollout/episode_length", "sps"}
    assert all(always <= line.keys() for line in lines)
    assert {"loss/ppo_actor", "loss/gradient_norm", "hook/checkpoint/busy_seconds"} <= lines[-1].keys()
    assert len(CheckpointFolder(trained / "checkpoints").list()) == 1


def test_a_checkpoint_can_be_evaluated_with_the_same_scores_twice(trained: Path) -> None:
    reports = [json.loads(run("eval", trained, "--episodes", 5, "--json").stdout) for _ in range(2)]
    assert reports[0] == reports[1]
    assert reports[0]["episodes"] == 5
    assert reports[0]["return_min"] <= reports[0]["return_mean"] <= reports[0]["return_max"]


def test_the_configuration_of_a_run_repeats_it(trained: Path) -> None:
    result = run("train", "--config", trained / "config.toml")
    assert result.returncode == 0, result.stderr
    again = trained.with_name("first-2")

    def learned(folder: Path) -> list[dict[str, float]]:
        return [{k: v for k, v in line.items() if k.startswith(("loss/", "rollout/"))} for line in records(folder)]

    assert learned(again) == learned(trained)


def test_all_errors_of_a_configuration_come_at_once_before_anything_starts(tmp_path: Path) -> None:
    result = run(
        *("train", "--environment", "CartPol-v1", "--staleness", -1),
        *("--collection.num_environments", 6, "--collection.collectors", 4, "--run-dir", tmp_path / "run"),
    )
    assert result.returncode == 2
    for part in ("CartPol-v1", "CartPole-v1", "staleness", "collection.collectors"):
        assert part in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("number", "to_all"), [(signal.SIGTERM, False), (signal.SIGINT, True)])
def test_the_first_signal_ends_the_run_in_order_with_a_checkpoint(
    number: signal.Signals, to_all: bool, tmp_path: Path
) -> None:
    """Also Ctrl-C, which a terminal sends to the whole process group."""
    folder = tmp_path / "run"
    process = start("train", "--run-dir", folder, "--total-agent-steps", 10**9, *SMALL)
    wait_for_epochs(folder, 2)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    for member in family if to_all else []:
        member.send_signal(number)
    output, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + number, errors
    assert "trained" in output
    assert f"go on with: orchestrator train --resume {folder}" in output
    assert "Traceback" not in errors
    assert_family_ends(family)
    last = records(folder)[-1]["epoch"]
    saved = [int(path.name) for path in CheckpointFolder(folder / "checkpoints").list()]
    assert max(saved) == last, "the final checkpoint is of the last whole epoch"
    assert evaluate_checkpoint(folder, episodes=1)["epoch"] == last


def test_a_second_signal_ends_a_run_whose_hooks_do_not_finish(tmp_path: Path) -> None:
    script = tmp_path / "slow.py"
    script.write_text(
        "import anyio, sys\n"
        "from pathlib import Path\n"
        "import orchestrator.command.run_script as script\n"
        "from orchestrator import Hook\n"
        "from orchestrator.config.settings import TrainerConfig\n"
        "class Slow(Hook):\n"
        "    async def on_training_end(self, state):\n"
        "        print('ending', flush=True)\n"
        "        await anyio.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    Progress = script.ProgressHook\n"
        "    script.ProgressHook = lambda *_: Slow()\n"
        "    sys.exit(script.run_training(TrainerConfig(total_agent_steps=20_000, run_dir=Path(sys.argv[1]))))\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path / "run")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert "ending" in process.stdout.readline()
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    assert any("once more" in line for line in process.stderr)  # two signals sent at once may arrive in any order
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=DEADLINE)
    assert process.returncode == 128 + signal.SIGINT, errors
    assert "stopping at once" in errors
    assert_family_ends(family)


def test_a_notebooks_classes_reach_the_workers() -> None:
    """A program given as a word has, like a notebook, classes that no file can be imported for."""
    program = """
import anyio, torch
from losses import Loss, ppo_losses
from orchestrator import CollectionConfig, Trainer, TrainerConfig

class Small(Loss):
    def compute(self, minibatch, evaluation):
        self.track("seen", 42.0)
        return evaluation.value.square().mean() * 1e-3

config = TrainerConfig(total_agent_steps=512, collection=CollectionConfig(num_environments=4, horizon=32))
final = anyio.run(Trainer(config, losses=[*ppo_losses(), Small()]).run)
print(final.loss_stats["small/seen"])
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert result.stdout.strip() == "42.0", result.stderr


def test_a_run_that_fails_ends_in_its_error_and_with_debug_in_the_traceback_too(tmp_path: Path) -> None:
    words = ("train", "--learning.learning-rate", 1e30, "--total-agent-steps", 10**6, "--metrics.progress", "off")
    failed = run(*words, "--run-dir", tmp_path / "failed")
    assert failed.returncode == 1
    first, *rest = failed.stderr.splitlines()
    assert first.startswith("orchestrator train: ")
    assert "is not finite in epoch" in first
    assert rest[0] == "raised in worker 'learner':"
    assert "cli.py" not in failed.stderr, "where the command called it is of no use"
    debugged = run(*words, "--debug", "--run-dir", tmp_path / "debugged")
    assert debugged.returncode == 1
    assert "cli.py" in debugged.stderr


def test_a_run_that_fails_says_what_is_saved_and_how_to_go_on(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    words = ("train", "--environment", "tests.environments:make_faulty", "--checkpoints.every", 1, *SMALL)
    options = ("--collection.environment-options", 'fault="hundredth step"')
    failed = run(*words, *options, "--run-dir", folder, "--total-agent-steps", 10**6)
    assert failed.returncode == 1
    newest = CheckpointFolder(folder / "checkpoints").list()[-1]
    assert f"saved before: {newest.as_uri()}; go on with: orchestrator train --resume {folder}\n" in failed.stderr


@pytest.mark.parametrize(
    ("environment", "options", "said"),
    [
        ("CartPole-v1", ["gravity=9.8"], "cure:     gravity: use one of sutton_barto_reward, render_mode"),
        ("tests.environments:make_faulty", ["fault=constructor"], "OSError: the level file is missing"),
        ("CartPole-v1", ["gravity"], "gravity is not KEY=VALUE"),
    ],
)
def test_mistakes_in_the_options_of_an_environment_are_told_without_a_traceback(
    environment: str, options: list[str], said: str, tmp_path: Path
) -> None:
    given = ("--environment", environment, "--collection.environment-options", *options)
    result = run("train", *given, "--run-dir", tmp_path / "run", *SMALL)
    assert result.returncode == 2
    assert said in " ".join(result.stderr.split()) or said in result.stderr
    assert "Traceback" not in result.stderr


def test_a_script_that_forgets_the_guard_is_told_so(tmp_path: Path) -> None:
    script = tmp_path / "careless.py"
    script.write_text("import anyio\nfrom orchestrator import Trainer\nanyio.run(Trainer().run)\n")
    result = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert result.returncode == 1
    said = "careless.py starts a training when it is imported, and workers import it: a script must start its training"
    assert f"{said} under `if __name__ == '__main__':`" in result.stderr
    assert result.stderr.count("careless.py") < 5, "no traceback of what the worker did"


@pytest.mark.parametrize(
    "words", [("eval",), ("report",), ("checkpoints", "list"), ("checkpoints", "show"), ("train", "--help")]
)
def test_no_command_fails_for_a_reader_that_has_gone(trained: Path, words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    where = () if "--help" in words else (trained,)
    try:
        result = subprocess.run(command(*words, *where), stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    finally:
        os.close(writer)
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr


def test_a_run_that_has_saved_nothing_does_not_ask_to_be_evaluated(tmp_path: Path) -> None:
    result = run("train", "--run-dir", tmp_path / "run", "--total-agent-steps", 512, *SMALL, "--checkpoints.every", 0)
    assert result.returncode == 0, result.stderr
    assert ("orchestrator eval" in result.stdout) == any((tmp_path / "run").glob("checkpoints/*/manifest.json"))
