"""A policy with which a program acts: numpy arrays in, numpy arrays out, as its environment gives and takes them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from orchestrator.environments.observations import ObservationReader
from orchestrator.environments.returned import WrongReturn, exact
from orchestrator.environments.spaces import ActionConverter, Array, array_specs, arrays_of, of_key
from orchestrator.environments.values import ValueCheck
from orchestrator.policies.acting import PolicyFailed, undefined_text
from orchestrator.policies.distributions import masked
from orchestrator.policies.greedy_actor import greedy_actor, surely_finite
from orchestrator.policies.network import Observation, one_step
from state.error import OrchestratorError

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.checkpoints import Checkpoint
    from orchestrator.config.settings import TrainerConfig
    from orchestrator.environments.action_mask import ActionMask
    from orchestrator.environments.spaces import Space
    from orchestrator.policies import Policy

State = NDArray[np.float32]
"""Recurrent state `[S]` of one episode, or `[n, S]` of n episodes."""
_NOT_NEEDED = object()
_Inference = torch._C._InferenceMode  # pyright: ignore[reportPrivateUsage]
"""What torch.inference_mode enters; doing so by that takes as long as a layer of a small network."""
_CURE = "pass observations as the environment gives them, or a batch of them with one dimension in front"


class WrongObservation(OrchestratorError, ValueError):
    """What a policy was given is no observation of its space, or no state of its own; the message says what is."""


class LoadedPolicy:
    """A trained policy; made by `load_policy`.

    It never changes: each call depends on its arguments alone, so that threads may share it, and forked processes, in
    which it has torch compute with one thread. Without `deterministic`, actions are drawn with torch's global
    generator: see `torch.manual_seed`.
    """

    def __init__(
        self,
        policy: Policy,
        observation_space: Space,
        action_space: Space,
        config: TrainerConfig,
        checkpoint: Checkpoint,
        mask_of: Callable[[int], ActionMask] | None = None,
        *,
        name: str | None = None,
    ) -> None:
        self.name = name
        """The type of agents whose policy it is alone, where types have policies of their own."""
        self.observation_space = observation_space
        """The environment's own, which observations are of."""
        self.action_space = action_space
        """The environment's own, which actions are of."""
        self.config = config
        """The settings of the run."""
        self.checkpoint = checkpoint.path
        """Where the weights are from."""
        self.manifest = checkpoint.manifest
        """What the checkpoint says about itself: "epoch", "agent_step", ..."""
        self.metrics = checkpoint.metrics
        """Of the policy, by name; scores of evaluations among them, where there were some."""
        self.module = policy.eval().requires_grad_(False)
        """Normalization and network in torch, for the agent's form of observations and actions."""
        self._greedy = greedy_actor(self.module)
        self._reader = ObservationReader(observation_space, _unwarned, _CURE)
        self._values = ValueCheck(observation_space, _unwarned)
        self._to_environment = ActionConverter(action_space, squash=config.policy.box_actions == "squash")
        self._process = os.getpid()
        self._mask_of = mask_of
        self.masked = mask_of is not None
        """Whether it acts among actions that are allowed."""
        self.mask_keys = () if mask_of is None else mask_of(1).keys
        """The parts of observations, by the agent's keys, that say which; none where infos do."""
        self._keys = frozenset(array_specs(policy.spaces.observation))
        self._numbers_as_arrays = isinstance(action_space, spaces.Box) and not action_space.shape

    def __repr__(self) -> str:
        return (
            f"<LoadedPolicy of {self.checkpoint}: network {self.network!r}, observations"
            f" {self.observation_space}, actions {self.action_space}>"
        )

    @property
    def network(self) -> str:
        """What the settings call its network."""
        own = [one.network for one in self.config.policy.by_type if one.type == self.name]
        network = (own[0] if own else None) or self.config.policy.network
        return network if self.name is None else f"{network} of {self.name}"

    @property
    def recurrent(self) -> bool:
        """Whether it has memory: `act` and `value` then need the state."""
        return self.module.recurrent

    def initial_state(self, count: int | None = None) -> State:
        """The state `[S]` at the beginning of an episode, zeros; with `count`, `[count, S]`. Without memory, S is 0."""
        return np.zeros((self.module.state_size,) if count is None else (count, self.module.state_size), np.float32)

    @overload
    def act(
        self, observation: Any, *, deterministic: bool = True, state: None = None, action_mask: Any = None
    ) -> Any: ...
    @overload
    def act(
        self, observation: Any, *, deterministic: bool = True, state: State, action_mask: Any = None
    ) -> tuple[Any, State]: ...
    def act(
        self, observation: Any, *, deterministic: bool = True, state: State | None = None, action_mask: Any = None
    ) -> Any:
        """The action for an observation of `observation_space`, or the actions for a batch of n, whose arrays have the
        leading dimension n; for the environment, in `action_space`.

        `deterministic` takes the most likely action; otherwise it is drawn. With a `state`, which a policy with memory
        needs (that of `initial_state` at the beginning of an episode), action and next state are returned. An
        `action_mask` is needed where the environment gave it in its infos; of a batch, one for each.
        Raises WrongObservation, and PolicyFailed where the network's numbers make no distribution.
        """
        arrays, single, allowed = self._read(observation, action_mask)
        before = self._read_state(state, arrays, single)
        following = state
        chosen = self._greedy(arrays[""]) if self._greedy is not None and deterministic and allowed is None else None
        if chosen is None:
            with _Inference(True):
                if before is None:
                    parameters = self.module.action_parameters(_tensors(arrays))
                else:
                    start = torch.zeros(len(before), 1, dtype=torch.bool)
                    parameters, _, after = self.module(one_step(_tensors(arrays)), before, start)
                    parameters, following = parameters[:, 0], after.numpy().copy()
                    following = following[0] if single else following
                chosen = self._actions(masked(parameters, allowed), deterministic)
        action = self._to_environment(chosen)
        if single:
            action = action[0]
            if self._numbers_as_arrays:  # numpy's numbers are no members of a Box
                action = np.asarray(action)
        return action if following is None else (action, following)

    def value(self, observation: Any, *, state: State | None = None) -> Any:
        """The estimated return from an observation on, as training has discounted and scaled it: a float, or `[n]` for
        a batch. With memory, `state` is that before the observation. Raises WrongObservation."""
        arrays, single, _ = self._read(observation)
        before = self._read_state(state, arrays, single)
        with torch.inference_mode():
            values = self.module.value(_tensors(arrays), before).numpy().copy()
        return float(values[0]) if single else values

    def _read(self, observation: Any, action_mask: Any = _NOT_NEEDED) -> tuple[dict[str, Array], bool, Tensor | None]:
        """The observation as a batch of the agent's, by key, in memory that a network may change; whether it was a
        single one; and which actions are allowed."""
        if os.getpid() != self._process:
            self._enter_fork()
        allowed = None
        try:
            read, leading = self._reader.read_one_or_batch(observation)
            single = not leading
            arrays = arrays_of(read)
            if single:
                arrays = {key: array[None] for key, array in arrays.items()}
            if action_mask is not _NOT_NEEDED:
                allowed = self._allowed(arrays, [action_mask] if single and action_mask is not None else action_mask)
        except WrongReturn as error:
            raise WrongObservation(f"the policy was given {error}") from None
        copies: dict[str, Array] = {}
        for key, array in arrays.items():
            if key not in self._keys:
                continue
            copy = np.array(array, order="C")
            wrong = None if surely_finite(copy) else self._values.observation(key, copy)
            if wrong is not None:
                raise WrongObservation(
                    f"the policy was given {wrong.value} in the observation{of_key((key,) if key else ())}, expected"
                    f" {wrong.expected}"
                )
            copies[key] = copy
        return copies, single, allowed

    def _enter_fork(self) -> None:
        # The parent's threads do not exist here, and what they were to compute would be waited for without end.
        torch.set_num_threads(1)
        self._process = os.getpid()

    def _allowed(self, arrays: dict[str, Array], masks: Any) -> Tensor | None:
        """`[n, choices]`, None where there is no mask. Raises WrongReturn."""
        if self._mask_of is None:
            if masks is not None:
                why = "action_mask is not set in its settings"
                if self.config.action_mask is not None:
                    why = "agents of its type have none"
                raise WrongObservation(
                    f"the policy was given an action mask, but was trained without ({why}): leave it out"
                )
            return None
        count = len(next(iter(arrays.values())))
        mask = self._mask_of(count)
        if mask.keys and masks is not None:
            raise WrongObservation(
                f"the policy was given an action mask besides the one in the observation ({', '.join(mask.keys)}):"
                " leave it out"
            )
        if not mask.keys:
            try:
                given = 0 if masks is None else len(masks)
            except TypeError:  # a number
                given = 0
            if masks is None or given != count:
                found = "no action mask" if masks is None else f"{given} action masks for {count} observations"
                keys = "".join(f"[{key!r}]" for key in (mask.key_of_info or "").split("/"))
                raise WrongObservation(
                    f"the policy was given {found}, though it acts among the actions that the infos of its environment"
                    f" allow: pass action_mask=info{keys}, and for a batch one for each observation"
                )
            for index in range(count):
                mask.write(index, masks[index], {})
        mask.finish(arrays)
        return torch.from_numpy(mask.allowed)

    def _actions(self, parameters: Tensor, deterministic: bool) -> Array:
        """Of the agent's."""
        distribution = self.module.distribution
        if not surely_finite(parameters.numpy()):
            undefined = distribution.defined(parameters).logical_not().nonzero()
            if len(undefined):
                raise PolicyFailed(f"the policy gave {undefined_text(distribution, parameters[undefined[0, 0]])}", 0)
        if deterministic:
            action = distribution.mode(parameters)
        else:
            action = distribution.sample(parameters, distribution.noise((len(parameters),)))
        return action.numpy()

    def _read_state(self, state: State | None, arrays: dict[str, Array], single: bool) -> Tensor | None:
        size = self.module.state_size
        if state is None and not size:
            return None
        count = len(next(iter(arrays.values())))
        expected = (size,) if single else (count, size)
        if state is None:
            of = "" if single else f"{count}"
            raise WrongObservation(
                f"the policy has memory and was given no state: pass state=policy.initial_state({of}) at the"
                " beginning of an episode, and then the one that act() returned"
            )
        try:
            given = exact(state, expected, np.dtype(np.float32))
        except WrongReturn as error:
            raise WrongObservation(
                f"the policy was given a state that is {error}: pass that of initial_state(), or the one that act()"
                " returned"
            ) from None
        with np.errstate(over="ignore"):
            copy = np.array(given, np.float32, ndmin=2)
        if not np.isfinite(copy).all():
            raise WrongObservation(
                "the policy was given a state that is not finite: pass that of initial_state() at the beginning of an"
                " episode, or the one that act() returned"
            )
        return torch.from_numpy(copy) if size else None


def _tensors(arrays: dict[str, Array]) -> Observation:
    tensors = {key: torch.from_numpy(array) for key, array in arrays.items()}
    return tensors.get("", tensors)


def _unwarned(about: str, text: str) -> None:
    """What is converted without loss needs no word here."""
