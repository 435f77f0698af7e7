"""Whose code runs: what the user's settings name does, what anybody else's name does not."""

from __future__ import annotations

import io
import itertools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest

from losses import Loss
from orchestrator import (
    CheckpointsConfig,
    ConfigurationError,
    EvaluationConfig,
    EvaluationTask,
    LossesConfig,
    MetricsConfig,
    PolicyConfig,
    Trainer,
    TrainerConfig,
)
from orchestrator.__main__ import main
from orchestrator.checkpoints import CheckpointError, CheckpointFolder, find_checkpoint
from orchestrator.checks.configuration import check_config
from orchestrator.command.evaluation import evaluate_checkpoint
from orchestrator.config.file import from_table
from orchestrator.config.own_code import OwnCodeError, import_function
from orchestrator.environments import InvalidEnvironment, check_environment, make_vector
from orchestrator.policies.mlp import MLP
from orchestrator.snapshots.checkpoint_files import ARRAYS, read_checkpoint
from orchestrator.snapshots.resume import find_resume_source
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from collections.abc import Mapping

    from losses import Minibatch, PolicyEvaluation
    from state.trainer_state import TrainerState

pytestmark = pytest.mark.slow

HERE = "tests.orchestrator.command.test_trust"
IN_THE_STANDARD_LIBRARY = [
    "subprocess:call",
    "subprocess:Popen",
    "os:system",
    "posix:system",
    "builtins:exec",
    "importlib:import_module",
    "os.path:os.system",
    "concurrent.futures:thread.os.system",
    "test.support.script_helper:assert_python_ok",
    "pickle:loads",
    "antigravity:fly",
    "tests.borrowed_names:call",
    "tests.borrowed_names:os.system",
    "tests.borrowed_names:subprocess.Popen",
    "tests.borrowed_names:shell",
    "tests.borrowed_names:twice_removed",
    "tests.borrowed_names:cached",
    "tests.borrowed_names:disguised",
    "tests.borrowed_names:Path.unlink",
    "tests.borrowed_names:Process.communicate",
    "tests.borrowed_names:log.error",
    "tests.borrowed_names:settings.get",
    "tests.borrowed_names:functools.partial",
    "tests.borrowed_names:Process.__subclasses__",
    "cloudpickle:loads",
]
_stores = itertools.count()


def make_network(spaces: Any) -> MLP:
    return MLP(spaces, (8,), "tanh")


class Quiet(Loss):
    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Any:
        return evaluation.value.square().mean() * 1e-3


class Nowhere:
    """A sink."""

    def open(self, *_: object) -> None: ...

    def write(self, *_: object) -> None: ...

    def close(self) -> None: ...


def own_code(folder: Path | None = None) -> TrainerConfig:
    """Names code in every place where settings can."""
    return small_config(
        epochs=2,
        run_dir=folder,
        environment="tests.environments:make_counting",
        policy=PolicyConfig(network=f"{HERE}:make_network"),
        losses=LossesConfig(names=("ppo_actor", "ppo_critic", f"{HERE}:Quiet")),
        metrics=MetricsConfig(sinks=(f"{HERE}:Nowhere",), progress="off"),
        evaluation=EvaluationConfig(tasks=(EvaluationTask(name="other", environment="tests.environments:Counting"),)),
    )


NAMES = {
    "environment": "tests.environments:make_counting",
    "policy.network": f"{HERE}:make_network",
    "losses.names[2]": f"{HERE}:Quiet",
    "metrics.sinks[0]": f"{HERE}:Nowhere",
    "evaluation.tasks[0].environment": "tests.environments:Counting",
}


def train(config: TrainerConfig, **options: Any) -> TrainerState:
    return anyio.run(Trainer(config, **options).run)


def named(error: ConfigurationError) -> dict[str, object]:
    return {problem.field: problem.value for problem in error.problems}


@pytest.mark.parametrize("name", IN_THE_STANDARD_LIBRARY)
def test_a_name_that_leads_into_the_standard_library_is_refused_wherever_it_stands(name: str) -> None:
    with pytest.raises(OwnCodeError, match="in Python's standard library"):
        import_function(name)
    assert "in Python's standard library" in check_environment(name)[0]
    with pytest.raises(InvalidEnvironment, match="in Python's standard library"):
        make_vector(name, 1, {"args": "true"})


