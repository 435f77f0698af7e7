"""Page-locking of slots, as far as that can be seen without a GPU: what CUDA's runtime is asked for."""

from __future__ import annotations

import enum
import gc
import mmap
from typing import Any

import anyio
import numpy as np
import pytest
import torch

from orchestrator import Trainer
from orchestrator.learning import page_locked
from tests.orchestrator.training import small_config

pytestmark = pytest.mark.slow


class Code(enum.Enum):
    """As torch binds CUDA's: no number, but made to one."""

    SUCCESS = 0
    NO_MEMORY = 2

    def __int__(self) -> int:
        return self.value


class Runtime:
    """Stands in for CUDA's."""

    def __init__(self, code: int = 0) -> None:
        self.code = Code(code)
        self.locked: dict[int, int] = {}
        self.asked = 0

    def cudaHostRegister(self, address: int, nbytes: int, flags: int) -> Code:  # noqa: N802
        self.asked += 1
        assert flags == 1
        if self.code is Code.SUCCESS:
            begins = [
                begin for begin, size in self.locked.items() if begin < address + nbytes and address < begin + size
            ]
            assert not begins, "CUDA refuses memory that is locked already"
            self.locked[address] = nbytes
        return self.code

    def cudaHostUnregister(self, address: int) -> Code:  # noqa: N802
        del self.locked[address]
        return Code.SUCCESS

    def cudaGetErrorString(self, code: Code) -> str:  # noqa: N802
        assert isinstance(code, Code)
        return f"error {code.value}"


def weights(config: Any) -> dict[str, np.ndarray[Any, Any]]:
    policy = anyio.run(Trainer(config).run).policy
    assert policy is not None
    return {name: np.array(tensor) for name, tensor in policy.tensors.items()}


@pytest.mark.parametrize("code", [0, 2])
def test_slots_are_locked_until_the_learner_ends_or_used_as_they_are(
    code: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = small_config(epochs=5, staleness=1)
    expected = weights(config)
    runtime = Runtime(code)
    most: list[int] = []
    close = page_locked.PageLocked.close

    def closed(self: page_locked.PageLocked) -> None:
        most.append(len(runtime.locked))
        close(self)

    monkeypatch.setattr(page_locked, "DEVICES", frozenset({"cpu"}))
    monkeypatch.setattr(page_locked.PageLocked, "close", closed)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    found = weights(config)
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert runtime.locked == {}
    said = [record.getMessage() for record in caplog.records if "can't lock" in record.getMessage()]
    if code:
        assert runtime.asked == 1
        assert len(said) == 1
        assert "error 2" in said[0]
    else:
        assert most[-1] == runtime.asked >= 4  # two slots each of experience and policies, at least
        assert not said


def test_nothing_stays_locked_of_a_learner_that_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU would copy from where the memory was, to whoever has come to its address."""
    runtime = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    locked = page_locked.PageLocked(torch.device("cuda"))
    locked.lock(mmap.mmap(-1, 4096))
    assert len(runtime.locked) == 1
    del locked
    gc.collect()
    assert runtime.locked == {}


def test_other_devices_are_not_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = Runtime()
    monkeypatch.setattr(torch.cuda, "cudart", lambda: runtime)
    weights(small_config(epochs=2))
    assert runtime.asked == 0
