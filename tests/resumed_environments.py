"""Environments whose future depends on more than numbers in attributes, named "tests.resumed_environments:make"."""

from __future__ import annotations

import functools
import itertools
import random
import threading
import weakref
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, IntFlag
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

SHARED_GENERATOR = np.random.default_rng(3)
NOTHING = type("Nothing", (), {})()
ODD_WORDS = frozenset({"one", "three"})


class Mode(Enum):
    CALM = 0.25
    WILD = -0.25


class Doors(IntFlag):
    LEFT = 1
    RIGHT = 2


class Cell(NamedTuple):
    row: int
    marks: list[float]


@dataclass(frozen=True, slots=True)
class Place:
    x: float
    y: float


@dataclass
class Walker:
    place: Place
    friends: list[Walker] = field(default_factory=list["Walker"])


class Slotted:
    __slots__ = ("_hidden", "count")

    def __init__(self) -> None:
        self.count = 0

    def bump(self) -> float:
        self.count += 1
        return self.count % 5 / 5


ORIGIN = Place(0.0, 0.0)


class Resumed(gymnasium.Env[Any, Any]):
    """Its first observed number is random, its second comes from what a subclass keeps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.steps = 0

    def begin(self) -> None:
        """What an episode begins with, after the seeding."""

    def kept(self) -> float:
        return 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        self.begin()
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        observation = self._observe()
        return observation, float(observation.sum()), self.steps >= 9, False, {}

    def _observe(self) -> Any:
        pair = [self.np_random.uniform(-1, 1), self.kept()]
        return np.array(pair, np.float32).clip(-1.0, 1.0)


class TwoNames(Resumed):
    """One generator, one list, one array under two names each; and a cycle."""

    def __init__(self) -> None:
        super().__init__()
        self.board = np.zeros((3, 4))
        self.row = self.board[1, ::2]
        self.log: list[float] = []
        self.views: dict[Any, Any] = {("log", 1): self.log, "self": self}

    def begin(self) -> None:
        self.generator = self.np_random
        self.log.clear()

    def kept(self) -> float:
        self.row += self.generator.uniform(0, 0.1)
        self.log.append(1.0)
        return float(self.board.sum() % 1.0 + len(self.views["self"].views["log", 1]) / 20)


class SamplesSpaces(Resumed):
    """Draws from its own spaces, also nested ones."""

    def begin(self) -> None:
        if not hasattr(self, "nested"):
            self.nested = spaces.Dict({"a": spaces.Tuple((spaces.Discrete(7), spaces.Box(-1.0, 1.0)))})
            self.nested.seed(int(self.np_random.integers(100)))
            self.action_space.seed(int(self.np_random.integers(100)))

    def kept(self) -> float:
        drawn = self.nested.sample()["a"]
        return float(drawn[0] / 7 + drawn[1][0] + self.action_space.sample()) / 3


class UnseededSpaces(Resumed):
    """Draws from spaces that nobody has seeded: its own, its class's, and those of a wrapper."""

    shared = spaces.Discrete(50)

    def __init__(self) -> None:
        super().__init__()
        self.goals = {"near": [spaces.Box(-0.1, 0.1)], "all": spaces.Dict({"a": spaces.Sequence(spaces.Discrete(9))})}
        self.fixed = spaces.Box(-0.1, 0.1, seed=3)

    def begin(self) -> None:
        self.goal = float(self.goals["near"][0].sample()[0] + self.observation_space.sample()[0] / 9)  # type: ignore

    def kept(self) -> float:
        drawn = self.action_space.sample() / 9 + self.shared.sample() / 100 + self.fixed.sample()[0]
        return self.goal + float(drawn) + len(self.goals["all"].sample()["a"]) / 100  # type: ignore


def wrapped_unseeded_spaces() -> gymnasium.Env[Any, Any]:
    class Drawing(gymnasium.Wrapper[Any, Any, Any, Any]):
        def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
            super().__init__(env)
            self.observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)

        def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
            _, reward, done, cut, info = super().step(action)
            return self.observation_space.sample(), reward, done, cut, info

    return Drawing(UnseededSpaces())


