"""The subcommands: from the words on the command line to what they ask for."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import tyro

from orchestrator.checks.configuration import check_config
from orchestrator.checks.imports import problems_of_environment
from orchestrator.command.train_help import EVERYTHING, asks_for_help, read_narrow, short_help
from orchestrator.command.words import Switch, missing_choices, settings_registry, unknown_words
from orchestrator.config.error import ConfigurationError, Problem, nearest
from orchestrator.config.file import read_with_problems
from orchestrator.config.former_names import with_present_names
from orchestrator.config.paths import PATH
from orchestrator.config.presets import read_preset
from orchestrator.config.run_folder import claimed, default_run_dir
from orchestrator.config.settings import TrainerConfig
from orchestrator.config.user_path import user_path
from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.snapshots.resume import ResumeSource

_DISTRIBUTION = "async-rl-orchestrator"
_WRONG, _FAILED = 2, 1
_DEBUG = "(--debug shows the whole traceback)"
_HELP = """\
usage: orchestrator COMMAND ...

Trains reinforcement-learning agents; checkpoints, evaluation and reports never hold up the training.

commands:
  train        train an agent:      orchestrator train --environment CartPole-v1
               from a preset:       orchestrator train --preset lunar_lander
               resume a run:        orchestrator train --resume runs/first
  eval         evaluate an agent:   orchestrator eval runs/first --episodes 20
  export       for other programs:  orchestrator export runs/first --to onnx
  report       compare runs:        orchestrator report runs/first runs/second
  presets      more settings:       orchestrator presets lunar_lander
  checkpoints  list, verify, show, prune or export them: orchestrator checkpoints list runs/first

