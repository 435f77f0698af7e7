"""Hooks from decorated functions: `@trainer.on_epoch_end(every=10)`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from orchestrator.hooks.hook import EVENTS, Hook

if TYPE_CHECKING:
    from collections.abc import Callable

_SETTINGS = frozenset(name for name in Hook.__annotations__ if name not in ("run", "saves", "lifecycle_events"))


def function_hook(event: str, function: Callable[..., Any], settings: dict[str, Any]) -> Hook:
    """A hook whose only callback is `function(state)`, which may be async or plain; named after the function.

    Raises TypeError for settings that a hook does not have.
    """
    unknown = sorted(settings.keys() - _SETTINGS)
    if unknown:
        raise TypeError(f"{event} does not take {unknown}; a hook's settings are {sorted(_SETTINGS)}")
    name = settings.get("name") or getattr(function, "__name__", event)
    assert event in EVENTS

    async def deliver_async(_: Hook, state: Any) -> Any:
        return await function(state)

    def deliver(_: Hook, state: Any) -> Any:
        return function(state)

    callback = deliver_async if inspect.iscoroutinefunction(function) else deliver
    attributes = {event: callback, "__doc__": function.__doc__, **settings, "name": name}
    return type(name, (Hook,), attributes)()
