"""The learners' workers, one in each cell: they are asked together, and when one dies, all are replaced by others that
continue where they were."""

from __future__ import annotations

import logging
import pickle
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio

from orchestrator.learning.exchange import CellLost
from orchestrator.learning.learner_state import Unsaved
from orchestrator.learning.messages import EarlyReport, LearnReport
from orchestrator.loop.patience import WorkerHangs
from orchestrator.loop.restarts import Restarts
from orchestrator.loop.rings import KEPT, POLICY
from orchestrator.workers.event_loop import in_thread
from orchestrator.workers.reply import WorkerCrashed
from orchestrator.workers.slots import SlotSender
from state.shared_memory import SlotRing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from orchestrator.learning.messages import LearnerDescription, LearnRequest
    from orchestrator.workers.interrupt import Interrupt
    from orchestrator.workers.worker import Worker
    from state.experience import ExperienceSpec
    from state.shared_memory import Slot

_log = logging.getLogger("orchestrator")
BYTES_PER_EPOCH, MOST_BYTES = 32 << 20, 256 << 20
"""Of the optimizer's moments: so many are copied per epoch at most, on average, and larger ones are not kept."""
ANSWER_SECONDS = 10.0
"""What learners have for their answer once one of them has failed: they notice at once, unless they hang."""


def _no_arguments(slots: SlotSender) -> tuple[object, ...]:
    return ()


@dataclass(slots=True)
class _Learner:
    worker: Worker
    slots: SlotSender = field(default_factory=SlotSender)


