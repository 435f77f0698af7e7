"""The command line, with the training and the evaluation behind it replaced by records of how they were called."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator.__main__ import main
from orchestrator.command.cli import train_settings
from orchestrator.command.train_help import MOST_USED
from orchestrator.command.words import parse_option, parse_task, parse_whole_number
from orchestrator.config.error import ConfigurationError, Problem
from orchestrator.config.file import write_config
from orchestrator.config.run_folder import claimed, default_run_dir
from orchestrator.config.settings import (
    CollectionConfig,
    EvaluationTask,
    LearningConfig,
    LossesConfig,
    PolicyConfig,
    TrainerConfig,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

REPORT: Mapping[str, object] = {"checkpoint": "runs/x/checkpoints/61", "episode_return": 487.25, "episodes": 20}


@dataclass
class Calls:
    """What happened behind the command line, in order; `error` is what the training raises."""

    events: list[str] = field(default_factory=list[str])
    configs: list[TrainerConfig] = field(default_factory=list[TrainerConfig])
    evaluations: list[dict[str, object]] = field(default_factory=list[dict[str, object]])
    exit_code: int = 0
    error: Exception | None = None

    @property
    def config(self) -> TrainerConfig:
        (config,) = self.configs
        return config

    def warm_up(self) -> None:
        self.events.append("warm_up")

    def run_training(self, config: TrainerConfig, *, resume: object = None) -> int:
        assert resume is None
        self.events.append("train")
        self.configs.append(config)
        if self.error is not None:
            raise self.error
        assert config.run_dir is not None
        config.run_dir.mkdir(parents=True, exist_ok=True)
        write_config(config, config.run_dir / "config.toml")
        return self.exit_code

    def evaluate_checkpoint(self, path: str, **options: object) -> Mapping[str, object]:
        self.events.append("eval")
        self.evaluations.append({"path": path, **options})
        return REPORT

    def check_environment(self, name: str) -> list[str]:
        self.events.append("check")
        return [f"no environment {name}"] if name == "Nowhere-v0" else []


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Calls:
    """Runs in a folder of its own, with nothing heavy behind the command."""
    calls = Calls()
    for module, name in (
        ("workers.fork_server", "warm_up"),
        ("command.run_script", "run_training"),
        ("command.evaluation", "evaluate_checkpoint"),
        ("environments", "check_environment"),
    ):
        fake = ModuleType(f"orchestrator.{module}")
        setattr(fake, name, getattr(calls, name))
        monkeypatch.setitem(sys.modules, fake.__name__, fake)
    environments = sys.modules["orchestrator.environments"]
    monkeypatch.setattr(environments, "problem_with_options", lambda *_: None, raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    return calls


def command(words: str) -> int:
    return main(words.split())


def test_train_runs_the_settings_of_the_flags(calls: Calls) -> None:
    words = (
        "train --environment Acrobot-v1 --total-agent-steps 9000 --seed 7 --staleness 0 --run-dir runs/first"
        " --device cpu --learning.learning-rate 1e-3 --learning.adam_betas 0.8 0.9"
        " --losses.names vtrace_actor vtrace_critic --losses.target-kl 0.02"
        " --losses.no-normalize-advantage --policy.hidden_sizes 32 16 --collection.mode sync"
    )
    assert command(words) == 0
    assert calls.config == TrainerConfig(
        environment="Acrobot-v1",
        total_agent_steps=9000,
        seed=7,
        staleness=0,
        run_dir=Path("runs/first"),
        device="cpu",
        learning=LearningConfig(learning_rate=1e-3, adam_betas=(0.8, 0.9)),
        losses=LossesConfig(names=("vtrace_actor", "vtrace_critic"), target_kl=0.02, normalize_advantage=False),
        policy=PolicyConfig(hidden_sizes=(32, 16)),
        collection=CollectionConfig(mode="sync"),
    )


def test_the_exit_code_of_the_training_is_that_of_the_command(calls: Calls) -> None:
    calls.exit_code = 3
    assert main(["train"]) == 3


def test_workers_start_to_warm_up_before_anything_else(calls: Calls) -> None:
    main(["train"])
    assert calls.events == ["warm_up", "check", "train"]


@pytest.mark.parametrize("words", [["train", "--help"], ["eval", "--help"], ["train", "--seed", "1", "-h"]])
def test_help_starts_nothing(calls: Calls, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 0
    assert calls.events == []
    assert f"usage: orchestrator {words[0]}" in capsys.readouterr().out


def test_the_help_of_train_explains_the_settings_with_their_defaults(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help-all"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "--config" in text
    assert "--total-agent-steps INT Agent steps to train for, over all environments. (default: 500000)" in text
    assert "--learning.discount FLOAT Weight of the next agent step's reward" in text
    assert "--collection.environment-options [KEY=VALUE ...]" in text
    assert "--evaluation.tasks [ENVIRONMENT|{SETTING=VALUE,...} ...]" in text


@pytest.mark.parametrize("columns", ["40", "100", "240"])
def test_the_short_help_of_train_has_the_most_used_options_with_the_defaults_of_a_preset(
    columns: str, calls: Calls, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as caught:
        main(["train", "--preset", "acrobot", "--help"])
    assert caught.value.code == 0
    output = capsys.readouterr().out
    text = " ".join(output.split())
    assert re.findall(r"^  (--[\w.-]+)", output, flags=re.MULTILINE) == list(MOST_USED)
    assert "--environment STR Gymnasium id, module:id (imports" in text
    assert "makes an environment. (default: Acrobot-v1) --preset {None}|STR Settings that come" in text
    assert "`orchestrator train --help-all` explains all options" in text
    assert "How experience is collected" not in text


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_without_a_command_the_commands_are_listed(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 0
    assert "orchestrator eval runs/first" in capsys.readouterr().out


def test_an_unknown_command_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["trian"]) == 2
    assert capsys.readouterr().err == "orchestrator: there is no command trian: did you mean train?\n"


def test_errors_are_a_list_without_a_traceback_and_nothing_is_left(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train --environment Nowhere-v0 --collection.collectors 7 --seed -1") == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("orchestrator train: 3 problems in the configuration; nothing was started.\n")
    assert "Traceback" not in output.err
    assert calls.configs == []
    assert list(Path("runs").iterdir()) == []


def test_problems_that_the_trainer_finds_are_told_the_same_way(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    calls.error = ConfigurationError([Problem(field="staleness", value=1, expected="0", cure="set it to 0")])
    assert main(["train"]) == 2
    assert "staleness = 1" in capsys.readouterr().err
    assert list(Path("runs").iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--seed three", "three"),
        ("--collection.mode fast", "auto"),
        ("--config", "--config"),
        ("--collection.environment-options gravity", "gravity is not KEY=VALUE"),
        ("--total-agent-steps 1e-6", "1e-6 is no whole number: did you mean 1e6?"),
        ("--total-agent-steps 1,000", "1,000 is no whole number: write 1000"),
        ("--total-agent-steps 12.5", "12.5 is no whole number: write 12 or 13"),
        ("--collection.horizon many", "write it as 1000000, 1_000_000 or 1e6"),
        ("--learning.threads many", "many is no whole number: write it as"),
        ("--learning.learning-rate fast", "fast is no number: write it as 0.001 or 1e-3"),
        ("--losses.value-clip x", "Error parsing --losses.value-clip: x is no number"),
        ("--staleness old", "Error parsing --staleness: old is no number: write it as 0.001 or 1e-3, or auto"),
        ("--policy.hidden-sizes 64,64", "64,64: write 64 64, without commas"),
        ("--learning.adam-betas 0.8,0.9", "0.8,0.9: write 0.8 0.9, without commas"),
        ("--learning.adam-betas 0.8", "0.8 where 2 numbers belong"),
        ("--learning.profile-epochs 1 x", "x is no whole number"),
        ("--evaluation.tasks name=old", """the settings of a task stand in braces: write '{name="old"}'"""),
        ("--metrics.wandb", "--metrics.wandb needs one of off, online, offline"),
        ("--collection.mode --seed 1", "--collection.mode needs one of auto, native, sync"),
        ("--run-dir=", "'' is no path: write . for the present folder"),
        ("--policy.hidden 64,64", "--policy.hidden is the former name of --policy.hidden_sizes"),
    ],
)
def test_a_wrong_flag_is_explained(calls: Calls, words: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["train", *words.split()])
    assert caught.value.code == 2
    assert expected in " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert calls.configs == []


@pytest.mark.parametrize(
    ("words", "cures"),
    [
        ("--sed 3", ["--sed = '3'", "did you mean --seed or --evaluation.seed?"]),
        ("--lr 1e-3", ["did you mean --learning.learning-rate?"]),
        ("--gamma=0.9", ["--gamma = '0.9'", "did you mean --learning.discount?"]),
        ("--learning-rate 1", ["did you mean --learning.learning-rate?"]),
        ("--losses.learning_rate 1", ["did you mean --learning.learning-rate?"]),
        ("--clip-range 1", ["did you mean --losses.clip?"]),
        ("--hidden 64", ["did you mean --policy.hidden-sizes?"]),
        ("--environments 4", ["--collection.num-environments or --evaluation.num-environments"]),
        ("--resum x", ["did you mean --resume?"]),
        ("--enviroment x", ["did you mean --environment?"]),
        (
            "--policy.network resnet",
            ["use one of auto, mlp, cnn, lstm, tokens, tokens_lstm (code of your own is named package.module:"],
        ),
        ("--losses.names ppo", ["write ppo_actor and ppo_critic"]),
        ("--zzzzzz", ["orchestrator train --help-all"]),
        ("--policy.by-type seeker", ["no flag: it is a list of tables", "[[policy.by_type]]", "give that by --config"]),
        ("--policy.by_type.network=lstm", ["no flag: it is a list of tables", "[[policy.by_type]]"]),
        ("--collection.environment-options.size 3", ["write --collection.environment-options size=3"]),
        ("--metrics.trace yes", ["--metrics.trace = 'yes'", "it is a switch", "write --metrics.trace alone"]),
        ("--metrics.trace=False", ["write --metrics.no-trace alone"]),
        ("--metrics.jsonl maybe", ["write --metrics.jsonl to switch it on, --metrics.no-jsonl to switch it off"]),
        ("folder", ["write --resume folder", "--run-dir folder"]),
        ("s3://bucket/run", ["write --resume s3://bucket/run"]),
        ("folder/x.toml", ["write --config folder/x.toml"]),
        ("CartPole-v1", ["write --environment CartPole-v1"]),
        ("--environment folder", ["write --resume folder"]),
        ("--seed -1 folder --lr 3", ["3 problems", "seed = -1", "--resume folder", "--learning.learning-rate"]),
        ("--collection.environments 3 --collection.num-environments=4", ["leave out environments"]),
        ("--policy.hidden 3 --policy.hidden_sizes 4", ["leave out hidden"]),
        ("--collection.environments 0", ["collection.num_environments (formerly environments) = 0"]),
        ("--collection.environments 6 --collection.collectors 4", ["num_environments (formerly environments) = 6"]),
    ],
)
def test_a_word_that_is_no_setting_is_told_what_it_may_stand_for(
    calls: Calls, words: str, cures: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("folder").mkdir()
    Path("folder", "x.toml").touch()
    known = sys.modules["orchestrator.environments"]
    monkeypatch.setattr(known, "check_environment", lambda name: ["unknown"] if name == "folder" else [])
    assert main(["train", *words.split()]) == 2
    error = " ".join(capsys.readouterr().err.split())
    for cure in cures:
        assert cure in error
    assert calls.configs == []


@pytest.mark.parametrize(
    ("word", "number"),
    [("1e6", 10**6), ("1E4", 10**4), ("1_000_000", 10**6), ("2.5e5", 250_000), ("8192.0", 8192), ("700", 700)],
)
def test_whole_numbers_are_read_as_people_write_them(calls: Calls, word: str, number: int) -> None:
    small = "--collection.num-environments 4 --collection.horizon 1e1"
    assert command(f"train --total-agent-steps {word} {small}") == 0
    assert (calls.config.total_agent_steps, calls.config.collection.horizon) == (number, 10)


@pytest.mark.parametrize("word", ["1e-3", "0.5", "inf", "nan", "1e999999999", "1,000", ""])
def test_what_is_no_whole_number_is_refused(word: str) -> None:
    with pytest.raises(ValueError, match="is no whole number"):
        parse_whole_number(word)


def test_what_is_wrong_with_the_file_the_flags_and_the_whole_comes_at_once(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("settings.toml").write_text(
        "environments = 3\nenvironment = 'Nowhere-v0'\n[collection]\nnum_environments = 6\ncollectors = 4\n"
        "[learning]\nlr = 1\ngae_lambda = 2\nminibatches = 'x'\n[policy]\nhidden = [8]\nhidden_sizes = [8]\n"
    )
    assert command("train --config settings.toml --sed 3 --losses.clip 0") == 2
    error = capsys.readouterr().err
    assert error.startswith("orchestrator train: 9 problems in settings.toml; nothing was started.\n")
    for part in ("--sed = '3'", "losses.clip = 0.0", "environments = 3", "Nowhere-v0", "a multiple of", "learning.lr"):
        assert part in error
    for part in ("gae_lambda = 2", "learning.minibatches = 'x'", "policy.hidden_sizes (formerly hidden) = [[8], [8]]"):
        assert part in error
    assert calls.configs == []


def test_numbers_that_may_be_none_or_a_word_and_lists_of_them_are_read(calls: Calls) -> None:
    words = "--staleness auto --learning.threads 2 --losses.value-clip 1e-1 --learning.profile-epochs 1 1e1"
    assert command(f"train {words} --learning.max-grad-norm inf") == 0
    assert calls.config.staleness == "auto"
    assert calls.config.learning.threads == 2
    assert calls.config.losses.value_clip == 0.1
    assert calls.config.learning.profile_epochs == (1, 10)


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"orchestrator {importlib.metadata.version('async-rl-orchestrator')}\n"


def test_flags_override_the_file(calls: Calls, tmp_path: Path) -> None:
    recorded = TrainerConfig(
        seed=5,
        learning=LearningConfig(minibatches=8, threads=1),
        collection=CollectionConfig(environment_options={"gravity": 5, "wind": True}),
    )
    write_config(recorded, tmp_path / "settings.toml")
    assert command("train --config settings.toml --seed 6 --learning.threads None") == 0
    assert replace(calls.config, run_dir=None) == replace(recorded, seed=6, learning=LearningConfig(minibatches=8))


def test_a_file_that_is_not_there_is_a_problem_of_the_configuration(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--config=missing.toml"]) == 2
    assert "config = 'missing.toml'" in capsys.readouterr().err


def test_environment_options_are_words_of_key_and_value(calls: Calls) -> None:
    options = ["gravity=9.5", "wind=true", "sizes=[1, 2]", "render_mode=rgb_array", 'label="a b"']
    main(["train", "--collection.environment-options", *options, "--seed", "3"])
    assert calls.config.seed == 3
    assert calls.config.collection.environment_options == {
        "gravity": 9.5,
        "wind": True,
        "sizes": [1, 2],
        "render_mode": "rgb_array",
        "label": "a b",
    }


def test_environment_options_may_be_an_inline_table_as_in_a_file(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["train", "--collection.environment-options", '{size=5, name="a b"}', "steps=3"])
    assert calls.config.collection.environment_options == {"size": 5, "name": "a b", "steps": 3}
    with pytest.raises(SystemExit):
        main(["train", "--collection.environment-options", "{size=5, name}"])
    said = capsys.readouterr().err
    assert "{size=5, name}" in said
    assert "KEY=VALUE for each option" in " ".join(said.replace("│", " ").split())


@pytest.mark.parametrize(
    ("word", "value"),
    [("a=-3", -3), ("a=b=c", None), ("a=./maps/x.txt", "./maps/x.txt"), ("a='1'", "1"), ("a=1e3", 1e3)],
)
def test_a_value_is_a_toml_literal_or_a_plain_word(word: str, value: object) -> None:
    if value is None:
        with pytest.raises(ValueError, match="for text"):
            parse_option(word)
    else:
        assert parse_option(word) == ("a", value)


@pytest.mark.parametrize(
    ("word", "cure"),
    [
        ("a=True", "must be true"),
        ("a=None", "left out"),
        ("a=1\nb=2", "TOML literal"),
        ("a=", "TOML literal"),
        ("a=1.2.3", "TOML literal"),
        ("=1", "KEY=VALUE"),
    ],
)
def test_a_value_that_could_be_misread_is_refused(word: str, cure: str) -> None:
    with pytest.raises(ValueError, match=cure):
        parse_option(word)


def test_tasks_of_the_evaluation_are_names_of_environments_or_tables() -> None:
    table = '{name="heavy", environment="Acrobot-v1", options={book_or_nips="nips"}, episodes=3, deterministic=false}'
    _, config, _ = train_settings(["--evaluation.tasks", "Acrobot-v1", table, "--seed", "3"])
    assert config.seed == 3
    assert config.evaluation.tasks == (
        EvaluationTask(environment="Acrobot-v1"),
        EvaluationTask(
            name="heavy",
            environment="Acrobot-v1",
            options={"book_or_nips": "nips"},
            episodes=3,
            deterministic=False,
        ),
    )


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("{episodes=3", "no inline table of TOML"),
        ("{episode=3}", "did you mean episodes?"),
        ("{episodes='x'}", "episodes (a whole number or nothing"),
        ("{}, 3", "no inline table of TOML"),
    ],
)
def test_a_task_that_is_no_table_of_its_settings_is_explained(word: str, expected: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse_task(word)
    assert expected in str(caught.value)


def test_a_run_without_a_folder_gets_one_named_after_environment_and_time(calls: Calls) -> None:
    main(["train"])
    assert calls.config.run_dir is not None
    assert calls.config.run_dir.parent == Path("runs")
    assert calls.config.run_dir.name.startswith("CartPole-v1-")
    now = datetime.datetime(2031, 2, 3, 4, 5, 6)
    assert default_run_dir("ALE/Pong-v5", now) == Path("runs/ALE-Pong-v5-20310203-040506")
    assert default_run_dir("my.envs:make", now) == Path("runs/my.envs-make-20310203-040506")


def test_runs_that_start_in_one_second_get_a_folder_each(tmp_path: Path) -> None:
    wanted = tmp_path / "runs" / "x"
    folders: list[Path] = []
    for _ in range(3):
        with claimed(wanted, may_exist=False) as folder:
            folders.append(folder)
    assert [folder.name for folder in folders] == ["x", "x-2", "x-3"]
    assert all(folder.is_dir() for folder in folders)


def test_the_file_of_a_run_repeats_it_in_a_new_folder_next_to_it(calls: Calls) -> None:
    command("train --run-dir runs/first --seed 9")
    command("train --config runs/first/config.toml")
    command("train --config runs/first/config.toml")
    first, second, third = calls.configs
    assert second == replace(first, run_dir=Path("runs/first-2"))
    assert third == replace(first, run_dir=Path("runs/first-3"))


def test_the_folder_that_a_file_wishes_for_is_taken_while_it_holds_no_run(calls: Calls, tmp_path: Path) -> None:
    write_config(TrainerConfig(run_dir=tmp_path / "output"), tmp_path / "settings.toml")
    (tmp_path / "output").mkdir()
    command("train --config settings.toml")
    assert calls.config.run_dir == tmp_path / "output"


def test_the_folder_that_a_flag_names_is_refused_if_it_holds_a_run(
    calls: Calls, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("train --run-dir runs/first") == 0
    for words in ("train --run-dir runs/first", "train --config runs/first/config.toml --run-dir runs/first"):
        assert command(words) == 2
        assert "orchestrator train --config runs/first/config.toml" in capsys.readouterr().err
    assert len(calls.configs) == 1


def test_a_folder_that_cannot_be_made_is_refused(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs").touch()
    assert main(["train"]) == 2
    assert "a folder that can be written (Not a directory)" in capsys.readouterr().err


def test_code_in_the_current_folder_can_be_named(calls: Calls, tmp_path: Path) -> None:
    (tmp_path / "nets_for_cli_test.py").write_text("def make(spaces): ...\n")
    assert command("train --policy.network nets_for_cli_test:make") == 0


@pytest.mark.parametrize(
    ("words", "options"),
    [
        ("", {"episodes": 20, "environment": None, "deterministic": None}),
        ("--episodes 3 --sampled", {"episodes": 3, "environment": None, "deterministic": False}),
        ("--deterministic --environment A-v1", {"episodes": 20, "environment": "A-v1", "deterministic": True}),
    ],
)
def test_eval_measures_a_checkpoint(
    calls: Calls, tmp_path: Path, words: str, options: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(tmp_path), *words.split()]) == 0
    assert calls.evaluations == [{"path": str(tmp_path), "trust_code": False, **options}]
    assert capsys.readouterr().out.splitlines() == [
        "checkpoint      runs/x/checkpoints/61",
        "episode_return  487.25",
        "episodes        20",
    ]


@pytest.mark.parametrize("uri", ["s3://bucket/runs/first", "file:///runs/first/checkpoints/00000062"])
def test_eval_takes_a_uri_as_it_is(calls: Calls, uri: str) -> None:
    assert main(["eval", uri]) == 0
    assert calls.evaluations[0]["path"] == uri


def test_eval_prints_json(calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["eval", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == REPORT


def test_eval_says_everything_wrong_at_once(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("eval runs/none --episodes 0 --environment Nowhere-v0") == 2
    error = capsys.readouterr().err
    assert "3 problems" in error
    assert "path = 'runs/none'" in error
    assert calls.evaluations == []


def test_eval_of_a_misspelt_path_names_the_near_one(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/first").mkdir(parents=True)
    assert command("eval runs/frist") == 2
    assert f"did you mean {Path('runs/first')}?" in capsys.readouterr().err
    assert calls.evaluations == []


def test_a_number_that_no_file_can_hold_is_refused(calls: Calls, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(f"train --total-agent-steps {10**25}") == 2
    assert "expected: a number below 2**63" in capsys.readouterr().err
    assert calls.configs == []


def test_eval_is_either_deterministic_or_sampled(
    calls: Calls, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["eval", str(tmp_path), "--deterministic", "--sampled"]) == 2
    assert "at most one of --deterministic and --sampled" in capsys.readouterr().err
    assert calls.evaluations == []


@pytest.mark.parametrize(
    "words", [("eval",), ("report",), ("train",), ("checkpoints", "prune"), ("checkpoints", "list")]
)
def test_help_says_the_same_of_the_same_thing(words: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--help" if words != ("train",) else "--help-all"])
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert not re.search(r"\(none\b|overridden|\[\[", text), "None is written as it is given"
    switches = re.findall(r"--(?:json|dry-run|sampled|deterministic|trust-code) (?!,)[^-]*", text)
    assert not [switch for switch in switches if "default: False" in switch]


def test_the_fork_server_can_be_started_without_importing_torch_here() -> None:
    program = "import sys, orchestrator.__main__, orchestrator.workers.fork_server; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
