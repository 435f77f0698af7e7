"""`orchestrator presets`: lists the settings that come with the package, or prints one file of them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import tyro

from orchestrator.config.presets import preset_names, preset_text, read_preset

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class PresetsArguments:
    """List the settings that come with the package, to train with: orchestrator train --preset NAME. With a name:
    print that file, to be copied and changed.
    """

    name: tyro.conf.Positional[str | None] = None
    """Preset to print (None: list all, with the environment of each and the extra that brings it)."""


def run_command(arguments: Sequence[str]) -> int:
    """Runs the subcommand with its `arguments` and returns the exit code."""
    parsed = tyro.cli(PresetsArguments, prog="orchestrator presets", args=arguments)
    if parsed.name is None:
        print(_listing())
    else:
        sys.stdout.write(preset_text(parsed.name))
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
