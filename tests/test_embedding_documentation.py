"""What docs/embedding.md shows and promises, through `Trainer`."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from orchestrator import ConfigurationError, Run, Trainer
from tests.documentation import code_blocks, compiled, text_of
from tests.orchestrator.training import small_config

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.anyio, pytest.mark.slow]
TEXT = text_of("embedding.md")


@pytest.fixture(scope="module")
def documented() -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "documented"}
    for block in code_blocks(TEXT):
        code, awaits = compiled(block, "docs/embedding.md")
        if "__main__" not in block and not awaits:  # programs are run by themselves
            exec(code, names)
    return names


def test_the_reference_of_a_run_has_all_that_a_run_offers() -> None:
    named = {name for row in re.findall(r"^\| (`.*?) \|", TEXT, re.MULTILINE) for name in re.findall(r"`(\w+)", row)}
    for_hooks = TEXT.split("What else it has")[1].split("\n\n")[0]
    named |= set(re.findall(r"`(\w+)`", for_hooks))
    attributes = {"run_id", "run_dir", "config"}
    assert named == {name for name in dir(Run) if not name.startswith("_")} | attributes


async def test_a_training_is_left_early_by_stopping_it_first(
    documented: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with anyio.fail_after(100):
        await documented["train_until"](0.0, small_config(epochs=10**6))
    assert capsys.readouterr().out == "ended reached 0.0\n"


async def test_leaving_the_block_waits_for_the_whole_training() -> None:
    async with Trainer(small_config(epochs=20)).start() as run:
        async for state in run.states():
            assert state.epoch < 20
            break
    assert (run.status, run.state.epoch) == ("ended", 20)
    for steer in (run.pause, run.resume, run.stop, run.stop_now, run.request_checkpoint):
        steer()
    assert (run.status, run.state.epoch) == ("ended", 20)


async def test_an_error_in_the_block_cancels_the_run_and_comes_out_as_it_is() -> None:
    error = LookupError("no more")
    run: Run | None = None
    with pytest.raises(LookupError) as raised:
        async with Trainer(small_config(epochs=10**6)).start() as run:
            await run.next_state(None)
            raise error
    assert raised.value is error
    assert run is not None
    assert run.status == "cancelled"


async def test_a_paused_run_finishes_what_is_in_progress_and_without_a_folder_takes_no_checkpoint() -> None:
    async with Trainer(small_config(epochs=10**6, staleness=1)).start() as run:
        first = await run.next_state(None)
        run.pause()
        assert run.status == "paused"
        run.request_checkpoint()
        run.stop()
        last = await run.result()
    assert first is not None
    assert first.epoch <= last.epoch <= first.epoch + 2
    assert last.latest_checkpoint_uri is None


async def test_a_trainer_without_a_folder_can_be_run_again_and_one_with_a_folder_cannot(tmp_path: Path) -> None:
    trainer = Trainer(small_config(epochs=2))
    first = await trainer.run()
    run = trainer.current_run
    second = await trainer.run()
    assert first.epoch == second.epoch == 2
    assert trainer.current_run is not run
    trainer = Trainer(small_config(epochs=2, run_dir=tmp_path / "run"))
    await trainer.run()
    with pytest.raises(ConfigurationError, match="a folder that holds no run yet"):
        await trainer.run()


async def test_trainers_are_made_from_requests_and_files_and_resumed(
    documented: dict[str, Any], tmp_path: Path
) -> None:
    assert isinstance(documented["trainer_of"]({"learning": {"discount": 0.9}}), Trainer)
    (problem,) = documented["trainer_of"]({"learning": {"discont": 0.9}})
    assert "discount" in problem
    folder = tmp_path / "run"
    config = small_config(epochs=2, run_dir=folder)
    await Trainer(config).run()
    assert documented["trainer_from_file"](str(folder / "config.toml")).config == config
    assert (await documented["resumed"](str(folder))).config == config


async def test_an_unknown_environment_is_refused_at_the_start() -> None:
    trainer = Trainer(small_config(environment="CartPol-v1"))
    with pytest.raises(ConfigurationError, match="CartPole-v1"):
        await trainer.run()
