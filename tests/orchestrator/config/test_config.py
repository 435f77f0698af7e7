"""The configuration's dataclasses: frozen, complete in themselves, documented, and light to import."""

from __future__ import annotations

import ast
import inspect
import pickle
import re
import subprocess
import sys
import types
from dataclasses import FrozenInstanceError
from typing import Any, get_args

import numpy as np
import pytest

from orchestrator import ConfigurationError, Hook, HookConfigurationError, Trainer
from orchestrator.checks.configuration import check_config
from orchestrator.config import settings as config_module
from orchestrator.config.annotations import MAY_CHANGE, Admits
from orchestrator.config.fields import bare, leaves, notes
from orchestrator.config.paths import PATH, problem_with
from orchestrator.config.settings import (
    CheckpointsConfig,
    CollectionConfig,
    EvaluationTask,
    LearningConfig,
    LossesConfig,
    MetricsConfig,
    PolicyConfig,
    TrainerConfig,
)
from tests.paths import PROJECT


def test_the_defaults_are_a_configuration() -> None:
    config = TrainerConfig()
    assert config.environment == "CartPole-v1"
    assert config.run_dir is None
    assert config.steps_per_epoch == 64 * 32


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainerConfig().collection.horizon = 1  # type: ignore[misc]


def test_two_configurations_do_not_share_a_table_of_options() -> None:
    assert TrainerConfig().collection.environment_options is not TrainerConfig().collection.environment_options


def test_a_configuration_travels_to_a_worker() -> None:
    config = TrainerConfig(collection=CollectionConfig(environment_options={"gravity": 9.8}))
    assert pickle.loads(pickle.dumps(config)) == config


def test_numbers_of_numpy_are_settings_as_those_of_python() -> None:
    collection = CollectionConfig(num_environments=np.int64(8))  # type: ignore[arg-type]
    learning = LearningConfig(discount=np.float32(0.5))  # type: ignore[arg-type]
    policy = PolicyConfig(hidden_sizes=(np.int64(8), 4))  # type: ignore[arg-type]
    config = TrainerConfig(seed=np.uint8(3), collection=collection, learning=learning, policy=policy)  # type: ignore[arg-type]
    check_config(config)
    assert config == TrainerConfig(
        seed=3,
        collection=CollectionConfig(num_environments=8),
        learning=LearningConfig(discount=0.5),
        policy=PolicyConfig(hidden_sizes=(8, 4)),
    )
    assert type(config.collection.num_environments) is int


@pytest.mark.parametrize("number", [8.0, np.float32(8)])
def test_a_count_that_is_no_whole_number_is_refused_with_what_to_write(number: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"num_environments .*= 8.0\n.*a whole number\n.*write 8"):
        Trainer(TrainerConfig(collection=CollectionConfig(num_environments=number)))


def test_none_is_the_default_of_every_field_that_may_be_none() -> None:
    # A TOML file has no null: it says None by leaving the field out.
    for path, hint, value in leaves(TrainerConfig()):
        if types.NoneType in get_args(bare(hint)):
            assert value is None, path
        else:
            assert value is not None, path


def test_every_field_has_one_line_of_documentation() -> None:
    source = inspect.getsource(config_module).splitlines()
    declared = {path.rpartition(".")[2] for path, _, _ in leaves(TrainerConfig())}
    for number, line in enumerate(source):
        name = line.strip().partition(":")[0]
        if line.startswith("    ") and name in declared and ": " in line:
            documentation = source[number + 1].strip()
            assert documentation.startswith('"""'), name
            assert documentation.endswith('."""'), name


def test_every_number_has_a_range() -> None:
    def numeric(hint: Any) -> bool:
        return bare(hint) in (int, float) or any(map(numeric, get_args(bare(hint))))

    for path, hint, _ in [*leaves(TrainerConfig()), *leaves(EvaluationTask())]:
        assert not numeric(hint) or any(isinstance(note, Admits) for note in notes(hint)), path


