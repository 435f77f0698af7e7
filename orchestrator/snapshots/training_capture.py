"""What a run goes on from, as files of a checkpoint: taken at the end of an epoch, and read when the run is resumed."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from orchestrator.checkpoints import MANIFEST, CheckpointError
from orchestrator.checkpoints.find import as_address
from orchestrator.checkpoints.tensor_file import tensor_file
from orchestrator.config.error import ConfigurationError
from orchestrator.config.file import config_text, parse_config, read_config
from orchestrator.config.trust import check_trust
from orchestrator.learning.learner_state import LearnerState
from orchestrator.snapshots.plain_data import decode, encode
from state.eval_rewards import EvalRewardSummary
from state.frozen_mapping import FrozenMapping
from state.stats_tracker import StatsTracker
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator.checkpoints import Checkpoint
    from orchestrator.checkpoints.filesystem import Content
    from orchestrator.config.settings import TrainerConfig
    from state.policy_snapshot import PolicyLayout, PolicySnapshot
    from state.shared_memory import BufferView

CONFIG, POLICY, OPTIMIZER = "config.toml", "policy.safetensors", "optimizer.safetensors"
TRAINING, ARRAYS = "training.json", "training.npz"
_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingCapture:
    """All that the epochs after one depend on, beside the policy that it published."""

    learner: LearnerState
    moments: BufferView
    """The optimizer's moments, in memory that is kept while this object lives."""
    behaviour: tuple[PolicySnapshot, ...]
    """The older policies that the epochs after it act with; none without staleness."""
    collectors: tuple[Mapping[str, Any] | None, ...]
    """Where each collector stood at the beginning of the next epoch; None where that is not known."""
    learning_rate_scale: float


class Captures:
    """What the checkpoints of a run that are being taken are made of, by epoch. It is much memory, so the loop forgets
    what nobody needs before it captures anew."""

    def __init__(self) -> None:
        self._by_epoch: dict[int, TrainingCapture] = {}

    def keep(self, epoch: int, capture: TrainingCapture) -> None:
        self._by_epoch[epoch] = capture

    def get(self, epoch: int) -> TrainingCapture | None:
        return self._by_epoch.get(epoch)

    def forget_all_but(self, epochs: Collection[int]) -> None:
        for epoch in self._by_epoch.keys() - epochs:
            del self._by_epoch[epoch]


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """What `read_checkpoint` finds. Arrays are by the names of the policy's parameters and buffers."""

    uri: str
    config: TrainerConfig
    state: TrainerState
    """The completed epoch's, without views."""
    stopwatch: Mapping[str, object] | None
    policies: Mapping[int, Mapping[str, NDArray[Any]]]
    """By version: the newest, and those that the next epochs act with."""
    moments: Mapping[str, Mapping[str, NDArray[Any]]] | None = None
    """The first and second moments by their names in torch; None: the optimizer begins anew."""
    learner: LearnerState | None = None
    collectors: tuple[Mapping[str, Any] | None, ...] = ()
    learning_rate_scale: float = 1.0
    hook_states: Mapping[str, Mapping[str, object]] = field(default_factory=dict[str, "Mapping[str, object]"])


@dataclass(frozen=True, slots=True)
class CheckpointContent:
    """`facts` are for the manifest; `files` are made when they are asked for, the large ones piece by piece from the
    memory that they are in."""

    facts: Mapping[str, Any]
    files: Mapping[str, Content]
    identity: object
    """Equal for two of one run that would hold the same."""


