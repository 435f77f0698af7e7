"""The policy: a network, the distribution of actions it parameterises, and the normalization around it."""

from __future__ import annotations

import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
from torch import Tensor, nn

from losses.minibatch import PolicyEvaluation
from orchestrator.config.paths import PATH
from orchestrator.policies.by_type import NetworksByType, OwnRows, in_order, policy_of, rows_of
from orchestrator.policies.distributions import distribution_for, masked
from orchestrator.policies.network import NetworkError, Observation, SeparateNetwork, Spaces, one_step
from orchestrator.policies.network_factory import check_network, make_network, outputs_without_gradient
from orchestrator.policies.normalization import ObservationNormalizer, RewardNormalizer
from orchestrator.policies.tokens import TokenEncoder
from state.frozen_mapping import FrozenMapping

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping, Sequence

    from losses import Loss
    from orchestrator.config.settings import PolicyConfig

_T = TypeVar("_T")

# Initial weights come from torch's global generator: two threads must not seed and draw from it at the same time.
_global_generator = threading.Lock()


class Policy(nn.Module):
    """What acts and what learns; for a network with memory (`recurrent`), observations have a time axis too.

    What a network returns in another floating-point type becomes float32, the type of everything around it.
    """

    def __init__(
        self,
        spaces: Spaces,
        network: nn.Module,
        *,
        normalize_observations: bool = False,
        normalize_rewards: bool = False,
        discount: float = 0.99,
    ) -> None:
        super().__init__()
        self.spaces = spaces
        self.distribution = distribution_for(spaces.action)
        self.network = network
        self.state_size = int(getattr(network, "state_size", None) or 0)
        """Numbers of recurrent state; 0 for a network without memory."""
        self.recurrent = self.state_size > 0
        self.separate = not self.recurrent and isinstance(network, SeparateNetwork)
        """Whether `action_parameters` and `value` each cost less than `forward`."""
        self.observation_normalizer = ObservationNormalizer(spaces.observation) if normalize_observations else None
        self.names = network.names if isinstance(network, NetworksByType) else ()
        """Of the policies, where types of agents have their own."""
        self.reward_normalizer = (
            RewardNormalizer(discount, policies=max(1, len(self.names))) if normalize_rewards else None
        )

    def forward(
        self,
        observation: Observation,
        state: Tensor | None = None,
        episode_start: Tensor | None = None,
        rows: OwnRows | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Action parameters, values, and the next recurrent state (None without memory).

        Without memory: observations `[n, ...]` to `[n, P]` and `[n]`. With: observations `[n, time, ...]`, the state
        before the first step `[n, state_size]` (None: 0) and `episode_start` `[n, time]` (None: nowhere), where the
        state is 0 before the step, to `[n, time, P]`, `[n, time]` and the state after the last step. `rows` are those
        of `own_rows`, where they are known.
        """
        observation = self._normalized(observation)
        known: Any = {} if rows is None else {"rows": rows}
        if not self.recurrent:
            parameters, value = self.network(observation, **known)
            return parameters.float(), _without_last_axis(value, parameters).float(), None
        some = observation if isinstance(observation, Tensor) else next(iter(observation.values()))
        if state is None:
            state = torch.zeros(len(some), self.state_size, device=some.device)
        if episode_start is None:
            episode_start = torch.zeros(some.shape[:2], dtype=torch.bool, device=some.device)
        parameters, value, following = self.network(observation, state, episode_start, **known)
        return parameters.float(), _without_last_axis(value, parameters).float(), following.float()

    @contextmanager
    def fixed(self) -> Generator[None]:
        """While the weights stay the same and nothing has gradients: what depends on them alone is computed once. Use
        within `torch.inference_mode()` or `torch.no_grad()`."""
        with ExitStack() as stack:
            for module in self.modules():
                if isinstance(module, TokenEncoder):
                    stack.enter_context(module.fixed())
            yield

    def own_rows(self, observation: Observation) -> OwnRows | None:
        """Which rows are whose, where types of agents have policies of their own: the same at every step. None where
        all agents have one."""
        return self.network.own_rows(observation) if isinstance(self.network, NetworksByType) else None

    def parts(self, counts: Sequence[int]) -> Mapping[str, slice]:
        """The rows of each policy by its name, so many one after another."""
        return FrozenMapping(dict(zip(self.names, in_order(counts), strict=False)))

    def policies_of(self, observation: Observation) -> Tensor | None:
        """`[n]`: the place of each row's policy among the names, of observations `[n, ...]` or `[n, time, ...]`. None
        where all agents have one."""
        return policy_of(observation) if self.names else None

    def rows_of_policies(self, observation: Observation) -> Mapping[str, Tensor]:
        """The rows of each policy by its name, empty where all agents have one."""
        policy = self.policies_of(observation)
        return {} if policy is None else dict(zip(self.names, rows_of(policy, len(self.names)), strict=True))

    def action_parameters(self, observation: Observation, rows: OwnRows | None = None) -> Tensor:
        """`[n, P]` for observations `[n, ...]`, of a network without memory; the hot loop of acting."""
        if self.separate:
            known: Any = {} if rows is None else {"rows": rows}
            # Not as an attribute of the module: looking one up so takes half as long as a small operation.
            network = cast("SeparateNetwork", self._modules["network"])
            return network.action_parameters(self._normalized(observation), **known).float()
        return self.forward(observation, rows=rows)[0]

    def value(self, observation: Observation, state: Tensor | None = None) -> Tensor:
        """`[n]` for observations `[n, ...]` within an episode, after which `state` `[n, state_size]` came (None: for a
        network without memory)."""
        if state is not None:
            no_start = torch.zeros(len(state), 1, dtype=torch.bool, device=state.device)
            return self.forward(one_step(observation), state, no_start)[1][:, 0]
        if not self.separate:
            return self.forward(observation)[1]
        value = cast("SeparateNetwork", self.network).value(self._normalized(observation))
        return (value.squeeze(-1) if value.dim() > 1 else value).float()

    def evaluate(
        self,
        observation: Observation,
        action: Tensor,
        state: Tensor | None = None,
        episode_start: Tensor | None = None,
        valid: Tensor | None = None,
        action_mask: Tensor | None = None,
        counts: Sequence[int] = (),
    ) -> PolicyEvaluation:
        """The policy on recorded steps, with gradients: `[n, ...]`, or whole segments `[n, horizon, ...]`.

        A policy with memory needs segments, the `state` `[n, state_size]` that each began with and `episode_start`
        `[n, horizon]`. Where `valid` is False (None: nowhere), action parameters are 0 and have no gradient; where
        the `action_mask` `[..., P]` is (None: nowhere), they forbid a choice. `counts` are those of the `n` that are of
        each policy, where types of agents have their own and the rows of each follow one another.
        """
        parameters, value, _ = self._evaluate(observation, action, state, episode_start, valid, action_mask, counts)
        log_prob, entropy = self.distribution.log_prob_and_entropy(parameters, action)
        return PolicyEvaluation(log_prob=log_prob, entropy=entropy, value=value, action_parameters=parameters)

    def log_prob_and_value(
        self,
        observation: Observation,
        action: Tensor,
        state: Tensor | None = None,
        episode_start: Tensor | None = None,
        valid: Tensor | None = None,
        action_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The part of `evaluate` that experience records, and the state after the last step (None without memory)."""
        parameters, value, following = self._evaluate(observation, action, state, episode_start, valid, action_mask)
        return self.distribution.log_prob(parameters, action), value, following

    def observation_summary(self, observation: Observation, valid: Tensor | None = None) -> Tensor:
        """What `merge_observations` adds of the observations `[segments, horizon, ...]` of a batch: `[n]`, empty where
        none are normalized. Steps where `valid` is False are left out."""
        if self.observation_normalizer is None:
            return torch.zeros(0)
        own: dict[str, Tensor] = {}
        if isinstance(self.network, NetworksByType):
            own = self.network.observed_by(cast("dict[str, Tensor]", observation))
        return self.observation_normalizer.summary(observation, valid, own)

    def merge_observations(self, summary: Tensor) -> None:
        """Add the observations of a summary to the statistics.

        Called after learning from a batch, so that acting and learning see the same statistics. (Rewards are added by
        `reward_normalizer`.)
        """
        if self.observation_normalizer is not None:
            self.observation_normalizer.merge(summary)

    def _evaluate(
        self,
        observation: Observation,
        action: Tensor,
        state: Tensor | None,
        episode_start: Tensor | None,
        valid: Tensor | None,
        action_mask: Tensor | None,
        counts: Sequence[int] = (),
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        segments = action.dim() - len(self.distribution.action_shape) > 1
        each = action.shape[1] if segments and not self.recurrent else 1
        rows = OwnRows.in_order(counts, each) if counts else None
        if self.recurrent or not segments:
            parameters, value, following = self.forward(observation, state, episode_start, rows)
        else:
            if isinstance(observation, Tensor):
                steps: Observation = observation.flatten(0, 1)
            else:
                steps = {key: part.flatten(0, 1) for key, part in observation.items()}
            parameters, value, following = self.forward(steps, rows=rows)
            parameters, value = (tensor.unflatten(0, action.shape[:2]) for tensor in (parameters, value))
        parameters = masked(parameters, action_mask)
        if valid is not None:
            # At the end of an episode a network may forbid every action, and the NaN of that would spread.
            parameters = torch.where(valid.unsqueeze(-1), parameters, 0.0)
        return parameters, value, following

    def _normalized(self, observation: Observation) -> Observation:
        normalizer = cast("ObservationNormalizer | None", self._modules.get("observation_normalizer"))
        return observation if normalizer is None else normalizer.forward(observation)


def build_policy(config: PolicyConfig, spaces: Spaces, seed: int, discount: float = 0.99) -> Policy:
    """The policy that `config` describes; its weights depend on `seed` only, and no generator is disturbed.

    Raises NetworkError where the network is unknown, cannot be imported or made, or does not fit the spaces, and
    ValueError where the spaces are not supported.
    """

    def checked_network() -> nn.Module:
        network = make_network(config, spaces)
        check_network(network, spaces, config.network)  # also with the seed: lazy modules draw their weights in it
        return network

    network = with_seed(seed, checked_network)
    return Policy(
        spaces,
        network,
        normalize_observations=config.normalize_observations,
        normalize_rewards=config.normalize_rewards,
        discount=discount,
    )


def check_gradients(policy: Policy, losses: Iterable[Loss], name: str) -> None:
    """Raises NetworkError where a loss learns what its network `name` gives without a gradient."""
    losses = tuple(losses)
    parts = [(name, policy.network, policy.spaces, losses)]
    network = policy.network
    if isinstance(network, NetworksByType):
        parts = [
            (f"{name} of {of}", network.network_of(place), spaces, [x for x in losses if x.of_policy in (None, of)])
            for place, (of, spaces) in enumerate(zip(network.names, network.spaces, strict=True))
        ]
    for part, network, spaces, own in parts:
        missing = with_seed(0, partial(outputs_without_gradient, network, spaces))  # dropout draws
        check_outputs(missing, own, part)


def check_outputs(missing: Sequence[str], losses: Iterable[Loss], name: str, when: str = "") -> None:
    """Raises NetworkError where a loss learns one of the outputs of the network `name` that are `missing` a gradient:
    "action parameters", "value"."""
    for loss in losses:
        for output, needed in (("action parameters", loss.policy_gradient), ("value", loss.value_gradient)):
            if needed and output in missing:
                raise NetworkError(
                    f"the {output} that the network {name!r} returns have no gradient{when}, so that the loss"
                    f" {loss.name!r} would learn nothing: compute them without detach() or no_grad(), from the"
                    f" network's parameters, or leave the loss out ({PATH.losses.names})"
                )


def with_seed(seed: int, make: Callable[[], _T]) -> _T:
    with _global_generator, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return make()


def _without_last_axis(value: Tensor, parameters: Tensor) -> Tensor:
    return value.squeeze(-1) if value.dim() == parameters.dim() else value
