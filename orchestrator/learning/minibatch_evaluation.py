"""The policy on the rows of a minibatch, with gradients: what losses are computed from. In the precision that the
settings ask for, and tried out before the run begins where that may fail."""

from __future__ import annotations

import time
import warnings
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
    from collections.abc import Callable, Mapping

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
        self._compiles = config.learning.compile
        self._evaluate: Callable[..., PolicyEvaluation] = policy.evaluate
        self._compiled_segments = False

    def __call__(self, draw: Draw) -> PolicyEvaluation:
        fields = draw.fields.again()  # a network may change what it is given
        observation = observation_arrays(fields)
        mask = fields[ACTION_MASK] if self._policy.spaces.masked else None
        state, start = None, None
        if self._policy.recurrent:
            state, start = fields[RECURRENT_STATE], fields["episode_start"]
        valid = draw.valid
        if valid is None and self._compiled_segments:  # or the first that are not all valid would be compiled anew
            valid = torch.ones_like(fields["episode_start"])
        with self.precision.on_network:
            return self._evaluate(observation, fields["action"], state, start, valid, mask, draw.counts)

    def parts(self, draw: Draw) -> Mapping[str, slice]:
        """Which rows are of which policy, where types of agents have their own."""
        return self._policy.parts(draw.counts)

    def try_out(self, leading: tuple[int, ...]) -> float:
        """Evaluate a minibatch of zeros, and its gradients: `leading` is `[steps]`, or `[segments, horizon]`. What is
        to be compiled is compiled by that. Returns the seconds that it took.

        Raises NetworkError where the network works, but not in this precision, and CompilationError.
        """
        if self._name == "float32" and not self._compiles:
            return 0.0
        began = time.monotonic()
        before = self._arena.memory.cpu().clone().numpy()  # a network may change its buffers
        if self._name != "float32":
            self._try_precision(leading)
        if self._compiles:
            self._compile(leading)
        self._arena.read_from(before)
        return time.monotonic() - began

    def _compile(self, leading: tuple[int, ...]) -> None:
        from orchestrator.learning.compilation import compilation_failed, compiled_evaluate

        self._compiled_segments = len(leading) > 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what torch says of its own code while it compiles
                self._evaluate = compiled_evaluate(self._policy)
                with_seed(0, lambda: self._forward_and_backward(leading))
        except BaseException as error:
            if is_signal(error):
                raise
            raise compilation_failed(self._network, self._device, error) from error

    def _try_precision(self, leading: tuple[int, ...]) -> None:
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
        fields["episode_start"] = torch.zeros(*leading, dtype=torch.bool)
        if policy.recurrent:
            fields[RECURRENT_STATE] = torch.zeros(leading[0], policy.state_size)
        return {name: field.to(self._device) for name, field in fields.items()}
