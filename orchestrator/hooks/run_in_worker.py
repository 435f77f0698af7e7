"""Heavy computation of a hook in a separate process: it costs the host no interpreter time."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar, cast

from orchestrator.workers.worker import start_worker

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def run_in_worker(function: Callable[..., T], *args: object) -> T:
    """`function(*args)` in a new process, which is killed when the caller is cancelled.

    Views of experience and policy can be arguments: the process maps the same memory. Starting the process takes
    about 40 ms. Raises what the function raises, and WorkerCrashed, with the function's name, when the process dies.
    """
    name = getattr(function, "__qualname__", None) or repr(function)
    async with start_worker("process", name, _Call, grace=0.0) as worker:
        return cast("T", await worker.call("run", function, args))


class _Call:
    def run(self, function: Callable[..., object], args: tuple[object, ...]) -> object:
        return function(*args)
