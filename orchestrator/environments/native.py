"""Environments that step all their copies themselves, through gymnasium's vector interface."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, ClassVar, cast

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv

from orchestrator.environments.action_mask import USUAL_MASK
from orchestrator.environments.adaptation import NO_ADAPTATION, Adaptation
from orchestrator.environments.agents import SINGLE_AGENT
from orchestrator.environments.capture import EnvironmentState
from orchestrator.environments.envpool import EnvPoolVector
from orchestrator.environments.observations import ObservationReader
from orchestrator.environments.returned import (
    WrongEntry,
    WrongReturn,
    check_info,
    described_value,
    flags_of,
    reset_parts,
    rewards_of,
    step_parts,
)
from orchestrator.environments.space_seeds import SpaceSeeds
from orchestrator.environments.spaces import (
    ActionConverter,
    Array,
    InvalidEnvironment,
    ObservationArrays,
    arrays_of,
    observation_of,
)
from orchestrator.environments.vector import LOGS, EnvironmentFailed, Step, VectorEnvironment
from state.stats_tracker import accumulate_rollout_stats
from state.user_code import described, is_signal, user_code

_IN_HALVES = (
    ("ale_py.vector_env", "AtariVectorEnv", "send", "recv"),
    ("gymnasium.vector.async_vector_env", "AsyncVectorEnv", "step_async", "step_wait"),
    (EnvPoolVector.__module__, EnvPoolVector.__name__, "send", "recv"),
)
"""Vector environments whose processes or threads step by themselves: module, class, methods that begin and end it."""


class NativeEnvironment(VectorEnvironment):
    """Adapts any gymnasium `VectorEnv` that resets its copies in the same or in the next step.

    One that has `agents`, a tuple of names of the agents of a game, gives each of them a row: `num_envs` counts rows.

    Raises InvalidEnvironment for one that leaves the resets to its caller or does not say what it does.
    """

    native: ClassVar[bool] = True

    def __init__(
        self, name: str, environment: VectorEnv[Any, Any, Any], adaptation: Adaptation = NO_ADAPTATION
    ) -> None:
        agents = agents_of(environment)
        super().__init__(
            name,
            operator.index(environment.num_envs) // len(agents),
            environment.single_observation_space,
            environment.single_action_space,
            adaptation,
            agents,
        )
        self.metadata = environment.metadata
        """As gymnasium knows it."""
        self._same_step = resets_in_same_step(name, environment)
        self._environment = environment
        self._begin_step, self._end_step = halves_of_step(environment)
        self._stepping = False
        self._state = EnvironmentState([environment])
        self._space_seeds = SpaceSeeds([environment])
        self._to_environment = ActionConverter(environment.single_action_space, squash=adaptation.squash)
        self._reader = ObservationReader(environment.single_observation_space, self.warn)
        self._all_valid = np.ones(self.count, np.bool_)
        self._resetting: Array | None = None

    def reset(self, seed: int | None = None) -> ObservationArrays:
        if seed is not None and self.seeded_from:
            seed = self._seeds_of_copies(seed)[0]
        if seed is not None and self._space_seeds.seed([seed], seed):
            self._state = EnvironmentState([self._environment])  # to which these seeds are no change
        try:
            raw, infos = reset_parts(self._environment.reset(seed=seed))
            observation = self._reader.read(raw, self.count)
            if self._mask is None and USUAL_MASK in infos:
                with suppress(WrongReturn):
                    self._hint_at_mask(_row_at(infos, USUAL_MASK, 0, self.count))
            self._read_mask(observation, infos, None)
        except BaseException as error:
            if is_signal(error):
                raise
            raise self._failed("reset", error) from error
        self._set_resetting(None)
        return self._without_mask(observation)

    def step(self, actions: Array) -> Step:
        self.send(actions)
        return self.recv()

    def send(self, actions: Array, group: int = 0) -> None:
        self._steps += 1
        self._check_allowed(actions)
        try:
            self._begin_step(self._to_environment(actions))
            self._stepping = True
        except BaseException as error:
            if is_signal(error):
                raise
            raise self._failed("step", error) from error

    def recv(self, group: int = 0) -> Step:
        self._stepping = False
        try:
            raw, gain, done, cut, infos = step_parts(self._end_step())
            observation = self._reader.read(raw, self.count)
            reward = rewards_of(gain, self.count, self.warn)
            terminated = flags_of("terminated", done, self.count, self.warn)
            truncated = flags_of("truncated", cut, self.count, self.warn)
            check_info(infos)
        except BaseException as error:
            if is_signal(error):
                raise
            raise self._failed("step", error) from error
        valid = self._all_valid
        if self._resetting is not None:
            # The call only reset these copies. Most environments report nothing for them; make sure.
            valid = ~self._resetting
            reward = np.where(valid, reward, np.float32(0.0))
            terminated = terminated & valid
            truncated = truncated & valid
        ended = terminated | truncated
        any_ended = np.count_nonzero(ended) > 0
        final_observation: ObservationArrays | None = None
        stats: dict[str, list[float]] = {}
        try:
            if any_ended:
                if self._same_step:
                    final_observation = self._final_observation(raw, infos, observation, ended)
                elif infos.get("final_obs") is not None:
                    self.warn(
                        "autoreset",
                        f"says in its metadata that it resets in the next step ({AutoresetMode.NEXT_STEP}), but gives"
                        " 'final_obs', as those do that reset in the step that ends an episode: the first steps of its"
                        f" episodes are then lost; correct metadata['autoreset_mode'] ({AutoresetMode.SAME_STEP})",
                    )
                accumulate_rollout_stats(self._episode_infos(infos, ended), stats)
            accumulate_rollout_stats(infos.get(LOGS, ()), stats)
            if not self._same_step:
                self._set_resetting(ended if any_ended else None)
            self._read_mask(observation, infos, self._resetting)
            if self._fields:
                self._read_fields(infos, valid, ended)
                self._finish_fields()
        except WrongReturn as error:
            raise self._failed("step", error) from error
        return Step(
            self._without_mask(observation),
            reward,
            terminated,
            truncated,
            valid,
            final_observation,
            stats,
            self._fields,
            None if self.agents == SINGLE_AGENT else np.all(ended.reshape(self.games, -1), axis=1),
        )

    def render(self) -> object:
        """A picture of the first copy, where its `render_mode` is "rgb_array"."""
        with user_code(f"render of environment {self.name!r}"):
            pictures = self._environment.render()
        return pictures[0] if isinstance(pictures, (tuple, list)) and pictures else pictures

    def get_state(self) -> dict[str, object]:
        resetting = None if self._resetting is None else self._resetting.copy()
        return self._state.capture() | {"resetting": resetting}

    def set_state(self, state: Mapping[str, object]) -> None:
        self._state.restore(state)
        self._set_resetting(cast("Array | None", state["resetting"]))

    def close(self) -> None:
        if self._stepping:  # that nobody waits for, since another group has failed
            self._stepping = False
            with suppress(Exception):
                self._end_step()
        with user_code(f"close of environment {self.name!r}"):
            self._environment.close()

    def _set_resetting(self, copies: Array | None) -> None:
        """Which copies the next step only resets (None: none)."""
        self._resetting = copies
        self.idle[...] = False if copies is None else copies

    def _final_observation(
        self, raw: Any, infos: Mapping[str, Any], observation: ObservationArrays, ended: Array
    ) -> ObservationArrays:
        """Of the episodes that `ended`; `raw` are the observations as they were given. Raises WrongReturn."""
        given: Any = infos.get("final_obs")
        if given is None:
            raise EnvironmentFailed(
                f"environment {self.name!r} resets in the step that ends an episode, so its infos must hold the"
                f" episode's last observation as 'final_obs'; they hold {sorted(map(str, infos))}"
            )
        check_final_memory(given, raw)
        finals = {key: array.copy() for key, array in arrays_of(observation).items()}
        for index in np.flatnonzero(ended):
            try:
                final = self._reader.read(entry_of(given, int(index)))
            except (IndexError, TypeError, KeyError):
                raise WrongReturn(
                    f"{described_value(given)} as the final_obs of its infos, expected those of its {self.count} copies"
                ) from None
            except WrongReturn as error:
                whose = self.row_name(int(index))
                raise EnvironmentFailed(
                    f"environment {self.name!r}: step {self._steps} gave the final_obs of {whose} {error}"
                ) from error
            for key, array in arrays_of(final).items():
                finals[key][index] = array
        return self._without_mask(observation_of(finals))

    def _read_mask(self, observation: ObservationArrays, infos: Mapping[str, Any], idle: Array | None) -> None:
        """Copies that are `idle` are only reset in the next step. Raises WrongReturn."""
        mask = self._mask
        if mask is None:
            return
        if mask.key_of_info is not None:
            for index in range(self.count):
                mask.write(index, _row_at(infos, mask.key_of_info, index, self.count), infos)
        mask.finish(arrays_of(observation), idle)

    def _last_infos(self, infos: Mapping[str, Any]) -> Mapping[str, Any]:
        """The infos that belong to the last step of the episodes that ended in it."""
        return final_infos(infos) if self._same_step else infos

    def _episode_infos(self, infos: Mapping[str, Any], ended: Array) -> list[Mapping[str, object]]:
        last = self._last_infos(infos)
        return (
            [info_of(last, int(index), self.count, self._left_out) for index in np.flatnonzero(ended)] if last else []
        )

    def _left_out(self, why: str) -> None:
        self.warn("infos", f"gives {why}; it is left out of the statistics")

    def _read_fields(self, infos: Mapping[str, Any], valid: Array, ended: Array) -> None:
        for name, array in self._given_fields.items():
            array.fill(0)
            for index in np.flatnonzero(valid):
                given = self._last_infos(infos) if ended[index] else infos
                array[index] = self._field(name, _row_at(given, name, int(index), self.count), given)

    def _failed(self, what: str, error: BaseException) -> EnvironmentFailed:
        when = f" {self._steps}" if what == "step" else f" after step {self._steps}" if self._steps else ""
        came = f"returned {error}" if isinstance(error, WrongReturn) else f"failed with {described(error)}"
        wrong = isinstance(error, WrongEntry)
        copies = f"{self.row_name(error.place[0])} of {self.copies_of_run}" if wrong else self.copies_name()
        return EnvironmentFailed(f"environment {self.name!r}: {what}{when} of {copies} {came}")


def halves_of_step(environment: VectorEnv[Any, Any, Any]) -> tuple[Callable[[Any], object], Callable[[], Any]]:
    """What begins a step with the actions, and what waits for it and returns what it gave. In between, processes or
    threads step where the environment has such; others step at once."""
    for module, kind, begin, end in _IN_HALVES:
        # A wrapper, or a class that is derived from it, may have another step.
        if (type(environment).__module__, type(environment).__name__) == (module, kind):
            return getattr(environment, begin), getattr(environment, end)
    steps: list[Any] = []
    return (lambda actions: steps.append(environment.step(actions))), steps.pop


def agents_of(environment: VectorEnv[Any, Any, Any]) -> tuple[str, ...]:
    """The agents of one game of a vector environment, as `VectorEnvironment` has them."""
    agents: object = getattr(environment, "agents", None)
    if isinstance(agents, tuple) and agents and all(isinstance(one, str) for one in cast("tuple[object, ...]", agents)):
        return cast("tuple[str, ...]", agents)
    return SINGLE_AGENT  # what else it has as `agents` means something else


def resets_in_same_step(name: str, environment: VectorEnv[Any, Any, Any]) -> bool:
    """Whether the vector environment `name` resets a copy in the step that ends its episode; else in the next one.

    Raises InvalidEnvironment for one that leaves the resets to its caller or does not say what it does.
    """
    autoreset = (environment.metadata or {}).get("autoreset_mode")
    if autoreset not in (AutoresetMode.SAME_STEP, AutoresetMode.NEXT_STEP):
        raise InvalidEnvironment(
            f"the vector environment {name!r} has metadata['autoreset_mode'] = {autoreset!r}; supported are"
            f" {AutoresetMode.SAME_STEP} and {AutoresetMode.NEXT_STEP}: make it with one of them (SyncVectorEnv and"
            " AsyncVectorEnv take autoreset_mode, gymnasium.make_vec takes vector_kwargs), declare in the metadata of"
            " a class of your own what it does, or set the mode 'sync' for an environment that is registered"
        )
    return autoreset is AutoresetMode.SAME_STEP


def entry_of(batch: Any, index: int) -> Any:
    """The observation of the copy `index` in a batch of them, in which Dicts and Tuples may hold the batch's arrays."""
    if isinstance(batch, Mapping):
        return {key: entry_of(part, index) for key, part in cast("Mapping[Any, Any]", batch).items()}
    return tuple(entry_of(part, index) for part in batch) if isinstance(batch, tuple) else batch[index]


