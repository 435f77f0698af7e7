from __future__ import annotations

import gc

import pytest
import torch
from torch import nn

from state.parameter_arena import ParameterArena
from state.policy_snapshot import PolicyLayout, PolicySnapshot
from state.shared_memory import SlotRing


class Network(nn.Module):
    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(3, width)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)
        self.last = nn.Linear(width, 1)
        self.register_buffer("count", torch.tensor(3.0, dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.tanh(self.first(x)))


def publish(arena: ParameterArena, ring: SlotRing, version: int = 1) -> PolicySnapshot:
    slot = ring.claim()
    arena.write_to(slot.buffer.map_shared())
    lease = ring.lease(slot)
    assert lease is not None
    ring.release(slot)
    return PolicySnapshot(version=version, layout=arena.layout, factory=Network, memory=lease)


def test_a_snapshot_holds_every_parameter_and_buffer_bit_for_bit() -> None:
    network = Network()
    reference = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    arena = ParameterArena(network)
    snapshot = publish(arena, SlotRing(arena.layout.nbytes, max_leased=2, name="policy"))
    assert set(snapshot.tensors) == set(reference)
    for name, array in snapshot.tensors.items():
        assert torch.equal(torch.from_numpy(array.copy()), reference[name])
    loaded = snapshot.load()
    x = torch.randn(4, 3)
    assert torch.equal(loaded(x), network(x))


def test_a_snapshot_does_not_change_when_the_learner_goes_on() -> None:
    network = Network()
    arena = ParameterArena(network)
    ring = SlotRing(arena.layout.nbytes, max_leased=4, name="policy")
    snapshot = publish(arena, ring)
    before = snapshot.state_dict()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    publish(arena, ring, version=2)
    gc.collect()
    assert all(torch.equal(before[name], tensor) for name, tensor in snapshot.state_dict().items())


def test_writing_to_a_snapshot_raises() -> None:
    arena = ParameterArena(Network())
    snapshot = publish(arena, SlotRing(arena.layout.nbytes, max_leased=2, name="policy"))
    with pytest.raises(ValueError, match="read-only"):
        snapshot.tensors["first.weight"][0, 0] = 1


def test_a_snapshot_that_does_not_fit_lists_the_differing_tensors() -> None:
    arena = ParameterArena(Network())
    snapshot = publish(arena, SlotRing(arena.layout.nbytes, max_leased=2, name="policy"))
    with pytest.raises(ValueError, match=r"first.weight: \[5, 3\] given, \[7, 3\] needed"):
        snapshot.load(Network(width=7))


def test_training_through_the_flat_parameter_equals_training_each_tensor() -> None:
    torch.manual_seed(0)
    plain, flat = Network(), Network()
    flat.load_state_dict(plain.state_dict())
    arena = ParameterArena(flat)
    plain_optimizer = torch.optim.Adam([p for p in plain.parameters() if p.requires_grad], lr=0.01)
    gradients = arena.attach_gradients()
    ((dtype, begin, end),) = arena.layout.trainable
    vector = nn.Parameter(arena.vector(arena.memory, dtype, begin, end))
    vector.grad = arena.vector(gradients, dtype, begin, end)
    flat_optimizer = torch.optim.Adam([vector], lr=0.01, fused=True)
    x = torch.randn(8, 3)
    for _ in range(5):
        plain_optimizer.zero_grad()
        plain(x).square().mean().backward()
        plain_optimizer.step()
        arena.zero_gradients()
        flat(x).square().mean().backward()
        flat_optimizer.step()
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(flat.state_dict()[name], tensor)


def test_reading_a_snapshot_back_restores_the_module() -> None:
    network = Network()
    arena = ParameterArena(network)
    slot = SlotRing(arena.layout.nbytes, max_leased=2, name="policy").claim()
    memory = slot.buffer.map_shared()
    arena.write_to(memory)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with torch.no_grad():
        network.first.weight.zero_()
    arena.read_from(memory)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


def test_a_dtype_without_a_numpy_equivalent_is_refused_by_name() -> None:
    with pytest.raises(TypeError, match=r"'weight' has dtype bfloat16"):
        PolicyLayout.of(nn.Linear(2, 2).to(torch.bfloat16))