class Machinery(Resumed):
    """State machines in methods, enumerations, closures, partials, lambdas and the like."""

    def __init__(self) -> None:
        super().__init__()
        self.mode, self.doors, self.phase, self.target = Mode.CALM, Doors(0), self.rest, NOTHING
        self.count, self.look = counter()
        self.scale = functools.partial(scaled, factor=0.5)
        self.draws: list[Callable[..., float]] = []
        self.cell, self.place, self.slotted = Cell(0, []), ORIGIN, Slotted()
        self.walkers = [Walker(ORIGIN)]

    def begin(self) -> None:
        if not self.draws:
            self.draws = [
                self.np_random.random,
                lambda: self.count(),
                random.Random(int(self.np_random.integers(9))).random,
            ]

    def rest(self) -> float:
        self.phase = self.run
        self.mode = Mode.WILD if self.mode is Mode.CALM else Mode.CALM
        self.target = NOTHING
        return 0.0

    def run(self) -> float:
        self.phase = self.rest
        self.target = self.place = Place(self.place.x + 0.1, self.place.y)
        self.doors = Doors(self.steps % 4)
        self.scale = functools.partial(scaled, factor=self.place.x % 1.0)
        self.cell = Cell(self.cell.row + 1, [*self.cell.marks, 0.1][-3:])
        fresh = Walker(self.place, self.walkers)
        self.walkers.append(fresh)
        del self.walkers[:-3]
        return float(self.target is self.place)

    def kept(self) -> float:
        value = self.phase() + self.mode.value + self.doors.value / 8 + sum(draw() for draw in self.draws)
        value += self.slotted.bump() + self.look() + sum(self.cell.marks) + (self.target is NOTHING)
        value += sum(len(walker.friends) + walker.place.x for walker in self.walkers) + (self.place is ORIGIN)
        return self.scale(value % 1.0)


class Containers(Resumed):
    """Containers of the standard library, numpy and torch."""

    def __init__(self) -> None:
        super().__init__()
        self.recent: deque[float] = deque([0.0], maxlen=3)
        self.counts: Counter[tuple[int, int]] = Counter()
        self.by_key: defaultdict[int, list[float]] = defaultdict(list)
        self.ordered: OrderedDict[int, float] = OrderedDict()
        self.visited: set[tuple[int, int]] = set()
        self.record = np.zeros(2, [("when", "M8[s]"), ("value", "f4", (2,))])
        self.objects = np.array([[None, (1, 2)], [self.recent, "x"]], dtype=object)
        self.tensor = torch.zeros(4)
        self.window = self.tensor[1:3]
        self.legacy = np.random.RandomState(5)
        self.torch_generator = torch.Generator().manual_seed(5)
        self.columns = np.asfortranarray(np.arange(6.0).reshape(2, 3))
        self.bytes = bytearray(b"abc")

    def kept(self) -> float:
        key = (self.steps % 3, int(self.legacy.randint(3)))
        self.recent.append(float(self.legacy.normal()))
        self.counts[key] += 1
        self.by_key[key[0]].append(0.1)
        self.ordered[key[0]] = float(torch.rand((), generator=self.torch_generator))
        self.ordered.move_to_end(key[0])
        self.visited.add(key)
        self.record["value"][0] += 0.01
        self.window += 0.01
        self.columns[0] += 0.1
        self.bytes[0] = (self.bytes[0] + 1) % 256
        value = sum(self.objects[1, 0]) + self.counts[0, 0] + len(self.by_key[0]) + next(iter(self.ordered.values()))
        value += (
            float(self.record["value"].sum()) + float(self.tensor.sum()) + float(self.columns.sum()) + self.bytes[0]
        )
        value += 0.25 * (("one", "two", "three")[self.steps % 3] in ODD_WORDS)
        return float((value + len(self.visited)) % 1.0)


class SharedByCopies(Resumed):
    """What all copies share: an attribute of the class, a variable of the module, a default argument."""

    everybody: list[float] = []  # noqa: RUF012
    total = 0

    def kept(self, memory: list[float] = []) -> float:  # noqa: B006
        type(self).total += 1
        self.everybody.append(float(SHARED_GENERATOR.uniform()))
        del self.everybody[:-5]
        memory.append(0.1)
        return float((sum(self.everybody) + self.total * 0.01 + len(memory) * 0.1) % 1.0)


class NotCaptured(Resumed):
    """Keeps something that does not tell what it holds."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        kinds: dict[str, Callable[[], Any]] = {
            "counter": itertools.count,
            "iterator": lambda: iter([0.1, 0.2] * 1000),
            "generator": lambda: (0.1 for _ in range(10**6)),
            "weak reference": lambda: weakref.ref(self),
            "lock": threading.Lock,
            "names": lambda: {"one", "two", "three"},
            "memory": lambda: np.frombuffer(bytearray(8), np.uint8),
        }
        self.inner = {"kept": [kinds[kind]()]}


def of_a_class_of_its_own() -> Resumed:
    """Each copy is of another class of the same name, with a closure of its own."""
    count = 0

    class OfItsOwnClass(Resumed):
        total = 0

        def kept(self) -> float:
            nonlocal count
            count += 1
            type(self).total += 1 + self.drawn % 2
            return (count + OfItsOwnClass.total) % 7 / 7

        @property
        def drawn(self) -> int:
            return int(self.np_random.integers(5))

    return OfItsOwnClass()


def counter() -> tuple[Callable[[], float], Callable[[], float]]:
    count = 0

    def add() -> float:
        nonlocal count
        count += 1
        return count % 7 / 7

    return add, lambda: count % 3 / 3


def scaled(value: float, factor: float) -> float:
    return value * factor


def make_not_captured(kind: str) -> gymnasium.Env[Any, Any]:
    return NotCaptured(kind)


def make(kind: str, **options: Any) -> gymnasium.Env[Any, Any]:
    return globals()[kind](**options)
