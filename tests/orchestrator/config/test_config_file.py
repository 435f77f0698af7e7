"""Configurations as TOML files."""

from __future__ import annotations

import datetime
import math
import tomllib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.annotations import Count, Formerly
from orchestrator.config.error import ConfigurationError
from orchestrator.config.file import TableReader, from_table, read_config, to_table, write_config
from orchestrator.config.settings import (
    CollectionConfig,
    EvaluationConfig,
    EvaluationTask,
    LearningConfig,
    LossesConfig,
    PolicyConfig,
    TrainerConfig,
)

toml_values = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text() | st.dates(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def problems_of(table: dict[str, object]) -> dict[str, str]:
    with pytest.raises(ConfigurationError) as caught:
        from_table(table)
    return {problem.field: f"{problem.expected} | {problem.cure}" for problem in caught.value.problems}


def test_the_defaults_survive_a_file(tmp_path: Path) -> None:
    write_config(TrainerConfig(), tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == TrainerConfig()


def test_every_setting_survives_a_file(tmp_path: Path) -> None:
    config = TrainerConfig(
        run_dir=tmp_path / "a b" / "rün",
        collection=CollectionConfig(
            mode="sync", environment_options={"gravity": 1.0, "on": True, "nested": {"a.b": [1, 2]}}
        ),
        learning=LearningConfig(threads=2, max_grad_norm=math.inf, learning_rate=1e-7, adam_betas=(0.5, 0.25)),
        losses=LossesConfig(names=("my.losses:actor",), value_clip=0.5, target_kl=0.01, normalize_advantage=False),
        policy=PolicyConfig(hidden_sizes=()),
        evaluation=EvaluationConfig(
            tasks=(
                EvaluationTask(name="ä b", category="hard", environment="A-v1", options={"nested": {"x.y": [1, {}]}}),
                EvaluationTask(options={}, episodes=3, seed=0, deterministic=False),
                EvaluationTask(),
            ),
            video_every=7,
        ),
    )
    write_config(config, tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml") == config


@pytest.mark.slow
@given(st.dictionaries(st.text(max_size=8), toml_values, max_size=3))
def test_any_table_of_options_survives(options: dict[str, object]) -> None:
    config = TrainerConfig(collection=CollectionConfig(environment_options=options))
    assert from_table(tomllib.loads(tomli_w.dumps(to_table(config)))) == config


def test_a_file_says_what_it_is_for_and_holds_every_setting_that_is_not_none(tmp_path: Path) -> None:
    write_config(TrainerConfig(), tmp_path / "config.toml")
    text = (tmp_path / "config.toml").read_text()
    assert text.startswith("# The settings of a run: `orchestrator train --config")
    assert tomllib.loads(text)["evaluation"]["seed"] == 1_000_000
    assert "run_dir" not in text


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    write_config(TrainerConfig(), tmp_path / "config.toml")
    with pytest.raises(FileExistsError):
        write_config(replace(TrainerConfig(), seed=2), tmp_path / "config.toml")
    assert read_config(tmp_path / "config.toml").seed == 1


def test_what_a_file_leaves_out_keeps_its_default() -> None:
    assert from_table({"learning": {"minibatches": 8}}) == TrainerConfig(learning=LearningConfig(minibatches=8))


def test_whole_numbers_texts_and_lists_become_what_the_fields_are() -> None:
    config = from_table({"run_dir": "runs/x", "learning": {"learning_rate": 1}, "policy": {"hidden_sizes": [8]}})
    assert config.run_dir == Path("runs/x")
    assert type(config.learning.learning_rate) is float
    assert config.policy.hidden_sizes == (8,)


def test_everything_wrong_in_a_file_is_said_at_once() -> None:
    problems = problems_of(
        {
            "sed": 1,
            "run_dir": "",
            "learning_rate": 0.1,
            "total_agent_steps": "many",
            "seed": True,
            "losses": 3,
            "learning": {"learning-rate": 1, "clip": 0.3, "adam_betas": [0.9], "staleness": 0},
            "collection": {"mode": "fast", "environment_options": [1]},
            "policy": {"hidden_sizes": [64, "wide"]},
            "evaluation": {"tasks": [{"sede": 1, "epochs": 3, "every": 2}, 4, {"episodes": "few", "options": [1]}]},
        }
    )
    assert set(problems) == {
        "sed",
        "run_dir",
        "learning_rate",
        "total_agent_steps",
        "seed",
        "losses",
        "learning.learning-rate",
        "learning.clip",
        "learning.adam_betas",
        "learning.staleness",
        "collection.mode",
        "collection.environment_options",
        "policy.hidden_sizes",
        "evaluation.tasks[0].sede",
        "evaluation.tasks[0].epochs",
        "evaluation.tasks[0].every",
        "evaluation.tasks[1]",
        "evaluation.tasks[2].episodes",
        "evaluation.tasks[2].options",
    }
    assert "did you mean seed?" in problems["sed"]
    assert "move it to [learning]" in problems["learning_rate"]
    assert "a whole number | the default is 500000" in problems["total_agent_steps"]
    assert "write [losses] and its settings below it" in problems["losses"]
    assert "did you mean learning_rate" in problems["learning.learning-rate"]
    assert "move it to [losses]" in problems["learning.clip"]
    assert "a list of 2 numbers | the default is [0.9, 0.999]" in problems["learning.adam_betas"]
    assert "move it to the top of the file" in problems["learning.staleness"]
    assert "one of auto, native, sync" in problems["collection.mode"]
    assert "a list of any number of whole numbers" in problems["policy.hidden_sizes"]
    assert "did you mean seed?" in problems["evaluation.tasks[0].sede"]
    assert "move it to [checkpoints] or [evaluation]" in problems["evaluation.tasks[0].every"]
    assert "write [[evaluation.tasks]] and its settings below it" in problems["evaluation.tasks[1]"]
    assert "leave it out for the default" in problems["evaluation.tasks[2].episodes"]


def test_types_of_agents_that_are_written_otherwise_are_told_how() -> None:
    in_list = problems_of({"policy": {"by_type": [{"name": "scout"}]}})
    assert in_list["policy.by_type[0].name"].endswith(
        "use one of type, network, hidden_sizes, activation, lstm_size, entropy_coefficient, value_coefficient"
    )
    one_table = problems_of({"policy": {"by_type": {"scout": {"network": "lstm"}}}})
    assert "write [[policy.by_type]] for each" in one_table["policy.by_type"]


def test_what_is_outside_its_range_is_said_together_with_what_is_no_setting() -> None:
    problems = problems_of({"sed": 1, "learning": {"discount": 2.0}, "losses": {"names": "ppo_actor"}})
    assert set(problems) == {"sed", "learning.discount", "losses.names"}
    assert problems["learning.discount"] == "a number between 0 and 1 | the default is 0.99"
    assert problems["losses.names"] == "a list of any number of texts | write ['ppo_actor']"


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    num_environments: Annotated[Count, Formerly("environments")] = 64
    horizon: int = 128


def test_a_setting_is_read_under_its_former_name() -> None:
    reader = TableReader(Renamed)
    assert reader.read(Renamed, {"environments": 8}) == Renamed(num_environments=8)
    assert reader.problems == []
    reader.read(Renamed, {"environments": 8, "num_environments": 4})
    assert [problem.field for problem in reader.problems] == ["num_environments"], "one of both is enough"


def test_a_table_where_a_list_of_tables_belongs_is_refused() -> None:
    problems = problems_of({"evaluation": {"tasks": {"name": "a"}}})
    cure = "write [[evaluation.tasks]] for each, and its settings below it"
    assert problems == {"evaluation.tasks": f"a list of any number of tables of settings | {cure}"}


@pytest.mark.parametrize(
    ("content", "expected"), [(b"seed = =", "line 1"), (b"seed = 1\n\xff", "utf-8"), (None, "No such file")]
)
def test_a_file_that_cannot_be_read_is_a_problem_of_the_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)  # messages leave out the middle of a long path
    path = Path("settings.toml")
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=expected) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_a_problem_shows_both_ends_of_a_long_path(tmp_path: Path) -> None:
    path = tmp_path / ("folder" * 20) / "settings.toml"
    with pytest.raises(ConfigurationError) as caught:
        read_config(path)
    assert "settings.toml'" in str(caught.value)
    assert f"config = '{tmp_path}"[:30] in str(caught.value)


def test_for_the_folder_of_a_run_the_file_in_it_is_named(tmp_path: Path) -> None:
    write_config(TrainerConfig(), tmp_path / "config.toml")
    with pytest.raises(ConfigurationError) as caught:
        read_config(tmp_path)
    assert caught.value.problems[0].cure == f"give {tmp_path / 'config.toml'}"


def test_options_that_toml_cannot_express_are_named() -> None:
    options = {
        "render": None,
        "make": print,
        "sizes": [1, {2}],
        "by_number": {1: "a"},
        "day": datetime.date(2020, 1, 1),
    }
    with pytest.raises(ConfigurationError) as caught:
        to_table(TrainerConfig(collection=CollectionConfig(environment_options=options)))
    assert [problem.field for problem in caught.value.problems] == [
        "collection.environment_options.render",
        "collection.environment_options.make",
        "collection.environment_options.sizes[1]",
        "collection.environment_options.by_number",
    ]
    assert caught.value.problems[0].cure == "leave it out"


def test_options_of_a_task_that_toml_cannot_express_are_named() -> None:
    tasks = (EvaluationTask(), EvaluationTask(options={"make": print}))
    with pytest.raises(ConfigurationError) as caught:
        to_table(TrainerConfig(evaluation=EvaluationConfig(tasks=tasks)))
    assert [problem.field for problem in caught.value.problems] == ["evaluation.tasks[1].options.make"]
