"""Observations of very different scales are warned of at the start, with the setting that cures them."""

from __future__ import annotations

import logging
import re
from dataclasses import replace
from typing import Any

import anyio
import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from orchestrator import PolicyConfig, Trainer
from tests.orchestrator.training import small_config

pytestmark = pytest.mark.slow


class Scaled(gymnasium.Env[Any, Any]):
    """Uniform numbers between minus and plus the `scales`."""

    action_space = spaces.Discrete(2)

    def __init__(self, scales: Any, form: str = "vector", integers: bool = False) -> None:
        self._scales = np.array(scales, np.float64)
        self._form = form
        self._dtype: Any = np.int64 if integers else np.float32
        box = spaces.Box(-(10**6), 10**6, self._scales.shape, self._dtype)
        self.observation_space = spaces.Dict({"a": box, "b": spaces.Discrete(2)}) if form == "dict" else box

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._steps = 0
        return self._observe(), {}

    def step(self, action: Any) -> Any:
        self._steps += 1
        return self._observe(), 1.0, self._steps == 20, False, {}

    def _observe(self) -> Any:
        numbers = (self.np_random.uniform(-1, 1, self._scales.shape) * self._scales).astype(self._dtype)
        return {"a": numbers, "b": 1} if self._form == "dict" else numbers


def make(**options: Any) -> Scaled:
    return Scaled(**options)


def warnings_of(
    caplog: pytest.LogCaptureFixture, environment: str, options: dict[str, Any], **settings: Any
) -> list[str]:
    settings = {"policy": PolicyConfig(hidden_sizes=(8,), normalize_observations=False)} | settings
    config = small_config(epochs=3, environment=environment, **settings)
    config = replace(config, collection=replace(config.collection, environment_options=options))
    with caplog.at_level(logging.WARNING):
        anyio.run(Trainer(config).run)
    return [record.getMessage() for record in caplog.records if "scales" in record.getMessage()]


SCALED = "tests.orchestrator.test_observation_scales:make"


@pytest.mark.parametrize("scales", [[1.0, 1000.0], [1e-3, 50.0], [1e-5, 1.0], [300.0, 300.0]])
@pytest.mark.parametrize("form", ["vector", "dict"])
def test_very_different_scales_are_warned_of_once_with_the_setting_that_cures_them(
    scales: list[float], form: str, caplog: pytest.LogCaptureFixture
) -> None:
    (warning,) = warnings_of(caplog, SCALED, {"scales": scales, "form": form})
    assert f"environment '{SCALED}'" in warning
    assert "set policy.normalize_observations to true" in warning
    assert ("a[" in warning) == (form == "dict")


@pytest.mark.parametrize("form", ["vector", "dict"])
def test_integers_are_looked_at_too_and_told_that_floats_are_normalized(
    form: str, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"scales": [3.0, 1000.0], "form": form, "integers": True}
    (warning,) = warnings_of(caplog, SCALED, options)
    assert "return integers as float32 and set policy.normalize_observations to true" in warning


@pytest.mark.parametrize("scales", [[0.0, 0.0, 1e5], [300.0, 300.0], [1e5]])
def test_a_number_that_stands_alone_is_told_once(scales: list[float], caplog: pytest.LogCaptureFixture) -> None:
    (warning,) = warnings_of(caplog, SCALED, {"scales": scales})
    places = re.findall(r"\[\d\]", warning)
    assert len(places) == len(set(places))


def test_the_warning_comes_once_from_several_collectors(caplog: pytest.LogCaptureFixture) -> None:
    assert len(warnings_of(caplog, SCALED, {"scales": [1.0, 1000.0]}, collectors=2, backend="process")) == 1


@pytest.mark.parametrize(
    ("environment", "options"),
    [
        ("CartPole-v1", {}),
        ("Acrobot-v1", {}),
        ("Pendulum-v1", {}),
        ("MountainCar-v0", {}),
        # As LunarLander's positions, velocities, angles and legs, and one number that never changes.
        (SCALED, {"scales": [0.02, 1.5, 1.6, 1.7, 3.0, 5.0, 1.0, 0.0]}),
        (SCALED, {"scales": np.full((8, 8, 3), 255.0).tolist()}),
        (SCALED, {"scales": [1.0, 3.0], "integers": True}),
        (SCALED, {"scales": np.full((8, 8, 3), 255.0).tolist(), "integers": True}),
    ],
)
def test_usual_scales_and_images_are_not_warned_of(
    environment: str, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert warnings_of(caplog, environment, options) == []


def test_nothing_is_warned_of_where_observations_are_normalized(caplog: pytest.LogCaptureFixture) -> None:
    policy = PolicyConfig(hidden_sizes=(8,))  # by default they are
    # As HalfCheetah's positions and velocities.
    assert warnings_of(caplog, SCALED, {"scales": [0.1, 0.5, 5.0, 25.0, 1000.0]}, policy=policy) == []
