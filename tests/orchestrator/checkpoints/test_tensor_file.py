"""What we write piece by piece is what the library would have written."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from orchestrator.checkpoints import CheckpointFolder
from orchestrator.checkpoints.checkpoint import open_checkpoint
from orchestrator.checkpoints.tensor_file import tensor_file

ARRAYS = {
    "weight": np.arange(6, dtype=np.float32).reshape(2, 3),
    "weight of another": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    "scalar": np.array(1.5),
    'quoted "ü"': np.array([True, False]),
    "empty": np.zeros((0, 3), np.float32),
    "half": np.ones(3, np.float16),
    **{str(np.dtype(f"{kind}{size}")): np.arange(3, dtype=f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)},
}


@pytest.mark.parametrize("names", [[*ARRAYS], [*reversed(ARRAYS)], ["weight"], []])
def test_every_byte_is_as_the_library_writes_it(names: list[str]) -> None:
    arrays = {name: ARRAYS[name] for name in names}
    written = b"".join(tensor_file(arrays))
    contiguous = {name: np.require(array, requirements="C") for name, array in arrays.items()}
    assert written == save(contiguous, metadata={"format": "pt"})
    for name, array in load(written).items():
        np.testing.assert_array_equal(array, arrays[name])
        assert array.dtype == arrays[name].dtype


def test_tensors_are_not_copied() -> None:
    array = np.zeros(1000, np.float32)
    _, piece = tensor_file({"weight": array})
    array[0] = 1.0
    assert bytes(piece)[:4] == array[:1].tobytes()


def test_a_checkpoint_is_written_in_little_memory(tmp_path: Path) -> None:
    arrays = {name: np.ones(4_000_000, np.float32) for name in ("weight", "another")}
    folder = CheckpointFolder(tmp_path)
    tracemalloc.start()
    path = folder.commit(epoch=1, facts={}, files={"policy.safetensors": tensor_file(arrays)})
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert open_checkpoint(path).read("policy.safetensors") == save(arrays, metadata={"format": "pt"})
    assert peak < 1_000_000


def test_a_type_that_the_format_does_not_have_is_named() -> None:
    with pytest.raises(TypeError, match=r"no type for .*'strings'.*<U"):
        list(tensor_file({"strings": np.array(["a"])}))
