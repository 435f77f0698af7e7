"""What hooks have returned, on its way into the states that are published."""

from __future__ import annotations

import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from orchestrator.hooks.hook import HookResult
from state.frozen_mapping import FrozenMapping

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.hooks.hook import StateUpdate
    from state.trainer_state import TrainerState

_FIELDS = ("eval_scores", "latest_checkpoint_uri", "latest_wandb_uri")


def changes_of(update: StateUpdate, hook: str, state: TrainerState) -> dict[str, Any]:
    """The fields of a state that `update` changes, where `hook` has returned it for `state`.

    Raises TypeError for results that can't be sent to the learner: better one failed hook than a failed run.
    """
    changes = {name: value for name in _FIELDS if (value := getattr(update, name)) is not None}
    if update.results:
        for name, value in update.results.items():
            try:
                pickle.dumps(value)
            except Exception as error:
                raise TypeError(f"result {name!r} must be plain data that can be pickled: {error}") from error
        changes["results"] = FrozenMapping(
            {
                name: HookResult(value=value, hook=hook, epoch=state.epoch, policy_version=state.policy_version)
                for name, value in update.results.items()
            }
        )
    return changes


def with_changes(state: TrainerState, changes: Mapping[str, Any]) -> TrainerState:
    """`state` with the fields changed, and with the results added to those it has."""
    if "results" in changes and state.results:
        changes = {**changes, "results": FrozenMapping({**state.results, **changes["results"]})}
    return replace(state, **changes) if changes else state


class Updates:
    """The newest value of every field and result that hooks have returned.

    Newest is what speaks of the newest event, and among hooks that handled the same event what the one registered
    last has returned, however late each was.
    """

    def __init__(self) -> None:
        self._newest: dict[tuple[str, str], tuple[int, int]] = {}
        self._fields: dict[str, Any] = {}
        self._results: dict[str, HookResult] = {}
        self._changes: Mapping[str, Any] = {}

    def take(self, rank: tuple[int, int], changes: Mapping[str, Any]) -> None:
        """Keep the changes; `rank` is the event's number and the hook's place in the registration."""
        for name, value in changes.items():
            if name == "results":
                for result_name, result in value.items():
                    if self._is_newest(("results", result_name), rank):
                        self._results[result_name] = result
            elif self._is_newest((name, ""), rank):
                self._fields[name] = value
        self._changes = {**self._fields, "results": FrozenMapping(self._results)} if self._results else self._fields

    def fold(self, state: TrainerState) -> TrainerState:
        """`state` with everything that has been taken so far."""
        return with_changes(state, self._changes)

    def _is_newest(self, key: tuple[str, str], rank: tuple[int, int]) -> bool:
        if rank < self._newest.get(key, rank):
            return False
        self._newest[key] = rank
        return True
