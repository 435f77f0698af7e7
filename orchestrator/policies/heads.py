"""The last step of a network: from its outputs to the parameters of the action distribution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from orchestrator.policies.distributions import DiagonalGaussian, distribution_for
from orchestrator.policies.network import Spaces


class ActionHead(nn.Module):
    """Completes the `outputs` numbers that a network computes per action to the parameters of the distribution.

    For Box actions the network computes the means; the log standard deviations are learned numbers that do not
    depend on the observation, 0 at first (as in Schulman et al. 2015). For others there is nothing to add.
    """

    log_std: nn.Parameter | None

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        distribution = distribution_for(spaces.action)
        self.completes = isinstance(distribution, DiagonalGaussian)
        """Whether anything is added."""
        self.outputs = distribution.parameters // 2 if self.completes else distribution.parameters
        self.register_parameter("log_std", nn.Parameter(torch.zeros(self.outputs)) if self.completes else None)

    def forward(self, outputs: Tensor) -> Tensor:
        """`[..., outputs]` to `[..., P]`."""
        if self.log_std is None:
            return outputs
        return torch.cat((outputs, self.log_std.expand_as(outputs)), -1)
