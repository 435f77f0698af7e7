"""Environments: what their names stand for, and how several copies of one are stepped together."""

from orchestrator.environments.make import make_vector
from orchestrator.environments.options import problem_with_options
from orchestrator.environments.registry import check_environment
from orchestrator.environments.spaces import InvalidEnvironment
from orchestrator.environments.vector import EnvironmentFailed, Step, VectorEnvironment

__all__ = [
    "EnvironmentFailed",
    "InvalidEnvironment",
    "Step",
    "VectorEnvironment",
    "check_environment",
    "make_vector",
    "problem_with_options",
]
