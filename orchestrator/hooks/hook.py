"""What the author of a hook writes, and what a hook can ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Protocol, TypeAlias, cast

from orchestrator.config.annotations import Admits, Count, NotNegative, Period, PositiveOrInfinite
from state.eval_rewards import EvalRewardSummary
from state.frozen_mapping import freeze

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from orchestrator.hooks.statistics import HookStatistics
    from orchestrator.snapshots.checkpoint_files import CheckpointContent
    from orchestrator.workers.worker import Worker
    from state.trainer_state import TrainerState

# The events of a run as the loop's pseudocode. With staleness 0 this is also their order in time; with more, the
# collection of an epoch proceeds while earlier epochs are learned from, and so do its two events.
#
#     on_new_training_run                      once
#     for each epoch:
#         on_rollout_start
#             collect
#         on_rollout_end                       rollout statistics and experience are in the state
#             learn
#         on_train_phase_end                   inside the training timer
#         epoch += 1
#         on_epoch_end                         everything is in the state
#     on_training_end | on_failure             once
#
#     on_checkpoint_committed                  whenever a hook has reported a checkpoint; also after the end
EPOCH_EVENTS = ("on_rollout_start", "on_rollout_end", "on_train_phase_end", "on_epoch_end")
EVENTS = ("on_new_training_run", *EPOCH_EVENTS, "on_checkpoint_committed", "on_training_end", "on_failure")

Overflow: TypeAlias = Literal["block", "coalesce", "drop", "error"]
OnError: TypeAlias = Literal["log", "disable", "stop", "raise"]
Outcome: TypeAlias = Literal["handled", "failed", "skipped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Every:
    """The distance between deliveries of one event: give exactly one of epochs, agent steps or seconds."""

    epochs: int | None = None
    agent_steps: int | None = None
    seconds: float | None = None


def _is_distance(every: int | Every) -> bool:
    every = every if isinstance(every, Every) else Every(epochs=every)
    given = [value for value in (every.epochs, every.agent_steps, every.seconds) if value is not None]
    return len(given) == 1 and given[0] > 0


_DISTANCE = Admits("a number of epochs above 0, or an Every with one positive distance", _is_distance)


@dataclass(frozen=True, slots=True, kw_only=True)
class StateUpdate:
    """What a hook wants to see in the next published state, or wants the run to do.

    Raises TypeError for a value of the wrong type.
    """

    eval_scores: EvalRewardSummary | None = None
    latest_checkpoint_uri: str | None = None
    """A checkpoint that exists now, here or elsewhere: other hooks get `on_checkpoint_committed`."""
    latest_wandb_uri: str | None = None
    results: Mapping[str, object] = field(default_factory=dict[str, object])
    """Under names of the hook's own: small plain data, since every hook reads it and every epoch carries it to the
    learner. Mappings, lists and sets are frozen; what can be changed in place all the same, such as an array, is
    refused. Others find each as a `HookResult` in `state.results`."""
    stop: bool = False
    """Finish the epoch and end the run."""
    save_now: bool = False
    """Take a checkpoint, as `request_checkpoint`."""

    def __post_init__(self) -> None:
        expected = {"eval_scores": EvalRewardSummary, "latest_checkpoint_uri": str, "latest_wandb_uri": str}
        for name, kind in expected.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise TypeError(f"{name} must be of type {kind.__name__}, not {type(value).__name__}: {value!r}")
        for name in ("stop", "save_now"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, not {getattr(self, name)!r}")
        given = cast("object", self.results)
        if not isinstance(given, Mapping):
            raise TypeError(f"results must be a mapping of names to values, not {given!r}")
        wrong = [name for name in cast("Mapping[object, object]", given) if not isinstance(name, str)]
        if wrong:
            raise TypeError(f"the names of results must be text, not {wrong!r}")
        results = freeze(self.results)
        for name, value in results.items():
            _check_unchangeable(name, value)
        object.__setattr__(self, "results", results)


def _check_unchangeable(name: str, value: object) -> None:
    """Raises TypeError for a frozen value with something in it that one hook could change under the eyes of others."""
    if isinstance(value, Mapping):
        value = tuple(cast("Mapping[object, object]", value).values())
    if isinstance(value, (tuple, frozenset)):
        for part in cast("Iterable[object]", value):
            _check_unchangeable(name, part)
    elif hasattr(type(value), "__setitem__") or not _has_a_hash(value):
        raise TypeError(
            f"result {name!r} contains an object of type {type(value).__name__}, which can be changed: other hooks read"
            " the same result, so it must be plain data: numbers, texts, lists and mappings of them (for an array,"
            " return `.tolist()`)"
        )


def _has_a_hash(value: object) -> bool:
    try:
        hash(value)
    except TypeError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class HookResult:
    """A named result in `state.results`, and what it speaks of."""

    value: Any
    hook: str
    """Who returned it."""
    epoch: int
    """Epochs completed in the state that the hook had before it."""
    policy_version: int
    """Policy version of that state; the run is past it by the time others read the result."""


class RunContext(Protocol):
    """The run as a hook sees it. What controls it returns at once and can be called from any thread."""

    run_id: str
    run_dir: Path | None

    def stop(self, reason: str = "") -> None:
        """Finish the present epoch and end the run."""
        ...

    def stop_now(self, reason: str = "") -> None:
        """End the run after the present minibatch."""
        ...

    def pause(self) -> None:
        """Begin no further epoch until `resume`."""
        ...

    def resume(self) -> None: ...

    def request_checkpoint(self) -> None:
        """Take a checkpoint at the end of the present epoch; while the run is paused, of the last one."""
        ...

    @property
    def learning_rate_scale(self) -> float:
        """What the scheduled learning rate is multiplied with; a checkpoint keeps it."""
        ...

    def scale_learning_rate(self, factor: float) -> None:
        """Set `learning_rate_scale`, for the epochs that are learned from now on."""
        ...

    def start_worker(self, name: str, factory: Any, *args: object) -> AbstractAsyncContextManager[Worker]:
        """A worker (see `orchestrator.workers.worker`) on the run's backend, for heavy computation."""
        ...

    async def open_worker(self, name: str, factory: Any, *args: object) -> Worker:
        """As `start_worker`, for a worker that lives until the hook closes it, or as long as the run."""
        ...

    def checkpoint_content(self, state: TrainerState) -> CheckpointContent:
        """What a checkpoint of `state` is made of. A run can be resumed from it if `state` is of the end of an epoch,
        or of the training, that a hook which `saves` is handling."""
        ...

    def hook_statistics(self) -> Mapping[str, HookStatistics]:
        """How each hook keeps up, by name."""
        ...

    def eval_scores(self) -> Mapping[int, EvalRewardSummary]:
        """All scores that hooks have returned in this run so far, by the version of the policy that they speak of."""
        ...

    def epochs_in_hand(self) -> frozenset[int]:
        """Epochs of which some hook has not handled everything yet."""
        ...