def final_infos(infos: Mapping[str, Any]) -> Mapping[str, Any]:
    """Those of the last step of the episodes that ended in it, where that begins the next ones. Raises WrongReturn."""
    last = infos.get("final_info")
    if last is not None and not isinstance(last, Mapping):
        raise WrongReturn(
            f"{described_value(last)} as 'final_info' of the infos, expected a dict of arrays, which have a value"
            " for each copy"
        )
    return cast("Mapping[str, Any] | None", last) or {}


def check_final_memory(final: Any, observation: Any) -> None:
    """Raises WrongReturn for last observations of episodes in the memory of those after the reset."""
    if _share_memory(final, observation):
        raise WrongReturn(
            "a final_obs in the memory of its observations, where the first ones of the next episodes have overwritten"
            " it; copy it before the reset"
        )


def _share_memory(one: Any, other: Any) -> bool:
    """Whether observations, or parts of them, are arrays in the same memory."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return any(_share_memory(one[key], other[key]) for key in one.keys() & other.keys())
    if isinstance(one, tuple) and isinstance(other, tuple):
        return any(map(_share_memory, one, other))
    return isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and np.shares_memory(one, other)


def info_of(
    infos: Mapping[str, Any],
    index: int,
    count: int,
    left_out: Callable[[str], object] = len,
    around: tuple[object, ...] = (),
) -> dict[str, object]:
    """The info of the copy `index` of `count` out of gymnasium's batched infos: "_key" tells which copies gave "key".

    What has no value for each copy is left out, which `left_out` is told, as is what contains itself (`around` are
    the infos that these are in).
    """
    row: dict[str, object] = {}
    within = (*around, infos)
    for key in infos:
        try:
            value = None if str(key).startswith("_") else _given(infos, key, index, count)
            if isinstance(value, Mapping):
                inner = cast("Mapping[str, Any]", value)
                if any(inner is one for one in within):
                    raise WrongReturn(f"infos that contain themselves, as {key!r}")
                row[key] = info_of(inner, index, count, left_out, within)
            elif value is not None:
                row[key] = _entry(key, value, index, count)
        except WrongReturn as error:
            left_out(str(error))
    return row


def _row_at(infos: Mapping[str, Any], name: str, index: int, count: int) -> Any:
    """What `info_of` would have as `name` ("a/b" is "b" in "a"); None without it. Raises WrongReturn."""
    value: Any = infos
    for key in name.split("/"):
        value = _given(value, key, index, count) if isinstance(value, Mapping) else None
    return None if value is None or isinstance(value, Mapping) else _entry(name, value, index, count)


def _given(infos: Mapping[str, Any], key: str, index: int, count: int) -> Any:
    mask = infos.get(f"_{key}")
    return infos.get(key) if mask is None or _entry(f"_{key}", mask, index, count) else None


def _entry(key: object, values: Any, index: int, count: int) -> Any:
    try:
        if len(values) == count:
            return values[index]
    except (TypeError, KeyError, IndexError):
        pass
    raise WrongReturn(
        f"{described_value(values)} as {key!r} of the infos, expected an array with a value for each of its {count}"
        " copies"
    )
