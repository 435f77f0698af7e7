"""Checks what a configuration says about evaluation: names, and environments that the policy can act in."""

from __future__ import annotations

from collections import Counter
from importlib.util import find_spec
from typing import TYPE_CHECKING

from orchestrator.checks.imports import problems_of_environment
from orchestrator.config.paths import PATH, problem_with
from orchestrator.config.reads import reads
from orchestrator.workers.reply import WorkerCrashed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from orchestrator.config.error import Problem
    from orchestrator.config.settings import TrainerConfig


@reads(
    PATH.environment,
    PATH.environment_wrappers,
    PATH.max_episode_steps,
    PATH.action_mask,
    PATH.policy.box_actions,
    PATH.policy.by_type,
    PATH.run_dir,
    PATH.collection.environment_options,
    PATH.collection.backend,
    PATH.evaluation,
)
def evaluation_problems(config: TrainerConfig) -> Iterator[Problem]:
    """What keeps the evaluation from working; for values that are right in themselves.

    Makes the environments of tasks, and that of the training, for a moment: where workers are processes also in
    a separate one, since what simulators load must not stay in this one.
    """
    yield from _video_problems(config)
    problems = list(_name_problems(config))
    for index, task in enumerate(config.evaluation.tasks):
        if task.environment is not None:
            problems.extend(problems_of_environment(task.environment, PATH.evaluation.tasks[index].environment))
    yield from problems
    if problems or not config.evaluation.tasks:
        return
    if not list(problems_of_environment(config.environment, PATH.environment)):
        yield from _space_problems(config)


def _name_problems(config: TrainerConfig) -> Iterator[Problem]:
    if not config.evaluation.tasks:
        return
    from orchestrator.evaluation.plan import evaluation_plans
    from state.eval_rewards import EvalRewardSummary

    keys = [plan.key for plan in evaluation_plans(config)]
    twice = [key for key, count in Counter(keys).items() if count > 1]
    if twice:
        listing = ", ".join(f"{name} (category {category})" for category, name in twice)
        cure = "give each task its own name"
        expected = "each name once in its category"
        yield problem_with(config, PATH.evaluation.tasks, value=listing, expected=expected, cure=cure)
        return
    try:
        EvalRewardSummary.from_simulations(dict.fromkeys(keys, 0.0))
    except ValueError as error:
        expected = "names that give each score its own metric"
        yield problem_with(config, PATH.evaluation.tasks, value=keys, expected=expected, cure=str(error))


def _video_problems(config: TrainerConfig) -> Iterator[Problem]:
    video_every = PATH.evaluation.video_every
    if not config.evaluation.video_every:
        return
    if not config.evaluation.every:
        expected = f"0 while {PATH.evaluation.every} is 0"
        cure = f"set {PATH.evaluation.every} to the epochs between evaluations"
        yield problem_with(config, video_every, expected=expected, cure=cure)
    if config.run_dir is None:
        expected = "0 while the run has no folder to keep videos in"
        yield problem_with(config, video_every, expected=expected, cure=f"set {PATH.run_dir}")
    if find_spec("moviepy") is None:
        expected = "0 while moviepy, which writes videos, is not installed"
        cure = "pip install 'async-rl-orchestrator[video]' installs it"
        yield problem_with(config, video_every, expected=expected, cure=cure)


def _space_problems(config: TrainerConfig) -> Iterator[Problem]:
    expected = f"environments with the spaces of that of the training, {config.environment}"
    if config.collection.backend == "inline":
        found = misfits(config)
    else:
        from orchestrator.workers.blocking import call_in_process  # with numpy, for which --help need not wait

        try:
            found = call_in_process("evaluation-check", misfits, config)
        except WorkerCrashed as error:
            names = [task.environment or config.environment for task in config.evaluation.tasks]
            cure = f"see above, or below, what the process that made them died of ({error})"
            yield problem_with(config, PATH.evaluation.tasks, value=names, expected=expected, cure=cure)
            return
    for index, environment, problem in found:
        setting = PATH.evaluation.tasks[index].environment
        yield problem_with(config, setting, value=environment, expected=expected, cure=problem)


def misfits(config: TrainerConfig) -> list[tuple[int, str, str]]:
    """Index, environment and problem of each task whose environment cannot be made, or has other spaces than the
    training's."""
    from orchestrator.environments import Adaptation, InvalidEnvironment
    from orchestrator.evaluation.plan import differing_spaces, evaluation_plans, spaces_of

    try:
        needed = spaces_of(config.environment, config.collection.environment_options, Adaptation.of(config))
    except InvalidEnvironment:
        return []  # which is the collectors' to say
    found: list[tuple[int, str, str]] = []
    for index, plan in enumerate(evaluation_plans(config)):
        try:
            differences = differing_spaces(needed, spaces_of(plan.environment, plan.options, plan.adaptation))
        except InvalidEnvironment as error:
            found.append((index, plan.environment, str(error)))
        else:
            if differences:
                problem = f"leave {plan.environment} out, which has {differences}"
                found.append((index, plan.environment, problem))
    return found
