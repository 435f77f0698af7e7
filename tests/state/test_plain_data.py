"""What a checkpoint keeps as plain data comes back as it was, or is refused with its place."""

from __future__ import annotations

import json
from collections import namedtuple
from enum import IntEnum
from typing import Any

import numpy as np
import pytest
import torch

from state.plain_data import decode, encode


class Level(IntEnum):
    LOW = 1


@pytest.mark.parametrize(
    "value",
    [np.float32(0.1), np.int8(3), np.bool_(True), np.datetime64("2020-01-01"), (1, [2.5, None]), {"a": ("x", True)}],
)
def test_values_come_back_with_their_types(value: Any) -> None:
    arrays: dict[str, Any] = {}
    restored = decode(json.loads(json.dumps(encode(value, arrays))), arrays)
    assert type(restored) is type(value)
    assert restored == value


def test_tensors_come_back_with_type_and_shape() -> None:
    arrays: dict[str, Any] = {}
    value = torch.arange(6, dtype=torch.bfloat16).reshape(2, 3)
    assert torch.equal(decode(json.loads(json.dumps(encode(value, arrays))), arrays), value)


@pytest.mark.parametrize(
    "value", [Level.LOW, namedtuple("Pair", "a b")(1, 2), {1: 2}, {"$array": "0"}, object(), {1, 2}]
)
def test_what_would_come_back_as_something_else_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(TypeError, match=r"learner\.losses\[1\]"):
        encode({"losses": [0, value]}, {}, "learner")
