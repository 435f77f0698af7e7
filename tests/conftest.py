"""Every asynchronous test runs on asyncio and on trio."""

from __future__ import annotations

import atexit
import os
import signal
import tempfile

import pytest
import torch

# Tests compute little, and several threads waiting for each other on a busy machine take longer than one.
torch.set_num_threads(1)

# Tests send signals to programs, which inherit what is ignored here: by nohup, or by a script that runs pytest with &.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# trackio reads this once, at its import; without it, tests would write into the user's folder.
_of_trackio = tempfile.TemporaryDirectory(prefix="of-trackio-")
os.environ["TRACKIO_DIR"] = _of_trackio.name
atexit.register(_of_trackio.cleanup)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param
