"""Settings under the names of earlier releases."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator import CollectionConfig, EvaluationConfig, LearningConfig, PolicyConfig
from orchestrator.command.cli import train_settings
from orchestrator.config.file import from_table

if TYPE_CHECKING:
    from pathlib import Path

FORMER: list[tuple[str, type, str, str, Any]] = [
    ("collection", CollectionConfig, "environments", "num_environments", 8),
    ("evaluation", EvaluationConfig, "environments", "num_environments", 2),
    ("policy", PolicyConfig, "hidden", "hidden_sizes", (8,)),
    ("learning", LearningConfig, "prioritization", "priority_exponent", 0.5),
    ("learning", LearningConfig, "prioritization_correction", "priority_correction", 0.25),
]


@pytest.mark.parametrize(("section", "kind", "former", "present", "value"), FORMER)
def test_a_setting_can_be_given_and_read_under_its_former_name(
    section: str, kind: Any, former: str, present: str, value: Any, tmp_path: Path
) -> None:
    expected = kind(**{present: value})
    made = kind(**{former: value})
    assert made == expected
    assert getattr(made, former) == value
    assert replace(kind(), **{former: value}) == expected
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == expected
    plain = list(value) if isinstance(value, tuple) else value
    assert getattr(from_table({section: {former: plain}}), section) == expected
    text = str(plain[0] if isinstance(plain, list) else plain)
    for flag in (f"--{section}.{former}", f"--{section}.{former.replace('_', '-')}"):
        for words in ([flag, text], [f"{flag}={text}"]):
            assert getattr(train_settings(["--run-dir", str(tmp_path), *words])[1], section) == expected


def test_a_name_that_no_setting_ever_had_is_refused() -> None:
    with pytest.raises(TypeError, match="horizont"):
        CollectionConfig(horizont=8)  # type: ignore[call-arg]
    assert not hasattr(CollectionConfig(), "horizont")
