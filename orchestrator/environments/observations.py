"""Observations on their way from an environment to its agent: checked against the space, and converted where that loses
nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np
from gymnasium import spaces

from orchestrator.environments.returned import Warn, WrongReturn, exact, narrow, narrowed
from orchestrator.environments.spaces import (
    Array,
    ObservationArrays,
    Path,
    Space,
    agent_dtype,
    agent_parts,
    inner_spaces,
    observation_of,
    of_key,
    start_of,
)

_CURE = "return what the environment's observation_space says, or correct the space"
_CURE_OF_UINT64 = (
    "agents get uint64 as int64, since torch has no type for more: return smaller numbers, or floats, or two halves of"
    " 32 bits"
)


class ObservationReader:
    """Reads an environment's own observations into those of `agent_observation_space`.

    What is not of the space raises WrongReturn, unless a conversion loses nothing: then there is one warning.
    """

    def __init__(self, space: Space, warn: Warn, cure: str = _CURE, of_part: Callable[[Path], str] = of_key) -> None:
        """`cure` ends the messages of errors, and `of_part` names a part of the observation in them."""
        parts = agent_parts(space)
        self.parts = {name: ObservationPart(leaf, warn, cure, of_part(path)) for name, (path, leaf) in parts.items()}
        self._only = self.parts.get("")
        names = {path: name for name, (path, _) in parts.items()}
        self._whole = _Branch(space, (), names, warn, cure, of_part)

    def values(self, observation: Any) -> Mapping[str, Any]:
        """The values of the parts of a Dict's or Tuple's observation, not checked yet, by the agent's keys."""
        values: dict[str, Any] = {}
        self._whole.take_apart(observation, values)
        return values

    def read(self, observation: Any, *leading: int) -> ObservationArrays:
        """An observation, or a batch of them with the dimensions `leading`, for the agent; may share its memory."""
        if self._only is not None:
            return self._only.read(observation, leading)
        values = self.values(observation)
        return observation_of({name: part.read(values[name], leading) for name, part in self.parts.items()})

    def read_one_or_batch(self, observation: Any) -> tuple[ObservationArrays, tuple[int, ...]]:
        """As `read`, and the dimensions that lead: none for one observation, `n` for a batch of `n`."""
        if self._only is not None:
            leading = self._only.leading(observation)
            return self._only.read(observation, leading), leading
        values = self.values(observation)
        name, first = next(iter(self.parts.items()))
        leading = first.leading(values[name])
        return observation_of({name: part.read(values[name], leading) for name, part in self.parts.items()}), leading


class _Branch:
    """A Dict or Tuple at `path` of an observation, whose leaves have the `names`."""

    def __init__(
        self,
        space: Space,
        path: Path,
        names: Mapping[Path, str],
        warn: Warn,
        cure: str,
        of_part: Callable[[Path], str],
    ) -> None:
        self._is_dict = isinstance(space, spaces.Dict)
        self._of_key = of_part(path)
        self._warn = warn
        self._cure = cure
        inner = dict(inner_spaces(space))
        self._keys = tuple(inner)
        below = {key: (*path, key) for key in self._keys}
        self._leaves = [(names[place], key) for key, place in below.items() if place in names]
        self._branches = [
            (_Branch(inner[key], place, names, warn, cure, of_part), key)
            for key, place in below.items()
            if place not in names
        ]

    def take_apart(self, given: Any, values: dict[str, Any]) -> None:
        """Add the values of all leaves to `values`, by their names. Raises WrongReturn."""
        self._check(given)
        for name, key in self._leaves:
            values[name] = given[key]
        for branch, key in self._branches:
            branch.take_apart(given[key], values)

    def _check(self, given: Any) -> None:
        kind = type(given).__name__
        if not self._is_dict:
            sequence = isinstance(given, (tuple, list, np.ndarray))
            if not sequence or len(cast("Sequence[Any]", given)) != len(self._keys):
                found = f"a {kind} of {len(cast('Sequence[Any]', given))}" if sequence else f"a {kind}"
                raise WrongReturn(
                    f"{found} as the observation{self._of_key}, expected a tuple of {len(self._keys)}; {self._cure}"
                )
            return
        if not isinstance(given, Mapping):
            raise WrongReturn(f"a {kind} as the observation{self._of_key}, expected a dict; {self._cure}")
        mapping = cast("Mapping[Any, Any]", given)
        missing = [key for key in self._keys if key not in mapping]
        if missing:
            raise WrongReturn(
                f"an observation without the keys {missing}{self._of_key}, which its space has; {self._cure}"
            )
        if len(mapping) > len(self._keys):
            more = [key for key in mapping if key not in self._keys]
            self._warn(
                f"observation keys{self._of_key}",
                f"returns observations with the keys {more}{self._of_key}, which its space lacks",
            )


