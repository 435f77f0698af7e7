"""A resumed run goes on bit for bit whatever an environment keeps, or the log says what could not be kept."""

from __future__ import annotations

import importlib
import logging
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator import CheckpointsConfig, Trainer
from tests.orchestrator.snapshots.test_resume import assert_same
from tests.orchestrator.training import WaitForCheckpoints, small_config

if TYPE_CHECKING:
    from pathlib import Path

    from orchestrator import TrainerConfig

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def anyio_backend() -> str:
    """What environments hold is the same in every event loop."""
    return "asyncio"


def config_of(environment: str, folder: Path | None, options: dict[str, Any], **settings: Any) -> TrainerConfig:
    config = small_config(
        environment=environment,
        num_environments=2,
        horizon=16,
        run_dir=folder,
        checkpoints=CheckpointsConfig(every=2, keep=0),
        **settings,
    )
    return replace(config, collection=replace(config.collection, environment_options=options))


@pytest.mark.parametrize(
    "kind",
    [
        "TwoNames",
        "SamplesSpaces",
        "Machinery",
        "Containers",
        "of_a_class_of_its_own",
        "UnseededSpaces",
        "wrapped_unseeded_spaces",
    ],
)
async def test_a_resumed_environment_goes_on_bit_for_bit(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of("tests.resumed_environments:make", tmp_path / "whole", {"kind": kind}, epochs=4)
    whole = await Trainer(config, hooks=[WaitForCheckpoints(config)]).run()
    branch = replace(config, run_dir=tmp_path / "branch")
    resumed = await Trainer(branch, resume=tmp_path / "whole" / "checkpoints" / "00000002").run()
    assert "resumed, but" not in caplog.text
    assert_same(whole, resumed)


@pytest.mark.parametrize("backend", ["inline", "process"])
@pytest.mark.parametrize("kind", ["UnseededSpaces", "wrapped_unseeded_spaces"])
async def test_what_environments_draw_from_their_spaces_depends_on_the_seed_alone(kind: str, backend: Any) -> None:
    config = config_of("tests.resumed_environments:make", None, {"kind": kind}, epochs=2, backend=backend)
    first, second = [await Trainer(config).run() for _ in range(2)]
    assert_same(first, second)
    other = await Trainer(replace(config, seed=2)).run()
    assert first.rollout_stats != other.rollout_stats


async def test_what_copies_share_through_classes_and_modules_goes_on_bit_for_bit(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # In processes of their own, where nobody has used the classes before.
    options = {"kind": "SharedByCopies"}
    config = config_of("tests.resumed_environments:make", tmp_path / "whole", options, epochs=4, backend="process")
    whole = await Trainer(config, hooks=[WaitForCheckpoints(config)]).run()
    branch = replace(config, run_dir=tmp_path / "branch")
    resumed = await Trainer(branch, resume=tmp_path / "whole" / "checkpoints" / "00000002").run()
    assert "resumed, but" not in caplog.text
    assert_same(whole, resumed)


@pytest.mark.parametrize("kind", ["counter", "iterator", "generator", "weak reference", "lock", "names", "memory"])
async def test_what_cannot_be_kept_is_named_and_new_episodes_begin(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_of("tests.resumed_environments:make_not_captured", tmp_path, {"kind": kind}, epochs=4)
    await Trainer(config).run()
    # Where the first checkpoint is taken, and only there.
    assert caplog.text.count("not restored when this run is resumed: the environments, ") == 1
    assert " because copy 0: .inner['kept'][0] is " in caplog.text
    with caplog.at_level(logging.WARNING):
        final = await Trainer(replace(config, total_agent_steps=160), resume=tmp_path).run()
    assert final.agent_step == 160
    assert "in progress begin again: the environment can't give its state: copy 0: .inner['kept'][0] " in caplog.text


_WORLD = """
import gymnasium, numpy as np
LIMIT = 10

class World(gymnasium.Env):
    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.length, self.steps = 10, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps >= min(self.length, LIMIT), False, {}

def make():
    return World()
"""


@pytest.mark.parametrize(
    ("before", "after", "named", "lengths"),
    [
        ("self.length, self.steps = 10, 0", "self.length, self.steps, self.bonus = 5, 0, 1", ".length", {5.0}),
        ("LIMIT = 10", "LIMIT = 5", "world_that_changes:LIMIT", {5.0}),
        ("self.steps += 1", "self.steps += 2", "world_that_changes:World.step", {5.0}),
        ("World", "Planet", "is of the environment class 'World', this is a 'Planet'", {10.0}),
        ("reset(seed=seed)", "reset(seed=seed)  # as before", None, {10.0}),
    ],
)
async def test_code_that_has_changed_since_begins_new_episodes_and_the_log_names_it(
    before: str,
    after: str,
    named: str | None,
    lengths: set[float],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    module = tmp_path / "world_that_changes.py"
    module.write_text(_WORLD)
    try:
        config = config_of("world_that_changes:make", tmp_path / "run", {}, epochs=2)
        await Trainer(config).run()
        module.write_text(_WORLD.replace(before, after))
        del sys.modules["world_that_changes"]
        importlib.invalidate_caches()
        with caplog.at_level(logging.WARNING):
            final = await Trainer(replace(config, total_agent_steps=96), resume=tmp_path / "run").run()
    finally:
        sys.modules.pop("world_that_changes", None)
    assert final.rollout_stats is not None
    assert set(final.rollout_stats["episode_length"]) == lengths
    if named is None:
        assert "resumed, but" not in caplog.text
    else:
        assert "in progress begin again: the environment can't take its saved state: " in caplog.text
        assert named in caplog.text


_GLOBALS = """
import contextvars, ctypes, functools, random, threading
import gymnasium, numpy as np
{variables}

class World(gymnasium.Env):
    def __init__(self):
        self.observation_space = gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {{}}

    def step(self, action):
        self.steps += 1
        return self.observe(), 1.0, self.steps >= 9, False, {{}}

    def observe(self):
        {statement}
        return np.array([self.np_random.uniform(), np.tanh(value / 50)], np.float32)

def make():
    return World()
"""
_UP = """
N = 0
def up():
    global N
    N += 1
    return N
class Total:
    total = 0
    def up(self):
        Total.total += 1
        return Total.total
class Caller:
    def __init__(self, function): self.function = function
    def __call__(self): return self.function()
class Holder:
    def up(self): return Total().up()
"""


async def _run_and_resume(
    variables: str, statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> tuple[Any, Any]:
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "globals_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "sub.py").write_text("counter = 0")
    (tmp_path / "world_with_globals.py").write_text(_GLOBALS.format(variables=variables, statement=statement))
    names = ("world_with_globals", "globals_package", "globals_package.sub")
    try:
        config = config_of("world_with_globals:make", tmp_path / "whole", {}, epochs=4)
        whole = await Trainer(config, hooks=[WaitForCheckpoints(config)]).run()
        caplog.clear()
        branch = replace(config, run_dir=tmp_path / "branch")
        with caplog.at_level(logging.WARNING):
            resumed = await Trainer(branch, resume=tmp_path / "whole" / "checkpoints" / "00000002").run()
    finally:
        for name in names:
            sys.modules.pop(name, None)
    return whole, resumed


@pytest.mark.parametrize(
    ("variables", "statement"),
    [
        (_UP + "TABLE = {'up': up}", "value = TABLE['up']()"),
        (_UP + "PART = functools.partial(up)", "value = PART()"),
        (_UP + "CALLER = Caller(up)", "value = CALLER()"),
        (_UP + "HOLDER = Holder()", "value = HOLDER.up()"),
        (_UP + "TABLE = [Caller({'up': Holder().up}['up'])]", "value = TABLE[0]()"),
        ("import globals_package.sub", "globals_package.sub.counter += 1; value = globals_package.sub.counter"),
        ("", "import globals_package.sub as sub; sub.counter += 1; value = sub.counter"),
        ("", "from globals_package import sub; sub.counter += 1; value = sub.counter"),
        ("def up():\n    up.n += 1\n    return up.n\nup.n = 0", "value = up()"),
    ],
)
async def test_what_functions_in_data_and_modules_of_packages_change_goes_on_bit_for_bit(
    variables: str, statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, resumed = await _run_and_resume(variables, statement, tmp_path, monkeypatch, caplog)
    assert "resumed, but" not in caplog.text
    assert_same(whole, resumed)


_FACTORIES = """
def counter():
    n = 0
    def up():
        nonlocal n
        n += 1
        return n
    return up
def counted(function):
    n = 0
    def wrapper(*arguments):
        nonlocal n
        n += 1
        return n % 5 + function(*arguments)
    return wrapper
def kind():
    class Kind:
        n = 0
        def up(self, seen=[]):
            Kind.n += 1
            seen.append(1)
            return Kind.n + len(seen) % 3
        @property
        def twice(self):
            return self.up() + self.up()
    return Kind
"""


@pytest.mark.parametrize(
    ("variables", "statement"),
    [
        (
            "",
            "self.one = getattr(self, 'one', None) or type('One', (), {'n': 0})(); self.one.n += 1; value = self.one.n",
        ),
        (
            "",
            "self.a = getattr(self, 'a', None) or type('A', (), {'n': 0}); self.a.n += self.steps; value = self.a.n",
        ),
        (
            "",
            "made = type('A', (), {'n': self.np_random.random()}); self.all = [*getattr(self, 'all', []), made][-5:];"
            " value = sum(one().n for one in self.all)",
        ),
        (
            _FACTORIES,
            "self.kinds = [*getattr(self, 'kinds', []), kind()][-4:]; value = sum(k().twice for k in self.kinds)",
        ),
        (_FACTORIES + "A, B = counter(), counter()", "value = A() % 9 + (2 * B() if self.steps % 2 else 0)"),
        (_FACTORIES + "KIND = kind()", "value = KIND().twice"),
        (_FACTORIES + "TABLE = {'a': kind(), 'b': kind()}", "value = TABLE['a']().up() + TABLE['b']().up() * 2"),
        (_FACTORIES + "class Of(kind()): pass", "value = Of().twice"),
        (_FACTORIES + "class Of:\n    up = counted(counted(lambda self: 0))", "value = Of().up()"),
        (_FACTORIES + "class Of:\n    up = property(counted(lambda self: 0))", "value = Of().up"),
        (
            "def counted(function):\n"
            "    @functools.wraps(function)\n"
            "    def wrapper():\n"
            "        wrapper.calls += 1\n"
            "        return function()\n"
            "    wrapper.calls = 0\n"
            "    return wrapper",
            "self.f = getattr(self, 'f', None) or counted(lambda: 1); self.f(); value = self.f.calls",
        ),
        (
            "",
            "self.f = getattr(self, 'f', None) or (lambda: 0); self.f.n = [getattr(self.f, 'n', [0])[0] + 1];"
            " value = self.f.n[0]",
        ),
        (
            "import enum\nclass Of(enum.Enum):\n    A = 1",
            "self.m = m = Of.A; m.n = getattr(m, 'n', 0) + 1; value = m.n",
        ),
        ("import enum\nclass Of(enum.Enum):\n    A = 1", "Of.A.n = getattr(Of.A, 'n', 0) + 1; value = Of.A.n"),
        (
            "import enum\nclass Of(enum.Enum):\n    A = 1\n    B = 2",
            "m = Of['A' if self.steps % 2 else 'B']; m._all = [*getattr(m, '_all', []), 1]; value = len(m._all)",
        ),
        ("import enum\nclass Of(enum.Enum):\n    A = [0]", "Of.A.value[0] += 1; value = Of.A.value[0]"),
        (
            "import enum\nclass Of(enum.IntFlag):\n    A = 1\n    B = 2",
            "Of.B.n = getattr(Of.B, 'n', 0) + 1; value = Of.B.n + (Of.A | Of.B)",
        ),
        (
            "import enum\nclass Of(enum.Enum):\n    A = 1\n    def up(self, n=[0]):\n        n[0] += 1\n"
            "        Of.seen = getattr(Of, 'seen', 0) + 1\n        return n[0] + Of.seen",
            "value = Of.A.up()",
        ),
        (
            "import enum\nclass Of(enum.Enum):\n    A = 1\n    @property\n    def up(self):\n"
            "        self.n = getattr(self, 'n', 0) + 1\n        return self.n",
            "value = list(Of)[0].up",
        ),
        (
            "import enum\nclass Of(enum.Enum):\n    A = 1\n    B = 2\nclass Holder:\n    now = Of.A",
            "Holder.now = Of.B if self.steps % 3 else Of.A; value = Holder.now.value",
        ),
        (
            "class Of:\n    @functools.cache\n    def kept(self, *k): return [0]",
            "self.of = of = vars(self).get('of') or Of(); a, b = of.kept(self.steps % 3), of.kept('x', self.steps % 2);"
            " a[0] += 1; b[0] += 1; value = a[0] + b[0]",
        ),
        ("class Named:\n    n = 0", "self.of = globals()['Na' + 'med']; self.of.n += 1; value = self.of.n"),
    ],
)
async def test_classes_and_functions_made_at_run_time_go_on_bit_for_bit(
    variables: str, statement: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    whole, resumed = await _run_and_resume(variables, statement, tmp_path, monkeypatch, caplog)
    assert "resumed, but" not in caplog.text
    assert_same(whole, resumed)


@pytest.mark.parametrize(
    ("variables", "statement", "named"),
    [
        ("LOCAL = threading.local()", "value = LOCAL.n = getattr(LOCAL, 'n', 0) + 1", "world_with_globals:LOCAL"),
        ("", "self.k = {float('nan'): 1, float('nan'): 2}; value = len(self.k)", "several keys that are NaN"),
        ("class Of:\n    n = 5", "value = getattr(Of, 'n', 0); Of.n = 1; del Of.n", "Of.n was deleted"),
        ("", "self.me = vars(self); self.me['n'] = self.me.get('n', 0) + 1; value = self.n", "the __dict__ of"),
        ("C = ctypes.c_int(0)", "C.value += 1; value = C.value", "world_with_globals:C"),
        ("V = contextvars.ContextVar('V', default=0)", "V.set(V.get() + 1); value = V.get()", "world_with_globals:V"),
        ("@functools.lru_cache\ndef kept(k): return random.random()", "value = kept(self.steps)", "kept"),
        (
            "SPACE = {}\nexec('K = 0\\ndef up():\\n global K\\n K += 1\\n return K', SPACE)",
            "value = SPACE['up']()",
            "SPACE",
        ),
    ],
)
async def test_state_outside_of_objects_that_the_code_sees_is_refused_by_name(
    variables: str,
    statement: str,
    named: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    await _run_and_resume(variables, statement, tmp_path, monkeypatch, caplog)
    assert "in progress begin again: the environment can't give its state: " in caplog.text
    assert named in caplog.text
