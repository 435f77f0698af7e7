"""Policies as files for other programs, which compute what the policy does."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import anyio
import numpy as np
import pytest
import torch
from torch import nn

from orchestrator import (
    CheckpointsConfig,
    EvaluationConfig,
    LoadedPolicy,
    MetricsConfig,
    PolicyConfig,
    Trainer,
    TrainerConfig,
    load_policy,
)
from orchestrator.__main__ import main
from orchestrator.environments.spaces import agent_parts
from tests.orchestrator.training import WaitForCheckpoints, small_config
from tests.used_environments import CASES, Telling, make

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from orchestrator import Observation, Spaces

pytestmark = pytest.mark.slow

COPIES, STEPS = 40, 50
"""Of episodes side by side, each of which ends several times."""
IN_OTHERS = ("vector", "number", "normalized", "image", "memory of images")
"""Cases whose parts are exported to ONNX in others."""
Outputs = dict[str, Any]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a run that has trained in a case."""
    folder = tmp_path_factory.mktemp("runs")

    def run(case: str) -> Path:
        run_dir = folder / case.replace(" ", "-")
        if not run_dir.exists():
            config = small_config(
                epochs=2,
                environment="tests.used_environments:make",
                environment_options={"case": case},
                policy=PolicyConfig(**{"hidden_sizes": (8,), **CASES[case].policy}),
                action_mask=CASES[case].action_mask,
                run_dir=run_dir,
            )
            anyio.run(Trainer(config).run)
        return run_dir

    return run


def onnx_program(file: Path) -> tuple[Callable[[Outputs], Outputs], Outputs]:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    session = onnxruntime.InferenceSession(file)
    names = [output.name for output in session.get_outputs()]

    def run(inputs: Outputs) -> Outputs:
        assert set(inputs) == {one.name for one in session.get_inputs()}
        assert {one.shape[0] for one in [*session.get_inputs(), *session.get_outputs()]} == {"batch"}
        return dict(zip(names, session.run(names, inputs), strict=True))

    return run, json.loads(session.get_modelmeta().custom_metadata_map["orchestrator"])


def torch_program(file: Path) -> tuple[Callable[[Outputs], Outputs], Outputs]:
    extra: Outputs = {"orchestrator": ""}
    module = torch.export.load(file, extra_files=extra).module()

    def run(inputs: Outputs) -> Outputs:
        outputs = module({name: torch.from_numpy(array) for name, array in inputs.items()})
        return {name: tensor.detach().numpy() for name, tensor in outputs.items()}

    return run, json.loads(extra["orchestrator"])


class Stream:
    """Real episodes side by side, with the observations as a batch."""

    def __init__(self, case: str) -> None:
        self.environments: list[Telling] = [make(case) for _ in range(COPIES)]
        begun = [environment.reset(seed=seed) for seed, environment in enumerate(self.environments)]
        self.observations = [observation for observation, _ in begun]
        self.masks = np.stack([info["mask"] for _, info in begun])

    def batch(self, space: Any, observations: list[Any]) -> Any:
        if hasattr(space, "spaces"):
            keyed = isinstance(space.spaces, dict)
            inner = {
                key: self.batch(space[key], [one[key] for one in observations])
                for key in (space.spaces if keyed else range(len(space.spaces)))
            }
            return inner if keyed else tuple(inner.values())
        return np.stack([np.asarray(one) for one in observations])

    def step(self, actions: Any) -> np.ndarray:
        """Which episodes have ended."""
        ended = np.zeros(COPIES, np.bool_)
        for index, environment in enumerate(self.environments):
            action = np.asarray(actions[index])
            action = action[()] if environment.action_space.dtype == np.int64 and not action.shape else action
            self.observations[index], _, ended[index], _, info = environment.step(action)
            if ended[index]:
                self.observations[index], info = environment.reset()
            self.masks[index] = info["mask"]
        return ended


