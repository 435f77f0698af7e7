"""Which actions an environment allows next, as it says itself in its observations or infos."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import numpy as np
from gymnasium import spaces

from orchestrator.environments.returned import WrongEntry, WrongReturn, array_of, described_value
from orchestrator.environments.spaces import Array, InvalidEnvironment, Space, array_specs

FROM_INFO = "info/"
"""What the name of a mask begins with that infos have."""
USUAL_MASK = "action_mask"
"""The key that most environments give it, PettingZoo's among them."""
_CURE = "give 1 for each action that is possible, and 0 for the others"
_OF_AXES = ", the choices of one axis after those of another"


class AllowedActions:
    """Which choices of the agent's `action` are possible next, in each of `count` rows."""

    def __init__(self, action: Space, count: int) -> None:
        self._sizes = choices_of(action)
        self.allowed = np.ones((count, sum(self._sizes)), np.bool_)
        """`[count, choices]`: what is possible as the next action; overwritten by the next step."""
        self._begins = np.cumsum([0, *self._sizes[:-1]])
        self._rows = np.arange(count)[:, None]

    def forbidden(self, actions: Array) -> Array | None:
        """The rows whose agents' `actions` `[count]` or `[count, axes]` are not allowed; None where all are."""
        chosen = self.allowed[self._rows, actions.reshape(len(actions), -1) + self._begins]
        return None if chosen.all() else np.flatnonzero(~chosen.all(1))


class ActionMask(AllowedActions):
    """The mask `where`, of `count` copies, is a key of the agent's observations (also one that a Tuple has in its
    place: its parts are joined), or "info/<key>": `info["a"]["b"]` for "info/a/b".

    Raises InvalidEnvironment naming the `environment` where there is no such mask, or its actions cannot be masked.
    """

    def __init__(self, where: str, environment: str, observation: Space, action: Space, count: int) -> None:
        super().__init__(action, count)
        if not self._sizes:
            raise InvalidEnvironment(
                f"environment {environment!r} has the action space {action}, which action_mask = {where!r} cannot mask;"
                " expected Discrete or MultiDiscrete: leave action_mask out"
            )
        specs = array_specs(observation)
        self.keys = keys_of_mask(where, observation)
        """The parts of the agent's observation that it consists of; none where infos have it."""
        self.key_of_info = None if self.keys or not where.startswith(FROM_INFO) else where.removeprefix(FROM_INFO)
        choices = sum(self._sizes)
        if self.keys:
            size = sum(math.prod(specs[key].shape) for key in self.keys)
            if size != choices:
                raise InvalidEnvironment(
                    f"environment {environment!r} observes {size} numbers as {where!r}, which action_mask names;"
                    f" expected {choices}, one for each choice of its action space {action}"
                )
            self._check_parts(where, environment, [specs[key].shape for key in self.keys], action)
            if len(self.keys) == len(specs):
                raise InvalidEnvironment(
                    f"environment {environment!r} observes nothing besides {where!r}, which action_mask names; expected"
                    " a Dict with something to decide on, too: add it, if only a Box of one constant number"
                )
        elif self.key_of_info is None:
            keys = [key for key in specs if key]
            there = f"one of the keys {keys}" if keys else f"a Dict with it, where there is {observation}"
            raise InvalidEnvironment(
                f"environment {environment!r} has no {where!r} in its observations, which action_mask names; expected"
                f" {there}, or {FROM_INFO}<key> for what is in its infos"
            )
        self._given = np.zeros((count, choices), np.float32)
        self._unread: dict[int, str] = {}
        """Why there is no mask of a copy in what was written last."""

    def _check_parts(self, where: str, environment: str, shapes: list[tuple[int, ...]], action: Space) -> None:
        """Raises InvalidEnvironment for parts of the observation whose order does not say which axis they are of."""
        sizes = list(map(math.prod, shapes))
        if len(sizes) > 1 and not all(key.removeprefix(f"{where}/").isdecimal() for key in self.keys):
            raise InvalidEnvironment(
                f"environment {environment!r} observes the parts {list(self.keys)} as {where!r}, which action_mask"
                " names; expected one array, or a Tuple of one for each axis, since keys of a Dict have no order"
            )
        if len(sizes) == len(self._sizes) and tuple(sizes) != self._sizes:
            raise InvalidEnvironment(
                f"environment {environment!r} observes parts of {sizes} numbers as {where!r}, which action_mask names;"
                f" expected {list(self._sizes)}, those of the axes of its action space {action} in their order"
            )
        if len(sizes) == 1 and not _in_order_of_axes(shapes[0], self._sizes):
            raise InvalidEnvironment(
                f"environment {environment!r} observes an array of shape {list(shapes[0])} as {where!r}, which"
                f" action_mask names; expected {sizes}{_OF_AXES} of its action space {action}"
            )

    def write(self, index: int, value: object, info: Mapping[str, object]) -> None:
        """Take the `value` of an `info` of the copy `index`; what is wrong with it matters once it is needed."""
        if value is None and self.key_of_info not in info:
            self._unread[index] = (
                f"an info without the action mask {self.key_of_info!r}, only {sorted(map(str, info))}; {_CURE}, in"
                " every info of a step or reset"
            )
            return
        try:
            self._given[index] = self._numbers(value)
            self._unread.pop(index, None)
        except WrongReturn as error:
            self._unread[index] = f"as the action mask {self.key_of_info!r} of the info {error}; {_CURE}"

    def _numbers(self, value: object) -> Array:
        """`[choices]`: those of the `value` of an info. Raises WrongReturn."""
        parts = cast("tuple[object, ...]", value) if isinstance(value, (tuple, list)) else (value,)
        arrays = [array for array in map(array_of, parts) if array is not None and array.dtype.kind in "biuf"]
        count = self._given.shape[1]
        if not parts or len(arrays) < len(parts):
            raise WrongReturn(f"{described_value(value)}, expected {count} numbers")
        numbers, sizes = np.concatenate([array.ravel() for array in arrays]), [array.size for array in arrays]
        if len({array.shape for array in arrays}) > 1:
            if tuple(sizes) != self._sizes:
                raise WrongReturn(
                    f"parts of {sizes} numbers, expected {list(self._sizes)}, one array for each axis in their order"
                )
            return numbers
        shape = arrays[0].shape if parts[0] is value else (len(arrays), *arrays[0].shape)
        if numbers.size != count:
            raise WrongReturn(f"{numbers.dtype} of shape {list(shape)}, expected {count} numbers")
        if not _in_order_of_axes(shape, self._sizes):
            raise WrongReturn(f"{numbers.dtype} of shape {list(shape)}, expected [{count}]{_OF_AXES}")
        return numbers

    def finish(self, arrays: Mapping[str, Array], idle: Array | None = None) -> None:
        """Take the masks in the agent's observation `arrays` `[count, ...]`, or those that were written.

        What the copies that are `idle` `[count]` (None: none) say does not matter. Raises WrongEntry.
        """
        given = self._given
        if self.keys:
            parts = [arrays[key].reshape(len(self.allowed), -1) for key in self.keys]
            given = parts[0] if len(parts) == 1 else np.concatenate(parts, 1)
        np.equal(given, 1, out=self.allowed)
        zeros_and_ones = np.count_nonzero(given) == np.count_nonzero(self.allowed)
        possible = np.logical_or.reduceat(self.allowed, self._begins, axis=1)
        if idle is not None:
            self.allowed[idle] = True
        if self._unread or not zeros_and_ones or not possible.all():
            self._check(given, possible, np.zeros(len(given), np.bool_) if idle is None else idle)

    def _check(self, given: Array, possible: Array, idle: Array) -> None:
        for index, why in self._unread.items():
            if not idle[index]:
                raise WrongEntry(why, (index,))
        wrong = (given != 0) & (given != 1) & ~idle[:, None]
        if wrong.any():
            copy, place = map(int, np.argwhere(wrong)[0])
            raise WrongEntry(f"{given[copy, place]} at place {place} of the action mask; {_CURE}", (copy, place))
        none_left = ~possible & ~idle[:, None]
        if none_left.any():
            copy, axis = map(int, np.argwhere(none_left)[0])
            of_axis = f" of axis {axis}" if len(self._sizes) > 1 else ""
            raise WrongEntry(
                f"an action mask that forbids all {self._sizes[axis]} choices{of_axis}; expected at least one that is"
                " possible: end the episode where none is, or allow one that does nothing, as for agents out of turn",
                (copy, axis),
            )


