"""Everything that is wrong with a configuration is said at once, with what to do about it."""

from __future__ import annotations

import dataclasses
import inspect
import math
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from losses import Loss, Minibatch, PolicyEvaluation
from orchestrator import (
    CheckpointsConfig,
    CollectionConfig,
    EvaluationConfig,
    LearningConfig,
    LossesConfig,
    MetricsConfig,
    Trainer,
)
from orchestrator.checks.configuration import ConfigurationError, Problem, check_config, check_losses, check_minibatches
from orchestrator.config.annotations import Admits
from orchestrator.config.fields import leaves, notes
from orchestrator.config.file import from_table
from orchestrator.config.reads import READS
from orchestrator.config.settings import TrainerConfig

if TYPE_CHECKING:
    from torch import Tensor


def loss(name: str = "mine", **attributes: bool) -> Loss:
    flags = {"policy_gradient": False, "corrects_staleness": False, "needs_segments": False} | attributes
    return cast("Loss", SimpleNamespace(name=name, **flags))


def setting(path: str, value: object) -> TrainerConfig:
    """The defaults with one field changed, whatever its annotation says."""
    section, _, name = path.rpartition(".")
    config = TrainerConfig()
    if not section:
        return replace(config, **cast(Any, {name: value}))
    return replace(config, **{section: replace(getattr(config, section), **{name: value})})


def problems_of(config: TrainerConfig, **options: Any) -> list[Problem]:
    with pytest.raises(ConfigurationError) as caught:
        check_config(config, **options)
    return list(caught.value.problems)


def only_problem_of(config: TrainerConfig, **options: Any) -> Problem:
    problems = problems_of(config, **options)
    assert len(problems) == 1, problems
    return problems[0]


def test_the_defaults_are_sound() -> None:
    check_config(TrainerConfig())


def test_all_problems_come_at_once() -> None:
    config = from_table(
        {
            "environment": "CartPol-v1",
            "total_agent_steps": 900,
            "device": "cuda:99",
            "run_dir": "/dev/null/run",
            "collection": {"num_environments": 30, "collectors": 4},
            "learning": {"minibatches": 7, "learning_rate": -1.0, "accumulate_minibatches": 2},
            "losses": {"names": ["ppo_actr", "ppo_critic"]},
            "policy": {"network": "mpl"},
        }
    )
    assert {problem.field for problem in problems_of(config)} == {
        "environment",
        "total_agent_steps",
        "device",
        "run_dir",
        "collection.num_environments",
        "learning.minibatches",
        "learning.learning_rate",
        "learning.accumulate_minibatches",
        "losses.names",
        "policy.network",
    }


def test_the_error_reads_as_a_list_of_what_was_seen_expected_and_to_be_done() -> None:
    with pytest.raises(ConfigurationError) as caught:
        check_config(setting("collection.collectors", 3))
    assert str(caught.value) == (
        "1 problem in the configuration; nothing was started.\n"
        "\n"
        "  collection.num_environments (formerly environments) = 64\n"
        "    expected: a multiple of collection.collectors: 64 / 3 = 21.33 environments for each collector\n"
        "    cure:     set it to 63 or 66, or collection.collectors to 2 or 4"
    )


def test_the_error_survives_the_way_from_another_process() -> None:
    error = ConfigurationError([Problem(field="seed", value=-1, expected="more", cure="less")])
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


RANGED = [path for path, hint, _ in leaves(TrainerConfig()) if any(isinstance(note, Admits) for note in notes(hint))]


@pytest.mark.parametrize("path", RANGED)
def test_a_value_outside_its_range_is_named(path: str) -> None:
    outside: dict[str, object] = {
        "environment": " ",
        "init_from": " ",
        "device": "gpu",
        "losses.names": (),
        "learning.profile_epochs": (0,),
        "learning.adam_betas": (0.9, 1.0),
        "policy.hidden_sizes": (64, 0),
        "learning.max_grad_norm": 0.0,
    }
    value = outside.get(path, -1)
    problem = only_problem_of(setting(path, value))
    assert (problem.field, problem.value) == (path, value)


