"""A collector behind a worker's messages: finds the slots' memory and loads the requested version of the policy."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from orchestrator.collection.collector import Collector, CollectReport
from orchestrator.collection.plan import CollectorPlan
from orchestrator.workers.current_device import make_current
from orchestrator.workers.global_generators import global_generators, seed_global_generators, set_global_generators
from orchestrator.workers.note import Note
from orchestrator.workers.slots import SlotMemory, SlotRef
from state.parameter_arena import ParameterArena

if TYPE_CHECKING:
    from collections.abc import Mapping

    from orchestrator.policies import Policy, Spaces
    from orchestrator.workers.interrupt import Interrupt
    from state.experience import ExperienceSpec


class CollectRequest(NamedTuple):
    """Fill the collector's rows of `experience`, acting with the weights in `policy`."""

    experience: SlotRef
    policy: SlotRef


class CollectorService:
    """What a collector worker holds."""

    def __init__(self, plan: CollectorPlan, interrupt: Interrupt, waits_for: Note | None = None) -> None:
        self._plan = plan
        self._own_process = plan.config.collection.backend == "process"
        if self._own_process:
            if plan.config.collection.device != "auto":
                make_current(plan.device)
            seed_global_generators(plan.seed)
        self._collector = Collector(plan, (waits_for or Note()).set)
        self._interrupt = interrupt
        self._slots = SlotMemory()
        self._spec: ExperienceSpec | None = None
        self._arena: ParameterArena | None = None

    def spaces(self) -> Spaces:
        return self._collector.spaces()

    def agents(self) -> tuple[str, ...]:
        return self._collector.agents()

    def recorded_spaces(self) -> Mapping[str, Any]:
        return self._collector.recorded_spaces()

    def prepare(self, spec: ExperienceSpec) -> None:
        """Take the layout of the slots and build the policy."""
        if self._own_process:
            make_current(str(self._plan.acts_on(self.spaces())))
        self._spec = spec
        self._collector.prepare(spec)

    def collect(self, request: CollectRequest) -> CollectReport:
        """One rollout."""
        assert self._spec is not None, "prepare() comes before collect()"
        weights = self._slots.memory(request.policy)

        def load(policy: Policy) -> None:
            if self._arena is None:
                self._arena = ParameterArena(policy, self._plan.acts_on(self.spaces()))
            self._arena.read_from(weights)

        arrays = self._spec.arrays(self._slots.memory(request.experience))
        return self._collector.collect(arrays, load, self._interrupt.is_set)

    def state(self) -> dict[str, object]:
        """As `Collector.state`, with the process's own generators, which an environment may draw from."""
        return self._collector.state() | {"global_generators": global_generators() if self._own_process else None}

    def load_state(self, state: Mapping[str, Any]) -> str | None:
        reason = self._collector.load_state(state)
        if self._own_process and state["global_generators"] is not None:
            set_global_generators(state["global_generators"])
        return reason

    def begin_new_episodes(self, rollouts: int) -> None:
        self._collector.begin_new_episodes(rollouts)

    def close(self) -> None:
        self._collector.close()
