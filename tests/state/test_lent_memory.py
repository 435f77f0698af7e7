from __future__ import annotations

import gc

import numpy as np

from state.experience import Experience, ExperienceSpec, FieldSpec
from state.lent_memory import Lender
from state.shared_memory import PAGE, SharedBuffer

# Several pages, of which the last is not full.
SPEC = ExperienceSpec.merge(2, 1100, {"environment": [FieldSpec("reward", (), "float32")]})


def lent() -> tuple[SharedBuffer, np.ndarray[object, np.dtype[np.float32]], Lender]:
    buffer = SharedBuffer.create(SPEC.nbytes)
    assert buffer.nbytes > 2 * PAGE
    reward = SPEC.arrays(buffer.map_shared())["reward"]
    reward[...] = 1.0
    return buffer, reward, Lender()


def experience(lender: Lender, buffer: SharedBuffer) -> Experience:
    return Experience(SPEC, epoch=0, policy_version=0, memory=lender.view(buffer))


def test_what_is_kept_of_a_view_stays_as_it_was() -> None:
    buffer, reward, lender = lent()
    kept = experience(lender, buffer)
    array, tensor = experience(lender, buffer)["reward"], experience(lender, buffer).tensor("reward")
    lender.settle()
    reward[...] = 2.0
    assert (kept["reward"] == 1.0).all()
    assert (kept.tensor("reward") == 1.0).all()
    assert (array == 1.0).all()
    assert (tensor == 1.0).all()
    assert (experience(lender, buffer)["reward"] == 2.0).all()


def test_a_tensor_of_a_settled_view_is_the_callers_own() -> None:
    buffer, _, lender = lent()
    kept = experience(lender, buffer)
    lender.settle()
    kept.tensor("reward").fill_(5.0)
    assert (kept["reward"] == 1.0).all()
    assert (kept.tensor("reward") == 1.0).all()


def test_the_buffer_of_a_settled_view_holds_what_was_lent() -> None:
    """It is what is passed on to a worker."""
    buffer, reward, lender = lent()
    kept = lender.view(buffer)
    lender.settle()
    reward[...] = 2.0
    assert (SPEC.arrays(memoryview(kept.buffer.map_private()))["reward"] == 1.0).all()


def test_what_a_caller_has_written_to_its_tensor_stays() -> None:
    buffer, reward, lender = lent()
    tensor = experience(lender, buffer).tensor("reward")
    tensor[1, -1] = 3.0
    lender.settle()
    reward[...] = 2.0
    assert tensor[1, -1] == 3.0
    assert (tensor.flatten()[:-1] == 1.0).all()


def test_nothing_is_copied_where_nothing_is_kept() -> None:
    buffer, reward, lender = lent()
    assert (experience(lender, buffer)["reward"] == 1.0).all()
    gc.collect()
    assert not lender._views  # pyright: ignore[reportPrivateUsage]
    assert not lender._mappings  # pyright: ignore[reportPrivateUsage]
    lender.settle()
    reward[...] = 2.0
    assert (experience(lender, buffer)["reward"] == 2.0).all()