@pytest.mark.parametrize("path", ["learning.learning_rate", "learning.weight_decay", "losses.clip", "losses.target_kl"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_number_must_be_finite(path: str, value: float) -> None:
    assert only_problem_of(setting(path, value)).field == path


def test_gradients_may_be_left_unclipped() -> None:
    check_config(setting("learning.max_grad_norm", math.inf))


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("seed", "1", "a whole number"),
        ("seed", 1.0, "a whole number"),
        ("run_dir", 7, "a path or nothing"),
        ("run_dir", Path("runs/a\0b"), "a path that can be written as text"),
        ("run_dir", Path("runs/\ud800"), "a path that can be written as text"),
        ("learning.nonfinite", "ignore", "one of fail, skip"),
        ("learning.threads", True, "a whole number or nothing"),
        ("policy.hidden_sizes", [64], "a tuple of whole numbers"),
        ("losses.names", "ppo_actor", "a tuple of texts"),
        ("collection", None, "CollectionConfig(...)"),
        ("evaluation.tasks", (7,), "a tuple of EvaluationTask(...)"),
        ("collection.environment_options", {1: 2}, "a table of settings"),
    ],
)
def test_a_value_of_another_type_is_a_problem_and_not_a_type_error(path: str, value: object, expected: str) -> None:
    problem = only_problem_of(setting(path, value))
    assert (problem.field, problem.expected) == (path, expected)


class Spy:
    """A configuration that notes which of its settings are read."""

    def __init__(self, config: object, read: set[str], path: str = "") -> None:
        self._config, self._read, self._path = config, read, path

    def __getattr__(self, name: str) -> Any:
        value, path = getattr(self._config, name), f"{self._path}.{name}".lstrip(".")
        if dataclasses.is_dataclass(value):
            return Spy(value, self._read, path)
        self._read.add(path)
        return value


# folder_problems writes all settings, whatever they are; own_code_problems looks at each by itself.
CHECKS = [check for check in READS if check.__name__ not in ("folder_problems", "own_code_problems")]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_a_check_reads_no_setting_but_those_that_it_declares(check: Any, tmp_path: Path) -> None:
    tables: dict[str, object] = {
        "device": "cuda:9",
        "run_dir": str(tmp_path),
        "total_agent_steps": 1,
        "collection": {"backend": "inline", "collectors": 3},
        "learning": {"minibatches": 7, "accumulate_minibatches": 2, "profile_epochs": [1]},
        "losses": {"names": ["vtrace_actor"], "c_clip": 2.0},
        "checkpoints": {"keep_best": 1, "enabled": False, "upload": "?", "wandb_project": "a"},
        "evaluation": {"video_every": 1, "tasks": [{"environment": "Acrobot-v1"}]},
        "metrics": {"wandb": "offline", "wandb_project": "b", "tensorboard": True, "prometheus": True, "trace": True},
    }
    for changed in (tables, {name: value for name, value in tables.items() if name != "run_dir"}):
        read: set[str] = set()
        more: tuple[object, ...] = (None,) if len(inspect.signature(check).parameters) > 1 else ()
        list(check(Spy(from_table(changed), read), *more))
        undeclared = {path for path in read if not any(path.startswith(declared) for declared in READS[check])}
        assert not undeclared


def test_a_check_is_skipped_where_a_setting_that_it_reads_is_wrong_already() -> None:
    config = from_table({"collection": {"num_environments": 30, "collectors": 0}, "total_agent_steps": 100})
    assert [problem.field for problem in problems_of(config)] == ["collection.collectors", "total_agent_steps"]
    config = replace(config, collection=cast(Any, None))
    assert [problem.field for problem in problems_of(config)] == ["collection"]


def test_an_unknown_environment_comes_with_the_nearest_names() -> None:
    problem = only_problem_of(TrainerConfig(environment="CartPol-v1"))
    assert "CartPole-v1" in problem.cure


def test_fewer_steps_than_one_epoch_are_refused_with_the_arithmetic() -> None:
    problem = only_problem_of(TrainerConfig(total_agent_steps=2047))
    assert "64 environments x 32 steps = 2048 agent steps" in problem.expected
    check_config(TrainerConfig(total_agent_steps=2048))


def test_minibatches_of_steps_divide_the_steps_of_an_epoch() -> None:
    problem = only_problem_of(setting("learning.minibatches", 6))
    assert "2048 / 6 = 341.33" in problem.expected
    assert problem.cure == "set it to 4 or 8"
    check_config(setting("learning.minibatches", 128))


@pytest.mark.parametrize(
    ("section", "table"),
    [
        ("learning", {"shuffle": "segments"}),
        ("learning", {"priority_exponent": 0.8}),
        ("policy", {"network": "lstm"}),
        ("losses", {"names": ["vtrace_actor", "vtrace_critic"]}),
    ],
)
def test_minibatches_of_segments_divide_the_environments(section: str, table: dict[str, object]) -> None:
    tables: dict[str, dict[str, object]] = {"learning": {}, section: table}
    tables["learning"] = tables["learning"] | {"minibatches": 128}
    problem = only_problem_of(from_table(tables))
    assert "64 / 128 = 0.50" in problem.expected
    assert problem.cure == "set it to 64, or collection.num_environments to 128"


