"""Hooks from decorated functions: `@trainer.on_epoch_end(every=10)`."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from orchestrator.hooks.hook import EVENTS, Hook

if TYPE_CHECKING:
    from collections.abc import Callable

_SETTINGS = sorted(name for name in Hook.__annotations__ if name not in ("run", "saves"))


def function_hook(event: str, function: Callable[..., Any], settings: dict[str, Any]) -> Hook:
    """A hook whose only callback is `function(state)`, which may be async or plain; named after the function.

    Raises TypeError for settings that a hook does not have, and for a function that can't be called with a state.
    """
    if event not in EVENTS:
        raise ValueError(f"there is no event {event!r}; there are {', '.join(EVENTS)}")
    unknown = sorted(settings.keys() - set(_SETTINGS))
    if unknown:
        raise TypeError(f"{event} does not take {', '.join(unknown)}; a hook's settings are {', '.join(_SETTINGS)}")
    name = settings.get("name") or getattr(function, "__name__", None) or type(function).__name__
    try:
        inspect.signature(function).bind(None)
    except TypeError as error:
        raise TypeError(f"{event} calls {name!r} with one argument, the state; but {error}") from None
    except ValueError:
        pass  # a function of an extension module may not tell

    async def deliver_async(_: Hook, state: Any) -> Any:
        return await function(state)

    def deliver(_: Hook, state: Any) -> Any:
        return function(state)

    callback = deliver_async if inspect.iscoroutinefunction(function) else deliver
    attributes = {event: callback, "__doc__": function.__doc__, **settings, "name": name}
    return type(name, (Hook,), attributes)()
