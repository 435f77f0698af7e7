"""The copies of one collector split into groups, and among environment workers that step them over shared memory."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol, cast

from orchestrator.config.paths import PATH
from orchestrator.environments.captured_copies import Piece, pieces_of, state_of
from orchestrator.environments.shard import (
    ACTION,
    ACTION_MASK,
    FINAL,
    OBSERVATION,
    CopiesPlan,
    Description,
    EnvironmentShard,
    StepReply,
    fields_spec,
    shared_spec,
)
from orchestrator.environments.spaces import Array, ObservationArrays, observation_of
from orchestrator.environments.vector import EnvironmentGroup, Step, VectorEnvironment, copy_seeds
from orchestrator.workers.blocking import BlockingWorker, close_workers
from orchestrator.workers.reply import WorkerCrashed
from state.shared_memory import SharedBuffer

if TYPE_CHECKING:
    from state.experience import FieldSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitPlan:
    """How a collector's copies are split."""

    workers: int
    """0: the collector steps them itself."""
    groups: int
    backend: Literal["process", "inline"]
    name: str
    """The collector's, which the workers' names begin with."""
    seed: int
    """Of the generators that the workers' processes have."""
    step_timeout: float
    """Seconds that a step or reset may take in a worker before it is taken for hanging (0: any time)."""
    waits_for: Callable[[str], None]
    """Told whom the collector waits for, once that has taken a moment, and "" when it does not any more."""


def make_copies(plan: CopiesPlan, games: int, split: SplitPlan) -> VectorEnvironment:
    """A collector's copies. Raises as `make_vector`, and WorkerCrashed."""
    if not split.workers and split.groups == 1:
        return plan.make(range(games))
    return SplitEnvironment(plan, games, split)


def restore_copies(environment: VectorEnvironment, state: Mapping[str, object]) -> None:
    """Have a collector's copies continue from the state of such copies that were split in whatever way.

    Raises CannotRestore.
    """
    if not isinstance(environment, SplitEnvironment):
        state = state_of(pieces_of(state, environment.games), range(environment.games))
    environment.set_state(state)


class Shard(Protocol):
    """An `EnvironmentShard` that is asked by messages, whose answers come in their order."""

    @property
    def unanswered(self) -> int: ...

    def send(self, method: str, *args: object) -> None: ...
    def receive(self, waiting: Callable[[float], None] | None = None) -> Any: ...


