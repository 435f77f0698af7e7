"""The policy on the rows of a minibatch, with gradients: what losses are computed from. In the precision that the
settings ask for, and tried out before the run begins where that may fail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from losses import Rows
from orchestrator.collection.experience_fields import (
    ACTION_MASK,
    RECURRENT_STATE,
    observation_arrays,
    observation_field,
)
from orchestrator.config.paths import PATH
from orchestrator.learning.minibatches import Draw
from orchestrator.learning.precision import Precision
from orchestrator.policies import NetworkError, with_seed, zero_observations
from state.user_code import described, is_signal

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from losses import PolicyEvaluation
    from orchestrator.config.settings import TrainerConfig
    from orchestrator.policies import Policy
    from state.parameter_arena import ParameterArena


class MinibatchEvaluation:
    """Called with the rows of each minibatch. Raises PrecisionError as `Precision`."""

    def __init__(self, policy: Policy, arena: ParameterArena, config: TrainerConfig, device: torch.device) -> None:
        self._policy = policy
        self._arena = arena
        self._network = config.policy.network
        self._device = device
        self._name = config.learning.precision
        self.precision = Precision(self._name, device)

    def __call__(self, draw: Draw) -> PolicyEvaluation:
        fields = draw.fields.again()  # a network may change what it is given
        observation = observation_arrays(fields)
        mask = fields[ACTION_MASK] if self._policy.spaces.masked else None
        state, start = None, None
        if self._policy.recurrent:
            state, start = fields[RECURRENT_STATE], fields["episode_start"]
        with self.precision.on_network:
            return self._policy.evaluate(observation, fields["action"], state, start, draw.valid, mask, draw.counts)

    def parts(self, draw: Draw) -> Mapping[str, slice]:
        """Which rows are of which policy, where types of agents have their own."""
        return self._policy.parts(draw.counts)

    def try_out(self, leading: tuple[int, ...]) -> None:
        """Evaluate a minibatch of zeros, and its gradients: `leading` is `[steps]`, or `[segments, horizon]`.

        Raises NetworkError where the network works, but not in this precision.
        """
        if self._name == "float32":
            return
        before = self._arena.memory.cpu().clone().numpy()  # a network may change its buffers
        try:
            with_seed(0, lambda: self._forward_and_backward(leading))
        except BaseException as error:
            if is_signal(error):
                raise
            raise NetworkError(
                f"the network {self._network!r} can't compute with {PATH.learning.precision} = {self._name!r} on"
                f" {self._device}: {described(error)}; expected layers of torch's, which convert what they are given:"
                " convert between types in its own operations, or set it to float32"
            ) from error
        self._arena.read_from(before)

    def _forward_and_backward(self, leading: tuple[int, ...]) -> None:
        everything, counts = torch.arange(leading[0], device=self._device), ()
        if self._policy.names:  # to each its share
            counts = tuple(map(len, everything.tensor_split(len(self._policy.names))))
        evaluation = self(Draw(Rows(self._zeros(leading), everything), None, None, counts))
        outputs = [one for one in (evaluation.log_prob, evaluation.entropy, evaluation.value) if one.requires_grad]
        learned = [parameter for parameter in self._policy.parameters() if parameter.requires_grad]
        torch.autograd.grad([one.sum() for one in outputs], learned, allow_unused=True)

    def _zeros(self, leading: tuple[int, ...]) -> dict[str, Tensor]:
        """The fields of a minibatch, as near to 0 as the spaces allow."""
        policy = self._policy
        observation = zero_observations(policy.spaces.observation, leading)
        if not isinstance(observation, dict):
            observation = {"": observation}
        fields = {observation_field(key): part for key, part in observation.items()}
        distribution = policy.distribution
        fields["action"] = torch.zeros(*leading, *distribution.action_shape, dtype=distribution.action_dtype)
        if policy.spaces.masked:
            fields[ACTION_MASK] = torch.ones(*leading, distribution.parameters, dtype=torch.bool)
        if policy.recurrent:
            fields[RECURRENT_STATE] = torch.zeros(leading[0], policy.state_size)
            fields["episode_start"] = torch.zeros(*leading, dtype=torch.bool)
        return {name: field.to(self._device) for name, field in fields.items()}
