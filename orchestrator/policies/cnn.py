"""Convolutional networks: the policy for images, alone or with other observations in a Dict."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import gymnasium
import numpy as np
import torch
from gymnasium import spaces as gymnasium_spaces
from torch import Tensor, nn
from torch.nn import functional as F

from orchestrator.policies.flatten import FlatObservation
from orchestrator.policies.heads import ActionHead
from orchestrator.policies.initialization import ACTOR_GAIN, CRITIC_GAIN, HIDDEN_GAIN, orthogonal
from orchestrator.policies.mlp import Dense
from orchestrator.policies.network import NetworkError, Observation, Spaces

_SMALLEST_SIDE = 5
_FEATURES = 512


@dataclass(frozen=True, slots=True)
class _Convolution:
    channels: int
    kernel: int
    stride: int
    padding: int = 0

    def output_side(self, side: int) -> int:
        return (side + 2 * self.padding - self.kernel) // self.stride + 1


# Mnih et al. 2015, made for 84 x 84; its first layers need 36 pixels.
_NATURE_SMALLEST_SIDE = 36
_NATURE = (_Convolution(32, 8, 4), _Convolution(64, 4, 2), _Convolution(64, 3, 1))
# For grid worlds and the like, where single pixels matter.
_SMALL = (_Convolution(32, 3, 1, 1), _Convolution(64, 3, 2, 1), _Convolution(64, 3, 2, 1))


@dataclass(frozen=True, slots=True)
class ImageLayout:
    """Where channels, rows and columns are in an image `[height, width, channels]`, `[channels, height, width]` or
    `[height, width]`."""

    channels: int
    height: int
    width: int
    channel_axis: int | None
    scaled: bool
    """Whether pixels are bytes, to be divided by 255."""

    @classmethod
    def of(cls, space: gymnasium.Space[Any]) -> ImageLayout | None:
        """The layout of an observation of `space`; None where it is no image: not a Box with three axes (or, of
        bytes, two), or one with a side under 5."""
        if not isinstance(space, gymnasium_spaces.Box):
            return None
        shape, scaled = space.shape, space.dtype == np.uint8
        if len(shape) == 2 and scaled:
            layout = cls(1, *shape, None, scaled)
        elif len(shape) == 3:
            layout = cls._with_channels(shape, scaled)
        else:
            return None
        return layout if min(layout.height, layout.width) >= _SMALLEST_SIDE else None

    @classmethod
    def _with_channels(cls, shape: tuple[int, ...], scaled: bool) -> ImageLayout:
        # A square names its channels; otherwise they are the shorter of the outer axes.
        first, middle, last = shape
        square_last, square_first = first == middle, middle == last
        if (square_last and not square_first) or (square_last == square_first and last <= first):
            return cls(last, first, middle, 2, scaled)
        return cls(first, middle, last, 0, scaled)

    def channels_first(self, image: Tensor) -> Tensor:
        """`[n, *shape]` to a view `[n, channels, height, width]`."""
        if self.channel_axis is None:
            return image.unsqueeze(1)
        return image.permute(0, 3, 1, 2) if self.channel_axis == 2 else image


def has_images(space: gymnasium.Space[Any]) -> bool:
    """Whether an observation is an image or a Dict with at least one."""
    if isinstance(space, gymnasium_spaces.Dict):
        return any(ImageLayout.of(part) is not None for part in space.values())
    return ImageLayout.of(space) is not None


class Convolutions(nn.Module):
    """Three convolutions of images `[n, *shape]`, flattened to `[n, size]`: those of Mnih et al. 2015, or smaller ones
    where a side is under 36 pixels."""

    def __init__(self, layout: ImageLayout) -> None:
        super().__init__()
        self._layout = layout
        large = min(layout.height, layout.width) >= _NATURE_SMALLEST_SIDE
        self._plan = _NATURE if large else _SMALL
        self.layers = nn.ModuleList()
        channels, height, width = layout.channels, layout.height, layout.width
        for step in self._plan:
            layer = nn.Conv2d(channels, step.channels, step.kernel, step.stride, step.padding)
            layer.weight = nn.Parameter(orthogonal(*layer.weight.shape, gain=HIDDEN_GAIN))
            nn.init.zeros_(cast("Tensor", layer.bias))
            self.layers.append(layer)
            channels, height, width = step.channels, step.output_side(height), step.output_side(width)
        self.size = channels * height * width

    def forward(self, image: Tensor) -> Tensor:
        # Backward through channels-last memory takes two thirds of the time; forward alone is no faster by it.
        memory_format = torch.channels_last if torch.is_grad_enabled() else torch.preserve_format
        device = image.device.type
        # At once what convolutions compute with: bytes are exact in bfloat16, too.
        converts = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if converts else torch.float32
        x = self._layout.channels_first(image).to(dtype=dtype, memory_format=memory_format)
        for index, (step, layer) in enumerate(zip(self._plan, self.layers, strict=True)):
            assert isinstance(layer, nn.Conv2d)
            # Scaling the weights instead of the pixels is the same, and touches a hundredth of the memory.
            weight = layer.weight / 255.0 if index == 0 and self._layout.scaled else layer.weight
            x = torch.relu_(F.conv2d(x, weight, layer.bias, step.stride, step.padding))
        return x.flatten(1)


class ImageEncoder(nn.Module):
    """Observations `[n, ...]` to `[n, size]`: convolutions of each image, joined with whatever else a Dict has, and one
    fully connected layer. Raises NetworkError where there is no image."""

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        space = spaces.observation
        parts = dict(space.spaces) if isinstance(space, gymnasium_spaces.Dict) else {"": space}
        images = {key: layout for key, part in sorted(parts.items()) if (layout := ImageLayout.of(part)) is not None}
        if not images:
            raise NetworkError(
                "the network 'cnn' needs an image to look at: a Box [height, width, channels] or [channels, height,"
                f" width], or [height, width] of uint8, with sides of at least {_SMALLEST_SIDE}, alone or in a Dict;"
                f" the observation space is {space}: use 'mlp' or 'lstm' for it"
            )
        self._images = tuple(images)
        self.convolutions = nn.ModuleList(Convolutions(layout) for layout in images.values())
        others = {key: part for key, part in parts.items() if key not in images}
        self._flatten = FlatObservation(gymnasium_spaces.Dict(others)) if others else None
        joined = sum(part.size for part in self.convolutions if isinstance(part, Convolutions))
        joined += self._flatten.size if self._flatten is not None else 0
        self.size = _FEATURES
        self.layer = Dense((joined, self.size), "relu")

    def forward(self, observation: Observation) -> Tensor:
        if isinstance(observation, Tensor):
            return self.layer(self.convolutions[0](observation))
        parts = [net(observation[key]) for key, net in zip(self._images, self.convolutions, strict=True)]
        if self._flatten is not None:
            parts.append(self._flatten(observation))
        return self.layer(torch.cat(parts, 1))


class CNN(nn.Module):
    """An actor and a critic that share the encoder of images (Mnih et al. 2016)."""

    capturable = True

    def __init__(self, spaces: Spaces) -> None:
        super().__init__()
        self.encoder = ImageEncoder(spaces)
        self.head = ActionHead(spaces)
        self.actor = Dense((self.encoder.size, self.head.outputs), "relu", ACTOR_GAIN)
        self.critic = Dense((self.encoder.size, 1), "relu", CRITIC_GAIN)

    def forward(self, observation: Observation) -> tuple[Tensor, Tensor]:
        features = self.encoder(observation)
        return self.head(self.actor(features)), self.critic(features).squeeze(-1)