class SplitEnvironment(VectorEnvironment):
    """Each group's copies are divided among all workers, so that all of them step for whichever group it is.

    Raises WorkerCrashed where a worker has died, or has been ended since it took too long for a step.
    """

    native: ClassVar[bool] = False

    def __init__(self, plan: CopiesPlan, games: int, split: SplitPlan) -> None:
        self._plan = plan
        self._split = split
        self._steps = 0
        groups = _divided(range(games), split.groups)
        # Of each worker, its share of each group.
        self._shares = list(zip(*(_divided(group, max(1, split.workers)) for group in groups), strict=True))
        self._shards: list[Shard] = []
        try:
            for index, shares in enumerate(self._shares):
                self._shards.append(self._open(index, shares))
            for index, shard in enumerate(self._shards):
                while shard.unanswered:
                    self._receive(index, "start")
            described: Description = self._ask("describe")[0]
        except BaseException:
            self._end(0.0)
            raise
        super().__init__(
            plan.environment,
            games,
            described.observation_space,
            described.action_space,
            plan.adaptation,
            described.agents,
            described.spaces_of_policies,
        )
        self.first_copy, self.copies_of_run = plan.first_copy, plan.copies_of_run
        agents = len(self.agents)
        self.groups = tuple(
            EnvironmentGroup(slice(one.start, one.stop), slice(one.start * agents, one.stop * agents)) for one in groups
        )
        choices = 0 if self._mask is None else self._mask.allowed.shape[1]
        self._spec = shared_spec(self.observation_space, self.action_space, self.count, choices)
        buffer = SharedBuffer.create(self._spec.nbytes, "environments")
        self._arrays = self._spec.arrays(buffer.map_shared())
        self.idle = self._arrays["idle"]
        with self.closed_on_failure():
            self._ask("share_memory", self._spec, buffer)
        self._record_arrays: dict[str, Array] = {}

    @property
    def action_mask(self) -> Array | None:
        return self._arrays.get(ACTION_MASK)

    def record(self, fields: Sequence[FieldSpec]) -> None:
        spec = fields_spec(fields, self.count)
        buffer = SharedBuffer.create(spec.nbytes, "fields")
        self._record_arrays = spec.arrays(buffer.map_shared())
        self._ask("record", tuple(fields), self.count, buffer)

    def reset(self, seed: int | None = None) -> ObservationArrays:
        for warnings in self._ask("reset", seed):
            self._add_warnings(warnings)
        return self._observation(OBSERVATION, slice(0, self.count))

    def step(self, actions: Array) -> Step:
        assert len(self.groups) == 1, "several groups are stepped by send() and recv()"
        self.send(actions)
        return self.recv()

    def send(self, actions: Array, group: int = 0) -> None:
        if group == 0:
            self._steps += 1
        self._arrays[ACTION][self.groups[group].rows] = actions
        for shard in self._shards:
            shard.send("step", group)

    def recv(self, group: int = 0) -> Step:
        ended, observation = False, None
        stats: dict[str, list[float]] = {}
        for index in range(len(self._shards)):
            reply: StepReply = self._receive(index, "step")
            ended, observation = ended | reply.ended, reply.observation
            for name, values in reply.stats.items():
                stats.setdefault(name, []).extend(values)
            if reply.warnings:
                self._add_warnings(reply.warnings)
        arrays, rows, games = self._arrays, self.groups[group].rows, self.groups[group].games
        return Step(
            self._observation(OBSERVATION, rows) if observation is None else observation,
            arrays["reward"][rows],
            arrays["terminated"][rows],
            arrays["truncated"][rows],
            arrays["valid"][rows],
            self._observation(FINAL, rows) if ended else None,
            stats,
            {name: array[rows] for name, array in self._record_arrays.items()},
            None if len(self.agents) == 1 else arrays["games_ended"][games],
        )

    def get_state(self) -> dict[str, object]:
        answers = self._ask("get_state")
        pieces = [
            Piece(first=games.start, games=len(games), state=state)
            for shares, answer in zip(self._shares, answers, strict=True)
            for games, state in zip(shares, answer["shares"], strict=True)
        ]
        return {"pieces": pieces, "generators": [answer["generators"] for answer in answers]}

    def set_state(self, state: Mapping[str, object]) -> None:
        pieces = pieces_of(state, self.games)
        generators = cast("list[Any]", state.get("generators", []))
        same = len(generators) == len(self._shards) and all(
            any((one["first"], one["games"]) == (games.start, len(games)) for one in pieces)
            for shares in self._shares
            for games in shares
        )
        arguments = [
            ([state_of(pieces, games) for games in shares], generators[index] if same else None)
            for index, shares in enumerate(self._shares)
        ]
        self._drop_answers()
        for shard, given in zip(self._shards, arguments, strict=True):
            shard.send("set_state", *given)
        self._answers("set_state")

    def close(self) -> None:
        self._end(None)

    def _open(self, index: int, shares: Sequence[range]) -> Shard:
        split = self._split
        if not split.workers:
            return _OwnShard(partial(EnvironmentShard, self._plan, shares, None))
        seed = copy_seeds(split.seed, index + 1)[index] if split.backend == "process" else None
        return BlockingWorker(split.backend, self._worker_name(index), EnvironmentShard, self._plan, shares, seed)

    def _worker_name(self, index: int) -> str:
        return f"{self._split.name}-environments-{index}"

    def _ask(self, method: str, *args: object) -> list[Any]:
        """The answers of all."""
        self._drop_answers()
        for shard in self._shards:
            shard.send(method, *args)
        return self._answers(method)

    def _answers(self, method: str) -> list[Any]:
        """Of all shards, also where one raises: what others answer would be taken for the next step."""
        answers: list[Any] = []
        failures: list[Exception] = []
        for index in range(len(self._shards)):
            try:
                answers.append(self._receive(index, method))
            except WorkerCrashed:
                raise
            except Exception as error:
                failures.append(error)
        if failures:
            raise failures[0]
        return answers

    def _drop_answers(self) -> None:
        """Those that nobody has waited for, since another one had failed."""
        for index, shard in enumerate(self._shards):
            while shard.unanswered:
                try:
                    self._receive(index, "step")
                except WorkerCrashed:
                    raise
                except Exception:
                    continue  # the first of them has been raised

    def _receive(self, index: int, what: str) -> Any:
        waits = False

        def waiting(seconds: float) -> None:
            nonlocal waits
            who = f"{self._worker_name(index)!r}, which has {self._copies_of(index)}"
            if not waits:
                waits = True
                self._split.waits_for(who)
            limit = self._split.step_timeout
            if what in ("step", "reset") and 0 < limit < seconds:
                step = f"step {self._steps}" if what == "step" else "reset"
                cast("BlockingWorker", self._shards[index]).kill()
                raise WorkerCrashed(
                    f"worker {who}, was ended: {step} of environment {self._plan.environment!r} has taken longer than"
                    f" {PATH.collection.step_timeout} = {limit:g} s"
                )

        try:
            return self._shards[index].receive(waiting)
        finally:
            if waits:
                self._split.waits_for("")

    def _copies_of(self, index: int) -> str:
        plan = self._plan
        parts = [f"{plan.first_copy + one.start} to {plan.first_copy + one.stop - 1}" for one in self._shares[index]]
        return f"the copies {' and '.join(parts)} of {plan.copies_of_run}"

    def _observation(self, of: str, rows: slice) -> ObservationArrays:
        arrays = self._arrays.items()
        return observation_of({name.removeprefix(of): array[rows] for name, array in arrays if name.startswith(of)})

    def _add_warnings(self, warnings: Mapping[str, str]) -> None:
        for about, text in warnings.items():
            if about not in self._warned:
                self._warned.add(about)
                self._warnings[about] = text

    def _end(self, grace: float | None) -> None:
        workers = [shard for shard in self._shards if isinstance(shard, BlockingWorker)]
        close_workers(workers) if grace is None else close_workers(workers, grace)
        for shard in self._shards:
            if isinstance(shard, _OwnShard):
                shard.close()


class _OwnShard:
    """A shard in this process: what it is asked for is done at once, but for steps that go on by themselves."""

    def __init__(self, make: Callable[[], EnvironmentShard]) -> None:
        self._shard = make()
        self._answers = deque[Callable[[], Any]]()

    @property
    def unanswered(self) -> int:
        return len(self._answers)

    def send(self, method: str, *args: Any) -> None:
        try:
            if method == "step":
                self._shard.begin_step(*args)
                answer = partial(self._shard.end_step, *args, here=True)
            else:
                answer = partial(_given, getattr(self._shard, method)(*args))
        except Exception as error:
            answer = partial(_raise, error)
        self._answers.append(answer)

    def receive(self, waiting: Callable[[float], None] | None = None) -> Any:
        return self._answers.popleft()()

    def close(self) -> None:
        self._shard.close()


def _given(value: Any) -> Any:
    return value


def _raise(error: Exception) -> Any:
    raise error


def _divided(games: range, parts: int) -> list[range]:
    """Neighbouring shares that differ by one at most."""
    ends = [games.start + len(games) * part // parts for part in range(parts + 1)]
    return [range(begin, end) for begin, end in itertools.pairwise(ends)]