`orchestrator COMMAND --help` explains the options and their defaults, `orchestrator train --help-all` every setting;
--debug shows the traceback of an error; --version prints the version."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainArguments:
    """Train an agent. Every setting can be given as a flag or in a TOML file; flags override the file, or a preset.

    All settings are recorded as config.toml in the run's folder. `--config <folder>/config.toml` repeats the run with
    the same settings, in a new folder next to it.
    """

    config: Path | None = None
    """TOML file with settings."""
    preset: str | None = None
    """Settings that come with the package, by name, in place of a file; `orchestrator presets` lists them."""
    resume: str | None = None
    """Run to resume: its folder, one of its checkpoints, or the URI of either. It keeps its settings; those that may
    change (its length, folder and device, checkpoints, evaluation and metrics) can be given as flags."""
    trust_code: Switch = False
    """Run code (environment, network, losses, sinks) that is named in the settings of a checkpoint from a URI."""
    settings: Annotated[TrainerConfig, tyro.conf.arg(name="")] = field(default_factory=TrainerConfig)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalArguments:
    """Evaluate an agent: play whole episodes with the policy of a checkpoint."""

    path: tyro.conf.Positional[str]
    """A run's folder (its newest checkpoint is used), one of its checkpoints, or the URI of either."""
    episodes: int = 20
    """Episodes to play in each environment."""
    environment: str | None = None
    """Environment to play in (None: those of the run's evaluation, otherwise that of its training)."""
    deterministic: Switch = False
    """Take the most likely action. Without this and --sampled: as the run's own evaluations do."""
    sampled: Switch = False
    """Sample actions, as training does. Give at most one of the two."""
    json: Switch = False
    """Print the result as one JSON object."""
    trust_code: Switch = False
    """Run code (environment, network) that is named in the settings of a checkpoint from a URI."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportArguments:
    """Compare runs: prints a table, and writes a page with learning curves and timelines for any browser."""

    paths: Annotated[
        tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="PATH [PATH ...]", help_behavior_hint="")
    ]
    """Folders of runs; several are compared."""
    output: Path | None = None
    """File to write the page to (None: report.html in the first run's folder)."""


def run(arguments: Sequence[str]) -> int:
    """Runs the subcommand that `arguments` begin with and returns the exit code: 2 if what was asked for is wrong, 1 if
    it failed. Errors of ours are printed without a traceback, unless `--debug` is among the arguments."""
    debug = "--debug" in arguments
    arguments = [word for word in arguments if word != "--debug"]
    commands = {"train": _train, "eval": _evaluate, "report": _report}
    commands |= {"export": _export, "presets": _presets, "checkpoints": _checkpoints}
    name, rest = (arguments[0], arguments[1:]) if arguments else ("--help", [])
    if name in ("-h", "--help"):
        print(_HELP)
        return 0
    if name == "--version":
        print(f"orchestrator {importlib.metadata.version(_DISTRIBUTION)}")
        return 0
    if name not in commands:
        print(f"orchestrator: there is no command {name}: {nearest(name, commands)}", file=sys.stderr)
        return _WRONG
    try:
        return commands[name](rest)
    except OrchestratorError as error:
        if debug:
            raise
        wrong = isinstance(error, ValueError)
        notes: list[str] = getattr(error, "__notes__", [])
        lines = [f"orchestrator {name}: {error}"]
        if not wrong:  # what is wrong with the input, its message says; what has failed, the traceback
            lines += notes
        print("\n".join([*lines, _DEBUG] if notes or not wrong else lines), file=sys.stderr)
        return _WRONG if wrong else _FAILED


def _train(arguments: Sequence[str]) -> int:
    first = _first_look(arguments)
    if first.resume is not None:
        return _go_on(arguments, first)
    base, config, known = train_settings(arguments)
    if config.run_dir is not None:
        return _check_and_run(config, known)
    wanted = base.run_dir or default_run_dir(config.environment, datetime.datetime.now())
    with claimed(wanted, may_exist=base.run_dir is not None) as folder:
        return _check_and_run(replace(config, run_dir=folder), known)


def _go_on(arguments: Sequence[str], first: _FirstLook) -> int:
    """Resumes a run: in its folder, or, from an older checkpoint or one from elsewhere, in a new one."""
    for name, given in (("config", first.config), ("preset", first.preset)):
        if given is not None:
            expected = f"no --{name} together with --resume, which brings settings"
            cure = "leave it out, and give what is to change as flags"
            raise ConfigurationError([Problem(field=name, value=str(given), expected=expected, cure=cure)])
    if first.init_from is not None:
        expected = "no other weights together with --resume, which brings the run's own"
        cure = "leave it out to resume the run, or leave out --resume to start a new run from these weights"
        field = str(PATH.init_from)
        raise ConfigurationError([Problem(field=field, value=first.init_from, expected=expected, cure=cure)])
    from orchestrator.snapshots.resume import find_resume_source, resume_problems

    assert first.resume is not None
    source = find_resume_source(first.resume, trust_code=first.trust_code)
    config, unknown = _parse_train(arguments, source.config)
    known = _Known([*unknown, *resume_problems(source, config)])
    if config.run_dir is not None or source.config.run_dir is not None:
        return _check_and_run(replace(config, run_dir=config.run_dir or source.config.run_dir), known, source)
    home = source.home or default_run_dir(config.environment, datetime.datetime.now())
    with claimed(home, may_exist=False) as folder:
        return _check_and_run(replace(config, run_dir=folder), known, source)


@dataclass(frozen=True, slots=True)
class _Known:
    """What is wrong already when the configuration is checked, and the file where some of it is."""

    problems: Sequence[Problem]
    file: Path | None = None


def _check_and_run(config: TrainerConfig, known: _Known, source: ResumeSource | None = None) -> int:
    resuming = source is not None and source.goes_on_in(config.run_dir)
    with contextlib.chdir(Path.cwd()):  # where run_dir is: modules that the check imports may leave it
        check_config(config, resuming=resuming, known=known.problems, file=known.file)
    from orchestrator.command.run_script import run_training

    return run_training(config, resume=source)


def train_settings(arguments: Sequence[str]) -> tuple[TrainerConfig, TrainerConfig, _Known]:
    """The configuration of the file or preset, that with the flags over it, and what is wrong with either.

    The file's `run_dir` is not in the second: a folder that a flag names is an order, one that a file names is
    the order of a command that may be repeated.
    """
    first = _first_look(arguments)
    file = first.config
    if file is not None and first.preset is not None:
        expected = "a preset or a file, not both"
        cure = "leave one of them out; `orchestrator presets NAME` prints a preset to copy from"
        raise ConfigurationError([Problem(field="preset", value=first.preset, expected=expected, cure=cure)])
    base, problems = (TrainerConfig(), []) if file is None else read_with_problems(file)
    if first.preset is not None:
        base = read_preset(first.preset)
    config, unknown = _parse_train(arguments, base)
    return base, config, _Known([*unknown, *problems], None if file is None or not problems else user_path(file))


@dataclass(frozen=True, slots=True)
class _FirstLook:
    config: Path | None = None
    preset: str | None = None
    resume: str | None = None
    trust_code: bool = False
    init_from: str | None = None


def _first_look(arguments: Sequence[str]) -> _FirstLook:
    """The flags that say what the defaults of all others are."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config", type=Path)
    finder.add_argument("--preset")
    finder.add_argument("--resume")
    finder.add_argument("--init-from", "--init_from")
    finder.add_argument("--trust-code", "--trust_code", action="store_true")
    try:
        found = finder.parse_known_args(arguments)[0]
    except argparse.ArgumentError:
        return _FirstLook()  # tyro will say so
    return _FirstLook(**vars(found))


def _parse_train(arguments: Sequence[str], base: TrainerConfig) -> tuple[TrainerConfig, list[Problem]]:
    """The configuration `base`, without its `run_dir`, with the flags over it; and what is wrong with words that are
    no flags."""
    named = with_present_names(arguments, base)
    default = TrainArguments(settings=replace(base, run_dir=None))
    short = asks_for_help(named)
    named = ["--help" if word == EVERYTHING else word for word in named]
    printed = None
    try:
        with settings_registry(), read_narrow() if short else contextlib.nullcontext() as printed:
            parsed, unknown = tyro.cli(
                TrainArguments, prog="orchestrator train", args=named, default=default, return_unknown_args=True
            )
    except SystemExit as end:
        if printed is not None and printed.getvalue():
            print(short_help(printed.getvalue()))
        if end.code:
            for line in missing_choices(named):
                print(line, file=sys.stderr)
            for given, present in zip(arguments, named, strict=True):
                if given != present:
                    former, name = given.partition("=")[0], present.partition("=")[0]
                    print(f"({former} is the former name of {name})", file=sys.stderr)
        raise
    return parsed.settings, unknown_words(unknown, named, [option.name for option in fields(TrainArguments)][:-1])


def _evaluate(arguments: Sequence[str]) -> int:
    parsed = tyro.cli(EvalArguments, prog="orchestrator eval", args=arguments)
    problems = list(_eval_problems(parsed))
    if problems:
        raise ConfigurationError(problems)
    from orchestrator.command.evaluation import evaluate_checkpoint

    report: Mapping[str, object] = evaluate_checkpoint(
        parsed.path,
        episodes=parsed.episodes,
        environment=parsed.environment,
        deterministic=True if parsed.deterministic else False if parsed.sampled else None,
        trust_code=parsed.trust_code,
    )
    if parsed.json:
        print(json.dumps(report, default=str))
    else:
        print(_report_text(report))
    return 0


def _checkpoints(arguments: Sequence[str]) -> int:
    from orchestrator.command.checkpoints import run_command

    return run_command(arguments)


def _export(arguments: Sequence[str]) -> int:
    from orchestrator.command.export import run_command

    return run_command(arguments)


def _presets(arguments: Sequence[str]) -> int:
    from orchestrator.command.presets import run_command

    return run_command(arguments)


def _report_text(report: Mapping[str, object]) -> str:
    """A line for every number; of several tasks, the scores by category and task, and their averages."""
    lines = dict(report)
    if "tasks" in report:
        tasks = cast("Sequence[Mapping[str, object]]", lines.pop("tasks"))
        categories = cast("Mapping[str, float]", lines.pop("category_scores"))
        averages = {name: lines.pop(name) for name in ("avg_category_score", "avg_simulation_score")}
        for category, score in categories.items():
            lines[category] = score
            for task in tasks:
                if task["category"] == category:
                    lines[f"  {category}/{task['name']}"] = task["return_mean"]
        lines |= averages
    width = max(map(len, lines))
    return "\n".join(
        f"{name:{width}}  {value:.6g}" if isinstance(value, float) else f"{name:{width}}  {value}"
        for name, value in lines.items()
    )


def _eval_problems(arguments: EvalArguments) -> Iterator[Problem]:
    if "://" not in arguments.path and not user_path(arguments.path).exists():
        from orchestrator.checkpoints.find import meant_by

        usual = "give the folder of a run (runs/...), or of one of its checkpoints"
        cure = meant_by(user_path(arguments.path)) or usual
        yield Problem(field="path", value=arguments.path, expected="a folder that exists, or a URI", cure=cure)
    if arguments.episodes < 1:
        cure = "the default is 20"
        yield Problem(field="episodes", value=arguments.episodes, expected="at least 1", cure=cure)
    if arguments.deterministic and arguments.sampled:
        cure, expected = "leave one of them out", "at most one of --deterministic and --sampled"
        yield Problem(field="sampled", value=True, expected=expected, cure=cure)
    if arguments.environment is not None:
        yield from problems_of_environment(arguments.environment, PATH.environment)


def _report(arguments: Sequence[str]) -> int:
    parsed = tyro.cli(ReportArguments, prog="orchestrator report", args=arguments)
    if not parsed.paths:
        cure = "give the folder of at least one run (runs/...)"
        raise ConfigurationError([Problem(field="paths", value=[], expected="folders of runs", cure=cure)])
    from orchestrator.report import print_table, read_run, write_page

    folders = [user_path(path) for path in parsed.paths]
    runs = [read_run(folder) for folder in folders]
    output = folders[0] / "report.html" if parsed.output is None else user_path(parsed.output)
    write_page(runs, output)
    print_table(runs)
    print(f"\n{output}")
    return 0
