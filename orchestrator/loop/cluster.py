"""The machines of a Ray cluster that a run's cells are on: Ray finds a place for each, passes on what is asked of the
workers there, and tells when a machine is gone. Cell 0 is where the host is, and has nothing to do with this."""

from __future__ import annotations

import logging
import queue
import threading
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio

from orchestrator.config.paths import PATH
from orchestrator.loop.devices import resolve_device
from orchestrator.loop.ray_connection import (
    CONNECTIONS,
    REACHED_SECONDS,
    ClusterError,
    is_reachable,
    ray_library,
    take_signals_back,
)
from orchestrator.loop.restarts import Restarts
from orchestrator.loop.rings import EXPERIENCE
from orchestrator.workers.event_loop import in_thread
from orchestrator.workers.machine import Machine
from orchestrator.workers.remote import MachineLost, RemoteMachine
from orchestrator.workers.reply import WorkerCrashed

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Generator, Sequence

    from orchestrator.config.settings import TrainerConfig
    from orchestrator.loop.patience import Patience
    from orchestrator.workers.interrupt import Interrupt
    from orchestrator.workers.note import Note

_log = logging.getLogger("orchestrator")
_NAME = "the Ray cluster"
_LOOKED_SECONDS = 10.0
"""Between two times that a machine whose worker takes long is asked whether it is there."""
_CLOSING_SECONDS = 60.0
"""That leaving a cluster may take."""
_SAID_SECONDS = 10.0
"""Between two times that the log says what a run waits for."""


@dataclass(slots=True)
class _Place:
    """Where a cell is."""

    machine: RemoteMachine
    address: str
    actor: Any
    lost: str = ""
    """Why it is gone, once it is."""


