"""Views of the memory that training uses, as states carry them for hooks: at most so many epochs' at a time."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from state.experience import Experience
from state.policy_point import PolicyPoint

if TYPE_CHECKING:
    from orchestrator.hooks.engine import HookEngine
    from orchestrator.loop.newest_state import NewestState
    from orchestrator.loop.policy_versions import PolicyVersions
    from state.experience import ExperienceSpec
    from state.policy_snapshot import PolicySnapshot
    from state.shared_memory import Slot, SlotRing

_log = logging.getLogger("orchestrator")


class Views:
    """Gives None, and warns once, where hooks hold as many as may be."""

    def __init__(
        self,
        spec: ExperienceSpec,
        experience: SlotRing,
        versions: PolicyVersions,
        engine: HookEngine,
        newest: NewestState,
        held_epochs: int,
        cells: int,
    ) -> None:
        """`cells` of the run have their experience each on a machine of its own; 1: it is all here."""
        self._spec = spec
        self._experience = experience
        self._versions = versions
        self._engine = engine
        self._newest = newest
        self._held_epochs = held_epochs
        self._cells = cells
        self._warned = False

    def experience(self, epoch: int, behavior: PolicyPoint, slot: Slot) -> Experience | None:
        """What a policy has collected into a slot."""
        lease = self._experience.lease(slot)
        if lease is None:
            self._warn("experience")
            return None
        return Experience(self._spec, epoch, behavior.version, lease, behavior.minibatches, of_cells=self._cells)

    def policy(self, version: int) -> PolicySnapshot | None:
        """A version that is there."""
        view = self._versions.view(PolicyPoint(version))
        if view is None:
            self._warn("policy")
        return view

    def policy_for_sure(self) -> PolicySnapshot:
        """The newest policy; where hooks hold so much that its state came without, a copy."""
        state = self._newest.state
        return state.policy or self._versions.copy(PolicyPoint(state.policy_version))

    def _warn(self, field: str) -> None:
        if not self._warned:
            holders = self._engine.holders()
            _log.warning(
                "views of %d epochs are held outside the loop, so states come with %s=None until some are dropped; %s",
                self._held_epochs,
                field,
                f"hooks at work: {', '.join(holders)}" if holders else "no hook is at work, so something keeps states",
            )
        self._warned = True
