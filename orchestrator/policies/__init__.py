"""Policies: networks, distributions of actions, normalisation, and what an own network must be."""

from orchestrator.policies.distributions import (
    ActionDistribution,
    Categorical,
    DiagonalGaussian,
    MultiCategorical,
    distribution_for,
)
from orchestrator.policies.network import (
    Network,
    NetworkError,
    Observation,
    RecurrentNetwork,
    SeparateNetwork,
    Spaces,
)
from orchestrator.policies.normalization import ObservationNormalizer, RewardNormalizer, RunningNormalizer
from orchestrator.policies.policy import Policy, build_policy, check_gradients, check_outputs

__all__ = [
    "ActionDistribution",
    "Categorical",
    "DiagonalGaussian",
    "MultiCategorical",
    "Network",
    "NetworkError",
    "Observation",
    "ObservationNormalizer",
    "Policy",
    "RecurrentNetwork",
    "RewardNormalizer",
    "RunningNormalizer",
    "SeparateNetwork",
    "Spaces",
    "build_policy",
    "check_gradients",
    "check_outputs",
    "distribution_for",
]
