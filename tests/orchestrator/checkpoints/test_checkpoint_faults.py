"""What survives: a stop at every operation on the disk, an error at every one, and any history of both."""

from __future__ import annotations

import errno
import random
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from orchestrator.checkpoints import CheckpointError, CheckpointFolder, KeepAny, KeepBest, KeepEvery, KeepLast
from orchestrator.checkpoints.checkpoint import open_checkpoint
from tests.orchestrator.checkpoints.faulty_filesystem import MEMORY, FaultyFileSystem, Stop

if TYPE_CHECKING:
    from collections.abc import Iterator

RUN = "run/checkpoints"


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as root:
        yield Path(root)


def open_folder(disk: FaultyFileSystem, *, keep: int = 1) -> CheckpointFolder:
    return CheckpointFolder(disk.root / RUN, retention=KeepLast(keep), files=disk, orphan_seconds=0)


def commit(folder: CheckpointFolder, epoch: int, score: float = 0.0) -> Path:
    files = {"policy.safetensors": b"weights of %d" % epoch * 9, "optimizer.safetensors": b"moments"}
    return folder.commit(epoch=epoch, facts={"metrics": {"score": score}}, files=files)


def restored(disk: FaultyFileSystem) -> int:
    """The epoch that a run would go on from, 0 where there is none."""
    folder = open_folder(disk)
    try:
        checkpoint = folder.newest_valid()
    except CheckpointError:
        assert not folder.list()
        return 0
    assert checkpoint.read("policy.safetensors") == b"weights of %d" % checkpoint.epoch * 9
    return checkpoint.epoch


def indices(commits: int) -> Iterator[int]:
    with tempfile.TemporaryDirectory(dir=MEMORY) as root:
        disk = FaultyFileSystem(Path(root))
        for epoch in range(1, commits + 1):
            commit(open_folder(disk), epoch)
        yield from range(1, disk.operations + 1)


@pytest.mark.parametrize("seed", range(2))
def test_a_stop_at_any_operation_loses_no_announced_checkpoint(memory: Path, seed: int) -> None:
    for index in indices(3):
        root = memory / str(index)
        root.mkdir()
        disk = FaultyFileSystem(root)
        disk.stop_at = index
        announced = 0
        with pytest.raises(Stop):
            for epoch in (1, 2, 3):
                commit(open_folder(disk), epoch)
                announced = epoch
        disk.restart(random.Random(f"{seed}/{index}"))
        epoch = restored(disk)
        assert epoch >= announced, f"stopped at operation {index}"
        commit(open_folder(disk), epoch + 1)
        assert restored(disk) == epoch + 1, f"after a stop at operation {index}, the run does not go on"
        left = {path.name for path in (root / RUN).iterdir()}
        assert left <= {".lock", f"{epoch + 1:08d}", f"{epoch + 1:08d}-2"}, "remains are swept"
        shutil.rmtree(root)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EIO])
def test_an_error_at_any_operation_fails_the_commit_cleanly_or_not_at_all(memory: Path, error: int) -> None:
    failed = 0
    for index in indices(2):
        root = memory / str(index)
        root.mkdir()
        disk = FaultyFileSystem(root)
        disk.fail_at, disk.error = index, error
        announced = 0
        for epoch in (1, 2):
            try:
                commit(open_folder(disk), epoch)
            except CheckpointError as caught:
                assert isinstance(caught.__cause__, OSError)  # noqa: PT017
                failed += 1
            else:
                announced = epoch
        assert restored(disk) >= announced > 0
        disk.restart(random.Random(index))
        assert restored(disk) >= announced
        shutil.rmtree(root)
    assert failed > 20


class Histories(RuleBasedStateMachine):
    """Runs that commit, stop, fail, come back, are damaged and held, in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(dir=MEMORY))
        self.disk = FaultyFileSystem(self.root)
        self.folder = open_folder(self.disk)
        self.epoch = 0
        self.announced = 0

    def teardown(self) -> None:
        shutil.rmtree(self.root)

    @rule(stop_after=st.none() | st.integers(1, 45), seed=st.integers(0, 99), score=st.floats(allow_infinity=True))
    def commit(self, stop_after: int | None, seed: int, score: float) -> None:
        self.epoch += 1
        if stop_after is not None:
            self.disk.stop_at = self.disk.operations + stop_after
        try:
            commit(self.folder, self.epoch, score)
            self.announced = self.epoch
        except Stop:
            pass
        if self.disk.stop_at is not None:
            self.disk.restart(random.Random(seed))
            self.folder = open_folder(self.disk)

    @rule(fail_after=st.integers(1, 45))
    def commit_with_an_error(self, fail_after: int) -> None:
        self.epoch += 1
        self.disk.fail_at = self.disk.operations + fail_after
        try:
            commit(self.folder, self.epoch)
            self.announced = self.epoch
        except CheckpointError:
            pass
        self.disk.fail_at = None

    @rule(keep=st.integers(1, 3), best=st.integers(0, 2), every=st.integers(1, 4))
    def change_the_rules(self, keep: int, best: int, every: int) -> None:
        self.folder.retention = KeepAny((KeepLast(keep), KeepBest(best, "score"), KeepEvery(every)))

    @precondition(lambda self: len(self.folder.list()) > 1)
    @rule(place=st.integers(0, 10**6), manifest=st.booleans())
    def damage_the_newest(self, place: int, manifest: bool) -> None:
        *_, before, newest = self.folder.list()
        file = newest / ("manifest.json" if manifest else "policy.safetensors")
        content = bytearray(file.read_bytes())
        content[place % len(content)] ^= 1 << (place % 8)
        file.write_bytes(content)
        found = self.folder.newest_valid().path
        if found == newest:  # a bit that says the same as before: between the words of the manifest
            assert manifest
            file.write_bytes(content)
        else:
            assert found == before
            assert any(path.name.startswith(f".damaged-{newest.name}") for path in self.folder.path.iterdir())
            self.announced = min(self.announced, int(before.name[:8]))

    @rule(seed=st.integers(0, 99))
    def lose_power_between_commits(self, seed: int) -> None:
        self.disk.restart(random.Random(seed))
        self.folder = open_folder(self.disk)

    @invariant()
    def what_was_announced_can_be_restored(self) -> None:
        assert restored(self.disk) >= self.announced


def test_a_deletion_that_failed_half_way_is_finished_in_an_order_that_a_power_failure_respects() -> None:
    """The files of a checkpoint are gone only when it is certain that its manifest is."""
    for fail_after in range(1, 30):
        for seed in range(20):
            history = Histories()
            history.commit(None, 0, 0.0)
            history.commit_with_an_error(fail_after)
            history.lose_power_between_commits(seed)
            for checkpoint in history.folder.list():
                open_checkpoint(checkpoint).verify()
            history.teardown()


Histories.TestCase.settings = settings(
    max_examples=20, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestHistories = Histories.TestCase
