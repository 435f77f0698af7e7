"""Whether losses can be sent to the learner, which is another process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from orchestrator.workers.message import encode
from state.user_code import described

if TYPE_CHECKING:
    from losses import LearnerCallback


def check_sendable(losses: Sequence[LearnerCallback]) -> None:
    """Raises TypeError naming the first thing in a loss that can't be sent, such as a module of torch.jit, a lock or a
    file."""
    for loss in losses:
        error = _why_not(loss)
        if error is None:
            continue
        path, value = _culprit(loss)
        what = f"{path} is {_kind_of(value)}, which" if path else "what its class or its methods use"
        raise TypeError(
            f"the loss {loss.name!r} can't be sent to the learner, which is another process: {what} can't be pickled"
            f" ({described(error)}); make it in attach(context), which runs there"
            + (", or use the module or function in Python" if isinstance(value, _SCRIPTED) else "")
        ) from error


def _why_not(value: object) -> Exception | None:
    try:
        encode(value)
    except Exception as error:
        return error
    return None


def _culprit(value: object) -> tuple[str, object]:
    """The innermost part of a value that can't be sent, and its path; of a part that holds itself, that part."""
    path = ""
    seen: set[int] = set()
    while id(value) not in seen and not isinstance(value, _SCRIPTED):
        seen.add(id(value))
        failing = ((step, part) for step, part in _parts(value) if _why_not(part) is not None)
        step, value = next(failing, ("", value))
        path += step
    return path.removeprefix("."), value


def _parts(value: object) -> Iterator[tuple[str, object]]:
    if isinstance(value, nn.Module):
        yield from ((f".{name}", module) for name, module in value.named_children())
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", item) for key, item in cast("Mapping[object, object]", value).items())
    elif isinstance(value, (list, tuple)):
        yield from ((f"[{place}]", item) for place, item in enumerate(cast("Sequence[object]", value)))
    yield from ((f".{name}", item) for name, item in cast("dict[str, Any]", getattr(value, "__dict__", {})).items())


def _kind_of(value: object) -> str:
    if isinstance(value, torch.jit.ScriptModule):
        return "a module of torch.jit"
    if isinstance(value, torch.jit.ScriptFunction):
        return "a function of torch.jit"
    return f"of the type {type(value).__qualname__}"


_SCRIPTED = (torch.jit.ScriptModule, torch.jit.ScriptFunction)