def test_single_steps_are_refused_where_something_needs_segments() -> None:
    config = from_table({"learning": {"shuffle": "steps"}, "policy": {"network": "lstm"}})
    problem = only_problem_of(config, losses=[loss(needs_segments=True)])
    assert problem.field == "learning.shuffle"
    assert problem.expected == "segments, because of the recurrent policy.network = lstm and the loss mine"


def test_what_turns_out_later_to_need_segments_can_be_checked_then() -> None:
    config = setting("learning.minibatches", 128)
    check_minibatches(config, [])
    with pytest.raises(ConfigurationError, match="64 segments"):
        check_minibatches(config, ["a recurrent policy"])


def test_accumulated_minibatches_divide_the_minibatches() -> None:
    problem = only_problem_of(setting("learning.accumulate_minibatches", 3))
    assert "8 / 3 = 2.67 optimizer steps" in problem.expected
    assert problem.cure == "set it to 2 or 4, or learning.minibatches to 6 or 9"


def test_stale_experience_is_refused_for_a_policy_gradient_that_does_not_correct_for_it() -> None:
    uncorrected, corrected = (
        loss("reinforce", policy_gradient=True),
        loss(policy_gradient=True, corrects_staleness=True),
    )
    with pytest.raises(ConfigurationError, match="reinforce") as caught:
        check_losses([uncorrected, corrected], staleness=2)
    assert caught.value.problems[0].field == "staleness"
    check_losses([uncorrected], staleness=0)
    check_losses([corrected, loss()], staleness=2)
    assert only_problem_of(TrainerConfig(), losses=[uncorrected]).field == "staleness"


def test_a_loss_named_by_its_class_says_of_itself_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reinforce:
        policy_gradient, corrects_staleness, needs_segments = True, False, True

    module = ModuleType("my_losses")
    module.Reinforce = Reinforce  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_losses", module)
    config = from_table({"losses": {"names": ["my_losses:Reinforce"]}, "learning": {"shuffle": "steps"}})
    problems = {problem.field: problem.expected for problem in problems_of(config)}
    assert set(problems) == {"staleness", "learning.shuffle"}
    assert all("Reinforce" in expected for expected in problems.values())


def test_the_ceilings_of_v_trace_are_in_the_order_that_it_assumes() -> None:
    table: dict[str, object] = {"names": ["vtrace_actor", "vtrace_critic"], "c_clip": 2.0}
    assert only_problem_of(from_table({"losses": table})).field == "losses.c_clip"
    check_config(setting("losses.c_clip", 2.0))


@pytest.mark.parametrize(
    ("path", "value", "cure"),
    [
        ("policy.network", "mpl", "did you mean mlp?"),
        ("policy.network", "transformer", "use one of auto, mlp, cnn, lstm"),
        ("losses.names", ("ppo_actor", "ppo_critc"), "did you mean ppo_critic or ppo_actor?"),
        ("losses.names", (), "the default is ['ppo_actor', 'ppo_critic']"),
        ("losses.names", ("ppo_actor", "ppo_actor"), "the default is ['ppo_actor', 'ppo_critic']"),
        ("device", "gpu", "set it to auto"),
        ("device", "cuda:one", "set it to auto"),
        ("policy.network", "no_such_package.nets:make", "there is no module no_such_package: install it"),
        ("policy.network", "safetensors.torch:laod", "did you mean load"),
        ("losses.names", ("numpy:linalg",), "numpy:linalg is not a function but of type module"),
    ],
)
def test_an_unknown_name_comes_with_the_nearest(path: str, value: object, cure: str) -> None:
    problem = only_problem_of(setting(path, value))
    assert problem.field == path
    assert cure in problem.cure


def test_code_of_ones_own_that_fails_to_import_is_shown_with_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_nets_for_test.py").write_text("x = 1\nx.missing\n")
    (tmp_path / "needy_nets_for_test.py").write_text("import surely_not_installed\n")
    monkeypatch.syspath_prepend(tmp_path)
    cure = only_problem_of(setting("policy.network", "broken_nets_for_test:make")).cure
    assert "AttributeError" in cure
    assert "broken_nets_for_test.py:2" in cure
    cure = only_problem_of(setting("policy.network", "needy_nets_for_test:make")).cure
    assert cure == "there is no module surely_not_installed: needy_nets_for_test imports it"


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    check_config(TrainerConfig(device="cuda"))
    check_config(TrainerConfig(device="cuda:0"))
    assert "sees 1 CUDA device" in only_problem_of(TrainerConfig(device="cuda:1")).expected
    assert "no Metal GPU" in only_problem_of(TrainerConfig(device="mps")).expected


