"""Environments: what their names stand for, and how several copies of one are stepped together."""

from __future__ import annotations

from typing import TYPE_CHECKING

from state.lazy_names import lazy_names

if TYPE_CHECKING:
    from orchestrator.environments.adaptation import Adaptation as Adaptation
    from orchestrator.environments.make import make_vector as make_vector
    from orchestrator.environments.options import problem_with_options as problem_with_options
    from orchestrator.environments.registry import check_environment as check_environment
    from orchestrator.environments.registry import extra_of as extra_of
    from orchestrator.environments.spaces import InvalidEnvironment as InvalidEnvironment
    from orchestrator.environments.vector import EnvironmentFailed as EnvironmentFailed
    from orchestrator.environments.vector import EnvironmentGroup as EnvironmentGroup
    from orchestrator.environments.vector import Step as Step
    from orchestrator.environments.vector import VectorEnvironment as VectorEnvironment
else:
    __getattr__, __dir__ = lazy_names(__name__)
