"""Writes a policy as a file that other programs run without this project: torch.export's, or ONNX."""

from __future__ import annotations

import json
import logging
import os
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from orchestrator.deployment.graph import PolicyGraph, example
from orchestrator.deployment.model_card import model_card
from orchestrator.environments.recorded_spaces import recorded_spaces
from orchestrator.report.picture import learning_curve
from orchestrator.report.run_record import RunRecordError, read_run
from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from pathlib import Path

    from orchestrator.deployment.loaded_policy import LoadedPolicy

Format = Literal["torch", "onnx"]
SUFFIXES: dict[Format, str] = {"torch": ".pt2", "onnx": ".onnx"}
METADATA = "orchestrator"
"""Where the file keeps what it says about itself, as JSON: of torch's extra files, of ONNX's metadata."""
_BATCH = "batch"
_TOLERANCE = 1e-5
_ROWS = (1, 3, 100)
"""Sizes of the batches that are compared: networks take other ways for few and for many rows."""


class ExportError(OrchestratorError, RuntimeError):
    """A policy cannot be exported, or the exported one computes something else."""


class ExtraMissing(OrchestratorError, ValueError):
    """What is needed is not installed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Exported:
    """What has been written."""

    file: Path
    card: Path
    picture: Path | None
    """The learning curve, where the checkpoint is in the folder of a run with metrics."""


def export_policy(policy: LoadedPolicy, to: Format, output: Path) -> Exported:
    """Write `policy` to the file `output`, and a model card and a learning curve beside it; blocks, for seconds.

    What has been written is run, and compared with the policy on batches of several sizes. Raises ExportError where
    the file cannot be written, torch cannot export the network or the numbers differ, and ExtraMissing.
    """
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    if to == "onnx" and missing:
        cure = "pip install 'async-rl-orchestrator[export]'"
        raise ExtraMissing(f"to export to ONNX, the extra `export` must be installed ({', '.join(missing)}): {cure}")
    graph = PolicyGraph(policy).eval()
    about = _about(policy, graph)
    unfinished = output.with_name(f".{output.name}.{os.getpid()}{SUFFIXES[to]}")
    network = f"the network {policy.network!r}"
    if output.is_dir():
        raise ExportError(f"{output} is a folder: give the path of a file")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        unfinished.touch()
    except OSError as error:
        raise ExportError(f"{output} cannot be written: {error.strerror}; give the path of another file") from error
    try:
        with torch.no_grad(), _quiet():
            try:
                run = (_write_onnx if to == "onnx" else _write_torch)(graph, policy, about, unfinished)
            except Exception as error:  # whatever the exporters meet in a network
                raise ExportError(
                    f"{network} cannot be exported: {str(error).strip().splitlines()[0]}; torch.export must be able to"
                    " trace it for any number of rows: no branches on values, no sizes from len()"
                ) from error
            _compare(graph, policy, run, network)
        unfinished.replace(output)
    finally:
        unfinished.unlink(missing_ok=True)
    curve = _learning_curve(policy, about["agent_step"])
    picture = output.with_name(f"{output.name}.svg") if curve else None
    if picture is not None:
        picture.write_text(curve, encoding="utf-8")
    card = output.with_name(f"{output.name}.md")  # a file of another format beside it has its own
    card.write_text(model_card(policy, about, output.name, to, picture and picture.name), encoding="utf-8")
    return Exported(file=output, card=card, picture=picture)


def _learning_curve(policy: LoadedPolicy, until: float) -> str:
    """That of the run up to the checkpoint; empty where the checkpoint is not in the folder of a run with metrics."""
    try:
        run = read_run(policy.checkpoint.parent.parent)
    except RunRecordError:
        return ""
    return learning_curve(run, f"{policy.config.environment}, seed {policy.config.seed}", until)


def _write_torch(
    graph: PolicyGraph, policy: LoadedPolicy, about: dict[str, Any], file: Path
) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    program = _traced(graph, policy)
    torch.export.save(program, file, extra_files={METADATA: json.dumps(about)})
    module = torch.export.load(file).module()
    return lambda given: {name: tensor.numpy() for name, tensor in module(given).items()}


def _write_onnx(
    graph: PolicyGraph, policy: LoadedPolicy, about: dict[str, Any], file: Path
) -> Callable[[dict[str, Tensor]], dict[str, Any]]:
    onnxruntime: Any = import_module("onnxruntime")  # which most have not installed
    names = list(about["outputs"])
    program = torch.onnx.export(
        _traced(graph, policy),
        dynamo=True,
        verbose=False,
        input_names=list(about["inputs"]),
        output_names=names,
        dynamic_shapes=({name: {0: _BATCH} for name in about["inputs"]},),  # a text names the axis in the file
    )
    assert program is not None
    program.model.metadata_props[METADATA] = json.dumps(about)
    program.save(file)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])

    def run(given: dict[str, Tensor]) -> dict[str, Any]:
        values = session.run(names, {name: tensor.numpy() for name, tensor in given.items()})
        return dict(zip(names, values, strict=True))

    return run


def _traced(graph: PolicyGraph, policy: LoadedPolicy) -> torch.export.ExportedProgram:
    inputs, batch = example(graph, policy, 2, 0), torch.export.Dim(_BATCH)
    return torch.export.export(graph, (inputs,), dynamic_shapes=({name: {0: batch} for name in inputs},))


def _compare(
    graph: PolicyGraph, policy: LoadedPolicy, run: Callable[[dict[str, Tensor]], dict[str, Any]], network: str
) -> None:
    for count in _ROWS:
        inputs = example(graph, policy, count, count)
        expected = graph({name: tensor.clone() for name, tensor in inputs.items()})
        found = run(inputs)
        for name, tensor in expected.items():
            wanted = tensor.numpy()
            if name == "action" and wanted.dtype.kind in "iu":
                # Where two choices are as likely but for a rounding error, either is right.
                same = found[name].shape == wanted.shape and np.mean(found[name] == wanted) > 0.9
            else:
                scale = max(1.0, float(np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)))
                same = np.allclose(found[name], wanted, rtol=_TOLERANCE, atol=_TOLERANCE * scale)
            if not same:
                raise ExportError(
                    f"{network} computes something else when it is exported: {name} of a batch of {count} differs;"
                    " does it branch on values or sizes, or draw random numbers?"
                )


def _about(policy: LoadedPolicy, graph: PolicyGraph) -> dict[str, Any]:
    """What the file says about itself."""
    manifest = policy.manifest
    with torch.no_grad():
        outputs = graph(example(graph, policy, 1, 0))
    return {
        "environment": policy.config.environment,
        "network": policy.network,
        "checkpoint": policy.checkpoint.name,
        "epoch": manifest["epoch"],
        "agent_step": manifest["agent_step"],
        "inputs": {name: _form(shape, dtype) for name, (shape, dtype) in graph.inputs.items()},
        "outputs": {name: _form(tuple(tensor.shape[1:]), tensor.dtype) for name, tensor in outputs.items()},
        "spaces": recorded_spaces(policy.observation_space, policy.action_space),
    }


def _form(shape: tuple[int, ...], dtype: torch.dtype) -> dict[str, Any]:
    return {"shape": [_BATCH, *shape], "dtype": str(dtype).removeprefix("torch.")}


@contextmanager
def _quiet() -> Generator[None]:
    """Without the exporters' remarks on themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
