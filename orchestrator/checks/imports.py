"""Checks of a configuration that have to import something: the environment, the device, code of one's own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, cast

from orchestrator.config.error import Problem
from orchestrator.config.own_code import OwnCodeError, import_function
from orchestrator.config.rules import DEVICE, FUNCTION

if TYPE_CHECKING:
    from collections.abc import Iterator

    from losses.loss import Loss
    from orchestrator.config.settings import TrainerConfig


def environment_problems(environment: str, field: str = "environment") -> Iterator[Problem]:
    """What keeps an environment from being made."""
    from orchestrator.environments import check_environment

    for message in check_environment(environment):
        expected = "an environment that can be made"
        yield Problem(field=field, value=environment, expected=expected, cure=message)


def device_problems(config: TrainerConfig) -> Iterator[Problem]:
    """A device that this machine, or this build of torch, does not have."""
    kind, _, index = config.device.partition(":")
    if kind in ("auto", "cpu") or not DEVICE.fullmatch(config.device):
        return
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
        yield Problem(field="device", value=config.device, expected=expected, cure=cure)


def own_code_problems(config: TrainerConfig) -> Iterator[Problem]:
    """`package.module:function` that cannot be imported, or is no function."""
    names = [("losses.names", name) for name in config.losses.names]
    names += [("metrics.sinks", name) for name in config.metrics.sinks]
    for path, name in (*names, ("policy.network", config.policy.network)):
        if not FUNCTION.fullmatch(name):
            continue
        try:
            import_function(name)
        except OwnCodeError as fault:
            expected = "package.module:function that can be called"
            yield Problem(field=path, value=name, expected=expected, cure=str(fault))


def sink_problems(config: TrainerConfig) -> Iterator[Problem]:
    """Sinks whose packages are not installed, or that write into a folder that the run does not have."""
    from orchestrator.metrics.sink import MissingExtra, require

    settings = config.metrics
    for field, package, wanted in (
        ("tensorboard", "tensorboard", settings.tensorboard),
        ("tensorboard", "google_crc32c", settings.tensorboard),
        ("wandb", "wandb", settings.wandb != "off"),
        ("prometheus", "prometheus_client", settings.prometheus),
    ):
        try:
            if wanted:
                require(package, field)
        except MissingExtra as missing:
            expected = f"to be off: {package} is not installed"
            cure = str(missing).partition(": ")[2]
            yield Problem(field=f"metrics.{field}", value=getattr(settings, field), expected=expected, cure=cure)
    for field, wanted in (("tensorboard", settings.tensorboard), ("heartbeat", settings.heartbeat > 0)):
        if wanted and config.run_dir is None:
            cure = "set run_dir, which the command does by itself"
            value = getattr(settings, field)
            yield Problem(field=f"metrics.{field}", value=value, expected="a run with a folder", cure=cure)


def own_loss_classes(config: TrainerConfig) -> Iterator[type[Loss]]:
    """Losses named by their class: these say of themselves what they need before they are made."""
    for name in filter(FUNCTION.fullmatch, config.losses.names):
        with contextlib.suppress(OwnCodeError):
            target = import_function(name)
            if isinstance(target, type) and hasattr(target, "corrects_staleness"):
                yield cast("type[Loss]", target)
