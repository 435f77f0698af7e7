"""The script for GPU machines works where there is no GPU, as far as it can."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.paths import PROJECT

pytestmark = pytest.mark.slow

SCRIPT = PROJECT / "scripts" / "bench" / "gpu.py"


def results(output: Path, *words: str) -> tuple[int, dict[str, dict[str, object]]]:
    command = [sys.executable, str(SCRIPT), *words, "--small", "--output", str(output)]
    code = subprocess.run(command, capture_output=True, check=False, timeout=600).returncode
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    return code, {line["part"]: line for line in lines}


@pytest.mark.parametrize("check", ["same_seed", "distance", "resume", "graphs", "acting_graphs"])
def test_its_checks_pass_on_the_cpu(check: str, tmp_path: Path) -> None:
    code, found = results(tmp_path / "gpu.jsonl", check, "--minutes", "8")
    assert found[check]["passed"] is True, found
    assert check != "distance" or found[check]["distance"] == 0.0
    assert code == 0


def test_its_figures_are_there_on_the_cpu(tmp_path: Path) -> None:
    figures = ("cartpole_64_graphs", "memory_64_acting_graphs")
    code, found = results(tmp_path / "gpu.jsonl", *figures, "--minutes", "8")
    for part in figures:
        assert {"agent_steps_per_second", "collect_ms", "learn_ms"} < set(found[part]), found
    assert found["cartpole_64_graphs"]["replayed_minibatches"] == 16.0
    assert found["memory_64_acting_graphs"]["replayed_steps"] == 128.0
    assert code == 0


def test_a_part_that_cannot_work_says_why_and_the_others_go_on(tmp_path: Path) -> None:
    code, found = results(tmp_path / "gpu.jsonl", "same_seed", "distance", "--device", "meta")
    assert "'meta'" in str(found["same_seed"]["error"])
    assert "error" in found["distance"]
    assert code == 1


def test_parts_for_which_no_time_is_left_say_so(tmp_path: Path) -> None:
    code, found = results(tmp_path / "gpu.jsonl", "same_seed", "--minutes", "0")
    assert "--minutes" in str(found["same_seed"]["error"])
    assert code == 1
