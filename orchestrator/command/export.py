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

    from orchestrator.deployment.export import Exported
    from orchestrator.deployment.loaded_policy import LoadedPolicy


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportArguments:
    """Write the policy of a checkpoint as a file that runs without this project, and a model card beside it."""

    path: tyro.conf.Positional[str]
    """A run's folder (its newest checkpoint is used), one of its checkpoints, or the URI of either."""
    to: Literal["onnx", "torch"]
    """ONNX (needs the extra `export`), or the format of torch.export."""
    policy: str | None = None
    """Type of agents whose policy to write alone, where types have policies of their own (None: the joint one)."""
    output: Path | None = None
    """File to write (None: policy.onnx or policy.pt2, or policy-TYPE, in the run's folder, or here)."""
    push_to_hub: str | None = None
    """Repository on the Hugging Face Hub, user/name, to upload the file, the card and the picture to (needs the extra
    `hub`, and a token: `hf auth login`, or HF_TOKEN). It is made if there is none."""
    private: Switch = False
    """Make the repository a private one, where it is made."""
    trust_code: Switch = False
    """Run the network that is named in the settings of a checkpoint from a URI."""


def run_command(arguments: Sequence[str]) -> int:
    """Returns the exit code."""
    parsed = tyro.cli(ExportArguments, prog="orchestrator export", args=arguments)
    from orchestrator.deployment.export import SUFFIXES, export_policy
    from orchestrator.deployment.load import load_policy

    output = _output(parsed, SUFFIXES[parsed.to])
    _check_hub(parsed)
    policy = load_policy(parsed.path, policy=parsed.policy, trust_code=parsed.trust_code)
    exported = export_policy(policy, parsed.to, output)
    print("\n".join(str(file) for file in (exported.file, exported.card, exported.picture) if file is not None))
    if parsed.push_to_hub is not None:
        print(_push(parsed.push_to_hub, policy, parsed.to, exported, private=parsed.private))
    return 0


def _check_hub(arguments: ExportArguments) -> None:
    from orchestrator.deployment.hub import REPOSITORY, check_hub

    name = arguments.push_to_hub
    if name is None:
        if arguments.private:
            expected, cure = "only together with --push-to-hub", "leave it out, or name a repository"
            raise ConfigurationError([Problem(field="private", value=True, expected=expected, cure=cure)])
        return
    if not REPOSITORY.fullmatch(name):
        expected, cure = "a repository on the Hub: user/name", "name it, say, alice/cartpole"
        raise ConfigurationError([Problem(field="push_to_hub", value=name, expected=expected, cure=cure)])
    check_hub()


def _push(repository: str, policy: LoadedPolicy, to: str, exported: Exported, *, private: bool) -> str:
    """The address of the repository that has it all."""
    from orchestrator.deployment.hub import push_to_hub
    from orchestrator.deployment.model_card import hub_head

    page = hub_head(policy, to) + exported.card.read_text(encoding="utf-8")
    # The card also by its own name, which stays when another format becomes the README.
    files: dict[str, Path | bytes] = {"README.md": page.encode()}
    files |= {file.name: file for file in (exported.file, exported.card)}
    if exported.picture is not None:
        files[exported.picture.name] = exported.picture
    message = f"The policy after {policy.manifest['agent_step']:,} agent steps"
    return push_to_hub(repository, files, message, private=private)


def _output(arguments: ExportArguments, suffix: str) -> Path:
    if arguments.output is None:
        folder = Path() if as_address(arguments.path) is not None else user_path(arguments.path)
        of = "" if arguments.policy is None else f"-{arguments.policy}"
        return (folder if holds_run(folder) else Path()) / f"policy{of}{suffix}"
    output = user_path(arguments.output)
    if output.suffix != suffix:
        expected = f"a file whose name ends in {suffix}"
        cure = f"name it {output.with_suffix(suffix).name}"
        raise ConfigurationError([Problem(field="output", value=str(output), expected=expected, cure=cure)])
    return output
