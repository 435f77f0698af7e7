"""Checks of a configuration that have to import something: the environment, the device, code of one's own."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, cast

from orchestrator.config.annotations import FUNCTION, NamesCode
from orchestrator.config.error import Problem, nearest
from orchestrator.config.fields import fits, leaves, notes
from orchestrator.config.own_code import OwnCodeError, check_parameters, import_function
from orchestrator.config.paths import PATH, problem_with
from orchestrator.config.plugins import code_named, plugin_names
from orchestrator.config.reads import reads
from orchestrator.config.settings import LOSSES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from losses.loss import Loss
    from orchestrator.config.settings import TrainerConfig


@reads(PATH.environment)
def environment_problems(config: TrainerConfig) -> Iterator[Problem]:
    """What keeps the environment of the training from being made."""
    return problems_of_environment(config.environment, PATH.environment)


def problems_of_environment(environment: str, setting: object) -> Iterator[Problem]:
    """What keeps an environment from being made."""
    from orchestrator.environments import check_environment

    for message in check_environment(environment):
        expected = "an environment that can be made"
        if ":" in environment:
            expected = "an environment, named as module:id, or as package.module:function with code of your own"
        if Path(environment).is_dir():
            message = f"{environment} is a folder: to resume the run in it, write --resume {environment}; {message}"
        yield Problem(field=str(setting), value=environment, expected=expected, cure=message)


@reads(PATH.environment, PATH.collection.environment_options, PATH.collection.mode)
def option_problems(config: TrainerConfig) -> Iterator[Problem]:
    """Options that the environment does not take, or lacks; nothing where its name is wrong."""
    from orchestrator.environments import problem_with_options

    options, mode = config.collection.environment_options, config.collection.mode
    found = problem_with_options(config.environment, options, mode)
    if found is not None:
        expected = f"the options of {config.environment}: {found[0]}"
        yield problem_with(config, PATH.collection.environment_options, expected=expected, cure=found[1])


@reads(PATH.environment_wrappers, PATH.max_episode_steps, PATH.collection.environment_options, PATH.collection.mode)
def adaptation_problems(config: TrainerConfig) -> Iterator[Problem]:
    """Wrappers where there are no single environments to wrap, and two time limits."""
    collection = config.collection
    if config.environment_wrappers and collection.mode == "native":
        expected = f"auto or sync, with which there are single environments for {PATH.environment_wrappers} to wrap"
        yield problem_with(config, PATH.collection.mode, expected=expected, cure="set it to auto")
    if config.max_episode_steps is not None and "max_episode_steps" in collection.environment_options:
        given = collection.environment_options["max_episode_steps"]
        expected = f"one time limit: {PATH.collection.environment_options} has {given!r} as max_episode_steps"
        cure = "leave one of them out; this one holds in evaluations in other environments, too"
        yield problem_with(config, PATH.max_episode_steps, expected=expected, cure=cure)


@reads(PATH.device, PATH.collection.device)
def device_problems(config: TrainerConfig) -> Iterator[Problem]:
    """A device that this machine, or this build of torch, does not have."""
    for path, device in ((PATH.device, config.device), (PATH.collection.device, config.collection.device)):
        if device not in ("auto", "cpu"):
            yield from _problems_of_device(config, path, device)


@reads(PATH.device, PATH.learning.precision)
def precision_problems(config: TrainerConfig) -> Iterator[Problem]:
    """A precision that the learner's device can't compute with."""
    precision = config.learning.precision
    if precision == "float32":
        return
    import torch

    device = config.device if config.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    devices = ("cuda",) if precision == "tf32" else ("cuda", "cpu")
    if device.partition(":")[0] not in devices:
        here = f" ({device} here)" if device != config.device else ""
        expected = f"float32 on the {PATH.device} {config.device!r}{here}: {precision} is of {' and '.join(devices)}"
        cure = f"set it to float32, or {PATH.device} to {' or '.join(devices)}"
        yield problem_with(config, PATH.learning.precision, expected=expected, cure=cure)


def _problems_of_device(config: TrainerConfig, path: str, device: str) -> Iterator[Problem]:
    kind, _, index = device.partition(":")
    import torch

    if kind == "mps":
        available = torch.backends.mps.is_available()
        found = "torch sees no Metal GPU"
    else:
        count = torch.cuda.device_count()
        available = int(index or 0) < count
        found = f"torch {torch.__version__} sees {count} CUDA devices"
    if not available:
        expected = f"a device that is there: {found}"
        cure = "set it to auto or cpu, or install the driver and the build of torch for it"
        yield problem_with(config, path, expected=expected, cure=cure)


@reads()
def own_code_problems(config: TrainerConfig) -> Iterator[Problem]:
    """Names that are not known, and `package.module:function` that cannot be imported, or is no function."""
    for path, hint, value in leaves(config):
        for code in notes(hint):
            if isinstance(code, NamesCode) and fits(hint, value):
                for name in (value,) if isinstance(value, str) else cast("tuple[str, ...]", value):
                    yield from _name_problems(path, name, code)


def _name_problems(path: str, name: str, code: NamesCode) -> Iterator[Problem]:
    if name in code.known:
        return
    if FUNCTION.fullmatch(name) or name in plugin_names(code.kind):
        try:
            function = code_named(name, code.kind)
            check_parameters(import_function(function), function, code.arguments)
            return
        except OwnCodeError as fault:
            expected, cure = "package.module:function that can be called", str(fault)
    elif known := (*code.known, *plugin_names(code.kind)):
        expected = f"one of {', '.join(known)}, or package.module:function"
        of_family = [one for one in known if one.startswith(f"{name}_")]
        cure = f"write {' and '.join(of_family)}" if of_family else nearest(name, known)
        cure += " (code of your own is named package.module:function)"
    else:
        expected, cure = "package.module:function", f"leave it out, or name {code.function}"
    yield Problem(field=path, value=name, expected=expected, cure=cure)


@reads(
    PATH.metrics.tensorboard,
    PATH.metrics.wandb,
    PATH.metrics.trackio,
    PATH.metrics.prometheus,
    PATH.metrics.heartbeat,
    PATH.run_dir,
)
def sink_problems(config: TrainerConfig) -> Iterator[Problem]:
    """Sinks whose packages are not installed, or that write into a folder that the run does not have."""
    from orchestrator.metrics.sink import MissingExtra, require

    metrics, path = config.metrics, PATH.metrics
    for setting, extra, package, wanted in (
        (path.tensorboard, "tensorboard", "tensorboard", metrics.tensorboard),
        (path.tensorboard, "tensorboard", "google_crc32c", metrics.tensorboard),
        (path.wandb, "wandb", "wandb", metrics.wandb != "off"),
        (path.trackio, "trackio", "trackio", metrics.trackio),
        (path.prometheus, "prometheus", "prometheus_client", metrics.prometheus),
    ):
        try:
            if wanted:
                require(package, extra)
        except MissingExtra as missing:
            expected = f"to be off: {package} is not installed"
            yield problem_with(config, setting, expected=expected, cure=str(missing).partition(": ")[2])
    for setting, wanted in ((path.tensorboard, metrics.tensorboard), (path.heartbeat, metrics.heartbeat > 0)):
        if wanted and config.run_dir is None:
            cure = f"set {PATH.run_dir}, which the command does by itself"
            yield problem_with(config, setting, expected="a run with a folder", cure=cure)


def own_loss_classes(config: TrainerConfig) -> Iterator[type[Loss]]:
    """Losses named by their class: these say of themselves what they need before they are made."""
    for name in config.losses.names:
        if name in LOSSES:
            continue
        with contextlib.suppress(OwnCodeError):
            target = import_function(code_named(name, "losses"))
            if isinstance(target, type) and hasattr(target, "corrects_staleness"):
                yield cast("type[Loss]", target)
