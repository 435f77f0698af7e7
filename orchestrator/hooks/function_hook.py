"""Hooks from decorated functions: `@trainer.on_epoch_end(every=10)`."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from orchestrator.hooks.check import check_hooks
from orchestrator.hooks.hook import Hook

if TYPE_CHECKING:
    from state.trainer_state import TrainerState

F = TypeVar("F", bound=Callable[["TrainerState"], Any])
_SETTINGS = sorted(name for name in Hook.__annotations__ if name not in ("run", "saves"))


class HasHooks(Protocol):
    hooks: list[Hook]


class EventDecorator:
    """Makes a hook of a function of the state, async or plain: `@trainer.on_epoch_end`, or with settings of `Hook`,
    `@trainer.on_epoch_end(every=10)`. The event is the name that it has in the trainer's class.

    Raises TypeError as `function_hook`, HookConfigurationError as `check_hooks`.
    """

    _trainer: HasHooks

    def __set_name__(self, owner: type, name: str) -> None:
        self._event = name

    def __get__(self, trainer: HasHooks | None, owner: type) -> EventDecorator:
        if trainer is None:
            return self
        bound = copy.copy(self)
        bound._trainer = trainer
        return bound

    @overload
    def __call__(self, function: F, **settings: Any) -> F: ...
    @overload
    def __call__(self, function: None = None, **settings: Any) -> Callable[[F], F]: ...
    def __call__(self, function: Callable[..., Any] | None = None, **settings: Any) -> Any:
        if function is None:

            def decorate(target: F) -> F:
                return self(target, **settings)

            return decorate
        hook = function_hook(self._event, function, settings)
        check_hooks([*self._trainer.hooks, hook])
        self._trainer.hooks.append(hook)
        return function


def function_hook(event: str, function: Callable[..., Any], settings: dict[str, Any]) -> Hook:
    """A hook whose only callback is `function(state)`, which may be async or plain; named after the function.

    Raises TypeError for settings that a hook does not have, and for a function that can't be called with a state.
    """
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
