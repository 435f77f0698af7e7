"""What tests of losses share: a context to attach them to, and a guard against waiting for the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from losses import LossContext, LossStatistics

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager


class _NoWaiting(TorchDispatchMode):
    """Raises at operations that would make the host wait for the device."""

    WAITING = (
        "aten::_local_scalar_dense",
        "aten::nonzero",
        "aten::masked_select",
        "aten::is_nonzero",
        "aten::equal",
    )

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func.name().split(".")[0] in self.WAITING:
            raise AssertionError(f"{func.name()} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.fixture
def no_waiting() -> Callable[[], AbstractContextManager[Any]]:
    return _NoWaiting


@pytest.fixture
def context() -> LossContext:
    return LossContext(policy=nn.Linear(1, 1), device=torch.device("cpu"), seed=0, statistics=LossStatistics("cpu"))