def checkpoint_content(
    state: TrainerState,
    capture: TrainingCapture | None,
    config: TrainerConfig,
    hook_states: Mapping[str, Mapping[str, object]],
) -> CheckpointContent:
    """A checkpoint of the end of an epoch; without a capture a run can go on from it only with a new optimizer."""
    policy = state.policy
    assert policy is not None
    files: dict[str, Callable[[], Content]] = {
        POLICY: lambda: tensor_file(policy.tensors),
        CONFIG: lambda: config_text(config).encode(),
    }
    if capture is not None:
        files[OPTIMIZER] = lambda: tensor_file(_moment_arrays(policy.layout, capture.moments.readonly()))
        for older in capture.behaviour:
            files[_policy_file(older.version)] = lambda older=older: tensor_file(older.tensors)
    # Once for both: environments may have much to tell.
    plain = cache(lambda: _plain(state, capture, hook_states))
    files[ARRAYS] = lambda: _npz(plain()[1])
    files[TRAINING] = lambda: json.dumps(plain()[0]).encode()
    facts = {
        "agent_step": state.agent_step,
        "policy_version": policy.version,
        "resumable": capture is not None,
    }
    known = None if capture is None else (capture.learning_rate_scale, None not in capture.collectors)
    return CheckpointContent(facts, _MadeWhenAsked(files), (state.epoch, known, hook_states))


def read_config_of(checkpoint: Checkpoint) -> TrainerConfig:
    """The settings of the run that took the checkpoint; those of its folder, if the checkpoint has none itself.

    Raises CheckpointError where there are none, ConfigurationError where they are not of this release.
    """
    if CONFIG in checkpoint.manifest["files"]:
        content = checkpoint.read(CONFIG)
        try:
            return parse_config(content, checkpoint.path / CONFIG)
        except ConfigurationError as error:
            if isinstance(error.__cause__, ValueError):  # it is no TOML at all
                raise CheckpointError(f"{checkpoint.path / CONFIG} can't be understood: {error.__cause__}") from error
            raise
    file = checkpoint.path.parent.parent / CONFIG
    if not file.is_file():
        raise CheckpointError(f"neither {checkpoint.path} nor its run has a {CONFIG}, so its settings are not known")
    return read_config(file)


def read_settings(
    checkpoint: Checkpoint, where: Path | str, *, trust_code: bool = False, own: TrainerConfig | None = None
) -> TrainerConfig:
    """The settings of the run that took a checkpoint, which was found at `where`.

    Where that is an address and not a path, the settings are not the user's: raises `ConfigurationError` as
    `check_trust` unless `trust_code`. Otherwise raises as `read_config_of`.
    """
    config = read_config_of(checkpoint)
    address = as_address(where)
    if address is not None and not trust_code:
        check_trust(config, address, own=own)
    return config


def read_checkpoint(checkpoint: Checkpoint) -> ResumePoint:
    """Everything in a checkpoint. Raises CheckpointError for what is missing or can't be understood."""
    manifest = checkpoint.manifest
    config = read_config_of(checkpoint)
    with _understood(checkpoint, MANIFEST):
        version = int(manifest["policy_version"])
        state = TrainerState(epoch=manifest["epoch"], agent_step=manifest["agent_step"], policy_version=version)
    policies = {version: _tensors(checkpoint, POLICY)}
    uri = checkpoint.path.absolute().as_uri()
    point = ResumePoint(uri=uri, config=config, state=state, stopwatch=None, policies=policies)
    if TRAINING not in manifest["files"]:
        return point
    with _understood(checkpoint, ARRAYS), np.load(io.BytesIO(checkpoint.read(ARRAYS)), allow_pickle=False) as stored:
        arrays = {name: stored[name] for name in stored.files}
    with _understood(checkpoint, TRAINING):
        training = json.loads(checkpoint.read(TRAINING))
        counters = decode(training["state"], arrays)
        point = replace(point, state=_state_from(counters), stopwatch=counters["timer"], hook_states=training["hooks"])
        if "learner" not in training:
            return point
        behaviour = [int(older) for older in training["behaviour"]]
        point = replace(
            point,
            learner=LearnerState(**decode(training["learner"], arrays)),
            collectors=tuple(decode(collector, arrays) for collector in training["collectors"]),
            learning_rate_scale=training["learning_rate_scale"],
        )
    for older in behaviour:
        policies[older] = _tensors(checkpoint, _policy_file(older))
    moments: dict[str, dict[str, NDArray[Any]]] = {kind: {} for kind in _MOMENTS}
    tensors = _tensors(checkpoint, OPTIMIZER)
    with _understood(checkpoint, OPTIMIZER):
        for name, array in tensors.items():
            kind, _, parameter = name.partition("/")
            moments[kind][parameter] = array
    return replace(point, moments=moments)