class Cluster:
    """Made by `cluster()`."""

    def __init__(self, config: TrainerConfig, interrupt: Interrupt, patience: Patience) -> None:
        self._config = config
        self._interrupt = interrupt
        self._patience = patience
        self._group: Any = None
        self._places: dict[int, _Place] = {}
        """Of all cells that are not with the host, by number."""
        self._actors: list[Any] = []
        """All that were ever asked for."""
        self._moving = anyio.Lock(fast_acquire=True)
        self._losses: dict[int, Restarts] = {}
        self._connecting = threading.Lock()
        self._connected = self._closed = False
        self._interrupts: queue.SimpleQueue[bool] = queue.SimpleQueue()
        self._needed: dict[str, float] = {}
        """What Ray is to reserve for each cell."""
        self._name = _NAME
        self._failure: ClusterError | None = None
        self._head = ""
        """The address of the cluster."""
        self.address = ""
        """Of the host's machine, as the others reach it."""

    def address_of(self, cell: int) -> str:
        """Where a cell's learner is reached by the others."""
        place = self._places.get(cell)
        return self.address if place is None else place.address

    def note(self, cell: int, note: Note) -> str:
        """What a worker of a cell has noted; "" where its machine does not say. For any thread; blocks."""
        place = self._places.get(cell)
        with suppress(MachineLost):
            return note.read(None if place is None else place.machine.read)
        return ""

    async def open(self) -> None:
        """Find a place for every cell. Raises ClusterError, and WorkerHangs where the run is to end now and waits."""
        join = partial(in_thread, self._join, abandon_on_cancel=True)
        await self._patience.answer(_NAME, "connect", join, late=f"{_NAME} does not answer yet")
        take_signals_back()
        errors: list[Exception] = []

        async def place(cell: int) -> None:
            late = f"{self._name} has no machine for cell {cell} yet"
            try:
                await self._patience.answer(_NAME, "find a machine", self._place, cell, late=late)
            except Exception as error:
                errors.append(error)
                tasks.cancel_scope.cancel()

        async with anyio.create_task_group() as tasks:
            for cell in range(1, self._config.cells):
                tasks.start_soon(place, cell)
        if errors:  # of all cells that had one before the first has ended the others
            raise errors[0]
        self._interrupt.when_set.append(self._notice_interrupt)
        threading.Thread(target=self._pass_on_interrupts, name="orchestrator-interrupts", daemon=True).start()

    async def machine(self, cell: int) -> RemoteMachine | None:
        """Where a cell's workers are to be started now; None: with the host. A machine that is gone is replaced, or
        not, as the settings say. Raises ClusterError."""
        async with self._moving:
            place = self._places.get(cell)
            if place is None or not place.lost:
                return None if place is None else place.machine
            # Its machine may be out of reach only, and what runs there is not to go on beside its successor.
            await in_thread(_kill, place, abandon_on_cancel=True)
            self.check_losses()
            if self._config.on_cell_lost == "shrink":
                _log.warning("%s; from now on its workers run with those of cell 0", _loss(cell, place))
                del self._places[cell]
                return None
            losses = self._losses.setdefault(cell, Restarts())
            if not losses.died():
                raise ClusterError(f"{_loss(cell, place)}; it has lost {losses.recent} within an hour")
            _log.warning("%s; another is looked for", _loss(cell, place))
            await self._place(cell)
            return self._places[cell].machine

    def check_losses(self) -> None:
        """Raises ClusterError where a machine is gone, and the run is to end with that: always the same one, since
        several tasks may meet it at once."""
        for cell, place in self._places.items():
            if place.lost and self._config.on_cell_lost == "fail":
                self._failure = self._failure or ClusterError(f"{_loss(cell, place)}; {PATH.on_cell_lost} is 'fail'")
                raise self._failure

    async def close(self) -> None:
        """End what runs elsewhere."""
        self._interrupts.put(False)
        with anyio.move_on_after(_CLOSING_SECONDS, shield=True):  # a cluster that is gone answers to nothing
            await in_thread(self._leave, abandon_on_cancel=True)

    async def _place(self, cell: int) -> None:
        """Wait until Ray has a place for a cell."""
        needed = self._needed
        place: list[_Place] = []
        errors: list[Exception] = []

        async def wait() -> None:
            try:
                while not place:
                    # Ray may still take a machine that is gone for one that is there.
                    with suppress(MachineLost):
                        place.append(await in_thread(self._start, cell, needed, abandon_on_cancel=True))
            except Exception as error:
                errors.append(error)
            tasks.cancel_scope.cancel()

        with anyio.move_on_after(self._config.cell_timeout):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(wait)
                await anyio.sleep(_SAID_SECONDS)
                while await self._answers():
                    _log.info(
                        "cell %d waits for a machine of %s with %s free, for up to %s = %g s; in all, they have %s",
                        *(cell, self._name, _described(needed), PATH.cell_timeout, self._config.cell_timeout),
                        await in_thread(_machines, abandon_on_cancel=True),
                    )
                    await anyio.sleep(_SAID_SECONDS)
                message = (
                    f"there is no machine for cell {cell}: Ray does not answer on this one, or is gone; start it again,"
                    " and resume the run"
                )
                errors.append(ClusterError(message))
                tasks.cancel_scope.cancel()
        if errors:
            raise errors[0]
        if not place:
            raise ClusterError(
                f"{self._name} has no machine for cell {cell} after {PATH.cell_timeout} = {self._config.cell_timeout:g}"
                f" s: it needs {_described(needed)}, and the machines have {await in_thread(_machines)}; add one"
                f" (`ray start --address ...`), or lower {PATH.cells} or {PATH.collection.collectors}; where"
                f" machines take longer to begin, raise {PATH.cell_timeout}"
            )
        self._places[cell] = place[0]
        _log.info("cell %d is on %s, of %s", cell, place[0].machine.name, self._name)

    async def _answers(self) -> bool:
        """Whether Ray still runs on this machine."""
        with anyio.move_on_after(REACHED_SECONDS):
            return await in_thread(_is_here, abandon_on_cancel=True)
        return False

    # In threads.

    def _join(self) -> None:
        CONNECTIONS.join(str(self._config.cluster))
        with self._connecting:
            if self._closed:  # nobody has waited for this
                CONNECTIONS.leave()
                return
            self._head = ray_library().get_runtime_context().gcs_address
            self._connected = True
            self._needed = _resources(self._config)
            util = ray_library().util
            self.address = util.get_node_ip_address()
            self._name = f"the Ray cluster at {self._head}"
            # All places at once: two runs that each hold half of what they need would wait for each other.
            self._group = util.placement_group([self._needed] * (self._config.cells - 1), strategy="SPREAD")

    def _start(self, cell: int, needed: dict[str, float]) -> _Place:
        with CONNECTIONS.calling():
            return self._started(cell, needed)

    def _started(self, cell: int, needed: dict[str, float]) -> _Place:
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        ray = ray_library()
        # Calls that wait at the same time: each worker's, and of the other kind, each worker's end.
        workers = self._config.collection.collectors // self._config.cells + 1
        remote = ray.remote(max_concurrency=workers + 1, concurrency_groups={"control": workers + 1})(_Actor)
        with self._connecting:
            if self._closed:
                raise MachineLost("the run has left its cluster")
            actor = remote.options(
                num_cpus=needed["CPU"],
                num_gpus=needed.get("GPU", 0),
                scheduling_strategy=PlacementGroupSchedulingStrategy(self._group, cell - 1),
            ).remote()
            self._actors.append(actor)

        def call(method: str, *args: object, within: float = self._config.cell_timeout) -> Any:
            with CONNECTIONS.calling():
                return called(method, args, within)

        def called(method: str, args: tuple[object, ...], within: float) -> Any:
            if place.lost:  # whoever asks next need not wait as long as the first did
                raise MachineLost(f"{place.machine.name} is gone: {place.lost}")
            of_actor = getattr(actor, method)
            if method != "ask":
                of_actor = of_actor.options(concurrency_group="control")
            try:
                asked = of_actor.remote(*args)
                # What a worker is asked takes as long as it takes, but its machine is to be there all the while.
                while method == "ask" and not ray.wait([asked], timeout=_LOOKED_SECONDS)[0]:
                    call("now")
                return ray.get(asked, timeout=within)
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, Exception) else error from None
            except ray.exceptions.GetTimeoutError as error:
                late = f"it has not answered {method!r} within {within:g} s"
                if method == "read":  # a note, which has little time: a machine that is only busy is not lost
                    raise MachineLost(f"{place.machine.name} may be gone: {late}") from error
                place.lost = place.lost or late
                raise MachineLost(f"{place.machine.name} is gone: {place.lost}") from error
            except ray.exceptions.RayError as error:
                if getattr(error, "actor_init_failed", False):
                    raise ClusterError(
                        f"cell {cell} can't begin on a machine of the cluster, which needs what the run needs, in the"
                        f" same versions as here: {error}"
                    ) from error
                place.lost = place.lost or _in_short(error)
                raise MachineLost(f"{place.machine.name} is gone: {place.lost}") from error

        place = _Place(RemoteMachine(call, f"the machine of cell {cell}", EXPERIENCE), "", actor)
        host, place.address = call("whereabouts")
        place.machine.name = f"{host} ({place.address})"
        place.machine.compare_clocks()
        return place

    def _notice_interrupt(self) -> None:
        self._interrupts.put(True)

    def _pass_on_interrupts(self) -> None:
        while self._interrupts.get():
            for place in list(self._places.values()):
                if not place.lost:
                    name, content = self._interrupt.shared_as
                    with suppress(MachineLost), CONNECTIONS.calling():
                        place.actor.write.options(concurrency_group="control").remote(name, content)

    def _leave(self) -> None:
        if self._connected and not is_reachable(self._head):
            # What ran there has ended with it. Ray waits for it in every call, also in those that hold the lock, and
            # ends the program after a minute, before which the run is to be saved.
            self._closed = True
            CONNECTIONS.leave(within=0)
            return
        with self._connecting:
            self._closed = True
        if not self._connected:
            return
        ray = ray_library()
        try:
            for actor in self._actors:  # also one that still waits for its machine, and a thread for it
                ray.kill(actor)
            if self._group is not None:
                ray.util.remove_placement_group(self._group)
        finally:
            CONNECTIONS.leave()