class ObservationPart:
    """One array of an observation, which messages call that `of_part`, or all of it where the space has no parts."""

    def __init__(self, space: Space, warn: Warn, cure: str, of_part: str) -> None:
        self.shape = tuple(space.shape or ())
        self.dtype = np.dtype(agent_dtype(space))
        start = start_of(space)
        # In uint64, the difference to a start beyond 63 bits is right where both wrap around in int64.
        self.start = None if start is None else np.asarray(start).astype(np.int64)
        self._read_as = np.dtype(np.uint64) if start is not None and space.dtype == np.uint64 else self.dtype
        self._cure = _CURE_OF_UINT64 if space.dtype == np.uint64 and start is None else cure
        self._of_key = of_part
        self.about = f"the observation{self._of_key}"
        self._warn = warn
        own = np.dtype(space.dtype)
        # What can be assigned to an array of the agent's without another look.
        self.accepted = {self.dtype} | ({own} if np.can_cast(own, self.dtype, "same_kind") else set())
        if own == np.uint64:
            self.accepted = {self.dtype}
        box = isinstance(space, spaces.Box)
        self._expected = {*self.accepted, own} if box else None
        self.numbers: set[type] = set() if box else {int, np.int64}
        """As `accepted`, types of scalars, where the shape is ()."""
        self._seen: set[type] = set()

    def read(self, value: Any, leading: tuple[int, ...] = ()) -> Array:
        usual = type(value) is np.ndarray and value.dtype in self.accepted and value.shape == (*leading, *self.shape)
        array = narrowed(value if usual else self.convert(value, leading), self.dtype, self.about)
        return array if self.start is None else self.from_start(array)

    def leading(self, value: Any) -> tuple[int, ...]:
        """The dimensions before those of one observation, at most one. Raises WrongReturn for more."""
        try:
            shape: tuple[int, ...] = value.shape if type(value) is np.ndarray else np.shape(value)
        except (ValueError, TypeError, RuntimeError):
            return ()  # it is no array, as reading it will say
        more = len(shape) - len(self.shape)
        if more > 1:
            raise WrongReturn(
                f"as {self.about} an array of shape {list(shape)}, expected {list(self.shape)}, or a batch of those"
                f" [n{''.join(f', {size}' for size in self.shape)}]; {self._cure}"
            )
        return shape[:1] if more == 1 else ()

    def from_start(self, array: Array) -> Array:
        """Choices with the environment's own start as the agent's, which begin at 0."""
        assert self.start is not None
        return np.subtract(array, self.start, dtype=np.int64)

    def convert(self, value: Any, leading: tuple[int, ...] = ()) -> Array:
        """`value` `[*leading, *shape]` in the agent's dtype, or in floats of more digits, still with its own start.

        Raises WrongReturn.
        """
        try:
            array = exact(value, (*leading, *self.shape), self._read_as)
        except WrongReturn as error:
            raise WrongReturn(f"as {self.about} {error}; {self._cure}") from None
        self._look_at(value)
        return array if array.dtype.kind == "f" else array.astype(self.dtype, copy=False)

    def _look_at(self, value: Any) -> None:
        """Remember what needs no further look, and warn of what is converted."""
        known = isinstance(value, (np.ndarray, np.generic))
        if not known and type(value) in self._seen:
            return
        self._seen.add(type(value))
        dtype = np.asarray(value).dtype
        if known and (self.dtype.kind == "f" or np.can_cast(dtype, self.dtype)):
            self.accepted.add(dtype)
            if isinstance(value, np.generic):
                self.numbers.add(type(value))
        # Any integer says a choice.
        usual = known or type(value) is int if self._expected is None else known and dtype in self._expected
        if not usual:
            given = f"{dtype}" if known else f"a {type(value).__name__} of {dtype}"
            self._warn(
                f"observation{self._of_key}",
                f"returns the observation{self._of_key} as {given}, which is converted to {self.dtype} at every step;"
                f" {self._cure}",
            )