class Learners:
    """See the module. `start`, then `prepare`, then `protect` once the run has begun: the policy is in shared memory
    anyway, and from then on so is what the learners need besides (see `LearnerState`)."""

    def __init__(
        self,
        cells: int,
        open_worker: Callable[[int], Awaitable[Worker]],
        call: Callable[..., Awaitable[Any]],
        interrupt: Interrupt,
        *,
        can_die: bool,
        across_machines: bool,
    ) -> None:
        """`open_worker` is given the number of a cell; `call` a worker, a method's name and its arguments; a worker
        that is a thread can't die."""
        self._cells = cells
        self._open = open_worker
        self._call = call
        self._interrupt = interrupt
        self._can_die = can_die
        self._across_machines = across_machines
        self._spec: ExperienceSpec
        self._learners: list[_Learner] = []
        self._policy: Callable[[], Slot] | None = None
        self._ring: SlotRing | None = None
        self._every = 1
        """Epochs from one time that the state is kept to the next."""
        self._kept: tuple[int, Slot, bytes] | None = None
        """The state after so many epochs, pickled by the learner."""
        self._unsaved: Unsaved | None = None
        self._epochs = 0
        """Which have been learned."""
        self.restarts = Restarts()

    @property
    def workers(self) -> Sequence[Worker]:
        """One of each cell."""
        return [learner.worker for learner in self._learners]

    async def start(self) -> LearnerDescription:
        """Raises what the learners' construction raises."""
        await self._open_all()
        description: LearnerDescription = (await self._ask_all("describe"))[0]
        size = description.moments_nbytes
        if self._can_die and size <= MOST_BYTES:
            self._ring = SlotRing(size, max_leased=0, name=KEPT)
            self._every = max(1, -(-size // BYTES_PER_EPOCH))
        return description

    async def prepare(self, spec: ExperienceSpec) -> float:
        """Tell them the layout of the experience slots; the most seconds that one took to compile what it computes."""
        self._spec = spec
        return max(await self._ask_all("prepare", lambda _: (spec,)))

    async def protect(self, epochs: int, policy: Callable[[], Slot]) -> None:
        """From now on, after so many epochs, they are replaced when one dies. `policy` says where the newest version
        is."""
        if not self._can_die:
            return
        self._epochs = epochs
        if self._ring is not None:
            slot = self._ring.claim()
            self._keep(slot, (await self._ask_all("kept_state", lambda slots: (slots.ref(KEPT, slot),)))[0])
        self._policy = policy

    async def ask(self, method: str, arguments: Callable[[SlotSender], tuple[object, ...]] = _no_arguments) -> Any:
        """The first cell's answer to a call of all. Raises WorkerCrashed where one dies and is not replaced."""
        while True:
            try:
                return (await self._ask_all(method, arguments))[0]
            except WorkerCrashed as error:
                await self._replace(error)

    async def learn(
        self, request: Callable[[SlotSender], LearnRequest], published_early: Callable[[EarlyReport], None]
    ) -> list[LearnReport]:
        """An epoch, which is repeated if a learner dies in it. Raises WorkerCrashed as `ask` does."""
        slot = None if self._ring is None or (self._epochs + 1) % self._every else self._ring.claim()

        def arguments(slots: SlotSender) -> tuple[object, ...]:
            return (request(slots)._replace(keep_to=None if slot is None else slots.ref(KEPT, slot)),)

        announced = False
        while True:
            try:
                answers = await self._ask_all("learn", arguments)
                if isinstance(answers[0], EarlyReport):
                    if not announced:
                        published_early(answers[0])
                    announced = True
                    answers = await self._ask_all("learn_on")
                break
            except WorkerCrashed as error:
                await self._replace(error)
        reports: list[LearnReport] = answers
        self._epochs += 1
        if slot is not None and reports[0].kept_state is not None:
            self._keep(slot, reports[0].kept_state)
        return reports

    async def _ask_all(
        self, method: str, arguments: Callable[[SlotSender], tuple[object, ...]] = _no_arguments
    ) -> list[Any]:
        """The answers, by cell. Raises WorkerCrashed where one has died or hangs."""
        if len(self._learners) == 1:
            only = self._learners[0]
            return [await self._call(only.worker, method, *arguments(only.slots))]
        answers: dict[int, Any] = {}
        errors: dict[int, Exception] = {}

        async def ask(cell: int, learner: _Learner) -> None:
            try:
                answers[cell] = await self._call(learner.worker, method, *arguments(learner.slots))
            except Exception as error:
                errors[cell] = error
                scope = tasks.cancel_scope
                scope.deadline = min(scope.deadline, anyio.current_time() + ANSWER_SECONDS)

        async with anyio.create_task_group() as tasks:
            for cell, learner in enumerate(self._learners):
                tasks.start_soon(ask, cell, learner)
        if errors:
            silent = [one.worker.name for cell, one in enumerate(self._learners) if cell not in answers | errors]
            raise _what_happened(list(errors.values()), silent, method)
        return [answers[cell] for cell in range(len(self._learners))]

    async def _open_all(self) -> None:
        workers: dict[int, Worker] = {}
        errors: list[Exception] = []

        async def start(cell: int) -> None:
            try:
                workers[cell] = await self._open(cell)
            except Exception as error:
                errors.append(error)

        async with anyio.create_task_group() as tasks:
            for cell in range(self._cells):
                tasks.start_soon(start, cell)
        if errors:
            for worker in workers.values():
                await worker.aclose(0)
            raise errors[0]
        self._learners = [_Learner(workers[cell]) for cell in range(self._cells)]
        if self._across_machines:
            meeting = await self._call(self._learners[0].worker, "await_others")
            await self._ask_all("connect", lambda _: (meeting,))
        elif self._cells > 1:
            folder = await in_thread(tempfile.TemporaryDirectory)
            try:
                file = Path(folder.name) / "meeting"
                await self._ask_all("connect", lambda _: (file,))
            finally:
                with anyio.CancelScope(shield=True):
                    await in_thread(folder.cleanup)

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
        """Start others in the place of learners of which one has died with `error`, or raise it."""
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
            for learner in self._learners:
                await learner.worker.aclose(0)
            try:
                await self._open_all()
                await self.prepare(self._spec)
                policy, restored = self._policy(), state and pickle.loads(state)
                await self._ask_all(
                    "restore",
                    lambda slots, policy=policy, slot=slot, restored=restored: (
                        slots.ref(POLICY, policy),
                        slot and slots.ref(KEPT, slot),
                        restored,
                    ),
                )
            except WorkerCrashed as again:  # what has killed one may well kill the next
                error = again
            else:
                return


def _what_happened(errors: Sequence[Exception], silent: Sequence[str], method: str) -> Exception:
    """The error that the others follow from: those that wait for a learner in vain fail, too."""
    for kind in (WorkerHangs, WorkerCrashed):
        if found := [error for error in errors if isinstance(error, kind)]:
            return found[0]
    if own := [error for error in errors if not isinstance(error, CellLost)]:
        return own[0]
    if silent:
        return WorkerCrashed(f"worker {silent[0]!r} does not answer {method!r}, for which others wait: {errors[0]}")
    return WorkerCrashed(str(errors[0]))