class _Actor(Machine):
    """What Ray starts for a cell."""

    def whereabouts(self) -> tuple[str, str]:
        """The machine's name, and its address in the cluster."""
        return self.address(), ray_library().util.get_node_ip_address()


def _loss(cell: int, place: _Place) -> str:
    return f"cell {cell} has lost its machine, {place.machine.name}: {place.lost}"


def _kill(place: _Place) -> None:
    with CONNECTIONS.calling():
        ray_library().kill(place.actor)


def _resources(config: TrainerConfig) -> dict[str, float]:
    """What Ray is to reserve for a cell: a core for each worker, and a GPU to learn with."""
    needed = {"CPU": float(config.collection.collectors // config.cells + 1)}
    return needed | ({"GPU": 1.0} if resolve_device(config.device).startswith("cuda") else {})


def _is_here() -> bool:
    with CONNECTIONS.calling():
        ray = ray_library()
        here: str = ray.get_runtime_context().get_node_id()
        nodes: Sequence[Any] = ray.nodes()
    return any(node["NodeID"] == here and node["Alive"] for node in nodes)


def _described(resources: dict[str, float]) -> str:
    return ", ".join(f"{number:g} {name}" for name, number in resources.items())


def _machines() -> str:
    with CONNECTIONS.calling():
        nodes: Sequence[Any] = ray_library().nodes()
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    found = [_described({name: has[name] for name in ("CPU", "GPU") if name in has}) or "none" for has in alive]
    return "; ".join(sorted(found))  # Ray names them in any order


def _in_short(error: Exception) -> str:
    """What Ray says of the cause of a death, which comes after what it says of the actor, line by line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    of_actor = [index for index, line in enumerate(lines) if line.partition(":")[0] in ("actor_id", "pid", "ip")]
    cause = lines[of_actor[-1] + 1 :] if of_actor else lines
    return " ".join(cause) or repr(error)


@contextmanager
def losses_named(machines: Cluster | None) -> Generator[None]:
    """For what asks a worker: one that is not to be replaced, since its machine is gone, has not just died."""
    try:
        yield
    except WorkerCrashed:
        if machines is not None:
            machines.check_losses()
        raise


@asynccontextmanager
async def cluster(config: TrainerConfig, interrupt: Interrupt, patience: Patience) -> AsyncGenerator[Cluster | None]:
    """The machines of the run's cells, given back when the context is left; None where all cells are with the host."""
    if config.cluster is None:
        yield None
        return
    machines = Cluster(config, interrupt, patience)
    try:
        await machines.open()
        yield machines
    finally:
        await machines.close()
