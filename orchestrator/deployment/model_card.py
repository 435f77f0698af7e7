"""The page that goes with an exported policy: what it is, what it was trained on, how well it does, how to run it."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from orchestrator.config.file import config_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.deployment.loaded_policy import LoadedPolicy

_SCORES = ("eval/", "overview/score", "rollout/recent_return", "rollout/episode_return", "rollout/episode_length")
_TORCH = """\
import torch

policy = torch.export.load("{file}").module()
outputs = policy({{{inputs}}})  # of a batch
action = outputs["action"]
"""
_ONNX = """\
import onnxruntime

session = onnxruntime.InferenceSession("{file}")
(action,) = session.run(["action"], {{{inputs}}})  # of a batch
"""


def model_card(policy: LoadedPolicy, about: Mapping[str, Any], file: str, to: str, picture: str | None = None) -> str:
    """The text, in Markdown; `picture` is the file of the learning curve, where there is one."""
    config = policy.config
    given = ", ".join(f'"{name}": {name.rpartition("/")[2]}' for name in about["inputs"])
    example = (_ONNX if to == "onnx" else _TORCH).format(file=file, inputs=given)
    scores = {
        name: value
        for name, value in sorted(policy.metrics.items())
        if name.startswith(_SCORES) and isinstance(value, (int, float))
    }
    lines = [
        f"# A policy for {config.environment}" + ("" if policy.name is None else f", {policy.name}"),
        "",
        f"Trained for {about['agent_step']:,} agent steps ({about['epoch']} epochs, seed {config.seed}) with"
        " async-rl-orchestrator. The most likely actions, with normalization and all conversions inside.",
        "",
        f"- Observations: `{policy.observation_space}`",
        f"- Actions: `{policy.action_space}`",
        f"- Network: `{policy.network}`",
        "",
        "## Scores",
        "",
        *_table(("metric", "value"), [(f"`{name}`", f"{value:.6g}") for name, value in scores.items()]),
        "",
        *([f"![The returns over agent steps]({quote(picture)})", ""] if picture else []),
        "## Use",
        "",
        "```python",
        *example.splitlines(),
        "```",
        "",
        *_table(
            ("tensor", "shape", "dtype"),
            [
                (f"{role} `{name}`", f"`[{', '.join(map(str, form['shape']))}]`", form["dtype"])
                for role, forms in (("input", about["inputs"]), ("output", about["outputs"]))
                for name, form in forms.items()
            ],
        ),
        "",
    ]
    if policy.recurrent:
        lines += ["`state` is 0 at the beginning of an episode; pass `next_state` at the next step.", ""]
    settings = config_text(replace(config, run_dir=None)).rstrip()
    return "\n".join([*lines, "## Settings", "", "```toml", settings, "```", ""])


def hub_head(policy: LoadedPolicy, to: str) -> str:
    """What the Hugging Face Hub wants to know at the top of a card, as YAML; strings are written as JSON has them."""
    environment = json.dumps(policy.config.environment)
    score = policy.metrics.get("eval/score", policy.metrics.get("rollout/recent_return"))
    lines = [
        "---",
        "library_name: async-rl-orchestrator",
        "pipeline_tag: reinforcement-learning",
        f"tags: [reinforcement-learning, {to}, {environment}]",
    ]
    if isinstance(score, (int, float)):
        lines += [
            "model-index:",
            "- name: PPO",
            "  results:",
            "  - task: {type: reinforcement-learning, name: reinforcement-learning}",
            f"    dataset: {{type: {environment}, name: {environment}}}",
            f"    metrics: [{{type: mean_reward, name: mean_reward, value: {score:.6g}}}]",
        ]
    return "\n".join([*lines, "---", "", ""])


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ("---",) * len(head), *rows)]