@dataclass(frozen=True, slots=True)
class DeliveryInfo:
    """What a callback can know about the delivery it is handling."""

    idempotency_key: str
    """The same for every attempt at one delivery: run, hook, event, number of the event."""
    attempt: int
    """0 for the first."""
    outcomes: Mapping[str, Outcome]
    """How the hooks named in `after` fared with the same event; "skipped" where it was not delivered to them."""


# A function, because few callbacks ask.
current_delivery: ContextVar[Callable[[], DeliveryInfo]] = ContextVar("current_delivery")


class Hook:
    """Override any of the callbacks; they run alongside the training and can neither slow nor change it.

    The attributes say how events are delivered; the defaults suit a hook that reports or measures. See
    `docs/hooks.md`.
    """

    name: str = ""
    """Unique in a run; by default the class's name in snake_case. A hook with a `state_dict` must give one."""
    every: Annotated[int | Every, _DISTANCE] = 1
    """Epochs between deliveries, or an `Every`. Events that are not of an epoch are delivered whenever they come."""
    after: tuple[str, ...] = ()
    """Names of hooks that handle the same event first, and those that come before them in turn; what they return is
    in the state, how they fared is in `delivery.outcomes`."""
    overflow: Overflow = "coalesce"
    """What happens when `max_lag` events of the same kind wait and another comes: it replaces them (coalesce), the
    training waits until one is taken (block), it is dropped (drop), the run fails (error). The start, the end and
    the failure of the run always get in."""
    max_lag: Count = 2
    """Events of each kind that may wait while the hook is at work: how many epochs it can be behind."""
    timeout: PositiveOrInfinite | None = None
    """Seconds that one attempt may take."""
    retries: Period = 0
    """Further attempts after one of the `transient` errors, on the same state."""
    backoff: NotNegative = 0.5
    """Seconds before the first retry, doubled for each further one."""
    transient: tuple[type[Exception], ...] = (TimeoutError, ConnectionError)
    """Errors that are worth a retry; an attempt that exceeds `timeout` ends in a TimeoutError."""
    on_error: OnError = "log"
    """After the last attempt: log it, disable the hook after `disable_after` failures in a row, stop the run after
    the epoch (it then ends in HookFailed), or raise HookFailed out of the run at once."""
    disable_after: Count = 3
    """Failures in a row, at events of one kind, that disable a hook whose `on_error` is "disable"."""
    drain: bool = True
    """Whether the end of the run waits for the hook's queue."""

    saves: bool = False
    """Whether it takes checkpoints: `every` then says which epochs' ends it is given, besides those for which one was
    requested, and `run.checkpoint_content` has everything needed to resume."""

    run: RunContext
    """The run; set before the first event."""

    def resources(self) -> AbstractAsyncContextManager[object]:
        """What the hook needs while the run lasts: entered before its first event, left after its last, in one task
        and also when the run fails or is cancelled. Leaving may take the engine's `grace`, 5 seconds."""
        return nullcontext()

    def state_dict(self) -> Mapping[str, object]:
        """What a checkpoint keeps of this hook: anything that JSON can say, where keys are text
        (tuples come back as lists). Called between two steps of a callback."""
        return {}

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Take over what `state_dict` returned in an earlier run."""

    @property
    def delivery(self) -> DeliveryInfo:
        """The delivery that is being handled; only inside a callback."""
        try:
            return current_delivery.get()()
        except LookupError:
            raise RuntimeError("there is a delivery only inside a callback that the engine has called") from None

    async def on_new_training_run(self, state: TrainerState) -> StateUpdate | None:
        """Once, before the first epoch."""

    async def on_rollout_start(self, state: TrainerState) -> StateUpdate | None:
        """The collection of an epoch begins."""

    async def on_rollout_end(self, state: TrainerState) -> StateUpdate | None:
        """An epoch's experience is complete."""

    async def on_train_phase_end(self, state: TrainerState) -> StateUpdate | None:
        """An epoch's last minibatch is done."""

    async def on_epoch_end(self, state: TrainerState) -> StateUpdate | None:
        """An epoch is over; everything about it is in the state."""

    async def on_checkpoint_committed(self, state: TrainerState) -> StateUpdate | None:
        """A checkpoint exists, at `state.latest_checkpoint_uri`; not delivered to the hook that reported it."""

    async def on_training_end(self, state: TrainerState) -> StateUpdate | None:
        """Once, after the last epoch."""

    async def on_failure(self, state: TrainerState) -> StateUpdate | None:
        """Once, instead of `on_training_end`, when the run fails."""


def epoch_of(event: str, state: TrainerState) -> int:
    """The number of the epoch that an event is of, as people read it: the first is 1. `state.epoch` counts the
    completed ones, which on_epoch_end is the first event to include."""
    return state.epoch + (event in EPOCH_EVENTS and event != "on_epoch_end")


def hook_name(hook: Hook) -> str:
    """The hook's explicit name, or its class's in snake_case."""
    return hook.name or re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", type(hook).__name__).lower()


def overridden_events(hook: Hook) -> frozenset[str]:
    """The events that this hook handles."""
    return frozenset(event for event in EVENTS if getattr(type(hook), event) is not getattr(Hook, event))
