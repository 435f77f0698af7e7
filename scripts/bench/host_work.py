"""What the host does itself: its processor time per epoch, what a state weighs, what an unused callback costs.

    python scripts/bench/host_work.py [--environments 8 64] [--repeats 3]

Processor time is that of the host's main thread, where the event loop runs, and that of all its threads; workers are
other processes. "Hooks" are those of a run with a folder: checkpoints, metrics, progress as plain lines.
"""

from __future__ import annotations

import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent))
from measure import WARM_UP, arguments, describe_machine, in_subprocess, spread, verdict

if TYPE_CHECKING:
    from orchestrator import Hook, TrainerConfig
    from state import TrainerState

WORK_GOAL, SIZE_GOAL = 1.0, 1000
VIEWS = ("experience", "policy")


def configured(environments: int, run_dir: Path | None = None) -> TrainerConfig:
    from orchestrator import CollectionConfig, TrainerConfig

    return TrainerConfig(
        total_agent_steps=10**9,
        run_dir=run_dir,
        collection=CollectionConfig(num_environments=environments, horizon=128),
    )


def work(environments: int, folder: str = "") -> dict[str, float]:
    """Seconds of processor time per epoch, of the main thread and of all threads."""
    import anyio
    from rich.console import Console

    from orchestrator import Trainer
    from orchestrator.hooks.included.progress import ProgressHook

    config = configured(environments, Path(folder) if folder else None)
    hooks: list[Hook] = [ProgressHook(10**9, "plain", Console(file=io.StringIO()))] if folder else []
    epochs = 60 if environments > 8 else 150
    begin = end = (0.0, 0.0)

    async def main() -> None:
        nonlocal begin, end
        seen = 0
        async with Trainer(config, hooks=hooks).start() as run:
            async for _ in run.states():
                seen += 1
                if seen == WARM_UP:
                    begin = time.thread_time(), time.process_time()
                elif seen == WARM_UP + epochs:
                    end = time.thread_time(), time.process_time()
                    run.stop()

    anyio.run(main)
    return {"main": (end[0] - begin[0]) / epochs, "all": (end[1] - begin[1]) / epochs}


def sizes() -> dict[str, Any]:
    """Bytes of one state, of what it refers to beside the views, and of what is new since the one before."""
    import anyio

    from orchestrator import Trainer

    states: list[TrainerState] = []
    events = -1

    async def main() -> None:
        nonlocal events
        async with Trainer(configured(64)).start() as run:
            async for state in run.states():
                states.append(state)
                if len(states) == 8:
                    run.stop()
                    break
            await run.result()
            events = run.statistics().engine.events

    anyio.run(main)
    before, after = _parts(states[-2]), _parts(states[-1])
    return {
        "slots": sys.getsizeof(states[-1]),
        "all": sum(after.values()),
        "new": sum(size for identity, size in after.items() if identity not in before),
        "events": events,
    }


def _parts(value: Any) -> dict[int, int]:
    """Sizes of all objects that a state refers to, directly or not, by identity."""
    parts: dict[int, int] = {}
    waiting = [value]
    while waiting:
        one = waiting.pop()
        if id(one) in parts or one is None or isinstance(one, (type, bool)):
            continue
        parts[id(one)] = sys.getsizeof(one)
        if isinstance(one, Mapping):
            waiting += [*one.keys(), *one.values()]
            # A mapping that wraps a dictionary.
            waiting += [getattr(one, name) for name in _slots(one)]
        elif isinstance(one, (tuple, list)):
            waiting += one
        else:
            waiting += [getattr(one, name) for name in _slots(one) if name not in VIEWS]
    return parts


def _slots(value: Any) -> list[str]:
    slots = [name for kind in type(value).__mro__ for name in vars(kind).get("__slots__", ())]
    return [name for name in (*slots, *getattr(value, "__dict__", ())) if hasattr(value, name)]


def unused_callbacks() -> dict[str, float]:
    """Seconds of publishing an event that no hook listens to, and of a minibatch's callbacks that no loss overrides."""
    import anyio

    from losses import LossSet, ppo_losses
    from orchestrator.hooks.engine import HookEngine
    from state import TrainerState

    state = TrainerState()
    count = 100_000

    async def publish() -> float:
        engine = HookEngine([], run=None)  # type: ignore[arg-type]
        begin = time.perf_counter()
        for _ in range(count):
            await engine.publish("on_rollout_end", state)
        seconds = time.perf_counter() - begin
        assert engine.statistics().events == 0
        return seconds / count

    on_mb_end = LossSet(ppo_losses()).overriding("on_mb_end")
    assert not on_mb_end
    begin = time.perf_counter()
    for _ in range(count):
        for callback in on_mb_end:
            callback(state)
    of_losses = (time.perf_counter() - begin) / count
    return {"publish": anyio.run(publish), "on_mb_end": of_losses}


def main() -> None:
    chosen = arguments(__doc__, repeats=3, environments=(8, 64)).parse_args()
    if chosen.one:
        what, *rest = chosen.one
        if what == "work":
            print(json.dumps(work(int(rest[0]), *rest[1:])))
        else:
            print(json.dumps(sizes() if what == "sizes" else unused_callbacks()))
        return
    print(describe_machine())
    for environments in chosen.environments:
        without: list[dict[str, float]] = []
        beside: list[dict[str, float]] = []
        for _ in range(chosen.repeats):
            without.append(in_subprocess(__file__, "--one", "work", environments))
            with tempfile.TemporaryDirectory() as folder:
                beside.append(in_subprocess(__file__, "--one", "work", environments, f"{folder}/run"))
        for name, rounds in (("no hooks", without), ("hooks", beside)):
            for threads in ("main", "all"):
                values = [one[threads] * 1e3 for one in rounds]
                is_goal = threads == "main" and name == "no hooks"
                print(
                    f"{environments:4} environments, {name:8}  {threads:4} thread(s)"
                    f"  {spread(values)} ms per epoch"
                    + (f"  ({verdict(statistics.median(values), WORK_GOAL)})" if is_goal else ""),
                    flush=True,
                )
    size = in_subprocess(__file__, "--one", "sizes")
    print(f"a TrainerState: {size['slots']} bytes  ({verdict(size['slots'], SIZE_GOAL)})")
    print(
        f"  with its statistics and timer, without experience and policy: {size['all']} bytes,"
        f" of which {size['new']} are new since the state before"
    )
    rounds = [in_subprocess(__file__, "--one", "callbacks") for _ in range(chosen.repeats)]
    print(f"an event that no hook listens to: {spread([one['publish'] * 1e9 for one in rounds])} ns of the host")
    print(f"  events put into mailboxes in a whole training without hooks: {size['events']}")
    print(f"on_mb_end that no loss overrides: {spread([one['on_mb_end'] * 1e9 for one in rounds])} ns of the learner")


if __name__ == "__main__":
    main()
