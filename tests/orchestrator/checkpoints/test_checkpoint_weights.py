from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.numpy import save
from safetensors.torch import load_file
from torch import nn

from orchestrator.checkpoints import POLICY, CheckpointError, CheckpointFolder, KeepLast, find_checkpoint
from orchestrator.checkpoints.manifest import in_folder
from state.parameter_arena import ParameterArena
from state.policy_snapshot import PolicySnapshot
from state.shared_memory import SlotRing
from state.trainer_state import TrainerState

if TYPE_CHECKING:
    from pathlib import Path


def make_state(epoch: int = 3) -> TrainerState:
    arena = ParameterArena(nn.Linear(3, 2))
    ring = SlotRing(arena.layout.nbytes, max_leased=2, name="policy")
    slot = ring.claim()
    arena.write_to(slot.buffer.map_shared())
    lease = ring.lease(slot)
    assert lease is not None
    snapshot = PolicySnapshot(epoch, arena.layout, lambda: nn.Linear(3, 2), lease)
    return TrainerState(epoch=epoch, agent_step=100 * epoch, policy=snapshot)


def commit(folder: CheckpointFolder, state: TrainerState) -> Path:
    assert state.policy is not None
    weights = save(dict(state.policy.tensors), metadata={"format": "pt"})
    return folder.commit(epoch=state.epoch, facts={"agent_step": state.agent_step}, files={POLICY: weights})


def test_a_checkpoint_holds_the_weights_bit_for_bit_for_plain_safetensors_too(tmp_path: Path) -> None:
    state = make_state()
    path = commit(CheckpointFolder(tmp_path), state)
    assert state.policy is not None
    checkpoint = find_checkpoint(path)
    assert checkpoint.manifest["agent_step"] == 300
    module = nn.Linear(3, 2)
    checkpoint.load_into(module)
    for name, array in state.policy.tensors.items():
        assert np.array_equal(module.state_dict()[name].numpy(), array)
        assert torch.equal(load_file(path / "policy.safetensors")[name], module.state_dict()[name])


def test_the_newest_of_a_run_is_found_and_only_the_newest_are_kept(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path / "checkpoints", retention=KeepLast(2))
    for epoch in (5, 90, 100):
        commit(folder, make_state(epoch))
    assert [path.name for path in folder.list()] == ["00000090", "00000100"]
    assert find_checkpoint(tmp_path).manifest["epoch"] == 100
    assert find_checkpoint(tmp_path / "checkpoints").manifest["epoch"] == 100


def test_a_checkpoint_is_never_overwritten(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    first, second = commit(folder, make_state()), commit(folder, make_state())
    assert first != second
    assert folder.list() == [first, second]
    assert find_checkpoint(tmp_path).path == second


def test_a_failed_commit_leaves_nothing_that_looks_like_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path)
    commit(folder, make_state(1))

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CheckpointError, match="No space left"):
        commit(folder, make_state(2))
    assert {path.name for path in tmp_path.iterdir()} == {".lock", "00000001"}


def test_damage_is_named(tmp_path: Path) -> None:
    path = commit(CheckpointFolder(tmp_path), make_state())
    weights, manifest = path / "policy.safetensors", path / "manifest.json"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"policy\.safetensors is damaged"):
        find_checkpoint(path)
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"policy\.safetensors is missing"):
        find_checkpoint(path)
    facts = json.loads(manifest.read_text())
    manifest.write_text(json.dumps(facts | {"format_version": 99}))
    with pytest.raises(CheckpointError, match="format version 99"):
        find_checkpoint(path)
    manifest.write_bytes(in_folder(facts | {"files": {"../secret": {"bytes": 1, "sha256": ""}}}, None))
    with pytest.raises(CheckpointError, match="outside of the checkpoint"):
        find_checkpoint(path)
    manifest.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        find_checkpoint(path)
    with pytest.raises(CheckpointError, match="nowhere does not exist"):
        find_checkpoint(tmp_path / "nowhere")


def test_weights_of_another_architecture_list_the_differing_tensors(tmp_path: Path) -> None:
    checkpoint = find_checkpoint(commit(CheckpointFolder(tmp_path), make_state()))
    with pytest.raises(ValueError, match=r"weight: \[2, 3\] given, \[2, 4\] needed"):
        checkpoint.load_into(nn.Linear(4, 2))


def test_a_state_without_counters_of_its_own_still_commits(tmp_path: Path) -> None:
    state = dataclasses.replace(make_state(0), agent_step=0)
    assert commit(CheckpointFolder(tmp_path), state).name == "00000000"