@contextlib.contextmanager
def _understood(checkpoint: Checkpoint, name: str) -> Generator[None]:
    """Whatever a file's content makes the libraries that read it raise, as a CheckpointError that names the file."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        where = checkpoint.path / name if name == MANIFEST else checkpoint.file(name)
        raise CheckpointError(f"{where} can't be understood: {error!r}") from error


def _tensors(checkpoint: Checkpoint, name: str) -> dict[str, NDArray[Any]]:
    with _understood(checkpoint, name):
        return load(checkpoint.read(name))


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
    own = _moment_arrays(layout, memory)
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


def _moment_arrays(layout: PolicyLayout, memory: Any) -> dict[str, NDArray[Any]]:
    """Of every trainable parameter: both halves of the memory are laid out like the parameters themselves."""
    half = layout.trainable[-1][2] if layout.trainable else 0
    view = memoryview(memory)
    return {
        f"{kind}/{spec.name}": np.frombuffer(
            view, np.dtype(spec.dtype), count=int(np.prod(spec.shape)), offset=begin + spec.offset
        ).reshape(spec.shape)
        for kind, begin in zip(_MOMENTS, (0, half), strict=True)
        for spec in layout.tensors
        if spec.offset < half
    }


def _plain(
    state: TrainerState, capture: TrainingCapture | None, hook_states: Mapping[str, Mapping[str, object]]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What is neither weights nor moments, as JSON and the arrays that belong to it."""
    arrays: dict[str, NDArray[Any]] = {}
    training: dict[str, Any] = {"state": encode(_counters(state), arrays), "hooks": hook_states}
    if capture is not None:
        learner = {name: getattr(capture.learner, name) for name in LearnerState.__dataclass_fields__}
        training["behaviour"] = [older.version for older in capture.behaviour]
        training["learner"] = encode(learner, arrays, "learner")
        training["learning_rate_scale"] = capture.learning_rate_scale
        training["collectors"] = [encode(collector, arrays) for collector in capture.collectors]
    return training, arrays


def _counters(state: TrainerState) -> dict[str, object]:
    return {
        "epoch": state.epoch,
        "agent_step": state.agent_step,
        "update_epoch": state.update_epoch,
        "mb_idx": state.mb_idx,
        "policy_version": state.policy_version,
        "loss_stats": None if state.loss_stats is None else dict(state.loss_stats),
        "eval_scores": None if state.eval_scores is None else state.eval_scores.to_dict(),
        "stats_tracker": None if state.stats_tracker is None else state.stats_tracker.to_dict(),
        "timer": None if state.timer is None else state.timer.to_dict(),
    }


def _state_from(counters: Mapping[str, Any]) -> TrainerState:
    tracker = None if counters["stats_tracker"] is None else StatsTracker.from_dict(counters["stats_tracker"])
    return TrainerState(
        epoch=counters["epoch"],
        agent_step=counters["agent_step"],
        update_epoch=counters["update_epoch"],
        mb_idx=counters["mb_idx"],
        policy_version=counters["policy_version"],
        loss_stats=None if counters["loss_stats"] is None else FrozenMapping(counters["loss_stats"]),
        eval_scores=None if counters["eval_scores"] is None else EvalRewardSummary.from_dict(counters["eval_scores"]),
        rollout_stats=None if tracker is None else tracker.rollout,
        stats_tracker=tracker,
    )


def _policy_file(version: int) -> str:
    return f"policy-{version:08d}.safetensors"


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, allow_pickle=False, **arrays)
    return stream.getvalue()


class _MadeWhenAsked(Mapping[str, "Content"]):
    def __init__(self, makers: Mapping[str, Callable[[], Content]]) -> None:
        self._makers = makers

    def __getitem__(self, name: str) -> Content:
        return self._makers[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)