def test_what_may_change_on_resume_is_what_the_documentation_says() -> None:
    text = (PROJECT / "docs" / "checkpoints.md").read_text()
    sentence = text.partition("These may be changed")[2].partition(";")[0]
    said = set(re.findall(r"`([a-z_.]+)`", sentence)) - {"config.toml"}
    whole = re.findall(r"\w+", sentence.partition("and all of ")[2].replace(" and ", " "))
    assert whole == ["checkpoints", "evaluation", "metrics"]
    may_change = {path for path, hint, _ in leaves(TrainerConfig()) if MAY_CHANGE in notes(hint)}
    assert {path for path in may_change if path.partition(".")[0] not in whole} == said
    assert {path for path, _, _ in leaves(TrainerConfig()) if path.partition(".")[0] in whole} <= may_change


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (TrainerConfig, {"enviroment": "x"}, "TrainerConfig has no setting 'enviroment': did you mean environment?"),
        (TrainerConfig, {"learning_rate": 1}, "did you mean learning=LearningConfig(learning_rate=...)?"),
        (TrainerConfig, {"hidden": 1}, "did you mean policy=PolicyConfig(hidden_sizes=...)?"),
        (LearningConfig, {"lr": 1}, "LearningConfig has no setting 'lr': did you mean learning_rate?"),
        (LossesConfig, {"clip_coef": 1}, "did you mean clip?"),
        (CheckpointsConfig, {"evry": 1}, "did you mean every"),
        (MetricsConfig, {"zzz": 1}, "use one of progress, jsonl"),
        (EvaluationTask, {"episode": 1}, "did you mean episodes?"),
    ],
)
def test_a_setting_that_there_is_not_is_refused_in_code_with_what_to_write(
    kind: Any, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TypeError) as caught:
        kind(**settings)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "cure"),
    [
        ({"learning": {"discount": 2}}, "write LearningConfig(discount=2)"),
        ({"learning": {}}, "write LearningConfig(...)"),
        ({"metrics": MetricsConfig(wandb="of")}, "did you mean off?"),  # type: ignore[arg-type]
        ({"staleness": "Auto"}, "did you mean auto?"),
    ],
)
def test_a_value_that_does_not_fit_is_told_what_to_write(settings: dict[str, Any], cure: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Trainer(TrainerConfig(**settings))
    assert [problem.cure for problem in caught.value.problems] == [cure]


def test_a_word_of_a_hooks_setting_that_is_none_is_told_the_nearest() -> None:
    class Mine(Hook):
        overflow = "blok"  # type: ignore[assignment]

        async def on_epoch_end(self, state: Any) -> None: ...

    with pytest.raises(HookConfigurationError, match="did you mean block?"):
        Trainer(hooks=[Mine()])


def test_the_path_of_a_setting_is_written_without_text() -> None:
    assert str(PATH.learning.discount) == "learning.discount"
    assert str(PATH.evaluation.tasks[2].environment) == "evaluation.tasks[2].environment"
    with pytest.raises(AttributeError, match=r"there is no setting learning\.discont"):
        _ = PATH.learning.discont  # type: ignore[attr-defined]
    problem = problem_with(TrainerConfig(), PATH.learning.discount, expected="less", cure="lower it")
    assert (problem.field, problem.value) == ("learning.discount", 0.99)


def test_no_code_has_the_path_of_a_setting_as_text() -> None:
    paths = {path for path, _, _ in leaves(TrainerConfig()) if "." in path} - {"metrics.jsonl"}  # which is a file, too
    mention = re.compile(r"(?<![\w.])(" + "|".join(map(re.escape, paths)) + r")(?![\w.])")
    for file in sorted((PROJECT / "orchestrator").rglob("*.py")):
        tree = ast.parse(file.read_text())
        explanations = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in explanations:
                assert not mention.search(node.value), f"{file}:{node.lineno}: use PATH of orchestrator.config.paths"


def test_what_one_setting_says_of_another_is_there() -> None:
    sections = "|".join({path.partition(".")[0] for path, _, _ in leaves(TrainerConfig()) if "." in path})
    source = inspect.getsource(config_module)
    for path in re.findall(rf"(?<![\w.])(?:{sections})\.[a-z_]+", source.replace("metrics.jsonl", "")):
        assert path in {name for name, _, _ in leaves(TrainerConfig())}


def test_the_command_line_starts_without_torch_and_without_gymnasium() -> None:
    program = (
        "import sys, orchestrator.__main__, orchestrator.command.cli;"
        "print([name for name in ('torch', 'gymnasium', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
