"""Every asynchronous test runs on asyncio and on trio."""

from __future__ import annotations

import pytest
import torch

# Tests compute little, and several threads waiting for each other on a busy machine take longer than one.
torch.set_num_threads(1)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param
