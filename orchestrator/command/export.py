"""`orchestrator export`: writes the policy of a checkpoint as a file for other programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from orchestrator.checkpoints.find import as_address
from orchestrator.command.words import Switch
from orchestrator.config.error import ConfigurationError, Problem
from orchestrator.config.run_folder import holds_run
from orchestrator.config.user_path import user_path

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportArguments:
    """Write the policy of a checkpoint as a file that runs without this project, and a model card beside it."""

    path: tyro.conf.Positional[str]
    """A run's folder (its newest checkpoint is used), one of its checkpoints, or the URI of either."""
    to: Literal["onnx", "torch"]
    """ONNX (needs the extra `export`), or the format of torch.export."""
    output: Path | None = None
    """File to write (None: policy.onnx or policy.pt2 in the run's folder, or here)."""
    trust_code: Switch = False
    """Run the network that is named in the settings of a checkpoint from a URI."""


def run_command(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    parsed = tyro.cli(ExportArguments, prog="orchestrator export", args=arguments)
    from orchestrator.deployment.export import SUFFIXES, export_policy
    from orchestrator.deployment.load import load_policy

    output = _output(parsed, SUFFIXES[parsed.to])
    card = export_policy(load_policy(parsed.path, trust_code=parsed.trust_code), parsed.to, output)
    print(f"{output}\n{card}")
    return 0


def _output(arguments: ExportArguments, suffix: str) -> Path:
    if arguments.output is None:
        folder = Path() if as_address(arguments.path) is not None else user_path(arguments.path)
        return (folder if holds_run(folder) else Path()) / f"policy{suffix}"
    output = user_path(arguments.output)
    if output.suffix != suffix:
        expected = f"a file whose name ends in {suffix}"
        cure = f"name it {output.with_suffix(suffix).name}"
        raise ConfigurationError([Problem(field="output", value=str(output), expected=expected, cure=cure)])
    return output
