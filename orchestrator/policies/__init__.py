"""Policies: networks, distributions of actions, normalization, and what an own network must be."""

from __future__ import annotations

from typing import TYPE_CHECKING

from state.lazy_names import lazy_names

if TYPE_CHECKING:
    from orchestrator.policies.distributions import ActionDistribution as ActionDistribution
    from orchestrator.policies.distributions import Bernoulli as Bernoulli
    from orchestrator.policies.distributions import Categorical as Categorical
    from orchestrator.policies.distributions import DiagonalGaussian as DiagonalGaussian
    from orchestrator.policies.distributions import MultiCategorical as MultiCategorical
    from orchestrator.policies.distributions import distribution_for as distribution_for
    from orchestrator.policies.network import Network as Network
    from orchestrator.policies.network import NetworkError as NetworkError
    from orchestrator.policies.network import Observation as Observation
    from orchestrator.policies.network import RecurrentNetwork as RecurrentNetwork
    from orchestrator.policies.network import SeparateNetwork as SeparateNetwork
    from orchestrator.policies.network import Spaces as Spaces
    from orchestrator.policies.network_factory import zero_observations as zero_observations
    from orchestrator.policies.normalization import ObservationNormalizer as ObservationNormalizer
    from orchestrator.policies.normalization import RewardNormalizer as RewardNormalizer
    from orchestrator.policies.normalization import RunningNormalizer as RunningNormalizer
    from orchestrator.policies.policy import Policy as Policy
    from orchestrator.policies.policy import build_policy as build_policy
    from orchestrator.policies.policy import check_gradients as check_gradients
    from orchestrator.policies.policy import check_outputs as check_outputs
    from orchestrator.policies.policy import with_seed as with_seed
else:
    __getattr__, __dir__ = lazy_names(__name__)
