"""A policy's tensors and the optimizer's moments, from a checkpoint to the slots of shared memory and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from orchestrator.checkpoints import CheckpointError

if TYPE_CHECKING:
    from state.policy_snapshot import PolicyLayout

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Their names in torch."""


def fill_policy(layout: PolicyLayout, memory: Any, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Copy a policy's arrays into a slot's memory. Raises CheckpointError listing the tensors that differ."""
    own = layout.arrays(memory)
    problems = weight_differences(_forms(own), arrays)
    if problems:
        raise CheckpointError(
            "the checkpoint is of another policy: " + "; ".join(problems) + ". Resume with the settings of "
            "[policy] and the environment that it was trained with"
        )
    for name, array in own.items():
        array[...] = arrays[name]


def fill_moments(layout: PolicyLayout, memory: Any, moments: Mapping[str, Mapping[str, NDArray[Any]]]) -> None:
    """Copy the optimizer's moments into a slot's memory. Raises CheckpointError as `fill_policy`."""
    arrays = {f"{kind}/{name}": array for kind, named in moments.items() for name, array in named.items()}
    own = moment_arrays(layout, memory)
    problems = weight_differences(_forms(own), arrays)
    if problems:
        raise CheckpointError("the optimizer's state in the checkpoint is of another policy: " + "; ".join(problems))
    for name, array in own.items():
        array[...] = arrays[name]


def weight_differences(own: Mapping[str, tuple[tuple[int, ...], str]], saved: Mapping[str, NDArray[Any]]) -> list[str]:
    """What keeps saved arrays from being those of `own` shapes and dtypes, tensor by tensor, in words."""
    problems = [f"{name} is not in it" for name in own if name not in saved]
    problems += [f"it has {name}, which this one does not" for name in saved if name not in own]
    for name, form in own.items():
        if name in saved and _form(saved[name]) != form:
            mine, theirs = (f"{dtype}{list(shape)}" for shape, dtype in (form, _form(saved[name])))
            problems.append(f"{name} is {theirs} there and {mine} here")
    return problems


def _form(array: NDArray[Any]) -> tuple[tuple[int, ...], str]:
    return array.shape, array.dtype.name


def _forms(arrays: Mapping[str, NDArray[Any]]) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: _form(array) for name, array in arrays.items()}


def moment_arrays(layout: PolicyLayout, memory: Any) -> dict[str, NDArray[Any]]:
    """Of every trainable parameter: both halves of the memory are laid out like the parameters themselves."""
    half = layout.trainable[-1][2] if layout.trainable else 0
    view = memoryview(memory)
    return {
        f"{kind}/{spec.name}": np.frombuffer(
            view, np.dtype(spec.dtype), count=int(np.prod(spec.shape)), offset=begin + spec.offset
        ).reshape(spec.shape)
        for kind, begin in zip(MOMENTS, (0, half), strict=True)
        for spec in layout.tensors
        if spec.offset < half
    }
