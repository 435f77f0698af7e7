"""The configuration's dataclasses: frozen, complete in themselves, documented, and light to import."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
import types
from dataclasses import FrozenInstanceError
from typing import get_args, get_origin

import pytest

from orchestrator.config import settings as config_module
from orchestrator.config.fields import leaves, value_at
from orchestrator.config.settings import CollectionConfig, TrainerConfig


def test_the_defaults_are_a_configuration() -> None:
    config = TrainerConfig()
    assert config.environment == "CartPole-v1"
    assert config.run_dir is None
    assert config.steps_per_epoch == 64 * 128


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        TrainerConfig().collection.horizon = 1  # type: ignore[misc]


def test_two_configurations_do_not_share_a_table_of_options() -> None:
    assert TrainerConfig().collection.environment_options is not TrainerConfig().collection.environment_options


def test_a_configuration_travels_to_a_worker() -> None:
    config = TrainerConfig(collection=CollectionConfig(environment_options={"gravity": 9.8}))
    assert pickle.loads(pickle.dumps(config)) == config


def test_none_is_the_default_of_every_field_that_may_be_none() -> None:
    # A TOML file has no null: it says None by leaving the field out.
    for path, hint, value in leaves(TrainerConfig()):
        if get_origin(hint) is types.UnionType and types.NoneType in get_args(hint):
            assert value is None, path
        else:
            assert value is not None, path


def test_every_field_has_one_line_of_documentation() -> None:
    source = inspect.getsource(config_module).splitlines()
    declared = {path.rpartition(".")[2] for path, _, _ in leaves(TrainerConfig())}
    for number, line in enumerate(source):
        name = line.strip().partition(":")[0]
        if line.startswith("    ") and name in declared and ": " in line:
            documentation = source[number + 1].strip()
            assert documentation.startswith('"""'), name
            assert documentation.endswith('."""'), name


def test_a_field_is_found_by_its_path() -> None:
    assert value_at(TrainerConfig(), "learning.discount") == 0.99


def test_the_command_line_starts_without_torch_and_without_gymnasium() -> None:
    program = (
        "import sys, orchestrator.__main__, orchestrator.command.cli;"
        "print([name for name in ('torch', 'gymnasium', 'numpy') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