def keys_of_mask(where: str, observation: Space) -> tuple[str, ...]:
    """The parts of an agent's observation that the mask `where` consists of, in their order."""
    return tuple(sorted((key for key in array_specs(observation) if f"{key}/".startswith(f"{where}/")), key=_in_order))


def _in_order_of_axes(shape: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    """Whether an array's numbers are the choices of one axis of the action after those of another."""
    long = [size for size in shape if size > 1]
    return len(sizes) == 1 or len(long) < 2 or set(sizes) == {long[-1]}


def _in_order(key: str) -> list[str]:
    """Sorts places in Tuples as the numbers that they are."""
    return [part.zfill(9) if part.isdecimal() else part for part in key.split("/")]


def observes_mask(observation: Space, action: Space) -> bool:
    """Whether an agent's observation seems to have a mask of its actions."""
    specs, keys = array_specs(observation), keys_of_mask(USUAL_MASK, observation)
    return bool(keys) and sum(math.prod(specs[key].shape) for key in keys) == sum(choices_of(action))


def mask_size(value: object) -> int:
    """How many numbers the mask of an info seems to have; 0 for what is none."""
    parts = cast("tuple[object, ...]", value) if isinstance(value, (tuple, list)) else (value,)
    arrays = [array for array in map(array_of, parts) if array is not None and array.dtype.kind in "biuf"]
    return sum(array.size for array in arrays) if len(arrays) == len(parts) else 0


def choices_of(action: Space) -> tuple[int, ...]:
    """How many choices each axis of an agent's actions has; none for actions that are no choices."""
    if isinstance(action, spaces.Discrete):
        return (int(action.n),)
    return tuple(map(int, action.nvec)) if isinstance(action, spaces.MultiDiscrete) else ()
