"""Recording on CUDA, as far as that can be seen without a GPU: what is called, in which order, on which stream."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import torch

from orchestrator.policies.capture import CannotCapture, CudaGraphs, Inputs

if TYPE_CHECKING:
    from collections.abc import Generator


class Cuda:
    """Stands in for torch.cuda."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.streams = ["default"]
        self.pools = 0
        cuda = self

        class Stream:
            def __init__(self, device: Any = None) -> None:
                self.name = "side" if device is not None else "default"

            def wait_stream(self, other: Stream) -> None:
                cuda.calls.append(f"{self.name} waits for {other.name}")

        class CUDAGraph:
            def capture_begin(self, pool: Any, capture_error_mode: str) -> None:
                cuda.calls.append(f"begin on {cuda.streams[-1]}, {pool}, {capture_error_mode}")

            def capture_end(self) -> None:
                cuda.calls.append(f"end on {cuda.streams[-1]}")
                if "failed" in cuda.calls:
                    raise RuntimeError("operation failed due to a previous error during capture")

            def replay(self) -> None:
                cuda.calls.append(f"replay on {cuda.streams[-1]}")

        self.Stream, self.CUDAGraph = Stream, CUDAGraph

    def current_stream(self, device: Any) -> Any:
        return self.Stream()

    def graph_pool_handle(self) -> str:
        self.pools += 1
        return f"pool {self.pools}"

    def synchronize(self, device: Any) -> None:
        self.calls.append("synchronize")

    @contextmanager
    def stream(self, stream: Any) -> Generator[None]:
        self.streams.append(stream.name)
        try:
            yield
        finally:
            self.streams.pop()


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> Cuda:
    cuda = Cuda()
    for name in ("Stream", "CUDAGraph", "current_stream", "graph_pool_handle", "synchronize", "stream"):
        monkeypatch.setattr(torch.cuda, name, getattr(cuda, name))
    return cuda


def test_it_warms_up_and_records_on_a_side_stream_and_replays_on_the_current_one(cuda: Cuda) -> None:
    graphs = CudaGraphs(torch.device("cuda"))
    with graphs.warming_up():
        assert cuda.streams == ["default", "side"]
    replay = graphs.record(lambda: cuda.calls.append(f"work on {cuda.streams[-1]}"))
    replay()
    assert cuda.calls == [
        "side waits for default",
        "default waits for side",
        "synchronize",
        "begin on side, pool 1, thread_local",
        "work on side",
        "end on side",
        "replay on default",
    ]


def test_recordings_share_memory_until_there_is_none_any_more(cuda: Cuda) -> None:
    graphs = CudaGraphs(torch.device("cuda"))
    first = graphs.record(lambda: None)
    second = graphs.record(lambda: None)
    assert cuda.pools == 1
    del first
    third = graphs.record(lambda: None)
    assert cuda.pools == 1
    del second, third
    graphs.record(lambda: None)
    assert cuda.pools == 2


def test_a_recording_that_fails_is_ended_and_leaves_the_side_stream(cuda: Cuda) -> None:
    def fail() -> None:
        cuda.calls.append("failed")
        raise ValueError("the network gave up")

    with pytest.raises(ValueError, match="gave up"):
        CudaGraphs(torch.device("cuda")).record(fail)
    assert cuda.calls[-1] == "end on side"
    assert cuda.streams == ["default"]


def test_the_host_reads_nothing_in_a_recording_and_what_it_uses_stays() -> None:
    one, unused = torch.ones(3), torch.ones(3)
    with Inputs() as inputs:
        total = (one[1:] * 2.0).sum()
        with pytest.raises(CannotCapture, match="aten::_local_scalar_dense reads"):
            float(total)
        with pytest.raises(CannotCapture, match="aten::nonzero reads"):
            one.nonzero()
        with pytest.raises(CannotCapture, match="aten::index has a boolean mask"):
            one[one > 0.0].sum()
        with pytest.raises(CannotCapture, match="aten::index_put_ has a boolean mask"):
            one[one > 0.0] = unused
    kept = {tensor.untyped_storage().data_ptr() for tensor in inputs.tensors}
    assert one.untyped_storage().data_ptr() in kept
    assert not {tensor.untyped_storage().data_ptr() for tensor in (unused, total)} & kept
