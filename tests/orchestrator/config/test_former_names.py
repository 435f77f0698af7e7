"""Settings under the names of earlier releases."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from orchestrator import (
    CollectionConfig,
    ConfigurationError,
    EvaluationConfig,
    LearningConfig,
    PolicyConfig,
    Trainer,
    TrainerConfig,
)
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


@pytest.mark.slow
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


@pytest.mark.parametrize(("section", "kind", "former", "present", "value"), FORMER)
def test_a_setting_given_under_both_names_is_refused(
    section: str, kind: Any, former: str, present: str, value: Any
) -> None:
    with pytest.raises(TypeError, match=f"both {present} and {former}, its former name: leave out {former}"):
        kind(**{former: value, present: value})
    plain = list(value) if isinstance(value, tuple) else value
    with pytest.raises(ConfigurationError, match=f"leave out {former}"):
        from_table({section: {former: plain, present: plain}})
    with pytest.raises(ConfigurationError, match=f"leave out {former}"):
        train_settings([f"--{section}.{former}", "1", f"--{section}.{present}=1"])


@pytest.mark.parametrize(("section", "kind", "former", "present", "value"), FORMER)
def test_a_former_name_is_told_its_present_one_wherever_it_is_wrong(
    section: str, kind: Any, former: str, present: str, value: Any
) -> None:
    for wrong in (-1, "x", [-1]):
        with pytest.raises(ConfigurationError) as caught:
            Trainer(from_table({section: {former: wrong}}))
        assert f"{section}.{present} (formerly {former}) =" in str(caught.value)
    with pytest.raises(ConfigurationError, match=f"formerly {former}"):
        Trainer(TrainerConfig(**{section: kind(**{former: -1})}))
    for table in ({former: 1}, {"losses": {former: 1}}):
        with pytest.raises(ConfigurationError) as caught:
            from_table(table)
        assert f"[{section}] as {present}" in " ".join(str(caught.value).split())


def test_a_name_that_no_setting_ever_had_is_refused() -> None:
    with pytest.raises(TypeError, match="horizont"):
        CollectionConfig(horizont=8)  # type: ignore[call-arg]
    assert not hasattr(CollectionConfig(), "horizont")