def test_a_folder_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file" / "run", tmp_path / "file", tmp_path / ("x" * 300)):
        problem = only_problem_of(TrainerConfig(run_dir=folder))
        assert (problem.field, problem.value) == ("run_dir", str(folder))
        assert "can be written" in problem.expected


def test_checking_a_folder_leaves_nothing_behind(tmp_path: Path) -> None:
    check_config(TrainerConfig(run_dir=tmp_path / "runs" / "first"))
    check_config(TrainerConfig(run_dir=tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", ["config.toml", "metrics.jsonl", "checkpoints"])
def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / content).touch()
    problem = only_problem_of(TrainerConfig(run_dir=tmp_path))
    assert problem.expected == "a folder that holds no run yet"
    assert f"orchestrator train --config {tmp_path}/config.toml" in problem.cure


def test_a_run_that_goes_on_may_find_its_own_folder(tmp_path: Path) -> None:
    (tmp_path / "config.toml").touch()
    check_config(TrainerConfig(run_dir=tmp_path), resuming=True)


def test_options_must_be_expressible_in_the_file_of_a_run(tmp_path: Path) -> None:
    config = setting("collection.environment_options", {"render_mode": print})
    check_config(config)
    problem = only_problem_of(replace(config, run_dir=tmp_path))
    assert problem.field == "collection.environment_options.render_mode"


@pytest.mark.parametrize(
    ("path", "settings"),
    [
        ("metrics", {"metrics": {"trace": True}}),
        ("evaluation", {"evaluation": None}),
        ("evaluation.every", {"evaluation": EvaluationConfig(every="3")}),  # type: ignore[arg-type]
        ("evaluation.every", {"evaluation": EvaluationConfig(every=-3)}),
        ("metrics.sinks", {"metrics": MetricsConfig(sinks=3)}),  # type: ignore[arg-type]
        ("run_dir", {"run_dir": 3}),
        ("init_from", {"init_from": 3}),
    ],
)
def test_a_wrong_setting_that_a_trainer_cannot_be_made_with_is_named(path: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Trainer(TrainerConfig(**settings))
    assert [problem.field for problem in caught.value.problems] == [path]


def test_options_that_contain_themselves_are_refused_where_they_are_not_trusted() -> None:
    options: dict[str, object] = {}
    options["options"] = options
    config = TrainerConfig(collection=CollectionConfig(environment_options=options))
    with pytest.raises(ConfigurationError, match="at most 50 levels of lists and tables"):
        Trainer(config, trust_code=False)


@pytest.mark.parametrize(
    ("settings", "fields"),
    [
        ({"learning": LearningConfig(minibatches=7)}, {"learning.minibatches"}),
        ({"learning": LearningConfig(learning_rate=-1.0)}, {"learning.learning_rate"}),
        ({"learning": LearningConfig(accumulate_minibatches=3)}, {"learning.accumulate_minibatches"}),
        ({"learning": LearningConfig(profile_epochs=(1,))}, {"learning.profile_epochs"}),
        ({"losses": LossesConfig(names=("vtrace_actor", "vtrace_critic"), c_clip=2.0)}, {"losses.c_clip"}),
        ({"total_agent_steps": 1}, {"total_agent_steps"}),
        ({"collection": CollectionConfig(collectors=3)}, {"collection.num_environments"}),
        ({"collection": None}, {"collection"}),
        ({"run_dir": 7}, {"run_dir"}),
        ({"checkpoints": CheckpointsConfig(keep_best=1)}, {"checkpoints.best_metric"}),
        ({"seed": -1, "environment": "CartPol-v1", "device": "gpu"}, {"seed", "environment", "device"}),
    ],
)
def test_a_trainer_is_not_made_with_settings_that_cannot_work(settings: dict[str, Any], fields: set[str]) -> None:
    with pytest.raises(ConfigurationError) as caught:
        Trainer(TrainerConfig(**settings))
    assert {problem.field for problem in caught.value.problems} == fields


def test_a_trainer_is_not_made_with_losses_that_cannot_work() -> None:
    class Uncorrected(Loss):
        policy_gradient = True

        def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
            return evaluation.value.mean()

    with pytest.raises(ConfigurationError, match="Uncorrected|uncorrected"):
        Trainer(TrainerConfig(), losses=[Uncorrected()])
    with pytest.raises(ValueError, match="at least one loss"):
        Trainer(TrainerConfig(), losses=[])
