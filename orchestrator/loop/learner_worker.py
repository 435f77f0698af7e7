"""The learner's worker: is asked to learn, and when it dies, is replaced by one that continues where it was."""

from __future__ import annotations

import logging
import pickle
from typing import TYPE_CHECKING, Any

from orchestrator.learning.learner_state import Unsaved
from orchestrator.learning.messages import EarlyReport, LearnReport
from orchestrator.loop.restarts import Restarts
from orchestrator.loop.rings import KEPT, POLICY
from orchestrator.workers.reply import WorkerCrashed
from orchestrator.workers.slots import SlotSender
from state.shared_memory import SlotRing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from orchestrator.learning.messages import LearnerDescription, LearnRequest
    from orchestrator.workers.interrupt import Interrupt
    from orchestrator.workers.worker import Worker
    from state.experience import ExperienceSpec
    from state.shared_memory import Slot

_log = logging.getLogger("orchestrator")
BYTES_PER_EPOCH, MOST_BYTES = 32 << 20, 256 << 20
"""Of the optimizer's moments: so many are copied per epoch at most, on average, and larger ones are not kept."""


def _no_arguments(slots: SlotSender) -> tuple[object, ...]:
    return ()


class LearnerWorker:
    """See the module. `start`, then `prepare`, then `protect` once the run has begun: the policy is in shared memory
    anyway, and from then on so is what the learner needs besides (see `LearnerState`)."""

    def __init__(
        self,
        open_worker: Callable[[], Awaitable[Worker]],
        call: Callable[..., Awaitable[Any]],
        interrupt: Interrupt,
        *,
        can_die: bool,
    ) -> None:
        """`call` is given a worker, a method's name and its arguments; a worker that is a thread can't die."""
        self._open = open_worker
        self._call = call
        self._interrupt = interrupt
        self._can_die = can_die
        self._spec: ExperienceSpec
        self._slots = SlotSender()
        self._policy: Callable[[], Slot] | None = None
        self._ring: SlotRing | None = None
        self._every = 1
        """Epochs from one time that the state is kept to the next."""
        self._kept: tuple[int, Slot, bytes] | None = None
        """The state after so many epochs, pickled by the learner."""
        self._unsaved: Unsaved | None = None
        self._epochs = 0
        """Which have been learned."""
        self.worker: Worker
        self.restarts = Restarts()

    async def start(self) -> LearnerDescription:
        """Raises what the learner's construction raises."""
        self.worker = await self._open()
        description: LearnerDescription = await self._call(self.worker, "describe")
        size = description.moments_nbytes
        if self._can_die and size <= MOST_BYTES:
            self._ring = SlotRing(size, max_leased=0, name=KEPT)
            self._every = max(1, -(-size // BYTES_PER_EPOCH))
        return description

    async def prepare(self, spec: ExperienceSpec) -> None:
        """Tell it the layout of the experience slots."""
        self._spec = spec
        await self._call(self.worker, "prepare", spec)

    async def protect(self, epochs: int, policy: Callable[[], Slot]) -> None:
        """From now on, after so many epochs, it is replaced when it dies. `policy` says where the newest version is."""
        if not self._can_die:
            return
        self._epochs = epochs
        if self._ring is not None:
            slot = self._ring.claim()
            self._keep(slot, await self._call(self.worker, "kept_state", self._slots.ref(KEPT, slot)))
        self._policy = policy

    async def ask(self, method: str, arguments: Callable[[SlotSender], tuple[object, ...]] = _no_arguments) -> Any:
        """The answer to a call. Raises WorkerCrashed where the learner dies and is not replaced."""
        while True:
            try:
                return await self._call(self.worker, method, *arguments(self._slots))
            except WorkerCrashed as error:
                await self._replace(error)

    async def learn(
        self, request: Callable[[SlotSender], LearnRequest], published_early: Callable[[EarlyReport], None]
    ) -> LearnReport:
        """An epoch, which is repeated if the learner dies in it. Raises WorkerCrashed as `ask` does."""
        slot = None if self._ring is None or (self._epochs + 1) % self._every else self._ring.claim()
        announced = False
        while True:
            try:
                keep_to = None if slot is None else self._slots.ref(KEPT, slot)
                answer = await self._call(self.worker, "learn", request(self._slots)._replace(keep_to=keep_to))
                if isinstance(answer, EarlyReport):
                    if not announced:
                        published_early(answer)
                    announced = True
                    answer = await self._call(self.worker, "learn_on")
                break
            except WorkerCrashed as error:
                await self._replace(error)
        report: LearnReport = answer
        self._epochs += 1
        if slot is not None and report.kept_state is not None:
            self._keep(slot, report.kept_state)
        return report

    def _keep(self, slot: Slot, state: bytes | Unsaved) -> None:
        assert self._ring is not None
        if isinstance(state, Unsaved):
            self._ring.release(slot)
            self._unsaved = state
            return
        if self._kept is not None:
            self._ring.release(self._kept[1])
        self._kept, self._unsaved = (self._epochs, slot, state), None

    async def _replace(self, error: WorkerCrashed) -> None:
        """Start another in the place of one that has died with `error`, or raise it."""
        while True:
            if self._policy is None or self._interrupt.is_set():
                raise error
            if self._unsaved is not None:
                raise WorkerCrashed(f"{error}; it can't be replaced: {self._unsaved.reason}") from error
            if not self.restarts.died():
                raise WorkerCrashed(f"{error}; it has died {self.restarts.recent} times within an hour") from error
            kept, slot, state = self._kept or (0, None, None)
            _log.warning(
                "%s; %s: it continues with the policy of epoch %d%s; what a loss or a network keeps outside of its"
                " state (state_dict, parameters and buffers) begins anew",
                error,
                self.restarts,
                self._epochs,
                "" if kept == self._epochs else f", with the optimizer as it was after epoch {kept}",
            )
            await self.worker.aclose(0)
            try:
                self.worker = await self._open()
                self._slots = SlotSender()
                await self.prepare(self._spec)
                policy, moments = self._slots.ref(POLICY, self._policy()), slot and self._slots.ref(KEPT, slot)
                await self._call(self.worker, "restore", policy, moments, state and pickle.loads(state))
            except WorkerCrashed as again:  # what has killed one may well kill the next
                error = again
            else:
                return