@pytest.mark.parametrize("place", ["environment", "task", "network", "loss", "sink"])
@pytest.mark.parametrize("name", ["os:remove", "tests.borrowed_names:os.remove"])
def test_a_run_whose_settings_name_the_standard_library_does_not_start(place: str, name: str, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.touch()
    config = small_config()
    match place:
        case "environment":
            options = {"path": str(victim)}
            config = replace(
                config, environment=name, collection=replace(config.collection, environment_options=options)
            )
        case "task":
            tasks = (EvaluationTask(environment=name, options={"path": str(victim)}),)
            config = replace(config, evaluation=EvaluationConfig(every=1, tasks=tasks))
        case "network":
            config = replace(config, policy=PolicyConfig(network=name))
        case "loss":
            config = replace(config, losses=LossesConfig(names=("ppo_actor", name)))
        case _:
            config = replace(config, metrics=MetricsConfig(sinks=(name,)))
    for trust_code in (None, True):
        with pytest.raises(ValueError, match="standard library"):
            train(config, trust_code=trust_code)
    assert victim.exists()


@pytest.mark.parametrize(
    "name",
    [
        "tests.environments:make_counting",
        "tests.environments:Counting",
        "orchestrator.environments.memory:make",
        "gymnasium.envs.classic_control:CartPoleEnv",
        "gymnasium.envs.classic_control.cartpole:CartPoleEnv",
    ],
)
def test_functions_and_classes_of_any_other_package_can_be_named(name: str) -> None:
    assert check_environment(name) == []
    assert callable(import_function(name))


def test_a_module_of_ones_own_may_have_the_name_of_one_in_the_standard_library_that_it_hides(tmp_path: Path) -> None:
    (tmp_path / "colorsys.py").write_text("def make():\n    return 'mine'\n")
    program = "from orchestrator.config.own_code import import_function\nprint(import_function('colorsys:make')())"
    search = {"PYTHONPATH": f"{tmp_path}:{Path.cwd()}"}
    result = subprocess.run([sys.executable, "-c", program], env=search, capture_output=True, text=True, check=False)
    assert result.stdout == "mine\n", result.stderr


def test_what_the_user_wrote_is_trusted(tmp_path: Path) -> None:
    config = own_code(tmp_path / "run")
    train(config)
    longer = replace(config, total_agent_steps=3 * config.steps_per_epoch)
    assert train(longer, resume=tmp_path / "run").epoch >= 3
    assert evaluate_checkpoint(tmp_path / "run", episodes=1)["episodes"] == 1


def test_code_that_settings_from_a_uri_name_runs_only_when_it_is_trusted(tmp_path: Path) -> None:
    config = own_code(tmp_path / "run")
    train(replace(config, checkpoints=CheckpointsConfig(upload=f"memory://store{next(_stores)}")))
    stored = f"{Path(tmp_path, 'run', 'config.toml').read_text().partition('memory://')[2].partition(chr(34))[0]}/run"
    for uri in ((tmp_path / "run").as_uri(), f"memory://{stored}"):
        with pytest.raises(ConfigurationError) as caught:
            Trainer(resume=uri)
        assert named(caught.value) == NAMES
        assert uri in str(caught.value)
        assert "--trust-code (trust_code=True in code)" in str(caught.value)
        with pytest.raises(ConfigurationError) as caught:
            evaluate_checkpoint(uri, episodes=1)
        assert named(caught.value) == NAMES
        with pytest.raises(ConfigurationError):
            find_resume_source(uri)

        assert evaluate_checkpoint(uri, episodes=1, trust_code=True)["episodes"] == 1
        assert Trainer(resume=uri, trust_code=True).config.environment == config.environment
        own = replace(config, run_dir=None)
        assert Trainer(own, resume=uri).config.environment == config.environment, "the user's own settings name it, too"


def test_what_comes_with_this_project_or_is_registered_needs_no_trust(tmp_path: Path) -> None:
    for number, environment in enumerate(("CartPole-v1", "orchestrator.environments.memory:make")):
        folder = tmp_path / str(number)
        train(small_config(epochs=1, run_dir=folder, environment=environment))
        assert evaluate_checkpoint(folder.as_uri(), episodes=1)["episodes"] == 1
        assert Trainer(resume=folder.as_uri()).config.environment == environment


@pytest.mark.parametrize(
    ("table", "field"),
    [
        ({"environment": "torch:load"}, "environment"),
        ({"environment": "my_envs:Grid-v0"}, "environment"),
        ({"environment": "ale_py:ALE/Pong-v5"}, "environment"),
        ({"policy": {"network": "numpy:load"}}, "policy.network"),
        ({"losses": {"names": ["ppo_actor", "a.b:c.d"]}}, "losses.names[1]"),
        ({"metrics": {"sinks": ["orchestrator.command.run_script:run_training"]}}, "metrics.sinks[0]"),
        ({"evaluation": {"tasks": [{}, {"environment": "a:b"}]}}, "evaluation.tasks[1].environment"),
        ({"collection": {"environment_options": {"id": "os:Grid-v0"}}}, "collection.environment_options.id"),
        ({"collection": {"environment_options": {"id": " os:system\n"}}}, "collection.environment_options.id"),
        ({"collection": {"environment_options": {"os:system": 1}}}, "collection.environment_options (a key)"),
        (
            {"collection": {"environment_options": {"wrappers": [{"entry_point": "a.b:C"}]}}},
            "collection.environment_options.wrappers[0].entry_point",
        ),
        ({"evaluation": {"tasks": [{"options": {"make": "a:b"}}]}}, "evaluation.tasks[0].options.make"),
    ],
)
def test_settings_of_a_request_may_name_no_code(table: Mapping[str, object], field: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Trainer(from_table(table), trust_code=False)
    assert list(named(caught.value)) == [field]
    assert "came from a request" in str(caught.value)


def test_settings_of_a_request_that_name_none_are_taken() -> None:
    table = {
        "device": "cpu",
        "run_dir": "C:runs",
        "collection": {"environment_options": {"text": "note: 3:4", "address": "s3://bucket/maps", "time": "12:30"}},
        "evaluation": {"tasks": [{"name": "easy:1", "category": "a:b"}]},
    }
    assert Trainer(from_table(table), trust_code=False).config.device == "cpu"


@pytest.mark.parametrize("name", ["subprocess:call", " subprocess:call", "\tos:system", "os.path :join"])
def test_the_list_of_what_is_not_trusted_says_what_nothing_allows(name: str) -> None:
    table = {"environment": name, "policy": {"network": "mine:network"}}
    with pytest.raises(ConfigurationError) as caught:
        Trainer(from_table(table), trust_code=False)
    first, second = caught.value.problems
    assert "never called" in first.cure
    assert "trust" not in first.cure.replace("whoever trusts it", "")
    assert "trust_code=True" in second.cure
    assert str(caught.value).startswith("2 problems in the settings from a request; nothing was started.")


def test_the_command_runs_code_from_a_uri_only_with_trust_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(own_code(tmp_path / "run"))
    uri = (tmp_path / "run").as_uri()
    resume = ["train", "--resume", uri, "--run-dir", str(tmp_path / "new")]
    for words in (["eval", uri], resume):
        assert main(words) == 2
        refused = capsys.readouterr().err
        assert all(f"{field} = {value!r}" in refused for field, value in NAMES.items())
        assert "--trust-code" in refused
    assert main(["eval", uri, "--episodes", "1", "--trust-code"]) == 0
    assert main([*resume, "--trust-code", "--total-agent-steps", "400"]) == 0
    for words in (["checkpoints", "list", uri], ["checkpoints", "show", uri], ["report", str(tmp_path / "run")]):
        assert main(words) == 0, "looks at a run and runs nothing of it"


def test_the_command_refuses_the_standard_library(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    victim = tmp_path / "victim"
    options = ("--environment", "pathlib:Path.touch", "--collection.environment-options", f"self={victim}")
    assert main(["train", *options, "--run-dir", str(tmp_path / "run")]) == 2
    assert "standard library" in capsys.readouterr().err
    assert not victim.exists()


_READ = """
import sys
unpickled = []
sys.addaudithook(lambda event, details: unpickled.append(details) if event == "pickle.find_class" else None)
from orchestrator.checkpoints import find_checkpoint
from orchestrator.snapshots.resume import find_resume_source
from orchestrator.snapshots.checkpoint_files import read_checkpoint
point = read_checkpoint(find_resume_source(sys.argv[1], trust_code=True).checkpoint)
assert point.learner is not None and point.collectors[0] is not None
find_checkpoint(sys.argv[1]).verify()
print(unpickled)
"""


def test_reading_a_checkpoint_unpickles_nothing(tmp_path: Path) -> None:
    train(own_code(tmp_path / "run"))
    words = [sys.executable, "-c", _READ, (tmp_path / "run").as_uri()]
    result = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert result.stdout == "[]\n", result.stderr


class _Bomb:
    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self._path,)


def test_a_pickle_in_a_checkpoint_is_refused_unread(tmp_path: Path) -> None:
    train(small_config(epochs=1, run_dir=tmp_path / "run"))
    checkpoint = find_checkpoint(tmp_path / "run")
    stream = io.BytesIO()
    np.savez(stream, **{str(number): np.array([_Bomb(tmp_path / "victim")], object) for number in range(99)})
    names = checkpoint.manifest["files"]
    files = {name: checkpoint.read(name) for name in names} | {ARRAYS: stream.getvalue()}
    facts = {name: checkpoint.manifest[name] for name in ("agent_step", "policy_version", "resumable")}
    CheckpointFolder(tmp_path / "forged").commit(epoch=9, facts=facts, files=files)
    with pytest.raises(CheckpointError, match="pickle"):
        read_checkpoint(find_checkpoint(tmp_path / "forged"))
    assert not (tmp_path / "victim").exists()


def test_checking_settings_from_a_uri_imports_nothing(tmp_path: Path) -> None:
    (tmp_path / "side_effect.py").write_text(f"open({str(tmp_path / 'victim')!r}, 'w')\n")
    table = json.dumps({"environment": "side_effect:make", "metrics": {"sinks": ["side_effect:Sink"]}})
    program = (
        "import sys\nfrom orchestrator import Trainer\nfrom orchestrator.config.file import from_table\n"
        f"Trainer(from_table({table}), trust_code=False)"
    )
    words = [sys.executable, "-c", f"import sys; sys.path.append({str(tmp_path)!r})\n{program}"]
    result = subprocess.run(words, capture_output=True, text=True, timeout=100, check=False)
    assert "no code to run" in result.stderr
    assert not (tmp_path / "victim").exists()
    check_config(TrainerConfig())
