from __future__ import annotations

import errno
import gc
import os
import pickle

import numpy as np
import pytest
import torch

from state.experience import Experience, ExperienceSpec, ExperienceSpecError, FieldSpec
from state.shared_memory import SharedBuffer, SlotRing


def reward_spec() -> ExperienceSpec:
    fields = [FieldSpec("reward", (), "float32"), FieldSpec("state", (3,), "float32", per="segment")]
    return ExperienceSpec.merge(2, 4, {"environment": fields})


def test_a_slot_is_reused_only_when_no_array_taken_from_its_lease_lives() -> None:
    spec = reward_spec()
    ring = SlotRing(spec.nbytes, max_leased=4, name="test")
    slot = ring.claim()
    lease = ring.lease(slot)
    assert lease is not None
    experience = Experience(spec, epoch=0, policy_version=0, memory=lease)
    reward = experience["reward"]
    ring.release(slot)

    del lease, experience
    gc.collect()
    other = ring.claim()
    assert other is not slot, "the array still refers to the first slot"

    tensor = torch.from_numpy(reward.copy())
    assert tensor.shape == (2, 4)
    del reward
    gc.collect()
    assert ring.claim() is slot


def test_a_torch_tensor_of_an_experience_keeps_the_slot_too() -> None:
    spec = reward_spec()
    ring = SlotRing(spec.nbytes, max_leased=4, name="test")
    slot = ring.claim()
    lease = ring.lease(slot)
    assert lease is not None
    tensor = Experience(spec, epoch=0, policy_version=0, memory=lease).tensor("reward")
    ring.release(slot)
    del lease
    gc.collect()
    assert ring.statistics().leased == 1
    del tensor
    gc.collect()
    assert ring.statistics().leased == 0


def test_writing_to_an_experience_raises_and_a_tensors_writes_stay_private() -> None:
    spec = reward_spec()
    ring = SlotRing(spec.nbytes, max_leased=4, name="test")
    slot = ring.claim()
    writer = spec.arrays(slot.buffer.map_shared())
    writer["reward"][:] = 7
    lease = ring.lease(slot)
    assert lease is not None
    experience = Experience(spec, epoch=0, policy_version=0, memory=lease)

    with pytest.raises(ValueError, match="read-only"):
        experience["reward"][0, 0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        experience["reward"].setflags(write=True)
    with pytest.raises(AttributeError):
        experience.epoch = 3  # type: ignore[misc]
    experience.tensor("reward").zero_()

    assert (experience["reward"] == 7).all()
    assert (writer["reward"] == 7).all()


def test_the_ring_withholds_leases_beyond_its_ceiling_and_never_a_claim() -> None:
    ring = SlotRing(100, max_leased=2, name="test")
    hoard = []
    for _ in range(5):
        slot = ring.claim()
        hoard.append(ring.lease(slot))
        ring.release(slot)
    assert [lease is None for lease in hoard] == [False, False, True, True, True]
    statistics = ring.statistics()
    assert (statistics.slots, statistics.leased, statistics.withheld) == (3, 2, 3)


def test_releasing_more_often_than_claiming_is_an_error() -> None:
    ring = SlotRing(100, max_leased=2, name="test")
    slot = ring.claim()
    ring.release(slot)
    with pytest.raises(ValueError, match="more often than claimed"):
        ring.release(slot)


def test_a_buffer_does_not_pickle_silently() -> None:
    with pytest.raises(TypeError, match="worker's call"):
        pickle.dumps(SharedBuffer.create(10))


def test_merging_equal_fields_gives_one_and_clashes_are_all_named() -> None:
    same = FieldSpec("action", (), "int64")
    spec = ExperienceSpec.merge(2, 3, {"environment": [same], "loss a": [same]})
    assert [field.name for field in spec.fields] == ["action"]
    with pytest.raises(
        ExperienceSpecError, match=r"'action': environment wants int64\[\] per step, loss a wants float32"
    ):
        ExperienceSpec.merge(2, 3, {"environment": [same], "loss a": [FieldSpec("action", (), "float32")]})


def test_fields_do_not_overlap_and_an_unknown_one_is_named() -> None:
    spec = ExperienceSpec.merge(
        3, 5, {"a": [FieldSpec("flag", (), "bool"), FieldSpec("image", (2, 2), "uint8"), FieldSpec("x", (), "float32")]}
    )
    memory = bytearray(spec.nbytes)
    arrays = spec.arrays(memory)
    for index, array in enumerate(arrays.values()):
        array[...] = index
    assert [float(np.unique(array)[0]) for array in arrays.values()] == [0.0, 1.0, 2.0]
    assert arrays["image"].shape == (3, 5, 2, 2)
    with pytest.raises(KeyError, match="no field 'y'"):
        spec.array(memory, "y")


def test_memory_that_cannot_be_had_leaves_no_descriptor_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []

    def fail(descriptor: int, size: int) -> None:
        opened.append(descriptor)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "ftruncate", fail)
    with pytest.raises(OSError, match="No space left"):
        SharedBuffer.create(1)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])
