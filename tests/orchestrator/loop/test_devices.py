"""Cells share the GPUs of a machine. Seen without one: which each is told to use."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from orchestrator.loop.devices import acting_device, device_of_cell
from tests.orchestrator.training import small_config


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


def test_each_cell_learns_and_acts_on_its_own() -> None:
    config = small_config(cells=4, collectors=4, device="cuda")
    expected = ["cuda:0", "cuda:1", "cuda:0", "cuda:1"]
    assert [device_of_cell("cuda", cell, elsewhere=False) for cell in range(4)] == expected
    for device in ("auto", "cuda"):
        acting = replace(config, collection=replace(config.collection, device=device))
        assert [acting_device(acting, cell, elsewhere=False) for cell in range(4)] == expected


def test_on_another_machine_it_is_the_one_that_is_there() -> None:
    config = small_config(cells=4, collectors=4, device="cuda:1")
    assert acting_device(config, 2, elsewhere=True) == device_of_cell("cuda:1", 2, elsewhere=True) == "cuda"
    assert acting_device(config, 0, elsewhere=False) == "cuda:1"


def test_a_run_of_one_cell_uses_what_it_is_told() -> None:
    config = small_config(device="cuda")
    assert acting_device(config, 0, elsewhere=False) == "cuda"
    on_cpu = replace(config, collection=replace(config.collection, device="cpu"))
    assert acting_device(on_cpu, 0, elsewhere=False) == "cpu"
