"""What can be known to be wrong with a set of hooks before a run begins."""

from __future__ import annotations

import difflib
import functools
import graphlib
from collections import Counter
from typing import TYPE_CHECKING, Any

from orchestrator.config.error import shown
from orchestrator.config.fields import problems_of
from orchestrator.hooks.hook import EVENTS, Hook, hook_name, overridden_events
from state.error import OrchestratorError
from state.misspelt import misspelt, wrong_parameters

if TYPE_CHECKING:
    from collections.abc import Sequence


class HookConfigurationError(OrchestratorError, ValueError):
    """The hooks as given cannot be run together; the message lists every problem."""


def check_hooks(hooks: Sequence[Hook]) -> None:
    """Raises HookConfigurationError listing names given twice, unknown or circular predecessors, bad settings."""
    problems = [
        f"{hook!r} is {'a class; give an instance of it' if isinstance(hook, type) else 'no Hook'}"
        for hook in hooks
        if not _is_hook(hook)
    ]
    hooks = [hook for hook in hooks if _is_hook(hook)]
    names = [hook_name(hook) for hook in hooks]
    problems += [
        f"{count} hooks are called {name!r}; give each its own `name`"
        for name, count in Counter(names).items()
        if count > 1
    ]
    after: dict[str, tuple[str, ...]] = {}
    for name, hook in zip(names, hooks, strict=True):
        problems += [f"hook {name!r}: {problem}" for problem in (*_check_callbacks(hook), *_check_settings(hook))]
        if isinstance(hook.after, str):  # each letter of it is no name
            continue
        after[name] = hook.after
        problems += [
            f"hook {name!r} comes after {other!r}, and there is no such hook; there are {names}"
            for other in hook.after
            if other not in names
        ]
    try:
        graphlib.TopologicalSorter(after).prepare()
    except graphlib.CycleError as error:
        cycle: list[str] = error.args[1]
        problems.append(f"hooks wait for each other in a cycle: {' after '.join(reversed(cycle))}")
    if problems:
        raise HookConfigurationError("; ".join(problems))


def predecessors(hooks: Sequence[Hook]) -> dict[str, tuple[str, ...]]:
    """By name, all hooks that come before one, directly or through others, in the order of `hooks`."""
    after = {hook_name(hook): hook.after for hook in hooks}

    @functools.cache
    def before(name: str) -> frozenset[str]:
        return frozenset(after[name]).union(*(before(other) for other in after[name]))

    return {name: tuple(other for other in after if other in before(name)) for name in after}


def _is_hook(hook: Any) -> bool:
    return isinstance(hook, Hook)


def _check_callbacks(hook: Hook) -> list[str]:
    problems: list[str] = []
    for name in dir(type(hook)):
        if not name.startswith("on_") or name in EVENTS or not callable(getattr(type(hook), name)):
            continue
        if name == "on_mb_end":
            problems.append("on_mb_end is a callback of losses; hooks are not called in the middle of the training")
        elif similar := difflib.get_close_matches(name, EVENTS, n=1, cutoff=0.8):
            problems.append(f"there is no callback {name!r}; did you mean {similar[0]!r}?")
    for event in sorted(overridden_events(hook)):
        problem = wrong_parameters(getattr(hook, event), "state")
        if problem:
            problems.append(f"{event} {problem}")
    problems += misspelt(hook, Hook, (*Hook.__annotations__, *vars(Hook)))
    if not overridden_events(hook):
        problems.append(f"it overrides no callback, so it would never be called; there are {', '.join(EVENTS)}")
    if type(hook).state_dict is not Hook.state_dict and not hook.name:
        problems.append("it keeps state in checkpoints, so it needs its own `name`, by which it is found again")
    return problems


def _check_settings(hook: Hook) -> list[str]:
    return [
        f"`{problem.field}` must be {problem.expected}, not {shown(problem.value)}; {problem.cure}"
        for problem in problems_of(hook, Hook)
    ]
