"""What the host and the learner tell each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from losses import LearnerCallback
    from orchestrator.config.settings import TrainerConfig
    from orchestrator.learning.learner_state import LearnerState, Unsaved
    from orchestrator.policies import Spaces
    from orchestrator.workers.interrupt import Interrupt
    from orchestrator.workers.slots import SlotRef
    from orchestrator.workers.spans import Span
    from state.experience import FieldSpec
    from state.policy_point import PolicyPoint
    from state.policy_snapshot import PolicyLayout
    from state.trainer_state import TrainerState


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerPlan:
    """What a learner is made from."""

    config: TrainerConfig
    losses: Sequence[LearnerCallback]
    spaces: Spaces
    device: str
    """That of the configuration, or what its `auto` stands for here."""
    max_threads: int
    """As many of these as the work of a minibatch is worth, unless the configuration says how many."""
    interrupt: Interrupt
    agents: int = 1
    """Of one game, each with a segment of the experience."""
    cell: int = 0
    """Which of the run's cells it is the learner of."""
    address: str = "127.0.0.1"
    """Where the learners of other cells reach it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerDescription:
    """What the host must know of a learner before it can allocate slots."""

    layout: PolicyLayout
    fields: tuple[FieldSpec, ...]
    callbacks: frozenset[str]
    """Names of the loss callbacks that any loss overrides."""
    recurrent_state_size: int
    """0 for a policy without memory."""
    moments_nbytes: int
    """As of `Optimization`."""
    device: str
    """That it learns on."""
    device_nbytes: int | None = None
    """Allocated there so far; None where that is the host's memory."""


class LearnRequest(NamedTuple):
    """Learn from `experience` and publish the result to `publish_to` as version `version`."""

    state: TrainerState
    """Counters and the host's fields; what the learner knows itself is filled in for the losses' callbacks."""
    experience: SlotRef
    behavior: PolicyPoint
    """The policy that collected it."""
    publish_to: SlotRef
    version: int
    steps_before: int
    """Agent steps of the run before this epoch's."""
    rollout_start: TrainerState | None
    """The state in which the rollout started, where the losses have yet to hear of it because it overlapped."""
    learning_rate_scale: float = 1.0
    moments_to: SlotRef | None = None
    """Where the optimizer's moments go, if a snapshot is to be taken of this epoch."""
    keep_to: SlotRef | None = None
    """Where they go, too, if the learner is to be replaceable after this epoch."""
    early_minibatches: int = 0
    """Also publish after so many minibatches, or after the last where there are fewer; 0: do not."""
    early_to: SlotRef | None = None
    """Where to."""


class EarlyReport(NamedTuple):
    """The policy has been published amid an epoch. Times are as in `LearnReport`, of the publication."""

    began: float
    ended: float


class LearnReport(NamedTuple):
    """What came of one epoch. Times are `time.monotonic()`, one clock for all processes of a machine."""

    loss_stats: dict[str, float]
    update_epochs: int
    minibatches: int
    began: float
    ended: float
    interrupted: bool
    exchange_seconds: float = 0.0
    """Of the time from `began` to `ended`: waiting for learners of other cells, and sending them sums."""
    exchange_bytes: int = 0
    """Sent to them in that time."""
    learner_state: LearnerState | Unsaved | None = None
    """If it was asked for: what goes with the moments."""
    kept_state: bytes | Unsaved | None = None
    """The same, pickled, for the request's `keep_to`."""
    spans: Sequence[Span] = ()
    """What happened in between, where the configuration asks for a trace."""
    longest_step: float = 0.0
    """Seconds; the longest between two checks whether to stop, which come after each minibatch."""
    warnings: Mapping[str, str] = {}
    """What the user should know of the network and the losses, by what it is about."""
    other_cells: Sequence[LearnReport] = ()
    """Those of the other cells' learners, in the report of the first."""