def inputs_of(policy: LoadedPolicy, about: Outputs, batch: Any, state: Any, mask: Any) -> Outputs:
    inputs: Outputs = {}
    for key, (path, _) in agent_parts(policy.observation_space).items():
        value = batch
        for place in path:
            value = value[place]
        name = f"observation/{key}" if key else "observation"
        inputs[name] = np.asarray(value).astype(about["inputs"][name]["dtype"])
    if "state" in about["inputs"]:
        inputs["state"] = state
    if "action_mask" in about["inputs"]:
        inputs["action_mask"] = mask.astype(np.bool_)
    return inputs


@pytest.mark.parametrize(
    ("case", "to"),
    [
        *((case, "onnx") for case in CASES if case not in IN_OTHERS),
        *((case, "torch") for case in ("normalized", "nested", "image", "memory", "squashed")),
    ],
)
def test_what_was_exported_acts_as_the_policy_in_two_thousand_steps(
    case: str, to: str, runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if to == "onnx":
        pytest.importorskip("onnxruntime")
    policy = load_policy(runs(case))
    file = tmp_path / ("policy.onnx" if to == "onnx" else "policy.pt2")
    assert main(["export", str(runs(case)), "--to", to, "--output", str(file)]) == 0
    written = [file.name, f"{file.name}.md", f"{file.name}.svg"]
    assert capsys.readouterr().out.splitlines() == [str(tmp_path / name) for name in written]
    assert sorted(path.name for path in tmp_path.iterdir()) == written
    run, about = (onnx_program if to == "onnx" else torch_program)(file)
    assert about["environment"] == "tests.used_environments:make"
    assert about["outputs"]["value"] == {"shape": ["batch"], "dtype": "float32"}
    stream, state = Stream(case), policy.initial_state(COPIES)
    by_info = (CASES[case].action_mask or "").startswith("info/")
    different = 0
    for _ in range(STEPS):
        batch = stream.batch(policy.observation_space, stream.observations)
        found = run(inputs_of(policy, about, batch, state, stream.masks))
        value = policy.value(batch, state=state)
        actions, following = policy.act(batch, state=state, action_mask=stream.masks if by_info else None)
        if actions.dtype.kind == "f":
            np.testing.assert_allclose(found["action"], actions, rtol=1e-5, atol=1e-6)
        else:
            different += int(np.count_nonzero(found["action"] != actions))
        np.testing.assert_allclose(found["value"], value, rtol=1e-5, atol=1e-5)
        if policy.recurrent:
            np.testing.assert_allclose(found["next_state"], following, atol=1e-5)
        state = following.copy()
        state[stream.step(actions)] = 0.0
    assert different == 0


def test_the_model_card_tells_settings_scores_and_use(runs: Any, capsys: pytest.CaptureFixture[str]) -> None:
    run = runs("memory")
    assert main(["export", str(run), "--to", "torch"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        str(run / f"policy.{kind}") for kind in ("pt2", "pt2.md", "pt2.svg")
    ]
    card = (run / "policy.pt2.md").read_text()
    assert card.startswith("# A policy for tests.used_environments:make\n")
    for text in ("`rollout/recent_return`", 'network = "lstm"', "| input `state` | `[batch, 16]` | float32 |"):
        assert text in card
    block = card.partition("```python\n")[2].partition("```")[0].replace("policy.pt2", str(run / "policy.pt2"))
    names: Outputs = {"observation": torch.zeros(3, 5), "state": torch.zeros(3, 16)}
    exec(block, names)
    assert names["action"].shape == (3,)


def test_each_of_two_formats_keeps_its_own_card_and_curve(runs: Any) -> None:
    pytest.importorskip("onnxruntime")
    run = runs("vector")
    assert main(["export", str(run), "--to", "onnx"]) == 0
    before = {name: (run / name).read_text() for name in ("policy.onnx.md", "policy.onnx.svg")}
    assert 'onnxruntime.InferenceSession("policy.onnx")' in before["policy.onnx.md"]
    assert main(["export", str(run), "--to", "torch"]) == 0
    assert 'torch.export.load("policy.pt2")' in (run / "policy.pt2.md").read_text()
    assert {name: (run / name).read_text() for name in before} == before


def test_a_place_that_cannot_be_written_is_named_before_anything_is_exported(
    runs: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.joinpath("file").touch()
    tmp_path.joinpath("folder.pt2").mkdir()
    for output, problem in (("file/policy.pt2", "cannot be written: File exists"), ("folder.pt2", "is a folder")):
        assert main(["export", str(runs("vector")), "--to", "torch", "--output", str(tmp_path / output)]) == 1
        assert f"{tmp_path / output} {problem}" in " ".join(capsys.readouterr().err.split())


def test_the_model_card_shows_the_runs_curve_up_to_the_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = small_config(
        epochs=12,
        run_dir=run,
        checkpoints=CheckpointsConfig(every=4, keep=0),
        evaluation=EvaluationConfig(every=2, episodes=1),
    )
    anyio.run(Trainer(config, hooks=[WaitForCheckpoints(config)]).run)
    whole, part = tmp_path / "whole policy.pt2", tmp_path / "part.pt2"
    assert main(["export", str(run), "--to", "torch", "--output", str(whole)]) == 0
    assert main(["export", str(run / "checkpoints" / "00000004"), "--to", "torch", "--output", str(part)]) == 0
    assert "](whole%20policy.pt2.svg)\n" in (tmp_path / "whole policy.pt2.md").read_text()
    counts: list[int] = []
    for file in (whole, part):
        drawn = file.with_suffix(".pt2.svg").read_text()
        picture = ElementTree.fromstring(drawn)
        texts = {element.text for element in picture.iter("{http://www.w3.org/2000/svg}text")}
        assert {"CartPole-v1, seed 1", "agent steps", "mean return of the last 100 episodes", "evaluations"} <= texts
        assert "href" not in drawn, "it needs nothing else"
        (curve,) = picture.iter("{http://www.w3.org/2000/svg}polyline")
        counts.append(len(curve.attrib["points"].split()))
    assert 12 >= counts[0] > counts[1] >= 1
    assert counts[1] <= 4


def test_without_the_runs_metrics_the_card_has_no_picture(tmp_path: Path) -> None:
    run = tmp_path / "run"
    anyio.run(Trainer(small_config(epochs=2, run_dir=run, metrics=MetricsConfig(jsonl=False))).run)
    assert main(["export", str(run), "--to", "torch"]) == 0
    assert "![" not in (run / "policy.pt2.md").read_text()
    assert not (run / "policy.pt2.svg").exists()


def test_a_wrong_name_of_the_file_and_an_unknown_format_are_refused(
    runs: Any, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert main(["export", str(runs("memory")), "--to", "torch", "--output", str(tmp_path / "policy.bin")]) == 2
    assert "expected: a file whose name ends in .pt2" in " ".join(capsys.readouterr().err.split())
    assert main(["export", str(tmp_path / "nothing"), "--to", "torch"]) == 2


class Branching(nn.Module):
    """Another function for many rows than for few, which no graph can say."""

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.layer = nn.Linear(4, spaces.action_parameters + 1)

    def forward(self, observation: Observation) -> tuple[torch.Tensor, torch.Tensor]:
        assert isinstance(observation, torch.Tensor)
        output = self.layer(observation if observation.sum() > 0 else -observation)
        return output[:, :-1], output[:, -1]


def make_branching(spaces: Spaces) -> Branching:
    return Branching(spaces)


def test_a_network_that_branches_on_values_is_refused_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"{__name__}:make_branching" if __name__.startswith("tests.") else ""
    name = name or "tests.orchestrator.deployment.test_export:make_branching"
    config: TrainerConfig = small_config(epochs=1, run_dir=tmp_path / "run", policy=PolicyConfig(network=name))
    anyio.run(Trainer(config).run)
    assert main(["export", str(tmp_path / "run"), "--to", "torch"]) == 1
    message = capsys.readouterr().err
    assert f"the network {name!r} cannot be exported" in message
    assert "no branches on values" in message
    assert not (tmp_path / "run" / "policy.pt2").exists()


def test_without_the_extra_it_says_what_to_install(
    runs: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestrator.deployment.export.find_spec", lambda name: None)
    assert main(["export", str(runs("memory")), "--to", "onnx"]) == 2
    assert "pip install 'async-rl-orchestrator[export]'" in capsys.readouterr().err
