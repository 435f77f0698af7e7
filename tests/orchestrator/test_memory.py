"""The memory that a run needs: said at its start, in its metrics, and by the error of a run that gets none."""

from __future__ import annotations

import dataclasses
import json
import logging
import mmap
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import pytest
import torch
from torch import Tensor

from losses import Loss
from orchestrator import Hook, PolicyConfig, Trainer
from orchestrator.loop.memory import OutOfMemory
from tests.orchestrator.training import losses_with, small_config
from tests.small_networks import Shared

if TYPE_CHECKING:
    from pathlib import Path

    from losses import Minibatch, PolicyEvaluation
    from orchestrator.policies.network import Spaces
    from state import TrainerState

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


REFUSED = "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB"


def run_out(how: str) -> None:
    if how == "device":
        raise torch.OutOfMemoryError(REFUSED)
    if how == "metal":
        raise RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")
    if how == "cpu":
        torch.empty(1 << 50)
    if how == "numpy":
        np.zeros(1 << 50)
    if how == "python":
        raise MemoryError


class Hungry(Loss):
    """Wants too much in the second epoch."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how

    def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
        if minibatch.epoch == 1:
            run_out(self.how)
        return evaluation.value.sum() * 0.0


class HungryNetwork(Shared):
    """Wants too much for more than two rows: `learning`, or wherever it acts."""

    learning = True

    def forward(self, observation: Any) -> tuple[Tensor, Tensor]:
        if torch.is_grad_enabled() == self.learning and len(observation) > 2:
            run_out("device")
        return super().forward(observation)


class HungryInActing(HungryNetwork):
    learning = False


class HungryFromTheStart(Shared):
    def __init__(self, spaces: Spaces) -> None:
        super().__init__(spaces)
        run_out("device")


@pytest.mark.parametrize("backend", ["inline", "process"])
@pytest.mark.parametrize("how", ["device", "metal", "cpu", "numpy", "python"])
async def test_a_loss_that_gets_no_memory_is_named_with_the_settings_that_lower_it(how: str, backend: Any) -> None:
    config = small_config(backend=backend)
    with pytest.raises(OutOfMemory) as caught:
        await Trainer(config, losses=losses_with(Hungry(how))).run()
    text = str(caught.value)
    for said in ("learner", "hungry", "epoch 2", "learning.minibatches (2", "collection.num_environments (4)"):
        assert said in text
    assert "collection.horizon (32)" in text
    assert "policy.hidden_sizes ([8])" in text
    wanted = {
        "device": "20.00 GiB",
        "metal": "1 GB",
        "cpu": "4503599627370496 bytes",
        "numpy": "8.00 PiB",
        "python": "",
    }
    assert wanted[how] in text


@pytest.mark.parametrize(
    ("network", "who"),
    [("HungryNetwork", "learner"), ("HungryInActing", "collector-0"), ("HungryFromTheStart", "collector-0|learner")],
)
async def test_a_network_that_gets_no_memory_is_named_with_who_wanted_it(network: str, who: str) -> None:
    policy = PolicyConfig(network=f"{__name__}:{network}")
    with pytest.raises(OutOfMemory, match=f"({who}) ran out of memory: .*20.00 GiB") as caught:
        await Trainer(small_config(policy=policy)).run()
    assert network in str(caught.value)
    assert "smaller policy.network" in str(caught.value)
    assert ("or collection.device = 'cpu'" in str(caught.value)) == ("the collector-0 ran out" in str(caught.value))


async def test_another_error_stays_as_it_is() -> None:
    class Failing(Hungry):
        def compute(self, minibatch: Minibatch, evaluation: PolicyEvaluation) -> Tensor:
            raise RuntimeError("the shapes do not match")

    with pytest.raises(RuntimeError, match="the shapes do not match") as caught:
        await Trainer(small_config(), losses=losses_with(Failing(""))).run()
    assert not isinstance(caught.value, OutOfMemory)


async def test_what_a_run_allocates_is_said_at_its_start(caplog: pytest.LogCaptureFixture) -> None:
    trainer = Trainer(small_config(epochs=2, num_environments=64))
    with caplog.at_level(logging.INFO, "orchestrator"):
        await trainer.run()
    (line,) = [record.message for record in caplog.records if record.message.startswith("memory: ")]
    slots = trainer.statistics().slots
    for kind in ("experience", "policy"):
        of_one = slots[kind].nbytes / slots[kind].slots
        assert f"{of_one / 1000:.3g} kB" in line
    assert "2 epochs of experience" in line
    assert "on cpu" not in line
    assert "gradients" not in line


class Mapped(Hook):
    """The bytes of each of a process's mappings of memory in which cells add up."""

    def __init__(self) -> None:
        self.nbytes: list[int] = []

    async def on_epoch_end(self, state: TrainerState) -> None:
        lines = (await anyio.Path("/proc/self/maps").read_text()).splitlines()
        ranges = [line.split()[0].split("-") for line in lines if "memfd:orchestrator-exchange" in line]
        self.nbytes = [int(end, 16) - int(begin, 16) for begin, end in ranges]


async def test_what_several_cells_add_up_in_is_said_too(caplog: pytest.LogCaptureFixture) -> None:
    mapped = Mapped()
    config = dataclasses.replace(small_config(epochs=1, policy=PolicyConfig(hidden_sizes=(64, 64))), cells=2)
    with caplog.at_level(logging.INFO, "orchestrator"):
        await Trainer(config, hooks=[mapped]).run()
    (line,) = [record.message for record in caplog.records if record.message.startswith("memory: ")]
    found = re.search(r"and 2 gradients of ([\d.]+) kB for each of 2 cells", line)
    assert found
    # Which each of two threads has opened of both.
    assert mapped.nbytes == pytest.approx([2 * 1000 * float(found[1])] * 4, abs=2 * mmap.PAGESIZE)


def _three_megabytes(device: torch.device) -> int:
    return 3_000_000


async def test_a_devices_memory_is_in_the_log_and_in_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("orchestrator.learning.learner.peak_memory", _three_megabytes)
    with caplog.at_level(logging.INFO, "orchestrator"):
        await Trainer(small_config(epochs=2, run_dir=tmp_path / "run")).run()
    assert any("on cpu the learner has 3 MB" in record.message for record in caplog.records)
    records = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert {record["system/device_memory_peak"] for record in records} == {3_000_000}


async def test_a_cpu_has_no_account_of_its_memory(tmp_path: Path) -> None:
    await Trainer(small_config(epochs=2, run_dir=tmp_path / "run")).run()
    assert "device_memory_peak" not in (tmp_path / "run/metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("limit", "cure"),
    [("-S -f 20", r"run `ulimit -S -f \$\(ulimit -H -f\)` before"), ("-f 20", "only who set the limit can lift it")],
)
def test_a_limit_of_the_size_of_files_that_refuses_the_memory_is_named_with_the_cure(
    limit: str, cure: str, tmp_path: Path
) -> None:
    command = f"ulimit {limit}; exec {sys.executable} -m orchestrator train --total-agent-steps 3000 --run-dir run"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 1
    assert re.search(rf"shared memory of \d+ bytes is refused.* only 20480 bytes.*{cure}", done.stderr), done.stderr
    assert "Traceback" not in done.stderr
