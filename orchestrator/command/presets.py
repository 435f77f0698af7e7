"""`orchestrator presets`: lists the settings that come with the package, or prints one file of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from orchestrator.config.error import ConfigurationError, Problem
from orchestrator.config.presets import preset_names, preset_text, read_preset

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetsArguments:
    """List the settings that come with the package, to train with: orchestrator train --preset NAME. With a name:
    print that file, to be copied and changed.
    """

    name: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[NAME]", help_behavior_hint="")] = ()
    """Preset to print. Without: list all, with the environment of each and the extra that brings it."""


def run_command(arguments: Sequence[str]) -> int:
    """Runs the subcommand with its `arguments` and returns the exit code."""
    parsed = tyro.cli(PresetsArguments, prog="orchestrator presets", args=arguments)
    if not parsed.name:
        print(_listing())
        return 0
    texts = [preset_text(name) for name in parsed.name]
    if len(texts) > 1:
        expected, cure = (
            "one preset, which is printed",
            f"print one after another: orchestrator presets {parsed.name[0]}",
        )
        raise ConfigurationError([Problem(field="name", value=" ".join(parsed.name), expected=expected, cure=cure)])
    sys.stdout.write(texts[0])
    return 0


def _listing() -> str:
    from orchestrator.environments import extra_of  # which imports gymnasium

    names = preset_names()
    environments = [read_preset(name).environment for name in names]
    width, environment_width = max(map(len, names)), max(map(len, environments))
    lines: list[str] = []
    for name, environment in zip(names, environments, strict=True):
        extra = extra_of(environment)
        needs = "" if extra is None else f"needs the extra {extra}"
        lines.append(f"{name:{width}}  {environment:{environment_width}}  {needs}".rstrip())
    return "\n".join(lines)