def _masked(value: Any) -> bool:
    """Whether numbers may be missing in it: its memory has something in their places."""
    return type(value) is not np.ndarray and isinstance(value, np.ma.MaskedArray)


class ObservationRows:
    """A batch of observations that is written copy by copy; `observation` has them after `finish`."""

    def __init__(self, reader: ObservationReader, count: int) -> None:
        self._reader = reader
        self._rows = {name: _Rows(part, count) for name, part in reader.parts.items()}
        self._only = self._rows.get("")
        self.observation = observation_of({name: rows.array for name, rows in self._rows.items()})

    def write(self, index: int, observation: Any) -> None:
        """Copy the `observation` of the copy `index`. Raises WrongReturn."""
        if self._only is not None:
            self._only.write(index, observation)
            return
        values = self._reader.values(observation)
        for name, rows in self._rows.items():
            rows.write(index, values[name])

    def copy_row(self, index: int, source: ObservationRows) -> None:
        for name, rows in self._rows.items():
            rows.copy_row(index, source._rows[name])

    def finish(self) -> None:
        """Raises OutOfRange, with the copy as the first place."""
        for rows in self._rows.values():
            rows.finish()


class _Rows:
    def __init__(self, part: ObservationPart, count: int) -> None:
        self.array = np.zeros((count, *part.shape), part.dtype)
        self._part = part
        self._write_to(self.array)
        for dtype in part.accepted:
            self._widen(dtype)

    def _write_to(self, given: Array) -> None:
        self._given = given
        # Assigning to a memoryview checks shape and dtype, and still takes half the time of assigning to an array; it
        # only knows vectors.
        vectors = len(self._part.shape) == 1 and self._part.start is None and given.size > 0
        self._views = [memoryview(row) for row in given] if vectors else None

    def _widen(self, dtype: np.dtype[Any]) -> bool:
        """Whether rows are from now on written with more digits, since they come so: rounding all at once is cheaper,
        and tells what is out of range."""
        if dtype.kind != "f" or self.array.dtype.kind != "f" or np.can_cast(dtype, self._given.dtype):
            return False
        self._write_to(self._given.astype(dtype))
        return True

    def write(self, index: int, value: Any) -> None:
        if self._views is not None and not _masked(value):
            try:
                self._views[index][:] = value
            except (ValueError, TypeError):
                array = self._part.convert(value)
                if not self._widen(array.dtype):
                    self._views = None  # an exception at every step would cost more than a look at its dtype
                self._given[index] = array
            return
        part = self._part
        fits = (
            value.shape == part.shape and value.dtype in part.accepted
            if type(value) is np.ndarray
            else not part.shape and type(value) in part.numbers
        )
        if not fits:
            value = part.convert(value)
            self._widen(value.dtype)
        self._given[index] = value
        if part.start is not None:
            self._given[index] = part.from_start(self._given[index])

    def copy_row(self, index: int, source: _Rows) -> None:
        if source._given.dtype != self._given.dtype:
            self._widen(source._given.dtype)
        self._given[index] = source._given[index]

    def finish(self) -> None:
        if self._given is not self.array:
            narrow(self._given, self.array, self._part.about)
