"""A training snapshot as the files of a checkpoint, and back."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

from orchestrator.checkpoints import MANIFEST, CheckpointError
from orchestrator.checkpoints.checkpoint import not_understood
from orchestrator.checkpoints.tensor_file import tensor_file
from orchestrator.config.file import config_text
from orchestrator.learning.learner_state import LearnerState
from orchestrator.snapshots.recorded_settings import CONFIG, SPACES, read_config_of
from orchestrator.snapshots.tensors import MOMENTS, moment_arrays
from state.eval_rewards import EvalRewardSummary
from state.frozen_mapping import FrozenMapping
from state.plain_data import decode, encode
from state.policy_point import PolicyPoint
from state.stats_tracker import StatsTracker
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from orchestrator.checkpoints import Checkpoint
    from orchestrator.checkpoints.filesystem import Content
    from orchestrator.config.settings import TrainerConfig
    from orchestrator.snapshots.training_snapshot import TrainingSnapshot

POLICY, OPTIMIZER = "policy.safetensors", "optimizer.safetensors"
TRAINING, ARRAYS = "training.json", "training.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResumePoint:
    """What `read_checkpoint` finds. Arrays are by the names of the policy's parameters and buffers."""

    uri: str
    config: TrainerConfig
    state: TrainerState
    """The completed epoch's, without views."""
    stopwatch: Mapping[str, object] | None
    policies: Mapping[PolicyPoint, Mapping[str, NDArray[Any]]]
    """The newest version, and those that the next epochs act with."""
    moments: Mapping[str, Mapping[str, NDArray[Any]]] | None = None
    """The first and second moments by their names in torch; None: the optimizer starts afresh."""
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
    snapshot: TrainingSnapshot | None,
    config: TrainerConfig,
    hook_states: Mapping[str, Mapping[str, object]],
    recorded_spaces: Mapping[str, Any],
) -> CheckpointContent:
    """A checkpoint of the end of an epoch; without a snapshot a run can resume from it only with a new optimizer."""
    policy = state.policy
    assert policy is not None
    files: dict[str, Callable[[], Content]] = {
        POLICY: lambda: tensor_file(policy.tensors),
        CONFIG: lambda: config_text(config).encode(),
        SPACES: lambda: json.dumps(recorded_spaces).encode(),
    }
    if snapshot is not None:
        files[OPTIMIZER] = lambda: tensor_file(moment_arrays(policy.layout, snapshot.moments.readonly()))
        for older in snapshot.behavior:
            files[_policy_file(older.point)] = lambda older=older: tensor_file(older.tensors)
    # Once for both: environments may have much to tell.
    plain = cache(lambda: _plain(state, snapshot, hook_states))
    files[ARRAYS] = lambda: _npz(plain()[1])
    files[TRAINING] = lambda: json.dumps(plain()[0]).encode()
    facts = {
        "agent_step": state.agent_step,
        "policy_version": policy.version,
        "resumable": snapshot is not None,
    }
    known = None if snapshot is None else (snapshot.learning_rate_scale, None not in snapshot.collectors)
    return CheckpointContent(facts, _MadeWhenAsked(files), (state.epoch, known, hook_states))


def read_checkpoint(checkpoint: Checkpoint) -> ResumePoint:
    """Everything in a checkpoint. Raises CheckpointError for what is missing or damaged."""
    manifest = checkpoint.manifest
    config = read_config_of(checkpoint)
    with _understood(checkpoint, MANIFEST):
        version = int(manifest["policy_version"])
        state = TrainerState(epoch=manifest["epoch"], agent_step=manifest["agent_step"], policy_version=version)
    policies = {PolicyPoint(version): _tensors(checkpoint, POLICY)}
    uri = checkpoint.path.absolute().as_uri()
    point = ResumePoint(uri=uri, config=config, state=state, stopwatch=None, policies=policies)
    if TRAINING not in manifest["files"]:
        return point
    with _understood(checkpoint, ARRAYS):
        arrays = _arrays(checkpoint.read(ARRAYS))
    with _understood(checkpoint, TRAINING):
        training = json.loads(checkpoint.read(TRAINING))
        counters = decode(training["state"], arrays)
        point = replace(point, state=_state_from(counters), stopwatch=counters["timer"], hook_states=training["hooks"])
        if "learner" not in training:
            return point
        behavior = [
            PolicyPoint(*map(int, older)) if isinstance(older, list) else PolicyPoint(int(older))
            for older in training["behaviour"]
        ]
        point = replace(
            point,
            learner=LearnerState(**decode(training["learner"], arrays)),
            collectors=tuple(decode(collector, arrays) for collector in training["collectors"]),
            learning_rate_scale=training["learning_rate_scale"],
        )
    for older in behavior:
        policies[older] = _tensors(checkpoint, _policy_file(older))
    moments: dict[str, dict[str, NDArray[Any]]] = {kind: {} for kind in MOMENTS}
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
        raise not_understood(where, error) from error


def _tensors(checkpoint: Checkpoint, name: str) -> dict[str, NDArray[Any]]:
    with _understood(checkpoint, name):
        return load(checkpoint.read(name))


def _plain(
    state: TrainerState, snapshot: TrainingSnapshot | None, hook_states: Mapping[str, Mapping[str, object]]
) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """What is neither weights nor moments, as JSON and the arrays that belong to it."""
    arrays: dict[str, NDArray[Any]] = {}
    training: dict[str, Any] = {"state": encode(_counters(state), arrays), "hooks": hook_states}
    if snapshot is not None:
        learner = {name: getattr(snapshot.learner, name) for name in LearnerState.__dataclass_fields__}
        training["behaviour"] = [
            list(older.point) if older.minibatches else older.version for older in snapshot.behavior
        ]
        training["learner"] = encode(learner, arrays, "learner")
        training["learning_rate_scale"] = snapshot.learning_rate_scale
        training["collectors"] = [encode(collector, arrays) for collector in snapshot.collectors]
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


def _policy_file(point: PolicyPoint) -> str:
    early = f"+{point.minibatches}" if point.minibatches else ""
    return f"policy-{point.version:08d}{early}.safetensors"


def _arrays(content: bytes) -> dict[str, NDArray[Any]]:
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except Exception as error:  # numpy takes whatever it does not know for a pickle, and says so
        raise ValueError("expected an archive of numpy's arrays, without pickled objects") from error


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
