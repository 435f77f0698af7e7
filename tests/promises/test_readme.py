"""What README.md shows and names."""

from __future__ import annotations

import re
import signal
import tomllib
from typing import Any

import anyio
import pytest

from orchestrator import (
    Trainer,
    TrainerConfig,
)
from tests.documentation import code_blocks
from tests.orchestrator.training import small_config
from tests.paths import PROJECT

pytestmark = pytest.mark.anyio
README = (PROJECT / "README.md").read_text()


async def at_once(seconds: float) -> None:
    await anyio.lowlevel.checkpoint()


def test_the_readmes_hook_runs_beside_the_training(capsys: pytest.CaptureFixture[str]) -> None:
    code = next(block for block in code_blocks(README) if "class Announce" in block)
    names: dict[str, Any] = {"__name__": "readme"}
    exec(compile(code, "README.md", "exec"), names)
    hook = names["Announce"]()
    hook.every = 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(names["anyio"], "sleep", at_once)
        anyio.run(Trainer(small_config(epochs=3), hooks=[hook]).run)
    assert re.search(r"^epoch \d+: return \d+$", capsys.readouterr().out, flags=re.MULTILINE)


def test_the_readmes_embedded_training_stops_when_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    code = next(block for block in code_blocks(README) if "train_while_serving" in block)
    names: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), names)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]

    def small(environment: str) -> TrainerConfig:
        return small_config(environment=environment, epochs=10**6)

    names["TrainerConfig"] = small
    anyio.run(names["train_while_serving"])
    *lines, status = capsys.readouterr().out.splitlines()
    assert int(lines[-1].split()[0]) >= 20
    assert status == "ended"
    assert handlers == [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]


def test_the_readme_names_only_what_is_there() -> None:
    root = PROJECT
    named = re.findall(r"\]\(([\w/]+\.md)[)#]", README)
    named += re.findall(r"(?:^\$ |`)(scripts/[\w./]+)", README, re.MULTILINE)
    assert len(named) > 5
    assert [path for path in named if not (root / path).exists()] == []
    assert not re.search(r"\d+ passed", README), "how many tests there are is no promise"


def test_the_table_of_extras_has_every_one_there_is() -> None:
    section = README.split("## Installation and extras")[1].split("\n## ")[0]
    first_columns = re.findall(r"^\| ([^|]*`[^|]*) \|", section, flags=re.MULTILINE)
    named = [name for column in first_columns for name in re.findall(r"`(\w+)`", column)]
    extras = tomllib.loads((PROJECT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert sorted(named) == sorted(extras)
    (everything,) = extras["all"]
    assert set(everything.split("[")[1].rstrip("]").split(",")) == extras.keys() - {"all"}
